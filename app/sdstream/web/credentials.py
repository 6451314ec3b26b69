"""The API key that a request carries, and its digest, of which the store makes an owner."""

from __future__ import annotations

import base64
import hashlib
from typing import Final

from starlette.requests import Request

#: The second is Azure's.
_KEY_HEADERS: Final = ("x-api-key", "api-key")


def offered_key(request: Request) -> str:
    """The API key that a request carries, empty without one."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    offered = token.strip() if scheme.lower() == "bearer" else ""
    if scheme.lower() == "basic":
        offered = _password(token)
    every = (offered, *(request.headers.get(name, "") for name in _KEY_HEADERS))
    return next(filter(None, every), "")


def _password(token: str) -> str:
    """The password of HTTP Basic, which is all that AUTOMATIC1111's clients can send."""
    try:
        return base64.b64decode(token).decode().partition(":")[2]
    except ValueError:
        return ""


def digest_of(key: str) -> str:
    """What stands for an API key where the key itself is not needed."""
    return hashlib.sha256(key.encode()).hexdigest()[:32]
