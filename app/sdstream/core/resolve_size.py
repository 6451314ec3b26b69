"""The size of an image, from ``size``, ``width`` and ``height``, ``aspect_ratio`` or a default."""

from __future__ import annotations

import re
from typing import Final

from sdstream.core import enlargement
from sdstream.core.ask import ParsedRequest
from sdstream.core.enlargement import Enlargement
from sdstream.core.errors import InvalidRequest, Reason
from sdstream.core.model_spec import ModelSpec
from sdstream.core.size import Size

#: A ratio as WIDTH:HEIGHT; neither number can be 0.
_RATIO: Final = re.compile(r"\s*([1-9]\d{0,3})\s*:\s*([1-9]\d{0,3})\s*")


def asked_size(ask: ParsedRequest, spec: ModelSpec, own: Size) -> Size:
    """Return the size that a request names, or ``own`` if the request does not name one."""
    params = ask.params
    if params.aspect_ratio is not None:
        return _shaped(ask, spec)
    if params.width is not None or params.height is not None:
        return _width_and_height(ask)
    if params.size in (None, "auto", ""):
        return own
    return _parsed(ask)


def names_size(ask: ParsedRequest) -> bool:
    """Return whether a request names a size or an aspect ratio."""
    params = ask.params
    chosen = (params.aspect_ratio, params.width, params.height)
    return params.size not in (None, "auto", "") or any(value is not None for value in chosen)


def check_size(ask: ParsedRequest, spec: ModelSpec, size: Size, max_pixels: int) -> None:
    """Reject a size that the model or the server does not allow.

    Args:
        ask: The request, for the name of the option.
        spec: The model.
        size: The size to generate.
        max_pixels: Upper bound of width x height.
    """
    problem = spec.size_problem(size)
    if problem:
        raise _rejected(ask, problem)
    check_pixels(ask, _option(ask), size, max_pixels)


def enlarged(
    ask: ParsedRequest, spec: ModelSpec, size: Size, max_pixels: int
) -> Enlargement | None:
    """Return how images are resized to a size that the model does not generate.

    The function returns None in these cases:

    - The model generates the size, or its entry has no ``size.enlarge``.
    - The request names another upscaler.
    - The image would be reduced, and the request enlarges it after that.

    Args:
        ask: The request.
        spec: The model.
        size: Size of the finished image.
        max_pixels: Upper bound of width x height of an enlarged image.

    Raises:
        InvalidRequest: The model's entry does not allow the size.
    """
    rule = spec.size.enlarge
    if rule is None or spec.generates(size) or ask.params.upscaler not in (None, rule.upscaler):
        return None
    check_pixels(ask, _option(ask), size, max_pixels)
    try:
        plan = enlargement.plan(spec, size)
    except ValueError as error:
        raise _rejected(ask, str(error)) from None
    # The parameters in older image files contain the upscaler and the factor of the reduction.
    by_upscaler = ask.params.upscaler is not None and ask.params.upscale != plan.factor
    later = by_upscaler or ask.params.hires_scale is not None
    if plan.upscaler is None and later and not spec.size_problem(size):
        return None
    return plan


def _rejected(ask: ParsedRequest, problem: str) -> InvalidRequest:
    by_height = ask.params.width is not None and problem.startswith("height")
    return ask.rejected("height" if by_height else _option(ask), f": {problem}.")


def _option(ask: ParsedRequest) -> str:
    """Return the name of the option that set the size."""
    if ask.params.aspect_ratio is not None:
        return "aspect_ratio"
    return "width" if ask.params.width is not None else "size"


def check_pixels(ask: ParsedRequest, option: str, size: Size, max_pixels: int) -> None:
    """Reject a size that has more pixels than the server allows.

    Args:
        ask: The request.
        option: The option that set the size, for the error.
        size: Width and height.
        max_pixels: Upper bound of width x height.
    """
    if size.width * size.height > max_pixels:
        raise ask.rejected(
            option, f": {size} is more than the server's limit of {max_pixels} pixels."
        )


def _parsed(ask: ParsedRequest) -> Size:
    try:
        size = Size.parse(str(ask.params.size))
    except ValueError as error:
        raise ask.rejected("size", f": {error}.") from None
    if 0 in size:
        raise ask.rejected("size", f": {size} has a side of 0 pixels.")
    return size


def _shaped(ask: ParsedRequest, spec: ModelSpec) -> Size:
    for other in ("size", "width", "height"):
        if getattr(ask.params, other) not in (None, "auto", ""):
            raise ask.rejected(
                "aspect_ratio",
                f" and '{ask.client_name(other)}' both choose the size; send one.",
                Reason.CONFLICTING_FIELDS,
            )
    match = _RATIO.fullmatch(ask.params.aspect_ratio or "")
    if match is None:
        raise ask.rejected("aspect_ratio", ": write a ratio as WIDTH:HEIGHT, for example 16:9.")
    size = spec.size_of_shape(int(match[1]), int(match[2]))
    if 0 in size:
        raise ask.rejected(
            "aspect_ratio",
            f": {match[0].strip()} is too far from a square for the model '{spec.id}', whose sides "
            f"are multiples of {spec.traits.multiple} pixels.",
        )
    return size


def _width_and_height(ask: ParsedRequest) -> Size:
    params = ask.params
    if params.width is None or params.height is None:
        given, missing = ("width", "height") if params.height is None else ("height", "width")
        raise InvalidRequest(
            f"'{ask.client_name(given)}' requires '{missing}'.",
            reason=Reason.MISSING_FIELD,
            param=missing,
        )
    size = Size(params.width, params.height)
    if params.size not in (None, "auto", "") and _parsed(ask) != size:
        raise ask.rejected(
            "size",
            " differs from width and height; send either the size or both sides.",
            Reason.CONFLICTING_FIELDS,
        )
    return size
