"""Weights out of a seeded generator, written one tensor after the other.

Matrices are q4_0 or q8_0, scaled by their inner dimension, so that activations neither vanish nor
overflow; what is no matrix is f16 or f32. The same block of random numbers serves all tensors: it
is the shapes that are tried, not the pictures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter

from tests.conformance.shapes import Shape

_Q4: Final = GGMLQuantizationType.Q4_0
_CHUNK_BLOCKS: Final = 2**16
_RANDOM: Final = np.random.default_rng(7)
#: Nibbles 0 to 15 less 8 have this standard deviation.
_NIBBLE_DEVIATION: Final = 4.6


def write_gguf(path: Path, shapes: Mapping[str, Shape], architecture: str = "test") -> int:
    """Write the tensors, never more than one in memory; returns the file's bytes."""
    writer = GGUFWriter(path, architecture)
    for name, shape in shapes.items():
        kind = _type(name, shape)
        size = _size(shape, kind)
        sides = [*reversed(shape)]
        if kind is _Q4:  # the writer wants bytes of a row there
            sides[-1] = shape[0] // 32 * 18
        element = np.dtype(np.uint8 if kind is _Q4 else _ELEMENT[kind])
        writer.add_tensor_info(name, sides, element, size, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, shape in shapes.items():
        writer.write_tensor_data(_weights(name, shape))
    writer.close()
    return path.stat().st_size


_ELEMENT: Final = {GGMLQuantizationType.F16: np.float16, GGMLQuantizationType.F32: np.float32}


def _type(name: str, shape: Shape) -> GGMLQuantizationType:
    if len(shape) == 1 or name.endswith(("pos_embed", "position_embedding.weight")):
        return GGMLQuantizationType.F32
    matrix = len(shape) == 2 and shape[0] % 32 == 0 and "relative_attention" not in name
    return _Q4 if matrix else GGMLQuantizationType.F16


def _size(shape: Shape, kind: GGMLQuantizationType) -> int:
    elements = math.prod(shape)
    return elements // 32 * 18 if kind is _Q4 else elements * np.dtype(_ELEMENT[kind]).itemsize


def _weights(name: str, shape: Shape) -> np.ndarray:
    kind = _type(name, shape)
    if len(shape) == 1:
        is_bias = name.endswith((".bias", "pad_token"))
        return np.zeros(shape, np.float32) if is_bias else np.ones(shape, np.float32)
    deviation = 1 / math.sqrt(math.prod(shape[:-1]))
    if "embed" in name and len(shape) == 2:
        deviation = 0.02 if "position" in name else 1.0
    if kind is not _Q4:
        return _normal(math.prod(shape), deviation, _ELEMENT[kind]).reshape(shape[::-1])
    blocks = math.prod(shape) // 32
    some = _RANDOM.integers(0, 256, (min(blocks, _CHUNK_BLOCKS), 18), np.uint8)
    scale = np.frombuffer(np.float16(deviation / _NIBBLE_DEVIATION).tobytes(), np.uint8)
    some[:, :2] = scale
    whole = np.resize(some, (blocks, 18))
    return whole.reshape(shape[1], -1)


def _normal(count: int, deviation: float, element: type) -> np.ndarray:
    some = _RANDOM.standard_normal(min(count, 2**20), np.float32) * deviation
    return np.resize(some.astype(element), count)
