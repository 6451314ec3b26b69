"""The built-in model and its upscaler, so that the first image needs no download.

The model is a compressed file in this folder. Its card, a JSON file, describes the model, its
training and its quality. scripts/embedded creates all of these files.
"""

from __future__ import annotations

import hashlib
import json
import lzma
from functools import cache
from pathlib import Path
from typing import Any, Final

from sdstream.atomic import write_atomically
from sdstream.core.locations import BUILTIN
from sdstream.core.vocabulary import Vocabulary

#: Names after ``builtin:``; each has a compressed file and a card in this folder.
MODELS: Final = ("drawings",)

#: Name -> upscaling factor; each has a safetensors file in this folder.
UPSCALERS: Final = {"drawings-4x": 4}

#: Share of right images from which on no warning is necessary.
_RELIABLE: Final = 0.9

_LANDSCAPES: Final = (
    "night mountain mountains snow snowy sea ocean water lake beach hill hills meadow field "
    "countryside desert dunes city skyline town skyscrapers buildings forest woods pine"
)
#: Words that stand without a number in captions of landscapes only -> words of these captions.
_SCENERY: Final = {
    "many": frozenset(_LANDSCAPES.split()),
    "stars": frozenset(_LANDSCAPES.split()),
    "trees": frozenset({"pine"}),
}

_FOLDER: Final = Path(__file__).parent


def upscaler_file(name: str) -> Path | None:
    """Return the file of a built-in upscaler; None for other names."""
    return _FOLDER / f"{name}.safetensors" if name in UPSCALERS else None


def materialise(location: str, cache_dir: Path) -> Path:
    """Return the file of a location in models.yaml; unpack a built-in file first.

    Args:
        location: A path, or ``builtin:NAME``.
        cache_dir: Folder to which a built-in file is unpacked if it is missing or damaged there.

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
    # The unpacked file may have been truncated or changed, so its checksum is compared.
    if not target.exists() or _sha256(target.read_bytes()) != checksum:
        data = _decompressed((_FOLDER / f"{name}.gguf.xz").read_bytes())
        if _sha256(data) != checksum:
            raise ValueError(f"the packed model '{name}' differs from its card")
        cache_dir.mkdir(parents=True, exist_ok=True)
        write_atomically(target, data)
    return target


@cache
def vocabularies() -> dict[str, Vocabulary]:
    """Return location -> vocabulary for each built-in model."""
    return {f"{BUILTIN}{name}": _vocabulary(_card(name)) for name in MODELS}


def _vocabulary(card: dict[str, Any]) -> Vocabulary:
    scores = card["group_scores"]
    return Vocabulary(
        words=frozenset(card["words"]),
        subjects=(*card["objects"], "landscapes"),
        colours=card["colours"],
        names=card["names"],
        scenery=_SCENERY,
        knows_groups=bool(scores) and scores["shares"]["everything"] >= _RELIABLE,
    )


@cache
def checksum_of(name: str) -> str:
    """Return the SHA-256 of a built-in model's unpacked file in hex."""
    checksum: str = _card(name)["files"]["model.gguf"]["sha256"]
    return checksum


def _card(name: str) -> dict[str, Any]:
    card: dict[str, Any] = json.loads((_FOLDER / f"{name}.json").read_text())
    return card


def _decompressed(packed: bytes) -> bytes:
    """Return the contents of an xz file; nothing if the file is damaged."""
    try:
        return lzma.decompress(packed)
    except lzma.LZMAError:
        return b""


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
