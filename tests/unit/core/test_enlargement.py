"""Sizes that a model supports by enlarging what it generates."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sdstream.core.ask import ParsedRequest
from sdstream.core.catalog import Catalog
from sdstream.core.catalog_yaml import CatalogError
from sdstream.core.errors import ImageServiceError
from sdstream.core.options import ImageParams
from sdstream.core.placement import Box
from sdstream.core.request import Assets, GenerationRequest, Limits, Sources
from sdstream.core.resolve import resolve
from sdstream.core.size import Size

ENTRY = """
models:
  - id: small
    family: ovis_image
    files: {model: m}
    defaults: {size: 128x128}
    size:
      min: 64
      max: 512
      enlarge: {sizes: [128x128, 192x128, 128x192, 192x192], upscaler: four, max: 1536,
                max_pixels: 1600000}
"""
CATALOG = Catalog.parse(ENTRY)
ASSETS = Assets(upscalers={"four": 4, "mine": 2})
EDIT = Sources(size=Size(500, 300), drawn_over=True)


def ask(
    sources: Sources | None = None,
    assets: Assets = ASSETS,
    *,
    any_size: bool = False,
    catalog: Catalog = CATALOG,
    **options: Any,
) -> GenerationRequest:
    """Resolve a request."""
    params = ImageParams(prompt="a cat", **options)
    return resolve(
        ParsedRequest(params, any_size=any_size),
        catalog,
        random_seed=lambda: 1,
        limits=Limits(),
        sources=sources or Sources(),
        assets=assets,
    )


def refused(sources: Sources | None = None, assets: Assets = ASSETS, **options: Any) -> str:
    """Return the message with which a request is rejected."""
    with pytest.raises(ImageServiceError) as caught:
        ask(sources, assets, **options)
    return caught.value.message


@pytest.mark.parametrize(
    ("asked", "generated", "enlarged"),
    [
        ("512x512", "128x128", "512x512"),
        ("1024x1024", "192x192", "1024x1024"),
        ("1280x720", "192x128", "1280x853"),
        ("720x1280", "128x192", "853x1280"),
        ("333x517", "128x192", "345x517"),
        ("1536x1024", "192x128", "1536x1024"),
    ],
)
def test_other_sizes_are_enlarged(asked: str, generated: str, enlarged: str) -> None:
    """The supported size of the nearest shape is enlarged, then cropped to its centre."""
    request = ask(size=asked)
    assert str(request.size) == generated
    assert str(request.upscaled) == enlarged
    assert str(request.output_size) == asked
    assert request.options.upscaler == "four"
    assert request.options.upscale == round(Size.parse(enlarged).width / request.width, 4)
    assert request.warnings == ()


@pytest.mark.parametrize(
    ("asked", "generated", "reduced"),
    [
        ("64x64", "128x128", "64x64"),
        ("100x100", "128x128", "100x100"),
        ("16x16", "128x128", "16x16"),
        ("96x50", "192x128", "96x64"),
    ],
)
def test_smaller_sizes_are_reduced(asked: str, generated: str, reduced: str) -> None:
    """A smaller image is scaled down without an upscaler, even if the server has none."""
    for assets in (ASSETS, Assets()):
        request = ask(size=asked, assets=assets)
        assert (str(request.size), str(request.upscaled)) == (generated, reduced)
        assert str(request.output_size) == asked
        assert request.options.upscaler is None
        assert request.options.upscale is None


@pytest.mark.parametrize(
    ("options", "output"),
    [({"upscaler": "mine"}, "128x128"), ({"hires_scale": 2}, "128x128")],
)
def test_what_is_enlarged_later_is_not_reduced(options: dict[str, Any], output: str) -> None:
    """A small size that is enlarged later is generated as it is, with a warning."""
    request = ask(size="64x64", **options)
    assert (str(request.size), str(request.output_size)) == ("64x64", output)
    (warning,) = request.warnings
    assert "was not trained for this aspect ratio: its image of 64x64" in warning


def test_a_second_pass_that_is_large_enough_needs_no_upscaler() -> None:
    """After a second pass at the size of the request or more, the image is at most reduced."""
    for size in ("256x256", "200x200"):
        request = ask(size=size, hires_scale=2)
        assert str(request.second_pass) == "256x256"
        assert str(request.output_size) == size
        assert (request.options.upscaler, request.options.upscale) == (None, None)
    larger = ask(size="512x512", hires_scale=2)
    assert (str(larger.second_pass), str(larger.output_size)) == ("256x256", "512x512")
    assert (larger.options.upscaler, larger.options.upscale) == ("four", 4.0)
    again = ask(size="512x512", hires_scale=2, upscaler="four", upscale=4.0)
    assert again == larger


def test_parameters_that_name_the_upscaler_of_a_reduced_image() -> None:
    """Older images contain these parameters, which still give the same size."""
    request = ask(size="72x72", upscaler="four", upscale=0.5625)
    assert (str(request.size), str(request.output_size)) == ("128x128", "72x72")
    assert request.warnings == ()


@pytest.mark.parametrize("size", ["128x128", "192x128", "192x192"])
def test_known_sizes_are_generated(size: str) -> None:
    """A size that the model was trained for is generated without an upscaler."""
    request = ask(size=size)
    assert str(request.size) == size
    assert request.upscaled is None
    assert request.options.upscaler is None


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("2000x100", "width must be between 16 and 1536, not 2000"),
        ("100x8", "height must be between 16 and 1536, not 8"),
        (
            "1536x1536",
            "1536x1536 is more than the model's limit of 1600000 pixels; the nearest size is "
            "1264x1264",
        ),
        ("1200x1536", "the nearest size is 1118x1431"),
        (
            "600x128",
            "600x128 is too far from a square; the nearest size is 384x128",
        ),
        ("300x1500", "the nearest size is 300x900"),
    ],
)
def test_sizes_out_of_bounds(size: str, message: str) -> None:
    """The bounds apply to the finished image."""
    assert message in refused(size=size)


def test_the_nearest_size_is_accepted() -> None:
    """The size that the message suggests is accepted."""
    for size in ("384x128", "300x900", "1264x1264", "1118x1431"):
        assert str(ask(size=size).output_size) == size


def test_a_shape_that_was_not_trained() -> None:
    """The image is generated in nearly the requested shape, with a warning."""
    request = ask(size="1536x640")
    assert (str(request.size), str(request.output_size)) == ("192x80", "1536x640")
    (warning,) = request.warnings
    assert "was not trained for this aspect ratio: its image of 192x80" in warning


def test_a_shape_that_no_size_of_the_entry_has() -> None:
    """If the entry generates only one size, the message lists the sizes it allows."""
    text = ENTRY.replace("min: 64", "min: 128").replace("max: 512\n", "max: 128\n")
    square = Catalog.parse(text.replace(", 192x128, 128x192, 192x192", ""))
    assert str(ask(catalog=square, size="1024x1024").output_size) == "1024x1024"
    with pytest.raises(ImageServiceError, match="1000x400; it generates 128x128"):
        ask(catalog=square, size="1000x400")


def test_a_request_with_an_upscaler_gets_no_second_one() -> None:
    """With an upscaler in the request, the size is the one to generate."""
    request = ask(size="256x256", upscaler="mine")
    assert (str(request.size), str(request.upscaled)) == ("256x256", "512x512")
    assert "width must be between 64 and 512" in refused(size="1024x1024", upscaler="mine")


def test_the_upscaler_of_the_entry_is_missing() -> None:
    """The message names the missing upscaler and those available."""
    message = refused(assets=Assets(upscalers={"mine": 2}), size="512x512")
    assert "the upscaler 'four', which the server does not have; available: mine" in message


def test_the_upscaler_of_the_entry_makes_too_much() -> None:
    """The limit applies to the upscaler's whole result, even if it is scaled down later."""
    message = refused(assets=Assets(upscalers={"four": 40}), size="512x512")
    assert message.startswith("'size': the upscaler 'four' enlarges 128x128 by 40, and 5120x5120")


