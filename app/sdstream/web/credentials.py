"""The API key that a request carries, and the owner that its jobs are stored under."""

from __future__ import annotations

import base64
import hashlib

from starlette.requests import Request


def offered_key(request: Request) -> str:
    """The API key that a request carries, empty without one."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    offered = token.strip() if scheme.lower() == "bearer" else ""
    if scheme.lower() == "basic":
        offered = _password(token)
    return offered or request.headers.get("x-api-key", "")


def _password(token: str) -> str:
    """The password of HTTP Basic, which is all that AUTOMATIC1111's clients can send."""
    try:
        return base64.b64decode(token).decode().partition(":")[2]
    except ValueError:
        return ""


def owner_of(key: str) -> str:
    """What an API key's jobs are kept under: a digest, since the disk needs no keys."""
    return hashlib.sha256(key.encode()).hexdigest()[:32]
