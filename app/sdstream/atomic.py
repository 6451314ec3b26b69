"""Writes files so that no other process sees a part of one."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_atomically(target: Path, data: bytes) -> None:
    """Write a temporary file beside the target, for this user only, and rename it to the target.

    Raises:
        OSError: The folder does not exist, or the file cannot be written; the target is unchanged.
    """
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=target.stem, suffix=".part")
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
