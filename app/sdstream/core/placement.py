"""Where the image that a model generates lies in the finished image.

Without a placement the two are the same. With one, the model generates a part of the finished
image (``only_masked``) or an image with a border around the input image (``expand``, ``fit: pad``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Self

from sdstream.core.size import Size


class Box(NamedTuple):
    """A rectangle in pixels; right and bottom are outside of it."""

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
        """Return the rectangle of that size at a place."""
        return cls(left, top, left + size.width, top + size.height)

    @classmethod
    def whole(cls, size: Size) -> Self:
        """Return the rectangle that is a whole image."""
        return cls.at(0, 0, size)

    @classmethod
    def middle(cls, inner: Size, outer: Size) -> Self:
        """Return the rectangle of size ``inner`` in the middle of an image of size ``outer``."""
        return cls.at((outer.width - inner.width) // 2, (outer.height - inner.height) // 2, inner)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the generated image lies in the finished one.

    Attributes:
        canvas: Pixels of the finished image.
        region: The part of the canvas that the model generates.
        inner: Where that part lies in the generated image, at another scale perhaps; what is
            around it is thrown away.
        kept: Where the input image lies in the canvas; what is around it is painted. None for an
            input image that is the canvas.
    """

    canvas: Size
    region: Box
    inner: Box
    kept: Box | None = None


def around(painted: Box, padding: int, canvas: Size, shape: Size) -> Box:
    """Return a part of a canvas with everything that is painted.

    Args:
        painted: The smallest rectangle around it.
        padding: Pixels to add on each side, as far as the canvas reaches.
        canvas: Size of the canvas.
        shape: The part gets this aspect ratio, as far as the canvas reaches.
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
    """Return where a part of the canvas lies in the generated image: in its middle.

    Args:
        region: Pixels of the part.
        generated: Pixels of the generated image.
        enlarge: A small part fills the generated image; else it keeps its scale.
    """
    scale = min(generated.width / region.width, generated.height / region.height)
    if not enlarge:
        scale = min(1.0, scale)
    sides = (
        # What is missing is less than one pixel of the part: stretching it does not distort it.
        whole if whole - side * scale < scale else max(1, round(side * scale))
        for side, whole in zip(region, generated, strict=True)
    )
    return Box.middle(Size(*sides), generated)


def contained(source: Size, canvas: Size) -> Box:
    """Return where an image lies that is scaled to fit into a canvas, in its middle."""
    scale = min(canvas.width / source.width, canvas.height / source.height)
    width, height = (max(1, round(side * scale)) for side in source)
    return Box.middle(Size(min(width, canvas.width), min(height, canvas.height)), canvas)
