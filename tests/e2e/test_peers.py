"""Requests of the reference systems' documentation: mistral.rs, OVMS, GPUStack and Xinference."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests.support.pictures import changed_box, from_base64, opened
from tests.support.servers import GENERATIONS, ServerProcess

SMALL: dict[str, Any] = {"prompt": "a cat", "size": "64x64", "sample_steps": 3, "seed": 5}


def post(server: ServerProcess, path: str, body: object, **headers: str) -> httpx2.Response:
    """Send JSON."""
    return httpx2.post(server.url + path, json=body, headers=headers, timeout=60)


def refused(answer: httpx2.Response) -> tuple[str, str]:
    """Return the field and the reason of a 400."""
    assert answer.status_code == 400
    error = answer.json()["error"]
    return error["param"], error["reason"]


# --- mistral.rs ---------------------------------------------------------------------------------


def mistral(server: ServerProcess, **fields: Any) -> Any:
    """Send the request of mistral.rs' documentation in a small size; return the response."""
    body = {"model": "default", "prompt": "a dog", "n": 1, "height": 64, "width": 128, "steps": 3}
    return post(server, GENERATIONS, {**body, **fields}).json()


def test_mistral_rs_url(native_server: ServerProcess) -> None:
    """Url returns a URL of a PNG with the requested width and height."""
    (item,) = mistral(native_server, response_format="Url")["data"]
    file = httpx2.get(item["url"])
    assert file.headers["Content-Type"] == "image/png"
    assert opened(file.content).size == (128, 64)


def test_mistral_rs_b64json(native_server: ServerProcess) -> None:
    """B64Json returns a data URL, whose prefix the pattern of the documentation removes."""
    (item,) = mistral(native_server, response_format="B64Json")["data"]
    assert item["b64_json"].startswith("data:image/png;base64,")
    payload = re.sub(r"^data:image/\w+;base64,", "", item["b64_json"])
    assert opened(base64.b64decode(payload, validate=True)).size == (128, 64)


def test_mistral_rs_b64json_of_another_format(fake_server: ServerProcess) -> None:
    """The prefix of the data URL names the format of the image."""
    (item,) = mistral(fake_server, response_format="B64Json", output_format="jpeg")["data"]
    prefix, payload = item["b64_json"].split(",")
    assert prefix == "data:image/jpeg;base64"
    assert from_base64(payload).format == "JPEG"


def test_mistral_rs_model_default(fake_server: ServerProcess) -> None:
    """default selects the catalogue's default model, and the response names that model."""
    assert mistral(fake_server)["model"] == "embedded"


@pytest.mark.parametrize("given", ["width", "height"])
def test_mistral_rs_half_a_size(fake_server: ServerProcess, given: str) -> None:
    """Width without height, or the reverse, is rejected; the error names the missing field."""
    answer = post(fake_server, GENERATIONS, {"prompt": "a", given: 64})
    other = {"width": "height", "height": "width"}[given]
    assert refused(answer) == (other, "missing_field")


# --- OpenVINO Model Server ----------------------------------------------------------------------


def test_ovms_config(native_server: ServerProcess) -> None:
    """GET /v1/config reports the model as AVAILABLE in OVMS' format."""
    states = httpx2.get(f"{native_server.url}/v1/config").json()
    (version,) = states["embedded"]["model_version_status"]
    assert version == {
        "version": "1",
        "state": "AVAILABLE",
        "status": {"error_code": "OK", "error_message": "OK"},
    }


def test_ovms_generation(native_server: ServerProcess) -> None:
    """/v3 accepts OpenAI's client with OVMS' options in extra_body."""
    with openai.OpenAI(base_url=f"{native_server.url}/v3", api_key="unused") as client:
        answer = client.images.generate(
            model="embedded",
            prompt="three cats",
            n=1,
            size="64x64",
            extra_body={"rng_seed": 42, "num_inference_steps": 3, "guidance_scale": 2.5},
        )
    assert answer.data is not None
    assert from_base64(str(answer.data[0].b64_json)).size == (64, 64)
    parameters: Any = getattr(answer, "parameters", None)
    drawn = [parameters[name] for name in ("seed", "sample_steps", "cfg_scale")]
    assert drawn == [42, 3, 2.5]


def test_ovms_edit(native_server: ServerProcess, pictures: Path) -> None:
    """/v3/images/edits accepts strength, and a mask for inpainting."""
    files = {"image": (pictures / "input.png").read_bytes()}
    data = {"model": "embedded", "prompt": "a cat", "num_inference_steps": "3", "rng_seed": "1"}
    url = f"{native_server.url}/v3/images/edits"
    answer = httpx2.post(url, files=files, data={**data, "strength": "0.67"}).json()
    assert answer["parameters"]["strength"] == 0.67
    files["mask"] = (pictures / "mask.png").read_bytes()
    answer = httpx2.post(url, files=files, data=data).json()
    left, top, right, bottom = changed_box(
        from_base64(answer["data"][0]["b64_json"]), pictures
    ) or (0, 0, 99, 99)
    assert 16 <= left < right <= 48
    assert 16 <= top < bottom <= 48


@pytest.mark.parametrize(
    "name",
    ["prompt_2", "prompt_3", "negative_prompt_2", "negative_prompt_3"],
)
def test_ovms_second_encoders(fake_server: ServerProcess, name: str) -> None:
    """Prompts for text encoders that the models do not have are rejected by name."""
    answer = post(fake_server, "/v3/images/generations", {**SMALL, name: "a dog"})
    assert refused(answer) == (name, "not_supported")


