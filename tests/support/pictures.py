"""Looking at pictures that servers answered."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image, ImageChops, ImageStat


def opened(data: bytes) -> Image.Image:
    """An image file, decoded."""
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def from_base64(text: str) -> Image.Image:
    """An image file in base64, decoded."""
    return opened(base64.b64decode(text, validate=True))


def changed_box(drawn: Image.Image, folder: Path) -> tuple[int, int, int, int] | None:
    """The smallest box around all pixels that differ from the folder's input.png."""
    with Image.open(folder / "input.png") as original:
        return ImageChops.difference(drawn.convert("RGB"), original).getbbox()


def extremes(image: Image.Image) -> list[tuple[float, float]]:
    """The lowest and the highest value of each channel of an RGB image."""
    return [*ImageStat.Stat(image).extrema]


def png(width: int, height: int, colour: str = "white", *, noise: bool = False) -> bytes:
    """A PNG file of one colour, or of noise, which takes a byte for each pixel."""
    file = io.BytesIO()
    plain = Image.new("RGB", (width, height), colour)
    image = Image.effect_noise((width, height), 80) if noise else plain
    image.save(file, "PNG")
    return file.getvalue()
