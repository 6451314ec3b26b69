"""Reads the API key of a request, and makes the digest from which the store derives an owner."""

from __future__ import annotations

import base64
import hashlib
from typing import Final

from starlette.requests import Request

#: Azure's clients send the second header.
_KEY_HEADERS: Final = ("x-api-key", "api-key")


def offered_key(request: Request) -> str:
    """Return the API key of a request, or an empty string without one."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    offered = token.strip() if scheme.lower() == "bearer" else ""
    if scheme.lower() == "basic":
        offered = _password(token)
    every = (offered, *(request.headers.get(name, "") for name in _KEY_HEADERS))
    return next(filter(None, every), "")


def _password(token: str) -> str:
    """Return the password of HTTP Basic, the only scheme of AUTOMATIC1111's clients."""
    try:
        return base64.b64decode(token).decode().partition(":")[2]
    except ValueError:
        return ""


def digest_of(key: str) -> str:
    """Return a digest that identifies an API key but does not reveal it."""
    return hashlib.sha256(key.encode()).hexdigest()[:32]
