"""The position of the generated image in the finished image.

Without a placement the two images are the same. With a placement the model generates a part of the
finished image (``only_masked``), or the input image with a border around it (``expand``,
``fit: pad``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Self

from sdstream.core.size import Size


class Box(NamedTuple):
    """A rectangle in pixels; ``right`` and ``bottom`` are exclusive."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def size(self) -> Size:
        """Width and height."""
        return Size(self.right - self.left, self.bottom - self.top)

    @classmethod
    def at(cls, left: int, top: int, size: Size) -> Self:
        """Return the rectangle of a size at a position."""
        return cls(left, top, left + size.width, top + size.height)

    @classmethod
    def whole(cls, size: Size) -> Self:
        """Return the rectangle that covers a whole image."""
        return cls.at(0, 0, size)

    @classmethod
    def middle(cls, inner: Size, outer: Size) -> Self:
        """Return the rectangle of size ``inner`` in the middle of an image of size ``outer``."""
        return cls.at((outer.width - inner.width) // 2, (outer.height - inner.height) // 2, inner)


@dataclass(frozen=True, slots=True)
class Placement:
    """The position of the generated image in the finished image, which is called the canvas.

    Attributes:
        canvas: Size of the canvas.
        region: The part of the canvas that the model generates.
        inner: Position of that part in the generated image, possibly at another scale; the pixels
            around it are discarded.
        kept: Position of the input image in the canvas; the model paints the border around it. None
            if the input image has the size of the canvas.
    """

    canvas: Size
    region: Box
    inner: Box
    kept: Box | None = None


def around(painted: Box, padding: int, canvas: Size, shape: Size) -> Box:
    """Return the part of a canvas that contains the painted area and padding around it.

    Args:
        painted: The smallest rectangle around the painted area.
        padding: Pixels to add on each side, within the canvas.
        canvas: Size of the canvas.
        shape: A size whose aspect ratio the part gets if the canvas is large enough.
    """
    box = Box(
        max(0, painted.left - padding),
        max(0, painted.top - padding),
        min(canvas.width, painted.right + padding),
        min(canvas.height, painted.bottom + padding),
    )
    width, height = box.size
    if width * shape.height < height * shape.width:
        width = min(canvas.width, -(-height * shape.width // shape.height))
    else:
        height = min(canvas.height, -(-width * shape.height // shape.width))
    left = box.left - (width - box.size.width) // 2
    top = box.top - (height - box.size.height) // 2
    return Box.at(
        min(max(0, left), canvas.width - width),
        min(max(0, top), canvas.height - height),
        Size(width, height),
    )


def inside(region: Size, generated: Size, *, enlarge: bool = True) -> Box:
    """Return the position of a part of the canvas in the middle of the generated image.

    Args:
        region: Size of the part.
        generated: Size of the generated image.
        enlarge: Enlarge a small part to fill the generated image; otherwise it keeps its scale.
    """
    scale = min(generated.width / region.width, generated.height / region.height)
    if not enlarge:
        scale = min(1.0, scale)
    sides = (
        # If the gap is smaller than one pixel of the part, stretching does not visibly distort it.
        whole if whole - side * scale < scale else max(1, round(side * scale))
        for side, whole in zip(region, generated, strict=True)
    )
    return Box.middle(Size(*sides), generated)


def contained(source: Size, canvas: Size) -> Box:
    """Return the position of an image that is scaled to fit into the middle of a canvas."""
    scale = min(canvas.width / source.width, canvas.height / source.height)
    width, height = (max(1, round(side * scale)) for side in source)
    return Box.middle(Size(min(width, canvas.width), min(height, canvas.height)), canvas)
