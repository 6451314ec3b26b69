"""Options of other systems and their effects: the rows of the pages in docs/compat."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.support.pictures import png
from tests.support.servers import GENERATIONS, ServerProcess, running_server

Row = tuple[dict[str, Any], dict[str, Any]]

GPUSTACK_SAMPLERS = [
    *("euler_a", "euler", "heun", "dpm2", "dpm++2s_a"),
    *("dpm++2m", "dpm++2mv2", "ipndm", "ipndm_v", "lcm"),
]
GPUSTACK_SCHEDULES = ["default", "discrete", "karras", "exponential", "ays", "gits"]

#: System -> fields of a request, and the parameters that its job has.
ROWS: dict[str, list[Row]] = {
    "GPUStack": [
        *(({"sampler": name}, {"sampler": name}) for name in GPUSTACK_SAMPLERS),
        *(({"schedule": name}, {}) for name in GPUSTACK_SCHEDULES),
        ({"seed": None, "cfg_scale": 4.5}, {"cfg_scale": 4.5}),
        ({"sample_steps": 3, "negative_prompt": "dark"}, {"sample_steps": 3}),
        ({"negative_sampler": "dark"}, {"negative_prompt": "dark"}),
        ({"sample_method": "heun", "sampling_steps": 2}, {"sampler": "heun", "sample_steps": 2}),
        ({"schedule_method": "karras"}, {"schedule": "karras"}),
        ({"quality": "standard", "response_format": "b64_json", "n": 2}, {"n": 2}),
        ({"size": "128x192"}, {"size": "128x192"}),
    ],
    "mistral.rs": [
        ({"model": "default", "height": 64, "width": 128, "n": 1}, {"size": "128x64"}),
        ({"response_format": "B64Json"}, {}),
        ({"response_format": "Url"}, {}),
    ],
    "OpenVINO Model Server": [
        ({"num_inference_steps": 2, "rng_seed": 42}, {"sample_steps": 2, "seed": 42}),
        ({"guidance_scale": 2.0}, {"cfg_scale": 2}),
        ({"num_images_per_prompt": 2}, {"n": 2}),
        ({"max_sequence_length": 128}, {}),
    ],
    "Xinference": [
        ({"size": "1024*1024"}, {"size": "1024x1024"}),
        ({"kwargs": json.dumps({"num_inference_steps": 2})}, {"sample_steps": 2}),
        ({"padding_image_to_multiple": 8}, {}),
    ],
}

FIREWORKS = "/inference/v1/workflows/accounts/fireworks/models/default/text_to_image"
FIREWORKS_SIZES = [
    (1024, 1024), (1152, 896), (896, 1152), (1216, 832), (832, 1216), (1344, 768), (768, 1344),
    (1536, 640), (640, 1536),
]  # fmt: skip
FIREWORKS_ROWS: list[Row] = [
    *(({"width": w, "height": h}, {"size": f"{w}x{h}"}) for w, h in FIREWORKS_SIZES),
    ({"sampler": None}, {}),
    ({"sampler": "K_EULER"}, {"sampler": "euler"}),
    ({"sampler": "K_DPMPP_2M"}, {"sampler": "dpm++2m"}),
    ({"guidance_scale": 2}, {"cfg_scale": 2}),
    ({"cfg_scale": 2}, {"cfg_scale": 2}),
    ({"samples": 2, "negative_prompt": "dark"}, {"n": 2, "negative_prompt": "dark"}),
    ({"steps": 2}, {"sample_steps": 2}),
    ({"num_inference_steps": 2}, {"sample_steps": 2}),
    ({"clip_guidance_preset": "NONE", "return_latents": False}, {}),
]

#: Fields that would change the image and are not supported.
REJECTED = [
    (GENERATIONS, {"prompt_2": "b"}),
    (GENERATIONS, {"prompt_3": "b"}),
    (GENERATIONS, {"negative_prompt_2": "b"}),
    (GENERATIONS, {"negative_prompt_3": "b"}),
    (FIREWORKS, {"style_preset": "anime"}),
    (FIREWORKS, {"clip_guidance_preset": "FAST_BLUE"}),
    (FIREWORKS, {"text_prompts": [{"text": "b"}]}),
    (FIREWORKS, {"return_latents": True}),
    (FIREWORKS, {"apply_invisible_watermark": True}),
    (FIREWORKS, {"safety_check": True}),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server on the fake engine with a model of the family SDXL, which those systems have."""
    folder = tmp_path_factory.mktemp("rows")
    entry = "{id: embedded, family: sdxl, files: {model: x}, size: {min: 64}}"
    (folder / "models.yaml").write_text(f"models:\n  - {entry}\n")
    (folder / "x").write_bytes(b"")
    with running_server(folder, engine="fake", models=folder / "models.yaml") as found:
        yield found


