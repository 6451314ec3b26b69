"""Image files that MCP clients over stdio name by path; all are in one folder."""

from __future__ import annotations

import base64
import os
import stat
from pathlib import Path
from typing import Final

from sdstream.dialects.mcp.arguments import PICTURES, Picture, pictures_of
from sdstream.dialects.rendering import JsonObject

#: Larger files are rejected before they are read.
_MAX_BYTES: Final = 64 * 2**20


def with_files(tool: str, arguments: JsonObject, root: Path) -> JsonObject:
    """Return arguments in which each path is replaced by the file in base64.

    Args:
        tool: Name of the tool.
        arguments: Arguments from the client.
        root: The resolved folder. Paths are relative to it, or absolute and inside it.

    Raises:
        InvalidRequest: A path is outside the folder, or its file cannot be read.
    """
    if not any(arguments.get(name) is not None for name in PICTURES):
        return arguments
    texts: dict[str, list[str]] = {}
    for picture in pictures_of(tool, arguments):
        text = _read(picture, root) if picture.is_path else picture.text
        texts.setdefault(picture.param, []).append(text)
    return {
        **arguments,
        **{name: found if name == "image" else found[0] for name, found in texts.items()},
    }


def _read(picture: Picture, root: Path) -> str:
    shown = f"names the file '{picture.text[:128]}', which"
    try:
        path = (root / picture.text).resolve()
    except (OSError, ValueError, RuntimeError):
        raise picture.rejected(f"{shown} cannot be found.") from None
    # Check this first, so that the error does not reveal which files exist outside the folder.
    if not path.is_relative_to(root):
        raise picture.rejected(f"{shown} is outside of the folder given by --root.")
    try:
        data = _bytes_of(path)
    except FileNotFoundError:
        raise picture.rejected(f"{shown} cannot be found.") from None
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise picture.rejected(f"{shown} cannot be read: {why}.") from None
    if data is None:
        size = _MAX_BYTES // 2**20
        raise picture.rejected(f"{shown} is not a regular file of at most {size} MiB.")
    return base64.b64encode(data).decode()


def _bytes_of(path: Path) -> bytes | None:
    """Return the content of a resolved path, None for folders, devices and large files."""
    # Follow no link: the path was resolved, so a link must have been created after that.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > _MAX_BYTES:
            return None
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(_MAX_BYTES)
    finally:
        os.close(descriptor)
