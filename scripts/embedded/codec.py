"""The autoencoder's encoder, which is computed and not trained: 8x8 pixels map to 16 numbers.

The matrix [16, 192] is a PCA of the training images' blocks, scaled so that latents stay within
about -2.5..2.5 (the decoder compresses larger values). `encoder_state` writes this map into the
layers of the runtime's convolutional encoder, so image-to-image starts from exactly the latents
that training used.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

BLOCK = 8
CHANNELS = 64
LATENT = 16
_PROJECTION = 10
"""Number of the layer that applies the matrix."""

Floats = NDArray[np.float32]


def cut_blocks(pictures: Floats) -> Floats:
    """Cut [B, H, W, 3] into blocks [B, 192, H / 8, W / 8], each in the order (dy, dx, channel)."""
    count, height, width, _ = pictures.shape
    blocks = pictures.reshape(count, height // BLOCK, BLOCK, width // BLOCK, BLOCK, 3)
    blocks = blocks.transpose(0, 2, 4, 5, 1, 3)
    return blocks.reshape(count, -1, height // BLOCK, width // BLOCK)


def encode(matrix: Floats, pictures: NDArray[np.uint8]) -> Floats:
    """Encode uint8 images [B, H, W, 3] to latents [B, 16, H / 8, W / 8]."""
    count, height, width, _ = pictures.shape
    blocks = cut_blocks(pictures.astype(np.float32) / 255 - 0.5).reshape(count, 192, -1)
    return (matrix @ blocks).reshape(count, LATENT, height // BLOCK, width // BLOCK)


def encoder_state(matrix: Floats) -> dict[str, Floats]:
    """Return the weights of the runtime's encoder that compute encode().

    Two strided convolutions move neighbouring pixels into channels (2x2 each time), and a third
    one applies the matrix. The residual blocks are zero, but each ends in a ReLU. An offset keeps
    the latents positive until the last convolution subtracts it.
    """
    state: dict[str, Floats] = {}
    first = np.zeros((CHANNELS, 3, 3, 3), np.float32)
    first[[0, 1, 2], [0, 1, 2], 1, 1] = 1
    _put(state, 0, first, np.zeros(CHANNELS))
    _put_block(state, 1)
    layer = 2
    for channels in (3, 12):
        _put(state, layer, _gather(channels))
        for block in range(layer + 1, layer + 4):
            _put_block(state, block)
        layer += 4
    assert layer == _PROJECTION
    _put(state, layer, _project(matrix))
    offset = np.zeros(CHANNELS)
    offset[:LATENT] = np.abs(matrix).sum(1)  # pixels lie in 0..1, so no sum is below minus this
    _put_block(state, layer + 1, offset)
    _put_block(state, layer + 2)
    _put_block(state, layer + 3)
    last = np.zeros((LATENT, CHANNELS, 3, 3), np.float32)
    last[range(LATENT), range(LATENT), 1, 1] = 1
    _put(state, layer + 4, last, -offset[:LATENT] - 0.5 * matrix.sum(1))
    return state


def _put(
    state: dict[str, Floats], layer: int, kernel: Floats, bias: NDArray[np.floating] | None = None
) -> None:
    state[f"{layer}.weight"] = kernel
    if bias is not None:
        state[f"{layer}.bias"] = bias.astype(np.float32)


def _put_block(
    state: dict[str, Floats], layer: int, offset: NDArray[np.floating] | None = None
) -> None:
    for k in (0, 2, 4):
        state[f"{layer}.conv.{k}.weight"] = np.zeros((CHANNELS, CHANNELS, 3, 3), np.float32)
        state[f"{layer}.conv.{k}.bias"] = np.zeros(CHANNELS, np.float32)
    if offset is not None:
        state[f"{layer}.conv.4.bias"] = offset.astype(np.float32)


def _gather(channels: int) -> Floats:
    """Return a kernel that moves each 2x2 neighbourhood of pixels into channels."""
    kernel = np.zeros((CHANNELS, CHANNELS, 3, 3), np.float32)
    for dy in range(2):
        for dx in range(2):
            for c in range(channels):
                # stride 2 and padding 1: kernel rows 1 and 2 are pixels 2y and 2y + 1
                kernel[(dy * 2 + dx) * channels + c, c, 1 + dy, 1 + dx] = 1
    return kernel


def matrix_of(state: dict[str, Floats]) -> Floats:
    """Return the matrix [16, 192] of layers that `encoder_state` returned."""
    kernel = state[f"{_PROJECTION}.weight"]
    cells = np.empty((LATENT, BLOCK, BLOCK, 3), np.float32)
    for y, x, start, place in _places():
        cells[:, y, x] = kernel[:LATENT, start : start + 3, *place]
    return cells.reshape(LATENT, -1)


def _places() -> Iterator[tuple[int, int, int, tuple[int, int]]]:
    """Yield each pixel of a block: row, column, its first channel and its place in the kernel."""
    for y in range(BLOCK):
        for x in range(BLOCK):
            middle = (y >> 1 & 1) * 2 + (x >> 1 & 1)
            inner = (y & 1) * 2 + (x & 1)
            yield y, x, middle * 12 + inner * 3, (1 + (y >> 2), 1 + (x >> 2))


def _project(matrix: Floats) -> Floats:
    """Return the kernel that applies the matrix to a block after two kernels of `_gather`."""
    kernel = np.zeros((CHANNELS, CHANNELS, 3, 3), np.float32)
    cells = matrix.reshape(LATENT, BLOCK, BLOCK, 3)
    for y, x, start, place in _places():
        kernel[:LATENT, start : start + 3, *place] = cells[:, y, x]
    return kernel
