"""Preparation of the textual-inversion embeddings of the operator's folder for the runtime.

The runtime does not check embeddings. It silently ignores an embedding of another width. It reads
all embeddings as 32-bit floats, and may read beyond the end of the memory of other types. This
module therefore leaves unsuitable embeddings out and logs a warning. It copies the others as 32-bit
floats; each copy has a few kilobytes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import struct
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from sdstream.atomic import write_atomically
from sdstream.weights import architectures, headers
from sdstream.weights.headers import BadFile, Tensor

logger = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]

#: Family -> widths of its text encoders that read embeddings.
_WIDTHS: Final[Mapping[str, frozenset[int]]] = {
    "sd1": frozenset({768}),
    "sd2": frozenset({1024}),
    "sdxl": frozenset({768, 1280}),
}
#: Name of a type -> name of the type in numpy.
_TYPES: Final[Mapping[str, str]] = {"f32": "<f4", "f16": "<f2"}
#: Maximum size of a tensor, enough for more than a thousand vectors of the widest encoder.
_MAX_BYTES: Final = 8 * 2**20


def prepared_embeddings(files: Mapping[str, Path], family: str, folder: Path) -> dict[str, Path]:
    """Return word -> copied file for each embedding that fits a family.

    Args:
        files: Name -> file. The word in prompts is the name in lower case, without its folder.
        family: A family whose text encoders are all CLIP.
        folder: Folder for the copies; created if necessary.
    """
    found: dict[str, Path] = {}
    for name, path in files.items():
        word = name.rpartition("/")[2].lower()
        try:
            if word in found:
                raise BadFile("has the same name as another one")
            found[word] = _copied(path, _WIDTHS[family], folder)
        except (BadFile, OSError) as error:
            logger.warning("the embedding '%s' is ignored: it %s", name, error)
    return found


def _copied(path: Path, widths: frozenset[int], folder: Path) -> Path:
    """Copy one file as 32-bit floats, and return the copy's path.

    Raises:
        BadFile: The file is not an embedding, or has other widths.
    """
    header = headers.read(path)
    if architectures.recognise(header.shapes).kind != "embedding":
        raise BadFile("is not an embedding")
    vectors = [tensor for tensor in header.tensors if len(tensor.shape) <= 2]
    found = {tensor.shape[0] for tensor in vectors}
    if found != widths:
        raise BadFile(f"is {_listed(found)} wide and the model requires {_listed(widths)}")
    data = _safetensors({tensor.name: _floats(path, tensor) for tensor in vectors})
    copy = folder / f"{hashlib.sha256(data).hexdigest()[:32]}.safetensors"
    if not copy.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(copy, data)  # several workers may write the same copy at once
    return copy


def _listed(widths: Collection[int]) -> str:
    return " and ".join(str(width) for width in sorted(widths))


def _floats(path: Path, tensor: Tensor) -> Floats:
    """Return the values of a tensor as an array with the shape (vectors, width)."""
    if tensor.octets > _MAX_BYTES:
        raise BadFile("is too large for an embedding")
    with path.open("rb") as file:
        file.seek(tensor.offset)
        data = file.read(tensor.octets)
    if tensor.type == "bf16":  # a bf16 is the upper half of a 32-bit float
        values = (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    elif tensor.type in _TYPES:
        values = np.frombuffer(data, _TYPES[tensor.type]).astype("<f4")
    else:
        raise BadFile(f"has the type {tensor.type}, not f32, f16 or bf16")
    return values.reshape(-1, tensor.shape[0])


def _safetensors(arrays: Mapping[str, Floats]) -> bytes:
    header, start = {}, 0
    for name, array in arrays.items():
        end = start + array.nbytes
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return b"".join((struct.pack("<Q", len(text)), text, *(a.tobytes() for a in arrays.values())))
