"""The models that come with the package: nothing needs a download to draw a first picture."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from app.core.catalog import BUILTIN
from app.embedded import tiny_ovis

#: Name after ``builtin:`` -> (version of the file, writer).
MODELS: Final[Mapping[str, tuple[int, Callable[[Path], None]]]] = {
    "tiny-ovis": (tiny_ovis.VERSION, tiny_ovis.write),
}


def materialise(location: str, cache_dir: Path) -> Path:
    """The file of a location in models.yaml, making it first when it is a built-in one.

    Args:
        location: A path, or ``builtin:NAME``.
        cache_dir: Where built-in files are kept.

    Raises:
        KeyError: No built-in model has that name.
    """
    if not location.startswith(BUILTIN):
        return Path(location)
    name = location.removeprefix(BUILTIN)
    version, write = MODELS[name]
    target = cache_dir / f"{name}-v{version}.gguf"
    if not target.exists():
        _write_atomically(target, write)
    return target


def _write_atomically(target: Path, write: Callable[[Path], None]) -> None:
    """Write beside the target and rename: readers and rival writers see all of it or nothing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=target.stem, suffix=".part")
    os.close(handle)
    part = Path(name)
    try:
        write(part)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
