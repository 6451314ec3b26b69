"""Sizes that a model was not trained for: the server resizes an image of another size.

A catalogue entry turns this on with ``size: {enlarge: …}``, which contains the sizes that the model
was trained for. An upscaler enlarges the generated image, and resizing and cropping give it the
exact size. If the requested size is smaller than the generated image, no upscaler is used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sdstream.core.size import Size

if TYPE_CHECKING:
    from sdstream.core.model_spec import EnlargeRule, ModelSpec

#: Minimum width and height of a finished image in pixels.
SHORTEST_SIDE: Final = 16
#: Factor by which most upscalers enlarge each side; larger images are resized after that.
_FACTOR: Final = 4
#: Maximum ratio of the longer to the shorter side of a finished image.
_LONGEST_SHAPE: Final = 3
#: Maximum share of the enlarged image that may be cropped away: from a size that the model was
#: trained for, and from any other size.
_MOST_CUT: Final = 0.26
_LITTLE_CUT: Final = 0.1
#: Weight of the cropped share in ``_cost``, against the logarithm of the ratio of pixels.
_WEIGHT_OF_CUT: Final = 10.0


@dataclass(frozen=True, slots=True)
class Enlargement:
    """How an image gets a size that the model does not generate.

    Attributes:
        generated: Size that the model generates.
        enlarged: Size after the upscaler and resizing; the finished image is the middle of it.
        upscaler: Name of the upscaler; None if the generated image is not enlarged.
    """

    generated: Size
    enlarged: Size
    upscaler: str | None

    @property
    def factor(self) -> float:
        """Factor by which each side is enlarged: the value of the option `upscale`."""
        return round(self.enlarged.width / self.generated.width, 4)


def plan(spec: ModelSpec, asked: Size) -> Enlargement:
    """Return which size a model generates for a requested size, and how the image is resized.

    Args:
        spec: A model whose entry has ``size.enlarge``.
        asked: The requested size of the finished image.

    Raises:
        ValueError: The entry does not allow the size. The message begins in lower case and has no
            full stop.
    """
    bounds = spec.size.enlarge
    assert bounds is not None
    for name, value in (("width", asked.width), ("height", asked.height)):
        if not SHORTEST_SIDE <= value <= bounds.max:
            raise ValueError(
                f"{name} must be between {SHORTEST_SIDE} and {bounds.max}, not {value}"
            )
    if math.prod(asked) > bounds.max_pixels:
        raise ValueError(
            f"{asked} is more than the model's limit of {bounds.max_pixels} pixels; the nearest "
            f"size is {_nearest(bounds, asked)}"
        )
    if max(asked) > _LONGEST_SHAPE * min(asked):
        raise ValueError(
            f"{asked} is too far from a square; the nearest size is {_nearest(bounds, asked)}"
        )
    known = [size for size in bounds.sizes if _cut(size, asked) <= _MOST_CUT]
    # For a shape that the model was not trained for, take any size that it can generate.
    possible = known or [size for size in _sizes(spec) if _cut(size, asked) <= _LITTLE_CUT]
    if not possible:
        shapes = ", ".join(map(str, bounds.sizes))
        raise ValueError(f"the model does not generate the shape of {asked}; it generates {shapes}")
    best = min(possible, key=lambda size: _cost(spec, size, asked))
    enlarged = _cover(best, asked)
    return Enlargement(best, enlarged, bounds.upscaler if enlarged.width > best.width else None)


def own_size(spec: ModelSpec, source: Size, max_pixels: int) -> Size:
    """Return the size of an edit if the request does not name one.

    Args:
        spec: The model.
        source: Size of the input image.
        max_pixels: Upper bound of width x height for generated images.
    """
    bounds = spec.size.enlarge
    if bounds is None:
        return spec.size_near(source, max_pixels)
    wanted = _within(bounds, source)
    try:
        plan(spec, wanted)
    except ValueError:
        return spec.size_near(source, max_pixels)
    return wanted


def _within(bounds: EnlargeRule, size: Size) -> Size:
    """Return a size, or the largest one of the same shape that the bounds allow."""
    scale = min(1.0, bounds.max / max(size), math.sqrt(bounds.max_pixels / math.prod(size)))
    return Size(*(math.floor(side * scale) for side in size))


def _nearest(bounds: EnlargeRule, asked: Size) -> Size:
    """Return the requested size after shortening its longer side and then both sides to fit."""
    most = _LONGEST_SHAPE * min(asked)
    return _within(bounds, Size(min(asked.width, most), min(asked.height, most)))


def _sizes(spec: ModelSpec) -> list[Size]:
    """Return the sizes that the model can generate, up to 1.25 times its default in pixels."""
    multiple = spec.traits.multiple
    sides = [s for s in range(multiple, spec.size.max + 1, multiple) if s >= spec.size.min]
    most = 1.25 * math.prod(spec.default_size)
    return [Size(w, h) for w in sides for h in sides if w * h <= most]


def _cover(size: Size, asked: Size) -> Size:
    """Return ``size`` scaled so that it just contains the requested size."""
    scale = max(asked.width / size.width, asked.height / size.height)
    return Size(
        max(asked.width, round(size.width * scale)), max(asked.height, round(size.height * scale))
    )


def _cut(size: Size, asked: Size) -> float:
    """Return the share of the enlarged image that is cropped away."""
    return 1 - math.prod(asked) / math.prod(_cover(size, asked))


def _cost(spec: ModelSpec, size: Size, asked: Size) -> float:
    """Return the cost of generating ``size``: by its pixels and the share that is cropped away."""
    # As many pixels as the upscaler needs, and at least as many as the default size has.
    wanted = max(math.prod(spec.default_size), math.prod(asked) / _FACTOR**2)
    return abs(math.log(math.prod(size) / wanted)) + _WEIGHT_OF_CUT * _cut(size, asked)
