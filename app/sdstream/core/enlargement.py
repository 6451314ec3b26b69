"""Sizes that a model does not generate: it generates one that it knows, which is resized.

A catalogue entry turns this on with ``size: {enlarge: …}`` and names the sizes that the model was
trained for. An upscaler enlarges the image; resizing and cutting give it the exact size. A smaller
image needs no upscaler.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sdstream.core.size import Size

if TYPE_CHECKING:
    from sdstream.core.model_spec import ModelSpec

#: Shortest side of a finished image in pixels.
SHORTEST_SIDE: Final = 16
#: How many times upscalers enlarge each side as a rule; what is larger is resized.
_FACTOR: Final = 4
#: Longest side to shortest side of a finished image.
_LONGEST_SHAPE: Final = 3
#: Largest share of the enlarged image that may be cut off to get the shape from a known size, and
#: from any size.
_MOST_CUT: Final = 0.26
_LITTLE_CUT: Final = 0.1
#: Cutting off a share counts as much as that many times its logarithm in pixels.
_WEIGHT_OF_CUT: Final = 10.0


@dataclass(frozen=True, slots=True)
class Enlargement:
    """How an image gets a size that the model does not generate.

    Attributes:
        generated: Pixels that the model generates.
        enlarged: Pixels after the upscaler and resizing; the asked size is its middle.
        upscaler: Name of the upscaler; None if the generated image is reduced.
    """

    generated: Size
    enlarged: Size
    upscaler: str | None

    @property
    def factor(self) -> float:
        """How many times each side is enlarged, the value of `upscale`."""
        return round(self.enlarged.width / self.generated.width, 4)


def plan(spec: ModelSpec, asked: Size) -> Enlargement:
    """Return how a model's images get a size.

    Args:
        spec: A model whose entry has ``size.enlarge``.
        asked: Pixels of the finished image.

    Raises:
        ValueError: The entry does not allow the size; the message is a clause.
    """
    bounds = spec.size.enlarge
    assert bounds is not None
    for name, value in (("width", asked.width), ("height", asked.height)):
        if not SHORTEST_SIDE <= value <= bounds.max:
            raise ValueError(
                f"{name} must be between {SHORTEST_SIDE} and {bounds.max}, not {value}"
            )
    if math.prod(asked) > bounds.max_pixels:
        raise ValueError(f"{asked} is more than the model's limit of {bounds.max_pixels} pixels")
    if max(asked) > _LONGEST_SHAPE * min(asked):
        raise ValueError(f"{asked} is too far from a square; the nearest size is {_nearest(asked)}")
    known = [size for size in bounds.sizes if _cut(size, asked) <= _MOST_CUT]
    # A shape that was not trained is generated as well as the model can.
    possible = known or [size for size in _sizes(spec) if _cut(size, asked) <= _LITTLE_CUT]
    best = min(possible, key=lambda size: _cost(spec, size, asked))
    enlarged = _cover(best, asked)
    return Enlargement(best, enlarged, bounds.upscaler if enlarged.width > best.width else None)


def own_size(spec: ModelSpec, source: Size, max_pixels: int) -> Size:
    """Return the size of an edit whose request names none.

    Args:
        spec: The model.
        source: Pixels of the input image.
        max_pixels: Upper bound of width x height that the server generates.
    """
    bounds = spec.size.enlarge
    if bounds is None:
        return spec.size_near(source, max_pixels)
    scale = min(1.0, bounds.max / max(source), math.sqrt(bounds.max_pixels / math.prod(source)))
    wanted = Size(*(math.floor(side * scale) for side in source))
    try:
        plan(spec, wanted)
    except ValueError:
        return spec.size_near(source, max_pixels)
    return wanted


def _nearest(asked: Size) -> Size:
    """Return the asked size with its longer side shortened to the longest shape."""
    most = _LONGEST_SHAPE * min(asked)
    return Size(min(asked.width, most), min(asked.height, most))


def _sizes(spec: ModelSpec) -> list[Size]:
    """Return the sizes that the model can be asked for, none much larger than its default."""
    multiple = spec.traits.multiple
    sides = [s for s in range(multiple, spec.size.max + 1, multiple) if s >= spec.size.min]
    most = 1.25 * math.prod(spec.default_size)
    return [Size(w, h) for w in sides for h in sides if w * h <= most]


def _cover(size: Size, asked: Size) -> Size:
    """Return ``size`` at the scale at which it just contains the asked size."""
    scale = max(asked.width / size.width, asked.height / size.height)
    return Size(
        max(asked.width, round(size.width * scale)), max(asked.height, round(size.height * scale))
    )


def _cut(size: Size, asked: Size) -> float:
    """Return the share of the enlarged image that is cut off."""
    return 1 - math.prod(asked) / math.prod(_cover(size, asked))


def _cost(spec: ModelSpec, size: Size, asked: Size) -> float:
    """Weigh the pixels that are generated and the share that is cut off."""
    # As many pixels as the upscaler needs, and no fewer than by default.
    wanted = max(math.prod(spec.default_size), math.prod(asked) / _FACTOR**2)
    return abs(math.log(math.prod(size) / wanted)) + _WEIGHT_OF_CUT * _cut(size, asked)
