"""Files of upscalers whose result is known: networks that repeat each pixel."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

_FEATURES = 64
_GROWN = 32


def write_upscaler(path: Path, factor: int = 4) -> Path:
    """Write an ESRGAN of one block that upscales by repeating each pixel.

    The first three of its features are the colours. The block adds nothing to them, and every
    convolution after it passes them on.
    """
    tensors: dict[str, np.ndarray] = {}

    def conv(name: str, outer: int, inner: int, passed: int) -> None:
        weight = np.zeros((outer, inner, 3, 3), "<f4")
        for channel in range(passed):
            weight[channel, channel, 1, 1] = 1.0
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = weight, np.zeros(outer, "<f4")

    conv("conv_first", _FEATURES, 3, 3)
    for block in (1, 2, 3):
        for layer in range(4):
            conv(f"body.0.rdb{block}.conv{layer + 1}", _GROWN, _FEATURES + layer * _GROWN, 0)
        conv(f"body.0.rdb{block}.conv5", _FEATURES, _FEATURES + 4 * _GROWN, 0)
    conv("conv_body", _FEATURES, _FEATURES, 0)
    for number in range(1, {1: 0, 2: 1, 4: 2}[factor] + 1):
        conv(f"conv_up{number}", _FEATURES, _FEATURES, 3)
    conv("conv_hr", _FEATURES, _FEATURES, 3)
    conv("conv_last", 3, _FEATURES, 3)
    write_tensors(path, tensors)
    return path


def write_tensors(
    path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None
) -> None:
    """Write tensors of 32- and 16-bit floats as a safetensors file."""
    kinds = {"float32": "F32", "float16": "F16", "uint16": "BF16"}
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    start = 0
    for name, array in tensors.items():
        end = start + array.nbytes
        header[name] = {
            "dtype": kinds[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header).encode()
    data = b"".join(array.tobytes() for array in tensors.values())
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
