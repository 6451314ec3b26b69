"""The operator's limits of images and steps: every API enforces them, model lists show them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.support.servers import ServerProcess, running_server


@pytest.fixture(scope="module")
def limited_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that allows two images of three steps, fewer steps than its model's default."""
    folder = tmp_path_factory.mktemp("limited")
    with running_server(folder, engine="fake", max_images=2, max_steps=3) as server:
        yield server


IMAGES = "3 images are more than the server's limit of 2 (--max-images)"
STEPS = "4 steps are more than the server's limit of 3 (--max-steps)"


@pytest.mark.parametrize(
    ("path", "body", "param", "words"),
    [
        ("/v1/images/generations", {"n": 3}, "n", IMAGES),
        ("/v1/images/generations", {"steps": 4}, "steps", STEPS),
        ("/v1/images/generations", {"sigmas": [4, 3, 2, 1, 0]}, "sigmas", STEPS),
        ("/v1-openai/image/generate", {"sample_steps": 4}, "sample_steps", STEPS),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "a cat"}], "n": 3},
            "n",
            IMAGES,
        ),
        ("/sdapi/v1/txt2img", {"n_iter": 3}, "batch_size", IMAGES),
        ("/sdapi/v1/txt2img", {"steps": 4}, "steps", STEPS),
        (
            "/sdapi/v1/txt2img",
            {"enable_hr": True, "hr_second_pass_steps": 4},
            "hr_second_pass_steps",
            STEPS,
        ),
        ("/sdcpp/v1/img_gen", {"batch_count": 3}, "batch_count", IMAGES),
        (
            "/sdcpp/v1/img_gen",
            {"sample_params": {"sample_steps": 4}},
            "sample_params.sample_steps",
            STEPS,
        ),
        (
            "/inference/v1/image_generation/accounts/fireworks/models/embedded",
            {"samples": 3},
            "samples",
            IMAGES,
        ),
        (
            "/models/embedded",
            {"inputs": "a cat", "parameters": {"num_inference_steps": 4}},
            "num_inference_steps",
            STEPS,
        ),
    ],
)
def test_more_is_rejected(
    limited_server: ServerProcess, path: str, body: dict[str, Any], param: str, words: str
) -> None:
    """The answer names the client's field, the value, the limit and the setting."""
    prompt = {} if {"inputs", "messages"} & {*body} else {"prompt": "a cat"}
    answer = httpx2.post(limited_server.url + path, json={**prompt, **body})
    assert answer.status_code == 400, answer.text
    assert f"'{param}': {words}" in answer.text


def test_as_much_as_is_allowed(limited_server: ServerProcess) -> None:
    """A request at the limits is accepted; one without steps gets at most the limit."""
    body = {"prompt": "a cat", "size": "64x64", "n": 2, "steps": 3}
    assert len(limited_server.post(body).json()["data"]) == 2
    usual = limited_server.post({"prompt": "a cat", "size": "64x64", "quality": "hd"}).json()
    assert usual["parameters"]["sample_steps"] == 3


def test_lists_have_the_limits(limited_server: ServerProcess) -> None:
    """A model's options and sd-server's capabilities contain the limits."""
    model = httpx2.get(f"{limited_server.url}/v1/models/default").json()
    options = model["options"]
    assert (options["n"]["maximum"], options["sample_steps"]["maximum"]) == (2, 3)
    assert options["hires_steps"]["maximum"] == options["sigmas"]["maxItems"] - 1 == 3
    assert model["defaults"]["sample_steps"] == options["sample_steps"]["default"] == 3
    other = httpx2.get(f"{limited_server.url}/sdcpp/v1/capabilities").json()
    assert other["limits"]["max_batch_count"] == 2
    assert other["defaults"]["sample_params"]["sample_steps"] == 3