def parameters(server: ServerProcess, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Send a request and return the effective parameters of its job."""
    every = {"prompt": "a", "sample_steps": 2, **body}  # some schedules need two
    if {"num_inference_steps", "steps", "sampling_steps", "kwargs"} & body.keys():
        del every["sample_steps"]
    headers = {"Accept": "application/json"}
    answer = httpx2.post(server.url + path, json=every, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    job = httpx2.get(f"{server.url}/v1/jobs/{answer.headers['X-Job-Id']}", timeout=10)
    found: dict[str, Any] = job.json()["parameters"]
    return found


@pytest.mark.parametrize(
    ("system", "row"),
    [(system, row) for system, rows in ROWS.items() for row in rows],
    ids=lambda value: value if isinstance(value, str) else str(value[0]),
)
def test_a_row(server: ServerProcess, system: str, row: Row) -> None:
    """The field is accepted and has its effect."""
    given, expected = row
    assert expected.items() <= parameters(server, GENERATIONS, given).items()


@pytest.mark.parametrize("row", FIREWORKS_ROWS, ids=lambda row: str(row[0]))
def test_a_row_of_fireworks(server: ServerProcess, row: Row) -> None:
    """The field is accepted and has its effect on Fireworks' route."""
    given, expected = row
    assert expected.items() <= parameters(server, FIREWORKS, given).items()


def test_a_seed_of_zero_is_random_on_fireworks(server: ServerProcess) -> None:
    """The seed 0 is random, as Fireworks documents it."""
    assert parameters(server, FIREWORKS, {"seed": 0})["seed"] != 0


@pytest.mark.parametrize(("path", "body"), REJECTED, ids=str)
def test_what_is_rejected(server: ServerProcess, path: str, body: dict[str, Any]) -> None:
    """The error names the field."""
    answer = httpx2.post(server.url + path, json={"prompt": "a", **body}, timeout=60)
    assert answer.status_code == 400
    assert next(iter(body)) in answer.text


@pytest.mark.parametrize("field", ["max_sequence_length", "padding_image_to_multiple"])
def test_what_has_no_effect(server: ServerProcess, field: str) -> None:
    """A field without effect causes a warning."""
    answer = server.post({"prompt": "a", "sample_steps": 1, field: 64})
    assert any(field in warning for warning in answer.json()["warnings"])


def test_preview_faster_is_preview(server: ServerProcess) -> None:
    """A stream with preview_faster contains images between the steps."""
    body = {"prompt": "a", "sample_steps": 4, "stream": True}
    options = {"preview_faster": True, "include_usage": True}
    answer = server.post({**body, "stream_options": options})
    frames = [json.loads(line[6:]) for line in answer.text.splitlines() if line[:7] == "data: {"]
    assert [one for one in frames if one["data"][0].get("b64_json")][:-1]
    assert frames[-1]["usage"]["generation_per_second"] > 0


@pytest.mark.parametrize("path", ["/v3/images/edits", "/v1/images/inpainting"])
def test_a_mask_in_a_form(server: ServerProcess, path: str) -> None:
    """OpenVINO Model Server's edits and Xinference's inpainting accept a mask."""
    name = "mask_image" if "inpainting" in path else "mask"
    files = {"image": png(64, 64, "red"), name: png(64, 64, "white")}
    data = {"prompt": "a", "model": "embedded", "strength": "0.5", "num_inference_steps": "4"}
    answer = httpx2.post(server.url + path, data=data, files=files, timeout=60)
    assert answer.status_code == 200, answer.text


def test_links_alone_have_null(server: ServerProcess) -> None:
    """An answer with links only has null as base64, as Xinference documents it."""
    answer = server.post({"prompt": "a", "sample_steps": 1, "response_format": "url"})
    item = answer.json()["data"][0]
    assert item["b64_json"] is None
    assert item["url"].startswith("http")
