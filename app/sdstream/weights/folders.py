"""Files in the operator's own folders: LoRAs, embeddings and upscalers."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Final

_ENDINGS: Final = (".safetensors", ".gguf")
#: Endings of pickles, which may execute code when read. They are listed but never read.
PICKLES: Final = (".pth", ".pt", ".ckpt", ".bin")
#: Maximum depth of subfolders.
_MAX_DEPTH: Final = 8


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
            # Path.is_file raises an error in a folder whose files may be listed but not opened.
            if not hidden and path.suffix.lower() in endings and os.path.isfile(path):  # noqa: PTH113
                found[path.relative_to(folder).as_posix()] = path
    return dict(sorted(found.items()))
