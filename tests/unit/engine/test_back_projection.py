"""Colour correction of the built-in upscaler's result by its source."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from PIL import Image

from sdstream.core.pixels import Pixels
from sdstream.engine.native import back_projection
from sdstream.engine.native.back_projection import BAND, with_colours_of


def pixels(array: np.ndarray) -> Pixels:
    """Convert an array [height, width, 3] to RGB pixels."""
    height, width, _ = array.shape
    return Pixels(width, height, array.astype(np.uint8).tobytes())


def array(image: Pixels) -> np.ndarray:
    """Return the pixels as floats [height, width, 3]."""
    values = np.frombuffer(image.data, np.uint8).reshape(image.height, image.width, 3)
    return values.astype(float)


def test_a_tint_is_removed() -> None:
    """A constant error in each channel is removed up to rounding, and edges stay sharp."""
    small = np.full((6, 10, 3), (200, 40, 90))
    small[:, 5:] = (20, 180, 60)
    large = small.repeat(4, 0).repeat(4, 1)
    tinted = large + np.array((9, -7, 4))
    mended = array(with_colours_of(pixels(small), pixels(tinted)))
    assert np.abs(mended - large).max() <= 1


def test_details_stay() -> None:
    """An enlargement whose blocks already have the source's mean colours is unchanged."""
    rng = np.random.default_rng(3)
    large = rng.integers(40, 215, (32, 48, 3))
    small = np.asarray(Image.fromarray(large.astype(np.uint8)).reduce(4))
    mended = array(with_colours_of(pixels(small), pixels(large)))
    assert np.abs(mended - large).max() <= 1


def test_values_stay_in_range() -> None:
    """Values are clipped to the range of a byte and do not wrap around."""
    small = np.zeros((4, 4, 3))
    small[:2] = 255
    large = np.full((16, 16, 3), 250)
    large[8:] = 5
    mended = array(with_colours_of(pixels(small), pixels(large)))
    assert mended[0].min() >= 250
    assert mended[-1].max() <= 5


@pytest.mark.parametrize("height", [BAND + 1, 2 * BAND, 2 * BAND + 7])
def test_bands_leave_no_seams(height: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processing in bands gives the same bytes as processing in one piece."""
    rng = np.random.default_rng(height)
    small = pixels(rng.integers(0, 256, (height, 9, 3)))
    large = pixels(rng.integers(0, 256, (4 * height, 36, 3)))
    in_bands = with_colours_of(small, large)
    monkeypatch.setattr(back_projection, "BAND", height)
    assert in_bands == with_colours_of(small, large)


def test_the_memory_is_that_of_the_result() -> None:
    """Memory is limited to copies of the result and one band."""
    small = pixels(np.full((1024, 32, 3), 100))
    large = pixels(np.full((4096, 128, 3), 90))
    tracemalloc.start()
    try:
        with_colours_of(small, large)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(large.data)
    finally:
        tracemalloc.stop()
