"""Give an enlarged image the colours of the image that it was made from.

A small upscaler makes crisp edges, but tints flat areas. One step of back-projection (Irani and
Peleg, "Improving resolution by image registration", 1991) removes that: the difference between the
source and the reduced result is added to the result.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from sdstream.core.pixels import Pixels


def with_colours_of(source: Pixels, enlarged: Pixels) -> Pixels:
    """Return the enlarged image, with each block's mean near the source's pixel.

    Args:
        source: RGB.
        enlarged: RGB, the same whole number of times as large each way.
    """
    factor = enlarged.width // source.width
    before = np.frombuffer(source.data, np.uint8).reshape(source.height, source.width, 3)
    after = np.frombuffer(enlarged.data, np.uint8).reshape(enlarged.height, enlarged.width, 3)
    result = np.empty_like(after)
    # One channel after the other: a large image as floats takes four times its memory.
    for channel in range(3):
        values = after[..., channel].astype(np.float32)
        blocks = values.reshape(source.height, factor, source.width, factor)
        missing = before[..., channel] - blocks.mean(axis=(1, 3))
        smooth = Image.fromarray(missing).resize(enlarged.size, Image.Resampling.BILINEAR)
        values += np.asarray(smooth)
        result[..., channel] = np.rint(values).clip(0, 255)
    return Pixels(enlarged.width, enlarged.height, result.tobytes())
