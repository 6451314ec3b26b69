"""Upscaling by an ESRGAN, with networks whose result is known: they repeat each pixel."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import httpx2
import numpy as np
import pytest
import webuiapi
from PIL import Image

from tests.support.pictures import file_of
from tests.support.servers import ServerProcess, running_server, wait_until
from tests.support.upscalers import write_upscaler
from tests.support.weight_files import ALONE, write_safetensors

BODY: dict[str, Any] = {"prompt": "a red circle", "size": "64x64", "seed": 7, "sample_steps": 4}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with three upscalers and five files that are not usable."""
    folder = tmp_path_factory.mktemp("upscaling")
    upscalers = folder / "upscalers"
    upscalers.mkdir()
    write_upscaler(upscalers / "twice.safetensors", 2)
    write_upscaler(upscalers / "fourfold.safetensors", 4)
    write_safetensors(upscalers / "vae.safetensors", ALONE["vae"])
    (upscalers / "garbage.gguf").write_bytes(b"garbage" * 100)
    (upscalers / "x4plus.pth").write_bytes(b"PK\x03\x04")
    write_safetensors(
        upscalers / "compact.safetensors",
        {"body.0.weight": (3, 3, 3, 64), "body.1.weight": (64,), "body.2.weight": (3, 3, 64, 64)},
    )
    write_safetensors(
        upscalers / "x2plus.safetensors",
        {"conv_first.weight": (3, 3, 12, 64), "body.0.rdb1.conv1.weight": (3, 3, 64, 32)},
    )
    (upscalers / "more").mkdir()
    write_upscaler(upscalers / "more" / "plain.safetensors", 1)
    with running_server(folder, upscaler_dir=upscalers) as running:
        yield running


def noise(width: int, height: int) -> Image.Image:
    """Return an image of random pixels."""
    values = np.random.default_rng(3).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


def enlarged(server: ServerProcess, picture: Image.Image, **fields: str) -> httpx2.Response:
    """Send an image to POST /v1/images/upscales."""
    return httpx2.post(
        f"{server.url}/v1/images/upscales",
        files={"image": ("input.png", file_of(picture), "image/png")},
        data=fields,
        timeout=100,
    )


def picture_of(answer: httpx2.Response) -> Image.Image:
    """Return the first image of a response."""
    assert answer.status_code == 200, answer.text
    return Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"])))


def difference(left: Image.Image, right: Image.Image) -> int:
    """Return the largest difference of a channel."""
    assert left.size == right.size
    return int(np.abs(np.asarray(left, int) - np.asarray(right, int)).max())


def test_the_list_of_upscalers(server: ServerProcess, native_server: ServerProcess) -> None:
    """The list contains the usable upscalers with their factors, the built-in one, and the unusable
    files."""
    answer = httpx2.get(f"{server.url}/v1/upscalers").json()
    found = [(one["id"], one["factor"]) for one in answer["data"]]
    assert found == [("fourfold", 4), ("more/plain", 1), ("twice", 2), ("drawings-4x", 4)]
    assert [one["file"] for one in answer["unusable"]] == [
        "compact.safetensors", "garbage.gguf", "vae.safetensors", "x2plus.safetensors",
        "x4plus.pth",
    ]  # fmt: skip
    (built_in,) = httpx2.get(f"{native_server.url}/v1/upscalers").json()["data"]
    assert built_in == {"id": "drawings-4x", "object": "upscaler", "factor": 4}


@pytest.mark.parametrize(("name", "factor"), [("twice", 2), ("fourfold", 4)])
def test_every_pixel_comes_through(server: ServerProcess, name: str, factor: int) -> None:
    """An image larger than a tile is upscaled without visible seams."""
    picture = noise(150, 70)
    answer = enlarged(server, picture, upscaler=name)
    larger = picture.resize((150 * factor, 70 * factor), Image.Resampling.NEAREST)
    assert difference(picture_of(answer), larger) == 0
    parameters = answer.json()["parameters"]
    assert (parameters["upscaler"], parameters["upscale"]) == (name, factor)
    assert answer.json()["size"] == f"{150 * factor}x{70 * factor}"


def test_less_than_the_upscalers_own_factor(server: ServerProcess) -> None:
    """Any factor up to the upscaler's is supported."""
    answer = enlarged(server, noise(40, 20), upscaler="fourfold", upscale="2.5")
    assert picture_of(answer).size == (100, 50)


