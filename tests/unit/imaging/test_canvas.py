"""The part of a picture that is drawn and put back, and borders that are painted."""

from __future__ import annotations

import random

import pytest
from PIL import Image

from sdstream.core.pixels import Border, Canvas, Pixels
from sdstream.core.size import Size
from sdstream.imaging.codecs import (
    border_of,
    box_of,
    extended,
    fit,
    part_of,
    put_back,
    with_border,
)

RED = (255, 0, 0)


def noise(width: int, height: int) -> Pixels:
    """A picture in which every pixel is its own."""
    return Pixels(width, height, random.Random(1).randbytes(width * height * 3))


def mask(width: int, height: int, box: tuple[int, int, int, int]) -> Pixels:
    """White inside of left, top, right and bottom."""
    image = Image.new("L", (width, height), 0)
    image.paste(255, box)
    return Pixels(width, height, image.tobytes())


def pixel(picture: Pixels, x: int, y: int) -> tuple[int, ...]:
    """One pixel."""
    at = (y * picture.width + x) * picture.channels
    return tuple(picture.data[at : at + picture.channels])


@pytest.mark.parametrize(
    ("painted", "padding", "size", "box"),
    [
        ((40, 40, 60, 60), 0, Size(64, 64), (40, 40, 20, 20)),
        ((40, 40, 60, 60), 10, Size(64, 64), (30, 30, 40, 40)),
        ((40, 40, 60, 60), 0, Size(128, 64), (30, 40, 40, 20)),
        ((40, 40, 60, 60), 0, Size(64, 128), (40, 30, 20, 40)),
        ((0, 0, 10, 20), 4, Size(64, 64), (0, 0, 24, 24)),
        ((190, 90, 200, 100), 0, Size(128, 64), (180, 90, 20, 10)),
        ((0, 40, 200, 50), 0, Size(64, 64), (0, 0, 200, 100)),
        ((40, 40, 60, 60), None, Size(64, 64), (0, 0, 200, 100)),
        ((0, 0, 0, 0), 4, Size(64, 64), None),
    ],
)
def test_the_part(
    painted: tuple[int, int, int, int],
    padding: int | None,
    size: Size,
    box: tuple[int, int, int, int] | None,
) -> None:
    """The mask with its padding, in the shape that is drawn, inside of the picture."""
    assert box_of(mask(200, 100, painted), padding, size) == box


@pytest.mark.parametrize("blur", [0.0, 3.0])
def test_nothing_changes_outside_of_the_mask(blur: float) -> None:
    """Every pixel but the painted ones is the picture's own, and those are the drawn ones."""
    picture, painted = noise(200, 100), mask(200, 100, (40, 40, 60, 60))
    canvas = Canvas(picture, painted, 30, 30, 40, 40)
    assert part_of(picture, canvas).size == Size(40, 40)
    red = Pixels(64, 64, bytes(RED) * 64 * 64)
    found = put_back(red, canvas, blur)
    assert found.size == picture.size
    for y in range(100):
        for x in range(200):
            if not (40 <= x < 60 and 40 <= y < 60):
                assert pixel(found, x, y) == pixel(picture, x, y)
    assert pixel(found, 50, 50) == RED


def test_an_expanded_picture() -> None:
    """The picture stands where the border says, and its edges go on."""
    picture, border = noise(30, 20), Border(5, 0, 7, 9)
    whole = extended(picture, Size(42, 29), border)
    assert whole.size == Size(42, 29)
    for x, y in ((0, 0), (29, 19), (13, 7)):
        assert pixel(whole, x + 5, y) == pixel(picture, x, y)
    assert pixel(whole, 0, 7) == pixel(picture, 0, 7)
    assert pixel(whole, 41, 7) == pixel(picture, 29, 7)
    assert pixel(whole, 10, 28) == pixel(picture, 5, 19)
    assert pixel(whole, 41, 28) == pixel(picture, 29, 19)
    painted = with_border(None, Size(42, 29), border)
    assert [pixel(painted, x, 7)[0] for x in (4, 5, 34, 35)] == [255, 0, 0, 255]
    both = with_border(mask(30, 20, (0, 0, 2, 2)), Size(42, 29), border)
    assert [pixel(both, x, 0)[0] for x in (4, 5, 6, 7)] == [255, 255, 255, 0]


def test_the_border_of_padding() -> None:
    """It is exactly where the padded picture is not, and none where nothing is added."""
    painted = border_of(Size(80, 40), Size(64, 64))
    assert painted is not None
    assert [pixel(painted, 32, y)[0] for y in (0, 15, 16, 47, 48, 63)] == [255, 255, 0, 0, 255, 255]
    assert border_of(Size(128, 128), Size(64, 64)) is None
    whole = fit(noise(64, 32), Size(64, 64), "pad")
    assert pixel(whole, 3, 16) == pixel(noise(64, 32), 3, 0)
    assert pixel(whole, 3, 0) == pixel(whole, 3, 16)
