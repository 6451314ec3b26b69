"""The area that an edit generates: the whole image, the part around its mask, or a border."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from sdstream.core import enlargement
from sdstream.core.ask import ParsedRequest
from sdstream.core.enlargement import Enlargement
from sdstream.core.errors import InvalidRequest, Reason
from sdstream.core.model_spec import ModelSpec
from sdstream.core.options import OPTIONS
from sdstream.core.placement import Box, Placement, around, contained, inside
from sdstream.core.request import Limits, Sources
from sdstream.core.resolve_size import (
    asked_size,
    check_pixels,
    check_size,
    enlarged,
    names_size,
)
from sdstream.core.size import Size

#: Default of ``only_masked_padding``: pixels around a mask that ``only_masked`` includes.
PADDING: Final = 32

#: Input on which an option acts -> its name in errors.
_INPUTS: Final = {
    "image": "an input image",
    "image or control": "an input image",
    "mask": "a mask",
    "mask or border": "a mask or a border",
    "reference": "a reference image",
    "control": "a control image",
}


@dataclass(frozen=True, slots=True)
class Layout:
    """The size to generate, and the steps from the generated image to the finished one.

    Attributes:
        size: Size to generate.
        asked: Size that the client requested; a larger image is cropped to it.
        placement: Position of the generated image in the finished image; None if they are the same.
        enlargement: How the generated image is resized; None if it is not.
    """

    size: Size
    asked: Size
    placement: Placement | None = None
    enlargement: Enlargement | None = None

    @property
    def enlarged(self) -> Size | None:
        """Size after resizing by ``size.enlarge`` of the model's entry; None without resizing."""
        return self.enlargement.enlarged if self.enlargement else None

    def cut_of(self, result: Size) -> Size | None:
        """Return the size to which the image is cropped; None if it is not cropped.

        Args:
            result: Size of the image after the second pass and the upscaler.
        """
        if self.enlargement is not None:
            return None if result == self.asked else self.asked
        if self.placement is not None or self.size == self.asked:
            return None
        return Size(
            max(1, round(self.asked.width * result.width / self.size.width)),
            max(1, round(self.asked.height * result.height / self.size.height)),
        )


def layout(ask: ParsedRequest, spec: ModelSpec, sources: Sources, limits: Limits) -> Layout:
    """Return the size to generate for a request, and the position of the generated image.

    Args:
        ask: The request.
        spec: The model.
        sources: Facts about the input images.
        limits: Limits of sizes.

    Raises:
        InvalidRequest: An option cannot be used; the error names it.
    """
    params = ask.params
    _check_conflicts(ask, sources)
    source = sources.size if sources.drawn_over else None
    if source is not None and params.only_masked and (sources.masked or params.expand):
        return _only_masked(ask, spec, sources, source, limits)
    if source is not None and params.expand is not None:
        return _expanded(ask, spec, source, limits)
    seen = sources.size
    own = spec.default_size
    if seen is not None:
        own = enlargement.own_size(spec, seen, limits.drawn)
    asked = asked_size(ask, spec, own)
    larger = enlarged(ask, spec, asked, limits.enlarged)
    # With a mask the pixels must stay in place, so the image is resized without cropping.
    if larger is not None and sources.masked:
        larger = replace(larger, enlarged=asked)
    over = spec.size_over(asked) if ask.any_size and not sources.masked else asked
    size = larger.generated if larger else over
    check_size(ask, spec, size, limits.drawn)
    if source is None or sources.masked or params.fit != "pad" or not names_size(ask):
        return Layout(size, asked, enlargement=larger)
    canvas, kept = Box.whole(asked), contained(source, asked)
    if kept == canvas:
        return Layout(size, asked, enlargement=larger)
    inner = inside(asked, size) if larger else Box.middle(asked, size)
    return Layout(size, asked, Placement(asked, canvas, inner, kept))


def _check_conflicts(ask: ParsedRequest, sources: Sources) -> None:
    params = ask.params
    other = "only_masked" if params.only_masked else "expand" if params.expand else None
    if other is not None and params.fit is not None and not sources.control:
        raise ask.rejected(
            "fit",
            f" has no effect with '{ask.client_name(other)}', which keeps the image's size.",
            Reason.CONFLICTING_FIELDS,
        )


