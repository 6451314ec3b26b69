"""Is a weight file whole, and is the text encoder in it? Asked before the runtime loads it.

The runtime takes a missing text encoder with a warning and dies of SIGSEGV on the first prompt,
so the question is settled here by the headers of the files, which costs no reading of weights.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from gguf import GGUFReader

from app.core.errors import Reason
from app.engine.engine import EngineError

#: Each text encoder is known by its table of token rows, whatever the file's prefix is.
_TOKEN_ROWS: Final = {
    "clip": ("text_model.embeddings.token_embedding.weight", "model.token_embedding.weight"),
    "t5": ("shared.weight", "encoder.embed_tokens.weight", "token_embd.weight"),
    "llm": ("embed_tokens.weight", "token_embd.weight"),
}

_NAMES: Final = {"clip": "CLIP", "t5": "T5", "llm": "language model"}

_MAX_HEADER: Final = 100 * 2**20


def check(files: Mapping[str, Path], encoders: Iterable[str]) -> None:
    """Verify the files of one model.

    Args:
        files: Component of models.yaml to file.
        encoders: The text encoders that the family needs: "clip", "t5", "llm".

    Raises:
        EngineError: With a sentence that names the component at fault.
    """
    names: set[str] = set()
    for component, path in files.items():
        names |= tensor_names(component, path)
    for encoder in encoders:
        if not any(name.endswith(_TOKEN_ROWS[encoder]) for name in names):
            raise EngineError(
                Reason.MODEL_UNAVAILABLE,
                f"No weights of the {_NAMES[encoder]} text encoder are in the model's files.",
            )


def tensor_names(component: str, path: Path) -> set[str]:
    """The tensors that the file's header lists, after checking that the file holds them all."""
    try:
        with path.open("rb") as file:
            magic = file.read(8)
    except OSError as error:
        raise _broken(component, f"cannot be read ({error.strerror})") from None
    if not magic:
        raise _broken(component, "is empty")
    if magic[:4] == b"GGUF":
        return _gguf_names(component, path)
    if path.suffix == ".safetensors":
        return _safetensors_names(component, path, magic)
    raise _broken(component, "is neither GGUF nor safetensors")


def _gguf_names(component: str, path: Path) -> set[str]:
    try:
        tensors = GGUFReader(path).tensors
    # The reader meets damage as an index, a reshape or an enum that fails: any of these means
    # that the file is not what its header says.
    except Exception:
        raise _broken(component, "is damaged or cut short") from None
    size = path.stat().st_size
    if any(int(t.data_offset) + int(t.n_bytes) > size for t in tensors):
        raise _broken(component, "is cut short")
    return {str(t.name) for t in tensors}


def _safetensors_names(component: str, path: Path, magic: bytes) -> set[str]:
    size = path.stat().st_size
    length = struct.unpack("<Q", magic)[0] if len(magic) == 8 else 0
    if not 2 <= length <= min(size - 8, _MAX_HEADER):
        raise _broken(component, "is damaged or cut short")
    with path.open("rb") as file:
        file.seek(8)
        try:
            header = json.loads(file.read(length))
            ends = [v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"]
        except (ValueError, LookupError, TypeError, AttributeError):
            raise _broken(component, "is damaged") from None
    if not ends or 8 + length + max(ends) > size:
        raise _broken(component, "is cut short")
    return set(header) - {"__metadata__"}


def _broken(component: str, what: str) -> EngineError:
    return EngineError(Reason.MODEL_UNAVAILABLE, f"The file of '{component}' {what}.")
