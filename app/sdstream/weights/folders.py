"""Files on disk, and those in the operator's own folders: LoRAs, embeddings and upscalers."""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath
from typing import Final

_ENDINGS: Final = (".safetensors", ".gguf")
#: Endings of pickles, which may execute code when read. They are listed but never read.
PICKLES: Final = (".pth", ".pt", ".ckpt", ".bin")
#: Maximum depth of subfolders.
_MAX_DEPTH: Final = 8


def expanded(path: Path | str) -> Path:
    """Return a path with the home folder in place of ``~``; unchanged for an unknown user.

    Path.expanduser raises RuntimeError for a user who does not exist.
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111


def size_of(path: Path) -> int | None:
    """Return the size of a file in bytes; None if it does not exist or cannot be reached.

    Path.is_file raises PermissionError if its folder may not be entered.
    """
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def weight_files(folder: Path | str | None) -> dict[str, Path]:
    """Return name -> file for all weights in the folder; empty if the folder does not exist.

    The name of a file in a subfolder begins with the subfolder: "styles/ink". Requests select files
    only by these names, so text from a client is never used as a path. If two files have the same
    name, the result has the one that ``hider`` returns for the other.
    """
    return {name_of(file): path for file, path in _files(folder, _ENDINGS).items()}


def candidate_files(folder: Path | str | None) -> dict[str, Path]:
    """Return relative path -> file for weights, and for pickles that may contain weights."""
    return _files(folder, _ENDINGS + PICKLES)


def name_of(file: str) -> str:
    """Return the name of a file: its relative path without the ending."""
    return str(PurePosixPath(file).with_suffix(""))


def hider(path: Path) -> Path | None:
    """Return the file that has the same name with another ending and is used instead."""
    others = (
        path.with_suffix(spelling)
        for ending in _ENDINGS
        if ending != path.suffix.lower()
        for spelling in (ending, ending.upper())
    )
    return next((other for other in others if other > path and other.is_file()), None)


def name_problem(file: str) -> str | None:
    """Return why no request can name a file, as a predicate; None if one can."""
    try:
        file.encode()
    except UnicodeEncodeError:  # the file system gave bytes that are not UTF-8
        return "has a name that is not UTF-8: rename it"
    return None


def _files(folder: Path | str | None, endings: tuple[str, ...]) -> dict[str, Path]:
    """Return relative path -> file for files with these endings in any case, sorted by path."""
    found: dict[str, Path] = {}
    if folder is None:
        return found
    seen = set()
    # Subfolders may be links to other disks. A link that leads back to a folder is visited once.
    for place, folders, names in os.walk(folder, followlinks=True):
        here = Path(place)
        depth = len(here.relative_to(folder).parts)
        folders[:] = [n for n in folders if not n.startswith(".") and depth < _MAX_DEPTH]
        real = here.resolve()
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        for name in names:
            path = here / name
            hidden = name.startswith(".")
            if not hidden and path.suffix.lower() in endings and size_of(path) is not None:
                found[path.relative_to(folder).as_posix()] = path
    return dict(sorted(found.items()))
