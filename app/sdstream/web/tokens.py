"""Short-lived tokens for URLs: for one path, or for everything that an owner may read.

EventSource and <img> cannot send an Authorization header, and an API key in a URL would end up in
logs and browser histories. A token is valid for an hour, and for GET and HEAD requests only.
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
    """Issues and verifies tokens: ``base64url(HMAC | expiry:path:owner)``.

    Args:
        secret: Returns the secret, which all servers with the same store share.
        clock: Returns the time in Unix seconds.
    """

    def __init__(self, secret: Callable[[], bytes], clock: Callable[[], float]) -> None:
        self._secret = secret
        self._clock = clock

    def issue(self, owner: str, path: str = "") -> tuple[str, int]:
        """Return a token for an owner, and the Unix second in which it expires.

        Args:
            owner: The owner whose data the token opens.
            path: The only path that the token opens; empty for all paths.
        """
        expires = int(self._clock()) + LIFETIME_SECONDS
        words = f"{expires}:{path}:{owner}".encode()
        return base64.urlsafe_b64encode(self._sign(words) + words).decode().rstrip("="), expires

    def owner(self, token: str, path: str = "") -> str | None:
        """Return the owner of a token; None if it is invalid, expired or for another path.

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