def test_an_edit_keeps_the_size_of_its_image() -> None:
    """An edit has the size of its image, within the bounds of the entry."""
    assert str(ask(EDIT).output_size) == "500x300"
    large = replace(EDIT, size=Size(3000, 1500))
    assert str(ask(large).output_size) == "1536x768"


def test_under_a_mask_nothing_is_cut_off() -> None:
    """The masked edit is scaled to the exact size without cropping."""
    request = ask(replace(EDIT, masked=True, painted=Box(1, 1, 9, 9)), size="500x300")
    assert request.size == Size(192, 128)
    assert request.upscaled == Size(500, 300)
    assert request.cut is None


def test_padding_and_parts_are_generated_at_a_known_size() -> None:
    """Padded images and parts get the finished size by scaling, without the upscaler."""
    padded = ask(EDIT, size="512x512", fit="pad")
    assert padded.size == Size(128, 128)
    assert padded.upscaled is None
    assert padded.output_size == Size(512, 512)
    masked = replace(EDIT, masked=True, painted=Box(1, 1, 9, 9))
    part = ask(masked, size="512x512", only_masked=True)
    assert (part.size, part.upscaled, part.output_size) == (Size(128, 128), None, Size(500, 300))


def test_routes_that_take_any_size() -> None:
    """The enlarged image has the exact size requested, without rounding."""
    request = ask(size="500x500", any_size=True)
    assert (str(request.size), str(request.output_size)) == ("128x128", "500x500")


def test_an_aspect_ratio() -> None:
    """A size derived from an aspect ratio is enlarged like any other."""
    assert ask(aspect_ratio="16:9").output_size == Size(176, 96)


def test_an_entry_with_a_size_that_its_family_cannot_generate() -> None:
    """Such a size is an error when the catalogue is parsed."""
    with pytest.raises(CatalogError, match="the size 130x130 is not allowed"):
        Catalog.parse(ENTRY.replace("[128x128,", "[130x130,"))
