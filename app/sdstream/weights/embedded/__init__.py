"""What comes with the package: a model and its upscaler, so that a first image needs no download.

The model is packed beside this file with a card that describes what it is, how it was made and how
well it generates; scripts/embedded made all of it.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, Final

from sdstream.core.locations import BUILTIN
from sdstream.core.vocabulary import Vocabulary

#: Names after ``builtin:``; each is a packed file and a card in this folder.
MODELS: Final = ("drawings",)

#: Name -> how many times it enlarges; each is a file of safetensors in this folder.
UPSCALERS: Final = {"drawings-4x": 4}

_FOLDER: Final = Path(__file__).parent


def upscaler_file(name: str) -> Path | None:
    """Return the file of an upscaler of the package; None for other names."""
    return _FOLDER / f"{name}.safetensors" if name in UPSCALERS else None


def materialise(location: str, cache_dir: Path) -> Path:
    """The file of a location in models.yaml, unpacking it first when it is a built-in one.

    Args:
        location: A path, or ``builtin:NAME``.
        cache_dir: Where built-in files are unpacked to, once.

    Raises:
        KeyError: No built-in model has that name.
        OSError: The cache folder cannot be written.
        ValueError: The packed file is damaged.
    """
    if not location.startswith(BUILTIN):
        return Path(location)
    name = location.removeprefix(BUILTIN)
    if name not in MODELS:
        raise KeyError(name)
    checksum = checksum_of(name)
    target = cache_dir / f"{name}-{checksum[:16]}.gguf"
    # A file that was cut or changed since is as good as none.
    if not target.exists() or _sha256(target.read_bytes()) != checksum:
        data = lzma.decompress((_FOLDER / f"{name}.gguf.xz").read_bytes())
        if _sha256(data) != checksum:
            raise ValueError(f"the packed model '{name}' differs from its card")
        _write_atomically(target, data)
    return target


@cache
def vocabularies() -> dict[str, Vocabulary]:
    """Return the location of each built-in model -> the words that it was taught."""
    cards = {name: _card(name) for name in MODELS}
    return {
        f"{BUILTIN}{name}": Vocabulary(frozenset(card["words"]), (*card["objects"], "landscapes"))
        for name, card in cards.items()
    }


def checksum_of(name: str) -> str:
    """Return the SHA-256 of a built-in model's unpacked file in hex."""
    checksum: str = _card(name)["files"]["model.gguf"]["sha256"]
    return checksum


def _card(name: str) -> dict[str, Any]:
    card: dict[str, Any] = json.loads((_FOLDER / f"{name}.json").read_text())
    return card


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write_atomically(target: Path, data: bytes) -> None:
    """Write beside the target and rename: readers and rival writers see all of it or nothing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=target.stem, suffix=".part")
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
