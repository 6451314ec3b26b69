"""Short-lived tokens for URLs, of all that an owner may read or of one path.

EventSource and <img> can send no Authorization header, and an API key in a URL ends up in logs and
histories. A token is good for GETs only, and for an hour.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable
from typing import Final

LIFETIME_SECONDS: Final = 3600

_DIGEST: Final = hashlib.sha256
_DIGEST_BYTES: Final = 32


class Tokens:
    """Issues and reads tokens: ``base64url(expiry:path:owner | HMAC)``.

    Args:
        secret: Returns random bytes, the same for each server of the service.
        clock: Unix seconds.
    """

    def __init__(self, secret: Callable[[], bytes], clock: Callable[[], float]) -> None:
        self._secret = secret
        self._clock = clock

    def issue(self, owner: str, path: str = "") -> tuple[str, int]:
        """Return a token that stands for an owner, and the Unix second until which it does.

        Args:
            owner: The owner that the token stands for.
            path: The one path that it opens; empty for all.
        """
        expires = int(self._clock()) + LIFETIME_SECONDS
        words = f"{expires}:{path}:{owner}".encode()
        return base64.urlsafe_b64encode(self._sign(words) + words).decode().rstrip("="), expires

    def owner(self, token: str, path: str = "") -> str | None:
        """Return the owner that a token stands for; None when it is invalid or expired.

        Args:
            token: As the client sent it.
            path: The requested path.
        """
        try:
            raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
            signature, words = raw[:_DIGEST_BYTES], raw[_DIGEST_BYTES:]
            if not hmac.compare_digest(signature, self._sign(words)):
                return None
            expires, scope, owner = words.decode().split(":", 2)
            return owner if int(expires) >= self._clock() and scope in ("", path) else None
        except ValueError:
            return None

    def _sign(self, words: bytes) -> bytes:
        return hmac.digest(self._secret(), words, _DIGEST)
