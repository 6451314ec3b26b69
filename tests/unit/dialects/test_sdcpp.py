"""Options in the nested schema of stable-diffusion.cpp's server."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from sdstream.core.ask import Handling
from sdstream.core.errors import InvalidRequest
from sdstream.dialects.sdcpp.options import flatten
from sdstream.dialects.sdcpp.request import parse_img_gen

#: Disabled objects with known fields whose values would otherwise be rejected.
OFF: dict[str, dict[str, Any]] = {
    "vae_tiling_params": {"enabled": False, "tile_size_x": 9, "extra_tiling_args": "x"},
    "hires": {"scale": 3, "target_width": 640},
    "sample_params": {"guidance": {"slg": {"scale": 0.0, "layers": [7]}}},
}


def with_field(name: str) -> tuple[dict[str, Any], str]:
    """Return a disabled object with an additional unknown field, and the field's full name."""
    if name == "sample_params":
        slg = OFF[name]["guidance"]["slg"]
        return {name: {"guidance": {"slg": {**slg, "typo": 1}}}}, f"{name}.guidance.slg.typo"
    return {name: {**OFF[name], "typo": 1}}, f"{name}.typo"


def test_objects_that_are_switched_off() -> None:
    """The fields of a disabled object have no effect."""
    flat = flatten(OFF, Handling.STRICT)
    assert (flat.fields, flat.warnings, flat.unknown) == ({}, [], [])


def test_a_second_pass_of_scale_1() -> None:
    """It has no effect, as in AUTOMATIC1111's API."""
    hires = {"enabled": True, "scale": 1.0, "upscaler": "Latent", "denoising_strength": 0.7}
    assert flatten({"hires": hires}, Handling.STRICT).fields == {}


@pytest.mark.parametrize(
    ("value", "size"), [(None, None), (True, None), (False, "original"), (0, "original")]
)
def test_the_size_of_references(value: object, size: str | None) -> None:
    """Null leaves the size of the references to the server; false keeps it."""
    picture = base64.b64encode(b"a picture").decode()
    ask = parse_img_gen({"ref_images": [picture], "auto_resize_ref_image": value})
    assert ask.params.reference_size == size


@pytest.mark.parametrize("name", OFF)
def test_unknown_fields_of_objects_that_are_switched_off(name: str) -> None:
    """Unknown fields of a disabled object are reported, and rejected under strict handling."""
    body, whole = with_field(name)
    flat = flatten(body, Handling.SUGGEST)
    assert (flat.fields, flat.unknown) == ({}, [whole])
    assert flat.warnings == [f"Unknown field '{whole}' has no effect."]
    with pytest.raises(InvalidRequest, match="Unknown field") as caught:
        flatten(body, Handling.STRICT)
    assert caught.value.param == whole
