"""The runtime's noise: Philox 4x32-10, as in torch.cuda.randn."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)
ROUNDS = 10
UNIT = np.float32(2.0**-32)
TURN = np.float32(2.0**-32 * 2 * np.pi)


def normal(seed: int, count: int) -> NDArray[np.float32]:
    """Return `count` normally distributed numbers."""
    zeros, index = np.zeros(count, np.uint64), np.arange(count, dtype=np.uint64)
    words = [zeros, zeros, index, zeros]
    key = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(ROUNDS):
        first, second = words[0] * MULTIPLIERS[0], words[2] * MULTIPLIERS[1]
        words = [
            (second >> HALF) ^ words[1] ^ np.uint64(key[0]),
            second & LOW,
            (first >> HALF) ^ words[3] ^ np.uint64(key[1]),
            first & LOW,
        ]
        key = [(k + step) & 0xFFFFFFFF for k, step in zip(key, KEY_STEPS, strict=True)]
    # The Box-Muller transform, on numbers that are never 0.
    radius = words[0].astype(np.float32) * UNIT + UNIT / 2
    angle = words[1].astype(np.float32) * TURN + TURN / 2
    return (np.sqrt(-2 * np.log(radius)) * np.sin(angle)).astype(np.float32)


def latent_noise(seed: int, height: int, width: int) -> NDArray[np.float32]:
    """Return the noise from which an image starts, [16, height, width] in latent cells."""
    return normal(seed, 16 * height * width).reshape(16, height, width)