def _only_masked(
    ask: ParsedRequest, spec: ModelSpec, sources: Sources, source: Size, limits: Limits
) -> Layout:
    """Return the layout for the part around the painted area, at the requested size."""
    canvas, kept = _with_border(ask, source, limits)
    painted = sources.painted
    if kept is not None:
        painted = _painted(canvas, kept, painted)
    if painted is None:
        raise ask.rejected(
            "mask",
            f" is empty: mark the part to generate, or leave out "
            f"'{ask.client_name('only_masked')}'.",
            Reason.INVALID_IMAGE,
        )
    asked = asked_size(ask, spec, spec.default_size)
    size = _size_of_part(ask, spec, asked, limits)
    padding = ask.params.only_masked_padding
    region = around(painted, PADDING if padding is None else padding, canvas, size)
    return Layout(size, asked, Placement(canvas, region, inside(region.size, size), kept))


def _expanded(ask: ParsedRequest, spec: ModelSpec, source: Size, limits: Limits) -> Layout:
    """Return the layout for an image with a border.

    The image keeps its scale if the model can generate the whole size. Otherwise it is generated
    smaller.
    """
    canvas, kept = _with_border(ask, source, limits)
    over = spec.size_over(canvas)
    fits = spec.size_problem(over) is None and over.width * over.height <= limits.drawn
    asked = asked_size(ask, spec, over if fits else spec.size_near(canvas, limits.drawn))
    size = _size_of_part(ask, spec, asked, limits)
    inner = inside(canvas, size, enlarge=size != over)
    return Layout(size, asked, Placement(canvas, Box.whole(canvas), inner, kept))


def _size_of_part(ask: ParsedRequest, spec: ModelSpec, asked: Size, limits: Limits) -> Size:
    """Return the size to generate for a part that is then scaled into the finished image."""
    larger = enlarged(ask, spec, asked, limits.enlarged)
    over = spec.size_over(asked) if ask.any_size else asked
    size = larger.generated if larger else over
    check_size(ask, spec, size, limits.drawn)
    return size


def _with_border(ask: ParsedRequest, source: Size, limits: Limits) -> tuple[Size, Box | None]:
    """Return the size of the image with its border, and the position of the image in it.

    Without a border the function returns None as the position.
    """
    if ask.params.expand is None:
        return source, None
    left, top, right, bottom = ask.params.expand
    canvas = Size(left + source.width + right, top + source.height + bottom)
    check_pixels(ask, "expand", canvas, limits.enlarged)
    return canvas, Box.at(left, top, source)


def _painted(canvas: Size, kept: Box, mask: Box | None) -> Box:
    """Return the smallest rectangle around the border and the painted area of the mask."""
    whole = Box.whole(canvas)
    sides = [
        whole._replace(right=kept.left),
        whole._replace(bottom=kept.top),
        whole._replace(left=kept.right),
        whole._replace(top=kept.bottom),
    ]
    if mask is not None:
        sides.append(Box.at(kept.left + mask.left, kept.top + mask.top, mask.size))
    boxes = [box for box in sides if min(box.size) > 0]
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return Box(min(lefts), min(tops), max(rights), max(bottoms))


def reference_sizes(ask: ParsedRequest, spec: ModelSpec, sources: Sources) -> tuple[Size, ...]:
    """Return the size at which the model receives each reference image."""
    if ask.params.reference_size == "original":
        return sources.references
    return tuple(map(spec.reference_size, sources.references))


def check_sources(ask: ParsedRequest, spec: ModelSpec, sources: Sources, plan: Layout) -> None:
    """Reject options that would have no effect because the request lacks an input image."""
    bordered = plan.placement is not None and plan.placement.kept is not None
    present = {
        "image": sources.drawn_over,
        "image or control": sources.drawn_over or sources.control,
        "mask": sources.masked,
        "mask or border": sources.masked or bordered,
        "reference": bool(sources.references),
        "control": sources.control,
    }
    for name, option in OPTIONS.items():
        acts_on = option.acts_on
        if acts_on and not present[acts_on] and getattr(ask.params, name) is not None:
            problem = f" needs {_INPUTS[acts_on]}."
            if sources.references and acts_on in ("image", "image or control"):
                problem = (
                    f" would have no effect: without a mask or a border, the model '{spec.id}' "
                    "uses images only as references."
                )
            raise ask.rejected(name, problem, Reason.NOT_SUPPORTED)
    if sources.control and spec.files.control_net is None:
        raise InvalidRequest(
            f"The model '{spec.id}' has no ControlNet.",
            reason=Reason.NOT_SUPPORTED,
            param=ask.client_name("control"),
        )
    # The parameters of an image that the server resized contain the upscaler of the model's entry.
    own = plan.enlargement.upscaler if plan.enlargement else None
    if (sources.masked or bordered) and ask.params.upscaler not in (None, own):
        # The kept pixels must not change, but an upscaler changes all pixels.
        raise ask.rejected(
            "upscaler",
            f" cannot be combined with {'a mask' if sources.masked else 'a painted border'}; "
            "upscale the finished image afterwards.",
            Reason.NOT_SUPPORTED,
        )
