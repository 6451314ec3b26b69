"""Pixels to files and what is written into them."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from app.core.request import GenerationRequest, OutputFormat
from app.images import encode, parameters_text

REQUEST = GenerationRequest("m", "a cat", "dog", 8, 4, 20, "euler_a", "karras", 7.5, None, 1, 2)
PIXELS = bytes(range(96))


def test_parameters_in_automatic1111s_form() -> None:
    """Prompt, negative prompt, then one line of names and values with the image's own seed."""
    lines = parameters_text(REQUEST, seed=2).splitlines()
    assert lines[:2] == ["a cat", "Negative prompt: dog"]
    assert lines[2].startswith(
        "Steps: 20, Sampler: euler_a, Schedule type: karras, CFG scale: 7.5, Seed: 2, Size: 8x4"
    )


def test_png_is_lossless_and_carries_its_text() -> None:
    """The pixels come back, and so does text outside Latin-1."""
    image = Image.open(io.BytesIO(encode(PIXELS, 8, 4, "png", parameters="猫 — a cat")))
    assert (image.mode, image.size, image.tobytes()) == ("RGB", (8, 4), PIXELS)
    assert image.info["parameters"] == "猫 — a cat"


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_exif_comment(output_format: OutputFormat) -> None:
    """JPEG and WebP carry the text as EXIF UserComment in UTF-16."""
    image = Image.open(io.BytesIO(encode(PIXELS, 8, 4, output_format, 90, "猫")))
    comment = image.getexif().get_ifd(0x8769)[0x9286]
    assert comment == b"UNICODE\0" + "猫".encode("utf-16-be")


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_nothing_is_embedded_unasked(output_format: OutputFormat) -> None:
    """Without parameters the file is only a picture."""
    image = Image.open(io.BytesIO(encode(PIXELS, 8, 4, output_format)))
    assert "parameters" not in image.info
    assert not image.getexif()


def test_compression_is_quality() -> None:
    """Less percent, fewer bytes."""
    noise = bytes((i * 7919) % 256 for i in range(64 * 64 * 3))
    sizes = [len(encode(noise, 64, 64, "jpeg", percent)) for percent in (5, 50, 95)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]
