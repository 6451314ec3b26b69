"""Correction of the colours of an upscaled image, so that they match the source image.

A small upscaler makes crisp edges, but it tints flat areas. One step of back-projection (Irani and
Peleg, "Improving resolution by image registration", 1991) removes the tint: the upscaled image is
reduced to the source's size, and its difference from the source is enlarged and added to it.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from sdstream.core.pixels import Pixels

_Bytes = npt.NDArray[np.uint8]

#: Number of source rows to process at once. A whole image as floats would need four times its
#: memory.
BAND: Final = 64


def with_colours_of(source: Pixels, enlarged: Pixels) -> Pixels:
    """Return the enlarged image, corrected so that each block's mean is near the source's pixel.

    Args:
        source: RGB image.
        enlarged: RGB image; its width and height are the source's times the same whole number.
    """
    factor = enlarged.width // source.width
    before = np.frombuffer(source.data, np.uint8).reshape(source.height, source.width, 3)
    after = np.frombuffer(enlarged.data, np.uint8).reshape(enlarged.height, enlarged.width, 3)
    bands = []
    for first in range(0, source.height, BAND):
        # Bilinear enlargement uses adjacent rows. One extra row above and below avoids seams
        # between the bands.
        above, below = max(0, first - 1), min(source.height, first + BAND + 1)
        band = _corrected(before[above:below], after[above * factor : below * factor], factor)
        inner = slice((first - above) * factor, (min(source.height, first + BAND) - above) * factor)
        bands.append(band[inner].tobytes())
    return Pixels(enlarged.width, enlarged.height, b"".join(bands))


def _corrected(before: _Bytes, after: _Bytes, factor: int) -> _Bytes:
    """Return ``after`` with the colours of ``before``; both have the shape [height, width, 3]."""
    height, width, _ = before.shape
    result = np.empty_like(after)
    for channel in range(3):
        values = after[..., channel].astype(np.float32)
        blocks = values.reshape(height, factor, width, factor)
        missing = before[..., channel] - blocks.mean(axis=(1, 3))
        smooth = Image.fromarray(missing).resize(
            (width * factor, height * factor), Image.Resampling.BILINEAR
        )
        values += np.asarray(smooth)
        result[..., channel] = np.rint(values).clip(0, 255)
    return result
