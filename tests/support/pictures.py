"""Image files for requests, and helpers to inspect the images in responses."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops, ImageStat


def opened(data: bytes) -> Image.Image:
    """Decode an image file."""
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def from_base64(text: str) -> Image.Image:
    """Decode an image file in base64."""
    return opened(base64.b64decode(text, validate=True))


def changed_box(drawn: Image.Image, folder: Path) -> tuple[int, int, int, int] | None:
    """The smallest box around all pixels that differ from the folder's input.png."""
    with Image.open(folder / "input.png") as original:
        return ImageChops.difference(drawn.convert("RGB"), original).getbbox()


def extremes(image: Image.Image) -> list[tuple[float, float]]:
    """The lowest and the highest value of each channel of an RGB image."""
    return [*ImageStat.Stat(image).extrema]


def file_of(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Encode an image as a file in a format that Pillow can write."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, colour: str = "white", *, noise: bool = False) -> bytes:
    """A PNG file of one colour, or of noise, which needs about a byte for each pixel."""
    plain = Image.new("RGB", (width, height), colour)
    return file_of(Image.effect_noise((width, height), 80) if noise else plain)