@pytest.mark.parametrize(
    ("fields", "param", "sentence"),
    [
        ({}, "upscaler", "is required; available: fourfold, more/plain, twice"),
        ({"upscaler": "vae"}, "upscaler", "'vae' cannot be used; its file is a VAE with 16"),
        ({"upscaler": "x2plus"}, "upscaler", "folds pixels into channels"),
        ({"upscaler": "compact"}, "upscaler", "is a compact upscaler (SRVGGNet)"),
        ({"upscaler": "x4plus.pth"}, "upscaler", "is a PyTorch checkpoint"),
        ({"upscaler": "../fourfold"}, "upscaler", "no upscaler"),
        ({"upscaler": "twice", "upscale": "4"}, "upscale", "enlarges at most 2 times"),
        ({"upscaler": "twice", "upscale": "0.01"}, "upscale", "must be at least 0.05, not '0.01'"),
        ({"upscaler": "twice", "prompt": "a cat"}, "prompt", "only upscales"),
        ({"upscaler": "twice", "seed": "1"}, "seed", "only upscales"),
        ({"upscaler": "twice", "n": "2"}, "n", "must be 1"),
        ({"upscaler": "twice", "steps": "9"}, "steps", "only upscales"),
    ],
)
def test_faults_name_the_field(
    server: ServerProcess, fields: dict[str, str], param: str, sentence: str
) -> None:
    """An invalid or meaningless field is rejected by name."""
    answer = enlarged(server, noise(8, 8), **fields)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert sentence in answer.json()["error"]["message"]


def test_too_large_a_result(server: ServerProcess) -> None:
    """The size of an upscaled image has a separate limit."""
    answer = enlarged(server, noise(1500, 1400), upscaler="fourfold")
    assert answer.status_code == 400
    assert "6000x5600 is more than the server's limit of 16777216 pixels" in answer.text


def test_a_drawn_picture_is_enlarged(server: ServerProcess) -> None:
    """The option of a generation upscales the image that the same request without it generates."""
    body = {**BODY, "size": "128x128"}
    small = picture_of(server.post(body))
    answer = server.post({**body, "upscaler": "twice"})
    large = picture_of(answer)
    assert difference(large, small.resize((256, 256), Image.Resampling.NEAREST)) == 0
    assert answer.json()["size"] == "256x256"
    assert difference(picture_of(server.post(body)), small) == 0


def test_not_under_a_mask(server: ServerProcess) -> None:
    """Upscaling is rejected with a mask, because the pixels outside of the mask must be
    unchanged."""
    files = {"image": ("a.png", file_of(noise(64, 64))), "mask": ("m.png", file_of(noise(64, 64)))}
    form = {"prompt": "a cat", "upscaler": "twice"}
    answer = httpx2.post(f"{server.url}/v1/images/edits", files=files, data=form, timeout=60)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "upscaler")


def test_tiles_are_streamed_as_steps(server: ServerProcess) -> None:
    """The progress of upscaling counts tiles as steps."""
    with httpx2.stream(
        "POST",
        f"{server.url}/v1/images/upscales",
        files={"image": ("a.png", file_of(noise(300, 40)))},
        data={"upscaler": "twice", "stream": "true"},
        timeout=100,
    ) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    items = [json.loads(line)["data"][0] for line in lines]
    steps = [item["progressed_steps"] for item in items if item["progressed_steps"]]
    assert steps == [1, 2, 3, 4]
    assert {item["progress_steps"] for item in items if item["progressed_steps"]} == {4}
    assert items[-1]["finish_reason"] == "stop"


def test_a_cancel_stops_it_between_two_nodes(server: ServerProcess) -> None:
    """A cancel keeps the worker running, and the next image is correct."""
    worker = server.worker_pid()
    with httpx2.stream(
        "POST",
        f"{server.url}/v1/images/upscales",
        files={"image": ("a.png", file_of(noise(600, 600)))},
        data={"upscaler": "fourfold", "stream": "true"},
        timeout=100,
    ) as answer:
        running = next(line for line in answer.iter_lines() if '"running"' in line)
    assert running
    wait_until(lambda: server.metric("sdstream_running_jobs") == 0, 30, "it goes on")
    assert server.worker_pid() == worker
    picture = noise(16, 16)
    answer = enlarged(server, picture, upscaler="twice")
    assert difference(picture_of(answer), picture.resize((32, 32), Image.Resampling.NEAREST)) == 0


def test_automatic1111s_extras(server: ServerProcess) -> None:
    """webuiapi can upscale; options that do more than upscale are rejected."""
    api = webuiapi.WebUIApi(*server.address)
    picture = noise(24, 16)
    answer = api.extra_single_image(image=picture, upscaler_1="twice", upscaling_resize=2)
    assert difference(answer.image, picture.resize((48, 32), Image.Resampling.NEAREST)) == 0
    names = [one["name"] for one in api.get_upscalers()]
    own = ["fourfold", "more/plain", "twice", "drawings-4x"]
    assert names == ["None", "Lanczos", "Nearest", *own]
    with pytest.raises(RuntimeError, match="gfpgan_visibility"):
        api.extra_single_image(image=picture, upscaler_1="twice", gfpgan_visibility=0.5)
