"""Permissions of a data folder, and the secret that hides the owners of its jobs.

Prompts and images are private: only the server's user may read the folders and files, including
those that an earlier release created. The owner of a job is an HMAC of the digest of an API key, so
that keys cannot be guessed from a copy of the database without the secret.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
from pathlib import Path
from typing import Final

logger = logging.getLogger(__name__)

_FOLDER_MODE: Final = 0o700
_FILE_MODE: Final = 0o600
#: Length of the secret from which owners and tokens are derived.
SECRET_BYTES: Final = 32


def close_folder(folder: Path, *patterns: str) -> None:
    """Create a folder if it does not exist; deny other users access to it and to its files.

    Args:
        folder: A folder of this program.
        patterns: Patterns of its files; other files keep their permissions.

    Raises:
        OSError: The folder cannot be created or read.
    """
    folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
    _set_mode(folder, _FOLDER_MODE)
    for pattern in patterns:
        for path in folder.glob(pattern):
            if not path.is_symlink():  # a link's target is not a file of this program
                _set_mode(path, _FILE_MODE)


def make_file(path: Path) -> None:
    """Create an empty file for the server's user only, if it does not exist."""
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, _FILE_MODE))


def secret_of(folder: Path) -> bytes:
    """Return the secret of a data folder; the first call creates it.

    Raises:
        OSError: The secret cannot be created or read.
        ValueError: The file has the wrong length.
    """
    path = folder / "secret"
    if not path.exists():
        part = folder / "secret.part"
        part.unlink(missing_ok=True)
        make_file(part)
        with part.open("wb") as file:
            file.write(secrets.token_bytes(SECRET_BYTES))
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    secret = path.read_bytes()
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"{path} is damaged: it has {len(secret)} bytes, not {SECRET_BYTES}")
    return secret


def sealed(secret: bytes, digest: str) -> str:
    """Return the owner for the digest of an API key; empty for an empty digest (no key)."""
    if not digest:
        return ""
    return hmac.digest(secret, digest.encode(), hashlib.sha256).hex()[: len(digest)]


def token_secret(secret: bytes) -> bytes:
    """Return the 32-byte secret that signs the tokens in URLs."""
    return hmac.digest(secret, b"tokens", hashlib.sha256)


def public_name(secret: bytes) -> str:
    """Return a name that all servers with this secret share, and that does not reveal it."""
    return hmac.digest(secret, b"name", hashlib.sha256).hex()


def _set_mode(path: Path, mode: int) -> None:
    try:
        if path.stat().st_mode & 0o777 != mode:
            path.chmod(mode)
    except PermissionError:
        # For example, another user owns the volume and the server's group may write to it.
        logger.warning("the mode of %s cannot be changed; other users may be able to read it", path)
