"""The part of an edit that is generated, and its place in the finished image."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sdstream.core.ask import ParsedRequest
from sdstream.core.catalog import Catalog
from sdstream.core.errors import ImageServiceError, Reason
from sdstream.core.options import ImageParams
from sdstream.core.placement import Box, Placement, around, contained, inside
from sdstream.core.request import (
    GenerationRequest,
    Limits,
    Sources,
    request_fields,
    request_of,
)
from sdstream.core.resolve import resolve
from sdstream.core.size import Size

CATALOG = Catalog.parse(
    """
models:
  - {id: plain, family: sd1, files: {model: m}, size: {min: 256, max: 1024}}
  - {id: looker, family: flux_kontext, files: {model: m}}
"""
)
PHOTO = Size(1600, 1200)
IMAGE = Sources(size=PHOTO, drawn_over=True)
MASKED = replace(IMAGE, masked=True, painted=Box(700, 500, 800, 560))


def ask(
    sources: Sources, *, model: str = "plain", any_size: bool = False, **options: Any
) -> GenerationRequest:
    """Resolve an edit."""
    params = ImageParams(prompt="a cat", model=model, **options)
    return resolve(
        ParsedRequest(params, any_size=any_size),
        CATALOG,
        random_seed=lambda: 1,
        limits=Limits(1024 * 1024, 4_000_000),
        sources=sources,
    )


def refused(sources: Sources, **options: Any) -> ImageServiceError:
    """Return the error with which an edit is rejected."""
    with pytest.raises(ImageServiceError) as caught:
        ask(sources, **options)
    return caught.value


@pytest.mark.parametrize(
    ("painted", "padding", "canvas", "shape", "part"),
    [
        # Widened to the shape, around the same centre.
        (Box(40, 40, 60, 60), 10, Size(100, 100), Size(64, 64), Box(30, 30, 70, 70)),
        (Box(40, 45, 60, 55), 0, Size(100, 100), Size(64, 64), Box(40, 40, 60, 60)),
        (Box(45, 40, 55, 60), 0, Size(100, 100), Size(128, 64), Box(30, 40, 70, 60)),
        # Moved inside the canvas at its edges.
        (Box(0, 0, 20, 10), 0, Size(100, 100), Size(64, 64), Box(0, 0, 20, 20)),
        (Box(90, 95, 100, 100), 0, Size(100, 100), Size(64, 64), Box(90, 90, 100, 100)),
        # Limited by the canvas.
        (Box(0, 0, 90, 40), 8, Size(100, 50), Size(64, 64), Box(0, 0, 98, 50)),
        (Box(3, 3, 4, 4), 500, Size(100, 50), Size(64, 64), Box(0, 0, 100, 50)),
        (Box(3, 3, 4, 4), 0, Size(100, 50), Size(64, 64), Box(3, 3, 4, 4)),
    ],
)
def test_the_part_around_a_mask(
    painted: Box, padding: int, canvas: Size, shape: Size, part: Box
) -> None:
    """The part is padded, widened to the requested shape, and kept inside the canvas."""
    assert around(painted, padding, canvas, shape) == part


@pytest.mark.parametrize(
    ("region", "generated", "enlarge", "inner"),
    [
        (Size(40, 40), Size(64, 64), True, Box(0, 0, 64, 64)),
        (Size(17, 11), Size(768, 512), True, Box(0, 0, 768, 512)),  # a difference under one pixel
        (Size(98, 50), Size(64, 64), True, Box(0, 15, 64, 48)),
        (Size(40, 60), Size(64, 64), False, Box(12, 2, 52, 62)),
        (Size(80, 20), Size(64, 64), False, Box(0, 24, 64, 40)),
        (Size(10_000, 1), Size(64, 64), True, Box(0, 31, 64, 32)),
    ],
)
def test_where_a_part_lies(region: Size, generated: Size, enlarge: bool, inner: Box) -> None:
    """The region is centred, and fills the image where less than one of its pixels is missing."""
    assert inside(region, generated, enlarge=enlarge) == inner


def test_an_image_in_a_larger_one() -> None:
    """The image is scaled to fit and centred."""
    assert contained(Size(80, 40), Size(64, 64)) == Box(0, 16, 64, 48)
    assert contained(Size(64, 64), Size(128, 64)) == Box(32, 0, 96, 64)
    assert contained(Size(1, 5000), Size(64, 64)) == Box(31, 0, 32, 64)


def test_only_masked_draws_the_part() -> None:
    """The part has the model's or the requested size; the result has the image's size."""
    request = ask(MASKED, only_masked=True)
    assert (request.size, request.output_size, request.options.strength) == (
        Size(512, 512), PHOTO, 1.0,
    )  # fmt: skip
    assert request.options.only_masked_padding == 32
    assert request.options.fit is None
    assert request.placement == Placement(PHOTO, Box(668, 448, 832, 612), Box(0, 0, 512, 512))
    wide = ask(MASKED, only_masked=True, only_masked_padding=0, size="768x256")
    assert wide.size == Size(768, 256)
    assert wide.placement is not None
    assert wide.placement.region == Box(660, 500, 840, 560)


def test_a_part_of_a_size_that_the_model_cannot_generate() -> None:
    """On routes that accept any size, the size sent sets only the shape of the part."""
    request = ask(MASKED, only_masked=True, any_size=True, width=500, height=300)
    assert (request.size, request.output_size, request.cut) == (Size(512, 320), PHOTO, None)
    assert refused(MASKED, only_masked=True, width=500, height=300).param == "width"


def test_expand_keeps_the_image() -> None:
    """The result is exactly the image with its border, generated at a size the model supports."""
    small = replace(IMAGE, size=Size(300, 200))
    request = ask(small, expand="100,0,50,9")
    assert (request.output_size, request.size) == (Size(450, 209), Size(512, 256))
    assert request.placement == Placement(
        Size(450, 209), Box(0, 0, 450, 209), Box(31, 23, 481, 232), Box(100, 0, 400, 200)
    )
    assert (request.options.strength, request.options.expand) == (1.0, (100, 0, 50, 9))
    large = ask(IMAGE, expand=200)
    assert (large.output_size, large.size) == (Size(2000, 1600), Size(1024, 832))
    sized = ask(small, expand=64, size="1024x768")
    assert sized.placement is not None
    assert sized.placement.inner == Box(11, 0, 1013, 768)


def test_a_border_and_a_mask() -> None:
    """Border and mask are both repainted; only_masked generates the rectangle around both."""
    both = ask(MASKED, expand="0,0,100,0", only_masked=True)
    assert both.output_size == Size(1700, 1200)
    assert both.placement is not None
    assert both.placement.region == Box(500, 0, 1700, 1200)
    assert both.placement.kept == Box(0, 0, 1600, 1200)
    border = ask(IMAGE, expand="0,64,0,0", only_masked=True, only_masked_padding=0)
    assert border.placement is not None
    assert border.placement.region == Box(0, 0, 1600, 1264)
    plain = ask(MASKED, expand=8)
    assert plain.placement is not None
    assert plain.placement.region == Box(0, 0, 1616, 1216)


def test_expand_on_a_model_that_looks_at_images() -> None:
    """The image is the start image instead of a reference, so that its pixels are kept."""
    request = ask(IMAGE, model="looker", expand=8)
    assert request.output_size == Size(1616, 1216)


def test_pad_paints_the_border() -> None:
    """Only the border is painted if the shape differs and there is no mask."""
    request = ask(IMAGE, fit="pad", size="512x512")
    assert request.placement == Placement(
        Size(512, 512), Box(0, 0, 512, 512), Box(0, 0, 512, 512), Box(0, 64, 512, 448)
    )
    assert (request.options.strength, request.options.fit) == (1.0, "pad")
    assert ask(IMAGE, fit="pad", size="512x512", mask_blur=4).options.mask_blur == 4
    others: list[dict[str, Any]] = [{}, {"size": "1024x768"}, {"size": "512x512", "fit": "crop"}]
    for options in others:
        plain = ask(IMAGE, **{"fit": "pad"} | options)
        assert (plain.placement, plain.options.strength) == (None, 0.75)
    assert ask(MASKED, fit="pad", size="512x512").placement is None


def test_a_border_of_any_size() -> None:
    """The result has the requested size and is generated at the next larger one."""
    request = ask(IMAGE, fit="pad", width=500, height=300, any_size=True)
    assert (request.size, request.output_size, request.cut) == (
        Size(512, 320), Size(500, 300), None,
    )  # fmt: skip
    assert request.placement is not None
    assert request.placement.inner == Box(6, 10, 506, 310)
    assert request.placement.kept == Box(50, 0, 450, 300)


@pytest.mark.parametrize(
    ("sources", "options", "param", "reason"),
    [
        (replace(MASKED, painted=None), {"only_masked": True}, "mask", Reason.INVALID_IMAGE),
        (MASKED, {"only_masked": True, "fit": "pad"}, "fit", Reason.CONFLICTING_FIELDS),
        (IMAGE, {"expand": 8, "fit": "pad"}, "fit", Reason.CONFLICTING_FIELDS),
        (IMAGE, {"expand": 2000}, "expand", Reason.INVALID_VALUE),
        (MASKED, {"only_masked": True, "size": "2048x512"}, "size", Reason.INVALID_VALUE),
        (MASKED, {"only_masked": True, "size": "100x100"}, "size", Reason.INVALID_VALUE),
        (IMAGE, {"expand": 8, "mask_mode": "alpha"}, "mask_mode", Reason.NOT_SUPPORTED),
        (IMAGE, {"expand": 8, "upscaler": "x"}, "upscaler", Reason.NOT_SUPPORTED),
        (
            MASKED,
            {"only_masked": True, "hires_scale": 2},
            "hires_scale",
            Reason.NOT_SUPPORTED,
        ),
    ],
)
def test_what_cannot_be(
    sources: Sources, options: dict[str, Any], param: str, reason: Reason
) -> None:
    """Each error names the option."""
    error = refused(sources, **options)
    assert (error.param, error.reason) == (param, reason)


@pytest.mark.parametrize("value", [8, "8", [8], "8,8,8,8", [8, 8, 8, 8], "8, 8, 8, 8"])
def test_spellings_of_expand(value: Any) -> None:
    """One number or four are accepted, as JSON and as text of a form."""
    assert ImageParams(prompt="", expand=value).expand == (8, 8, 8, 8)


@pytest.mark.parametrize("value", [0, "0", "0,0,0,0", [0, 0, 0, 0]])
def test_no_border_is_none(value: Any) -> None:
    """Zeros, as a slider at its end sends them, mean no border."""
    assert ImageParams(prompt="", expand=value).expand is None
    assert ImageParams(prompt="", only_masked=False).only_masked is None


@pytest.mark.parametrize("value", [-1, "8,8", "8,8,8,8,8", True, "wide", 5000, [1.5, 0, 0, 0]])
def test_no_border_at_all(value: Any) -> None:
    """Other counts, types and values out of range are rejected."""
    with pytest.raises(ValueError, match="expand"):
        ImageParams(prompt="", expand=value)


def test_references_get_the_models_area() -> None:
    """References are scaled to the model's area, with their shape, in the model's multiples."""
    sizes = (Size(4000, 3000), Size(100, 100), Size(16_000_000, 1))
    request = ask(Sources(size=sizes[0], references=sizes), model="looker")
    assert request.references == (Size(1184, 880), Size(1024, 1024), Size(2048, 16))
    assert request.options.reference_size == "auto"
    own = ask(Sources(references=sizes), model="looker", reference_size="original")
    assert own.references == sizes


def test_placements_are_stored() -> None:
    """A placement survives storage, for jobs that outlive the server."""
    for request in (ask(MASKED, only_masked=True), ask(IMAGE, expand=8)):
        assert request_of(request_fields(request)) == request
