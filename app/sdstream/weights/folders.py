"""Files that the operator puts beside the models: LoRAs, embeddings, upscalers."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Final

_ENDINGS: Final = (".safetensors", ".gguf")
#: Endings of weights in forms that are programs; the files are listed and never read.
PICKLES: Final = (".pth", ".pt", ".ckpt", ".bin")
#: Folders below the operator's own.
_MAX_DEPTH: Final = 8


def weight_files(folder: Path | str | None) -> dict[str, Path]:
    """Return name -> file of all weights in the folder; empty when there is no such folder.

    The name of a file in a subfolder begins with it: "styles/ink". Requests choose by these names
    alone: what a client sends never becomes a path.
    """
    return {name_of(file): path for file, path in _files(folder, _ENDINGS).items()}


def candidate_files(folder: Path | str | None) -> dict[str, Path]:
    """Return path below the folder -> file of weights, and of pickles that may be weights."""
    return _files(folder, _ENDINGS + PICKLES)


def name_of(file: str) -> str:
    """Return the name of a file of ``candidate_files``: its path without the ending."""
    return str(PurePosixPath(file).with_suffix(""))


def _files(folder: Path | str | None, endings: tuple[str, ...]) -> dict[str, Path]:
    """Return the files by their path below the folder, sorted by that path."""
    found: dict[str, Path] = {}
    if folder is None:
        return found
    seen = set()
    # Folders may be links to disks with more room; one that leads back is visited once.
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
            if path.suffix in endings and path.is_file():
                found[path.relative_to(folder).as_posix()] = path
    return dict(sorted(found.items()))
