"""Parts of images: cutting out the part for the model, and putting the generated part back.

The positions are in ``core.placement.Placement``; this module applies them to pixels.
"""

from __future__ import annotations

from typing import Final

from PIL import Image

from sdstream.core.pixels import Inputs, Pixels
from sdstream.core.placement import Box, Placement
from sdstream.core.size import Size
from sdstream.imaging.codecs import as_image, as_pixels, extended, flat

_SMOOTH: Final = Image.Resampling.LANCZOS
_KEPT: Final = 0
_PAINTED: Final = 255


def painted(mask: Pixels) -> Box | None:
    """Return the smallest rectangle around the painted area of a mask; None if it is empty."""
    box = as_image(mask).getbbox()
    return None if box is None else Box(*box)


def canvas_of(picture: Pixels, mask: Pixels | None, placement: Placement) -> tuple[Pixels, Pixels]:
    """Return the canvas, which is the finished image before generation, and its mask.

    Args:
        picture: The input image.
        mask: Mask of the input image's size; with None only the border around it is painted.
        placement: Position of the input image in the canvas.
    """
    image, kept = flat(as_image(picture)), placement.kept
    if kept is None:
        assert mask is not None
        return as_pixels(image), mask
    image = extended(_scaled(image, kept.size), placement.canvas, kept)
    border = Image.new("L", placement.canvas, _PAINTED)
    border.paste(_KEPT if mask is None else as_image(mask), kept)
    return as_pixels(image), as_pixels(border)


def part_of(canvas: Pixels, placement: Placement, size: Size) -> Pixels:
    """Return the part of the canvas that the model generates, at the scale of the model.

    Args:
        canvas: An image of the size of the finished image.
        placement: Position of the part.
        size: Size of the generated image.
    """
    part = as_image(canvas).crop(placement.region)
    return as_pixels(extended(_scaled(part, placement.inner.size), size, placement.inner))


def mask_part_of(mask: Pixels, placement: Placement, size: Size) -> Pixels:
    """Return the mask of the part that the model generates.

    Pixels of the generated image outside the part are painted too.

    Args:
        mask: A mask of the size of the finished image.
        placement: Position of the part.
        size: Size of the generated image.
    """
    part = as_image(mask).crop(placement.region)
    # Box resampling, so that a reduced mask still covers every painted pixel.
    part = part.resize(placement.inner.size, Image.Resampling.BOX)
    sheet = Image.new("L", size, _PAINTED)
    sheet.paste(part.point(lambda value: _PAINTED if value else _KEPT), placement.inner)
    return as_pixels(sheet)


def put_back(generated: Pixels, canvas: Pixels, placement: Placement) -> Pixels:
    """Return the canvas with the whole generated part in it; the mask is applied later.

    Args:
        generated: The generated image.
        canvas: The finished image before generation.
        placement: Position of the part.
    """
    image = as_image(canvas)
    part = as_image(generated).crop(placement.inner)
    image.paste(_scaled(part, placement.region.size), placement.region)
    return as_pixels(image)


def preview_in_place(preview: Pixels, inputs: Inputs, placement: Placement, size: Size) -> Pixels:
    """Return a small version of the finished image with a preview of the generated part in it.

    Args:
        preview: A small version of the generated image.
        inputs: The input images with the canvas and its mask.
        placement: Position of the part.
        size: Size of the generated image.
    """
    assert inputs.canvas is not None
    assert inputs.canvas_mask is not None
    scale = min(1.0, max(preview.size) / max(placement.canvas))
    small = Size(*(max(1, round(side * scale)) for side in placement.canvas))
    canvas = as_image(inputs.canvas).resize(small, Image.Resampling.BOX)
    mask = as_image(inputs.canvas_mask).resize(small, Image.Resampling.BOX)
    part = as_image(preview).crop(_scaled_box(placement.inner, preview.width / size.width))
    region = _scaled_box(placement.region, scale)
    sheet = canvas.copy()
    sheet.paste(_scaled(part, region.size), region)
    return as_pixels(Image.composite(sheet, canvas, mask))


def _scaled(image: Image.Image, size: Size) -> Image.Image:
    return image if image.size == size else image.resize(size, _SMOOTH)


def _scaled_box(box: Box, scale: float) -> Box:
    left, top = round(box.left * scale), round(box.top * scale)
    right, bottom = round(box.right * scale), round(box.bottom * scale)
    return Box(left, top, max(left + 1, right), max(top + 1, bottom))
