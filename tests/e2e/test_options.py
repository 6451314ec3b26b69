"""Further options of the runtime, with the built-in model: each has an effect on its request
only."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from sdstream.core.samplers import CACHE_KNOBS
from tests.support.pictures import from_base64
from tests.support.servers import Call, ServerProcess

BODY: dict[str, Any] = {"prompt": "a red circle", "size": "128x128", "seed": 7, "sample_steps": 8}


def drawn(server: ServerProcess, **options: Any) -> bytes:
    """Generate an image; check that the parameters contain every option; return the pixels."""
    body = {**BODY, **options}
    answer = server.post({name: value for name, value in body.items() if value is not None})
    assert answer.status_code == 200, answer.text
    told = answer.json()["parameters"]
    for name, value in options.items():
        if value is not None:
            assert told[name] == value
    return from_base64(answer.json()["data"][0]["b64_json"]).tobytes()


@pytest.fixture(scope="module")
def plain(native_server: ServerProcess) -> bytes:
    """The image without any option."""
    return drawn(native_server)


@pytest.mark.parametrize(
    "options",
    [
        {"flow_shift": 6.0},
        {"slg_scale": 2.5, "slg_layers": [0], "slg_start": 0.0, "slg_end": 1.0},
        {"sigmas": [1.0, 0.8, 0.6, 0.4, 0.2, 0.0], "sample_steps": None},
        {"sampler": "euler_a", "eta": 0.0},
        {"vae_tiling": True, "vae_tile_size_x": 8},
        {"sample_steps": 20, "cache_mode": "easycache"},
        {"sample_steps": 20, "cache_mode": "dbcache"},
        {"sample_steps": 20, "cache_mode": "taylorseer"},
        {"sample_steps": 20, "cache_mode": "cache-dit", "cache_threshold": 0.5},
        {"sample_steps": 20, "cache_mode": "spectrum"},
    ],
    ids=lambda options: next(iter(options.values() if "cache_mode" in options else options)),
)
def test_an_option_acts(
    native_server: ServerProcess, plain: bytes, options: dict[str, Any]
) -> None:
    """The option changes the image and does not affect the next request."""
    without = {
        name: value for name, value in options.items() if name in ("sampler", "sample_steps")
    }
    assert drawn(native_server, **options) != drawn(native_server, **without)
    assert drawn(native_server) == plain


KNOBS = [
    (mode, name)
    for mode, knobs in CACHE_KNOBS.items()
    if mode != "ucache"  # only for U-Nets
    for name in knobs
]


@pytest.mark.parametrize(("mode", "name"), KNOBS)
def test_every_number_of_a_cache_acts(native_server: ServerProcess, mode: str, name: str) -> None:
    """Each cache option changes the image for at least one of its values."""
    knob = CACHE_KNOBS[mode][name]
    middle = max(2.0, knob.low) if knob.whole else (knob.low + knob.high) / 4
    # If the mode has a threshold, use one at which the cache skips steps.
    base = {} if mode == "spectrum" or name == "threshold" else {"threshold": 0.6}
    base |= {"start": {"end": 1.0}, "end": {"start": 0.0}}.get(name, {})  # no span may be empty
    pictures = (
        drawn(
            native_server,
            size="64x64",
            sample_steps=24,
            cache_mode=mode,
            cache_options={**base, name: value},
        )
        for value in (knob.low, knob.high, middle)
    )
    first = next(pictures)
    assert any(picture != first for picture in pictures)


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"cache_mode": "dbcache", "cache_options": {"window": 3}}, "cache_options"),
        ({"cache_mode": "dbcache", "cache_options": {"Fn": 2.5}}, "cache_options"),
        ({"cache_mode": "spectrum", "cache_options": {"m": 9}}, "cache_options"),
        ({"cache_mode": "spectrum", "cache_options": [1]}, "cache_options"),
        ({"cache_mode": "spectrum", "cache_options": "w"}, "cache_options"),
        ({"cache_mode": "spectrum", "cache_threshold": 0.5}, "cache_threshold"),
        ({"cache_mode": "dbcache", "cache_start": 0.5}, "cache_start"),
        ({"cache_options": {"w": 0.5}}, "cache_options"),
        (
            {"cache_mode": "dbcache", "cache_threshold": 1, "cache_options": {"threshold": 1}},
            "cache_options",
        ),
    ],
)
def test_numbers_that_a_cache_has_not(
    native_server: ServerProcess, options: dict[str, Any], param: str
) -> None:
    """A cache option that is invalid or that the mode does not have is rejected."""
    answer = native_server.post({**BODY, **options})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].partition(".")[0] == param


def test_numbers_of_a_cache_as_text(native_server: ServerProcess) -> None:
    """Text, as in a form, may contain the cache options as name=value pairs or JSON."""
    told = []
    for text in ("Fn=4,Bn=1", '{"Fn": 4, "Bn": 1}'):
        body = {**BODY, "cache_mode": "dbcache", "cache_options": text}
        told.append(native_server.post(body).json()["parameters"]["cache_options"])
    assert told == [{"Fn": 4.0, "Bn": 1.0}] * 2


def test_tiling_is_taken(native_server: ServerProcess) -> None:
    """vae_tiling is accepted, although one tile of the usual 32 latents covers this image."""
    assert len(drawn(native_server, vae_tiling=True)) == 128 * 128 * 3


@pytest.mark.parametrize("upscaler", ["latent-bicubic", "lanczos", "drawings-4x"])
def test_hires(native_server: ServerProcess, plain: bytes, upscaler: str) -> None:
    """The image has the larger size, and progress counts the steps of both passes."""
    body = {**BODY, "size": "64x64", "hires_scale": 1.5, "hires_upscaler": upscaler,
            "hires_steps": 4, "stream": True}  # fmt: skip
    events = [*Call(native_server, body).events()]
    steps = [event["data"][0]["progressed_steps"] for event in events]
    assert steps == sorted(steps)
    assert max(steps) == events[-1]["data"][0]["progress_steps"] in (8 + 4 + 1, 8 + 5 + 1)
    assert events[-1]["size"] == "96x96"
    assert from_base64(events[-1]["data"][0]["b64_json"]).size == (96, 96)
    assert drawn(native_server) == plain


def test_automatic1111s_hires_fix(native_server: ServerProcess) -> None:
    """AUTOMATIC1111's names of the hires fix are accepted."""
    body = {"prompt": "a red circle", "width": 64, "height": 64, "steps": 4, "enable_hr": True,
            "hr_scale": 2, "hr_upscaler": "Latent (nearest)", "hr_second_pass_steps": 2,
            "denoising_strength": 0.6}  # fmt: skip
    answer = httpx2.post(f"{native_server.url}/sdapi/v1/txt2img", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    assert from_base64(answer.json()["images"][0]).size == (128, 128)
    enlarged = {**body, "hr_upscaler": "drawings-4x"}
    answer = httpx2.post(f"{native_server.url}/sdapi/v1/txt2img", json=enlarged, timeout=60)
    assert answer.status_code == 200, answer.text
    for wrong, param in (
        ({"hr_upscaler": "R-ESRGAN"}, "hr_upscaler"),  # a file that does not exist
        ({"hr_prompt": "x"}, "hr_prompt"),
    ):
        answer = httpx2.post(f"{native_server.url}/sdapi/v1/txt2img", json={**body, **wrong})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
