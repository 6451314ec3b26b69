"""Sizes that the built-in model cannot generate and that its upscaler produces."""

from __future__ import annotations

from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from tests.support.pictures import file_of, from_base64
from tests.support.servers import ServerProcess

BODY: dict[str, Any] = {"prompt": "a red circle on a blue background", "seed": 7}
GREEN = (10, 200, 30)


def drawn(server: ServerProcess, **changes: Any) -> tuple[Image.Image, dict[str, Any]]:
    """Generate an image; return it and the parameters of the response."""
    answer = server.post({**BODY, **changes})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    return from_base64(body["data"][0]["b64_json"]), body["parameters"]


#: Sizes in the documentation of the other systems, and smaller ones.
SIZES = [
    "512x512", "1024x1024", "1280x720", "832x1216", "1536x640", "640x1536", "500x300",
]  # fmt: skip


@pytest.mark.parametrize(
    ("size", "upscaler"), [*((size, "drawings-4x") for size in SIZES), ("72x72", None)]
)
def test_an_image_of_another_size(
    native_server: ServerProcess, size: str, upscaler: str | None
) -> None:
    """The image has the requested size and content."""
    image, parameters = drawn(native_server, size=size)
    assert f"{image.width}x{image.height}" == size == parameters["size"]
    assert parameters.get("upscaler") == upscaler
    middle = np.asarray(image)[image.height // 2, image.width // 2]
    corner = np.asarray(image)[image.height // 12, image.width // 12]
    assert middle[0] > middle[2] + 60, "red in the middle"
    assert corner[2] > corner[0] + 60, "blue around it"


@pytest.mark.parametrize("size", ["500x300", "72x72"])
def test_the_parameters_of_an_image_of_another_size(
    native_server: ServerProcess, size: str
) -> None:
    """The returned parameters generate the same image again."""
    image, parameters = drawn(native_server, size=size)
    again, _ = drawn(native_server, **parameters)
    assert again == image


def test_an_edit_keeps_what_the_mask_closes(native_server: ServerProcess) -> None:
    """Pixels outside of the mask are unchanged, although the rest is enlarged."""
    picture = Image.new("RGB", (300, 220), GREEN)
    mask = Image.new("L", picture.size, 0)
    mask.paste(255, (100, 60, 200, 160))
    files = {"image": ("i.png", file_of(picture)), "mask": ("m.png", file_of(mask))}
    url = f"{native_server.url}/v1/images/edits"
    answer = httpx2.post(url, data={**BODY, "size": "300x220"}, files=files, timeout=120)
    assert answer.status_code == 200, answer.text
    edited = np.asarray(from_base64(answer.json()["data"][0]["b64_json"]), int)
    closed = np.asarray(mask) == 0
    assert (edited[closed] == GREEN).all()
    assert (edited[~closed] != GREEN).any()


def test_the_built_in_upscaler_by_name(native_server: ServerProcess) -> None:
    """The upscaling route uses the only upscaler if the request does not name one."""
    picture = Image.new("RGB", (32, 24), GREEN)
    url = f"{native_server.url}/v1/images/upscales"
    answer = httpx2.post(url, files={"image": ("i.png", file_of(picture))}, timeout=120)
    assert answer.status_code == 200, answer.text
    enlarged = from_base64(answer.json()["data"][0]["b64_json"])
    assert enlarged.size == (128, 96)
    assert np.abs(np.asarray(enlarged, int) - GREEN).mean() < 1, "flat areas keep their colour"
