"""Options in the nested schema of stable-diffusion.cpp's server."""

from __future__ import annotations

from typing import Any

import pytest

from sdstream.core.ask import Handling
from sdstream.core.errors import InvalidRequest
from sdstream.dialects.sdcpp.options import flatten

#: Objects that are switched off, with values of known fields that would be rejected otherwise.
OFF: dict[str, dict[str, Any]] = {
    "vae_tiling_params": {"enabled": False, "tile_size_x": 9, "extra_tiling_args": "x"},
    "hires": {"scale": 3, "target_width": 640},
    "sample_params": {"guidance": {"slg": {"scale": 0.0, "layers": [7]}}},
}


def with_field(name: str) -> tuple[dict[str, Any], str]:
    """An object that is switched off and has one more field, and the whole name of that field."""
    if name == "sample_params":
        slg = OFF[name]["guidance"]["slg"]
        return {name: {"guidance": {"slg": {**slg, "typo": 1}}}}, f"{name}.guidance.slg.typo"
    return {name: {**OFF[name], "typo": 1}}, f"{name}.typo"


def test_objects_that_are_switched_off() -> None:
    """Clients send all of their fields; none has an effect."""
    flat = flatten(OFF, Handling.STRICT)
    assert (flat.fields, flat.warnings, flat.unknown) == ({}, [], [])


@pytest.mark.parametrize("name", OFF)
def test_unknown_fields_of_objects_that_are_switched_off(name: str) -> None:
    """They are reported, and rejected under strict handling."""
    body, whole = with_field(name)
    flat = flatten(body, Handling.SUGGEST)
    assert (flat.fields, flat.unknown) == ({}, [whole])
    assert flat.warnings == [f"Unknown field '{whole}' has no effect."]
    with pytest.raises(InvalidRequest, match="Unknown field") as caught:
        flatten(body, Handling.STRICT)
    assert caught.value.param == whole
