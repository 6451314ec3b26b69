"""The built-in upscaler's result has the colours of its source."""

from __future__ import annotations

import numpy as np
from PIL import Image

from sdstream.core.pixels import Pixels
from sdstream.engine.native.back_projection import with_colours_of


def pixels(array: np.ndarray) -> Pixels:
    """RGB of an array [height, width, 3]."""
    height, width, _ = array.shape
    return Pixels(width, height, array.astype(np.uint8).tobytes())


def array(image: Pixels) -> np.ndarray:
    """The values as floats [height, width, 3]."""
    values = np.frombuffer(image.data, np.uint8).reshape(image.height, image.width, 3)
    return values.astype(float)


def test_a_tint_is_removed() -> None:
    """A constant error of each channel goes, to the rounding; a step of one pixel stays sharp."""
    small = np.full((6, 10, 3), (200, 40, 90))
    small[:, 5:] = (20, 180, 60)
    large = small.repeat(4, 0).repeat(4, 1)
    tinted = large + np.array((9, -7, 4))
    mended = array(with_colours_of(pixels(small), pixels(tinted)))
    assert np.abs(mended - large).max() <= 1


def test_details_stay() -> None:
    """An enlargement with the right means is not changed, whatever is inside the blocks."""
    rng = np.random.default_rng(3)
    large = rng.integers(40, 215, (32, 48, 3))
    small = np.asarray(Image.fromarray(large.astype(np.uint8)).reduce(4))
    mended = array(with_colours_of(pixels(small), pixels(large)))
    assert np.abs(mended - large).max() <= 1


def test_values_stay_in_range() -> None:
    """Black and white are not passed: no value wraps around."""
    small = np.zeros((4, 4, 3))
    small[:2] = 255
    large = np.full((16, 16, 3), 250)
    large[8:] = 5
    mended = array(with_colours_of(pixels(small), pixels(large)))
    assert mended[0].min() >= 250
    assert mended[-1].max() <= 5