def test_ovms_strength_without_an_image(fake_server: ServerProcess) -> None:
    """strength is rejected for a generation, where it would have no effect."""
    answer = post(fake_server, "/v3/images/generations", {**SMALL, "strength": 0.5})
    assert refused(answer) == ("strength", "not_supported")


# --- GPUStack and llama-box ---------------------------------------------------------------------


@pytest.mark.parametrize("base", ["/v1-openai", "/v3"])
def test_models_beside_the_pictures(fake_server: ServerProcess, base: str) -> None:
    """The models are listed under the same base URL as the image routes."""
    client = openai.OpenAI(base_url=fake_server.url + base, api_key="any")
    assert [model.id for model in client.models.list()] == ["embedded"]
    assert client.models.retrieve("embedded").id == "embedded"


@pytest.mark.parametrize("path", ["/v1-openai/image/generate", "/v1-openai/images/generations"])
def test_gpustack_generate(native_server: ServerProcess, path: str) -> None:
    """Both paths of the route accept the documentation's request."""
    body = {
        "n": 1,
        "response_format": "b64_json",
        "size": "64x64",
        "prompt": "A lovely cat",
        "quality": "standard",
        "sampler": "euler",
        "schedule": "default",
        "seed": None,
        "cfg_scale": 4.5,
        "sample_steps": 3,
        "negative_prompt": "",
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    answer = post(native_server, path, body, Authorization="Bearer myapikey")
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    frames = answer.text.split("\n\n")
    assert frames[-2:] == ["data: [DONE]", ""]
    assert all('"object":"image.chunk"' in frame for frame in frames[:-2])
    assert '"generation_per_second"' in frames[-3]
    assert '"progress":100' in frames[-3]


@pytest.mark.parametrize("path", ["/v1-openai/image/edit", "/v1-openai/images/edits"])
def test_gpustack_edit(native_server: ServerProcess, pictures: Path, path: str) -> None:
    """Both paths accept the documentation's form, which requests a stream by flattened options."""
    fields = {
        "n": "1",
        "response_format": "b64_json",
        "size": "64x64",
        "prompt": "A lovely cat",
        "sampler": "euler",
        "sample_steps": "3",
        "negative_sampler": "dark",
        "stream": "true",
        "stream_options_include_usage": "true",
    }
    files = {name: (pictures / f"{name}.png").read_bytes() for name in ("mask",)}
    files["image"] = (pictures / "input.png").read_bytes()
    answer = httpx2.post(native_server.url + path, data=fields, files=files, timeout=60)
    frames = answer.text.split("\n\n")
    assert frames[-2:] == ["data: [DONE]", ""]
    assert '"time_to_process_ms"' in frames[-3]


def test_gpustack_illegal_image(fake_server: ServerProcess) -> None:
    """An invalid image is a 400 before the stream, with the three fields of the documentation."""
    answer = httpx2.post(
        f"{fake_server.url}/v1-openai/image/edit",
        data={"prompt": "a", "stream": "true"},
        files={"image": b"no image"},
    )
    assert answer.status_code == 400
    shown = {"code": 400, "message": "Invalid image", "type": "invalid_request_error"}
    assert shown.items() <= answer.json()["error"].items()


def test_gpustack_query(fake_server: ServerProcess) -> None:
    """The query ?t=…, which GPUStack's page appends, is ignored."""
    assert post(fake_server, "/v1-openai/images/generations?t=1700000000", SMALL).is_success


# --- Xinference ---------------------------------------------------------------------------------


def test_xinference_curl(native_server: ServerProcess) -> None:
    """A size with *, kwargs as a JSON string, and a URL response are supported."""
    body = {
        "model": "embedded",
        "prompt": "an apple",
        "size": "64*64",
        "response_format": "url",
        "kwargs": '{"num_inference_steps": 3, "seed": 9}',
    }
    answer = post(native_server, GENERATIONS, body).json()
    (item,) = answer["data"]
    assert item["b64_json"] is None
    assert item["seed"] == 9
    assert opened(httpx2.get(item["url"]).content).size == (64, 64)


@pytest.mark.parametrize(
    ("kwargs", "param", "reason"),
    [
        ("[1]", "kwargs", "invalid_value"),
        ("{", "kwargs", "invalid_value"),
        ("[" * 90_000, "kwargs", "invalid_value"),
        ('{"prompt": "a dog"}', "prompt", "conflicting_fields"),
        ('{"sampel_steps": 1}', "sampel_steps", "unknown_field"),
    ],
)
def test_xinference_faulty_kwargs(
    fake_server: ServerProcess, kwargs: str, param: str, reason: str
) -> None:
    """Options in kwargs are validated like all other options."""
    answer = post(fake_server, GENERATIONS, {**SMALL, "kwargs": kwargs})
    assert refused(answer) == (param, reason)


def test_xinference_variation(native_server: ServerProcess, pictures: Path) -> None:
    """The documentation's curl request with model, image and prompt returns an image."""
    answer = httpx2.post(
        f"{native_server.url}/v1/images/variations",
        data={"model": "embedded", "prompt": "an apple", "steps": "3"},
        files={"image": (pictures / "input.png").read_bytes()},
        timeout=60,
    ).json()
    assert from_base64(answer["data"][0]["b64_json"]).size == (64, 64)


def test_any_key_will_do(fake_server: ServerProcess) -> None:
    """A server without keys accepts any key."""
    assert post(fake_server, GENERATIONS, SMALL, Authorization="Bearer cannot be empty").is_success
