"""Give an enlarged image the colours of the image that it was made from.

A small upscaler makes crisp edges, but tints flat areas. One step of back-projection (Irani and
Peleg, "Improving resolution by image registration", 1991) removes that: the difference between the
source and the reduced result is added to the result.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from sdstream.core.pixels import Pixels

_Bytes = npt.NDArray[np.uint8]

#: Rows of the source that are worked on at once: a whole image as floats takes four times its
#: memory.
BAND: Final = 64


def with_colours_of(source: Pixels, enlarged: Pixels) -> Pixels:
    """Return the enlarged image, with each block's mean near the source's pixel.

    Args:
        source: RGB.
        enlarged: RGB, the same whole number of times as large each way.
    """
    factor = enlarged.width // source.width
    before = np.frombuffer(source.data, np.uint8).reshape(source.height, source.width, 3)
    after = np.frombuffer(enlarged.data, np.uint8).reshape(enlarged.height, enlarged.width, 3)
    bands = []
    for first in range(0, source.height, BAND):
        # Bilinear enlargement looks at the rows beside; a row above and below makes it seamless.
        above, below = max(0, first - 1), min(source.height, first + BAND + 1)
        band = _corrected(before[above:below], after[above * factor : below * factor], factor)
        inner = slice((first - above) * factor, (min(source.height, first + BAND) - above) * factor)
        bands.append(band[inner].tobytes())
    return Pixels(enlarged.width, enlarged.height, b"".join(bands))


def _corrected(before: _Bytes, after: _Bytes, factor: int) -> _Bytes:
    """Return ``after`` with the colours of ``before``, both [height, width, 3]."""
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
