"""Who may read a data folder, and the secret by which its jobs' owners are kept.

Prompts and pictures are their owner's business: folders are for the server's user alone, and so are
files, also those of an earlier release. The owner of a job is an HMAC of a digest of an API key: a
copy of the database alone does not let anybody try keys against it.
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
#: Of the secret that owners and tokens depend on.
SECRET_BYTES: Final = 32


def close_folder(folder: Path, *patterns: str) -> None:
    """Make a folder if it is not there, and keep all other users out of it and of its files.

    Args:
        folder: Of this program.
        patterns: Its files; what else lies there is left alone.

    Raises:
        OSError: It cannot be made or read.
    """
    folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
    _set_mode(folder, _FOLDER_MODE)
    for pattern in patterns:
        for path in folder.glob(pattern):
            if not path.is_symlink():  # what it leads to belongs to somebody else, or is gone
                _set_mode(path, _FILE_MODE)


def make_file(path: Path) -> None:
    """Make an empty file for the server's user alone, if it is not there."""
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, _FILE_MODE))


def secret_of(folder: Path) -> bytes:
    """The secret of a data folder, made with the first look.

    Raises:
        OSError: It cannot be made or read.
        ValueError: The file is not what this program wrote.
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
    """The owner that a digest of an API key stands for; nobody's jobs stay nobody's."""
    if not digest:
        return ""
    return hmac.digest(secret, digest.encode(), hashlib.sha256).hex()[: len(digest)]


def token_secret(secret: bytes) -> bytes:
    """Return the secret that tokens of URLs are signed with, 32 bytes."""
    return hmac.digest(secret, b"tokens", hashlib.sha256)


def _set_mode(path: Path, mode: int) -> None:
    try:
        if path.stat().st_mode & 0o777 != mode:
            path.chmod(mode)
    except PermissionError:
        # As of a volume that belongs to another user and is written by group.
        logger.warning("other users may be able to read %s: its mode cannot be changed", path)
