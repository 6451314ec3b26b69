"""POST /v1/images/parameters: reads the options from an image file."""

from __future__ import annotations

import base64
import io

import httpx2
import pytest
from PIL import Image

from tests.support.jobs import wait_for
from tests.support.servers import ServerProcess

ROUTE = "/v1/images/parameters"
BODY = {
    "prompt": "a cat, Steps: none", "negative_prompt": "dull", "steps": 7, "cfg_scale": 4.5,
    "sampler": "dpm++2m", "schedule": "karras", "seed": 2**62 + 1, "size": "80x64",
}  # fmt: skip


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_what_was_written_is_read(fake_server: ServerProcess, kind: str) -> None:
    """The options read from a file generate the same image again."""
    first = fake_server.post({**BODY, "output_format": kind}).json()["data"][0]["b64_json"]
    files = {"image": ("x", base64.b64decode(first))}
    answer = httpx2.post(fake_server.url + ROUTE, files=files).json()
    assert answer["unread"] == []
    assert answer["parameters"]["seed"] == 2**62 + 1
    again = fake_server.post({**answer["parameters"], "output_format": kind}).json()
    assert again["data"][0]["b64_json"] == first


def test_the_parameters_of_an_answer_ask_for_it_again(fake_server: ServerProcess) -> None:
    """The unchanged parameters of an answer, kernels included, generate the same image again."""
    first = fake_server.post(BODY).json()
    # Kernels are off if another test has crashed the model twice on this server.
    model = httpx2.get(f"{fake_server.url}/v1/models/{first['model']}").json()
    assert first["parameters"]["kernels"] == model["kernels"]
    again = fake_server.post(first["parameters"]).json()
    assert [one["b64_json"] for one in again["data"]] == [one["b64_json"] for one in first["data"]]
    assert ("warnings" in first, "warnings" in again) == (False, False)
    job = fake_server.post(BODY, headers={"Prefer": "respond-async"}).json()
    assert "kernels" not in job["parameters"]
    done = wait_for(fake_server, job["id"], "completed")
    assert done["parameters"] == first["parameters"]


def test_an_image_without_parameters(fake_server: ServerProcess) -> None:
    """``parameters`` is null for an image without any."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    answer = httpx2.post(fake_server.url + ROUTE, files={"image": buffer.getvalue()})
    assert answer.json() == {
        "object": "image.parameters", "parameters": None, "unread": [], "text": None,
        "warnings": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("files", "data", "param"),
    [
        ({"image": b"garbage"}, {}, "image"),
        ({"picture": b"x"}, {}, "image"),
        ({"image": b"x"}, {"image_url": "a"}, "image_url"),
    ],
)
def test_rejections(
    fake_server: ServerProcess, files: dict[str, bytes], data: dict[str, str], param: str
) -> None:
    """An invalid request gets a 400 that names the field."""
    answer = httpx2.post(fake_server.url + ROUTE, files=files, data=data)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
