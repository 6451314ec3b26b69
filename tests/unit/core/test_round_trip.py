"""A concrete request in image files and answers, and as workers and stores read it."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from sdstream.core import infotext
from sdstream.core.ask import ParsedRequest
from sdstream.core.catalog import Catalog
from sdstream.core.errors import InvalidRequest
from sdstream.core.options import ImageParams
from sdstream.core.placement import Box
from sdstream.core.request import (
    Assets,
    GenerationRequest,
    Limits,
    Sources,
    request_fields,
    request_of,
)
from sdstream.core.resolve import resolve
from sdstream.core.samplers import CACHE_KNOBS, HIRES_UPSCALERS, SAMPLERS, SCHEDULES
from sdstream.core.size import Size
from sdstream.dialects.rendering import parameters
from tests.unit.core.test_enlargement import ENTRY

CATALOG: Final = Catalog.parse(
    f"""
default: plain{ENTRY}
  - id: plain
    family: sd1
    files: {{model: m}}
    defaults: {{schedule: karras}}
  - id: guided
    family: flux
    files: {{model: m}}
  - id: layers
    family: sd3
    files: {{model: m}}
"""
)
ASSETS: Final = Assets(
    loras=["ink", "wet, ink", "a: b", 'so "called"', "styles/x.pt"],
    upscalers={"four": 4, "RealESRGAN_x4plus": 4, "sharp, twice": 2},
)
SIZE: Final = Size(700, 500)
SOURCES: Final = {
    "nothing": Sources(),
    "picture": Sources(SIZE, drawn_over=True),
    "mask": Sources(SIZE, drawn_over=True, masked=True, painted=Box(100, 100, 200, 150)),
}


def resolved(params: dict[str, Any], sources: Sources) -> GenerationRequest:
    """Resolve parameters against the catalogue above."""
    return resolve(
        ParsedRequest(ImageParams(**params)),
        CATALOG,
        random_seed=lambda: 77,
        limits=Limits(),
        sources=sources,
        assets=ASSETS,
    )


def check(params: dict[str, Any], sources: Sources = SOURCES["nothing"]) -> None:
    """Check that workers, stores, the image file and the answer lead to the same request."""
    request = resolved({"prompt": "a cat", **params}, sources)
    assert request_of(json.loads(json.dumps(request_fields(request)))) == request
    found = infotext.read_options(infotext.write(request, request.seed))
    assert found is not None
    assert found.unread == ()
    assert resolved(found.options, sources) == request
    values = parameters(request).items()
    sent = {name: value for name, value in values if name in ImageParams.model_fields}
    assert resolved(sent, sources) == request


def numbers(low: float, high: float) -> st.SearchStrategy[float]:
    """Generate numbers of any precision."""
    return st.floats(low, high) | st.integers(round(100 * low), round(100 * high)).map(
        lambda hundredths: min(high, max(low, hundredths / 100))
    )


sides = st.sampled_from([64, 96, 128, 192, 256, 320, 512, 640, 768])
second_passes = {
    "hires_scale": numbers(1.01, 4),
    "hires_steps": st.integers(1, 150),
    "hires_strength": numbers(0, 1),
    "hires_upscaler": st.sampled_from([*HIRES_UPSCALERS, "RealESRGAN_x4plus", "sharp, twice"]),
}
edits = {
    "strength": numbers(0, 1),
    "mask_blur": numbers(0.01, 64),
    "expand": st.lists(st.integers(0, 99), min_size=4, max_size=4),
    "only_masked": st.just(value=True),
    "only_masked_padding": st.integers(0, 99),
}
caches = {
    "cache_mode": st.sampled_from([*CACHE_KNOBS]),
    "cache_threshold": numbers(0.01, 10),
    "cache_start": numbers(0, 0.5),
    "cache_end": numbers(0.6, 1),
}
options = {
    "model": st.sampled_from(["plain", "guided", "layers", "small"]),
    "size": st.builds("{}x{}".format, sides, sides)
    | st.builds("{}x{}".format, st.integers(16, 999), st.integers(16, 999)),
    "negative_prompt": st.sampled_from(["dog", "two\nlines, with: facts"]),
    "seed": st.integers(0, 2**62),
    "sample_steps": st.integers(2, 150),
    "sigmas": st.lists(numbers(0.01, 1000), min_size=1, max_size=9, unique=True).map(
        lambda levels: [*sorted(levels, reverse=True), 0.0]
    ),
    "sampler": st.sampled_from([*SAMPLERS, "DPM++ 2M Karras"]),
    "schedule": st.sampled_from([*SCHEDULES]),
    "cfg_scale": numbers(0, 30),
    "guidance": numbers(0, 30),
    "eta": numbers(0, 1),
    "clip_skip": st.integers(1, 12),
    "flow_shift": numbers(0.01, 100),
    "slg_scale": numbers(0, 30),
    "slg_layers": st.lists(st.integers(0, 30), min_size=1, max_size=4),
    "lora": st.lists(st.sampled_from([*ASSETS.loras]), max_size=3, unique=True).flatmap(
        lambda names: st.tuples(
            *(st.fixed_dictionaries({"id": st.just(n), "scale": numbers(-10, 10)}) for n in names)
        )
    ),
    "upscaler": st.sampled_from([*ASSETS.upscalers]),
    "upscale": numbers(0.05, 4),
}
every = {**options, **caches, **second_passes, **edits}


@given(st.data(), st.sampled_from([*SOURCES]))
def test_the_text_of_an_image_leads_to_the_same_request(data: st.DataObject, inputs: str) -> None:
    """The text inside an image file, sent back, gives the request of that image."""
    # A few options at a time: most combinations of many options are not valid.
    names = data.draw(st.lists(st.sampled_from([*every]), max_size=5, unique=True))
    params = {name: data.draw(every[name], label=name) for name in names}
    try:
        resolved({"prompt": "a cat", **params}, SOURCES[inputs])
    except InvalidRequest:
        reject()
    check(params, SOURCES[inputs])


@pytest.mark.parametrize(
    ("inputs", "params"),
    [
        ("nothing", {"model": "small", "size": "256x256", "hires_scale": 1.5}),
        ("nothing", {"model": "small", "size": "96x256", "hires_scale": 1.05}),
        ("nothing", {"model": "small", "size": "128x128", "upscaler": "four", "upscale": 0.05}),
        ("nothing", {"model": "plain", "size": "512x640", "hires_scale": 1.3}),
        ("nothing", {"hires_scale": 2, "hires_upscaler": "RealESRGAN_x4plus"}),
        ("nothing", {"hires_scale": 2, "upscaler": "sharp, twice", "upscale": 1.23456789}),
        ("nothing", {"sigmas": [14.123456789, 1, 0], "cfg_scale": 7.12345678}),
        ("nothing", {"lora": [{"id": "wet, ink", "scale": 1 / 3}, {"id": "a: b", "scale": -1}]}),
        ("nothing", {"lora": [{"id": 'so "called"'}, {"id": "x.pt.safetensors"}]}),
        ("mask", {"model": "small", "size": "500x300"}),
        ("mask", {"model": "small", "only_masked": True}),
        ("picture", {"model": "small", "strength": 0.123456789}),
        ("picture", {"model": "plain", "expand": [64, 0, 32, 0]}),
    ],
)
def test_requests_whose_text_leads_to_them(inputs: str, params: dict[str, Any]) -> None:
    """Rounded sizes, exact numbers, names with commas and resized images come back."""
    check(params, SOURCES[inputs])
