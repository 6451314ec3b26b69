"""only_masked, outpainting and padding with the built-in model, on every edit route."""

from __future__ import annotations

import base64
import random
from typing import Any

import httpx2
import pytest
from PIL import Image

from tests.support.jobs import wait_for
from tests.support.pictures import file_of, from_base64, opened
from tests.support.servers import ServerProcess

#: A size that the model cannot generate.
SIZE = (333, 217)
BOX = (200, 100, 260, 150)


def picture() -> Image.Image:
    """Return an image of random pixels."""
    return Image.frombytes("RGB", SIZE, random.Random(3).randbytes(SIZE[0] * SIZE[1] * 3))


def mask() -> Image.Image:
    """Return a mask that is white in BOX."""
    image = Image.new("L", SIZE, 0)
    image.paste(255, BOX)
    return image


def text(image: Image.Image) -> str:
    """Return a PNG in base64."""
    return base64.b64encode(file_of(image)).decode()


FIELDS: dict[str, Any] = {"prompt": "a red circle", "sample_steps": 4, "seed": 3}


def drawn(server: ServerProcess, way: str, **more: Any) -> httpx2.Response:
    """Edit the masked part of the image with one of the routes."""
    options = {**FIELDS, "only_masked": True, **more}
    if way == "a1111":
        body = {"prompt": "a red circle", "steps": 4, "seed": 3, "width": 128, "height": 128,
                "init_images": [text(picture())], "mask": text(mask()), "inpaint_full_res": True,
                "inpaint_full_res_padding": 32, "denoising_strength": 1}  # fmt: skip
        return httpx2.post(f"{server.url}/sdapi/v1/img2img", json=body, timeout=60)
    if way == "json":
        body = {**options, "mask_mode": "luminance", "image": text(picture()), "mask": text(mask())}
        return httpx2.post(f"{server.url}/v1/images/edits", json=body, timeout=60)
    path = "inpainting" if way == "inpainting" else "edits"
    form = {**options, "mask_mode": "luminance"}
    files = {"image": file_of(picture()), "mask": file_of(mask())}
    return httpx2.post(f"{server.url}/v1/images/{path}", data=form, files=files, timeout=60)


def image_of(answer: httpx2.Response) -> Image.Image:
    """Return the first image of a response of any route."""
    assert answer.status_code == 200, answer.text
    body = answer.json()
    return from_base64(body["images"][0] if "images" in body else body["data"][0]["b64_json"])


def unchanged_outside(found: Image.Image, original: Image.Image, box: tuple[int, ...]) -> bool:
    """Return whether every pixel outside of a box is unchanged."""
    found, original = found.convert("RGB"), original.copy()
    for image in (found, original):
        image.paste((0, 0, 0), box)  # type: ignore[arg-type]
    return found.tobytes() == original.tobytes()


@pytest.mark.parametrize("way", ["edits", "inpainting", "json", "a1111"])
def test_only_masked(native_server: ServerProcess, way: str) -> None:
    """The image keeps its size and the pixels outside of the mask; the masked part is generated."""
    found = image_of(drawn(native_server, way))
    assert found.size == SIZE
    assert unchanged_outside(found, picture(), BOX)
    inside = found.convert("RGB").crop(BOX)
    assert inside.tobytes() != picture().crop(BOX).tobytes()
    # The input has thousands of colours; an image of this model has large flat areas.
    colours = inside.quantize(8).convert("RGB").getcolors(10_000)
    assert colours is not None
    assert max(count for count, _ in colours) > 400


def test_what_is_told_of_it(native_server: ServerProcess) -> None:
    """The response, its parameters, the file's text and the job report the sizes and options."""
    answer = drawn(native_server, "edits", only_masked_padding=8)
    body = answer.json()
    assert body["size"] == "333x217"
    assert body["parameters"]["size"] == "128x128"
    assert body["parameters"]["only_masked"] is True
    written = image_of(answer).info["parameters"]
    assert "Inpaint area: Only masked, Masked area padding: 8" in written
    job = httpx2.get(f"{native_server.url}/v1/jobs/{answer.headers['X-Job-Id']}").json()
    assert (job["images"][0]["width"], job["images"][0]["height"]) == SIZE


def test_a_mask_is_needed_and_paints_something(native_server: ServerProcess) -> None:
    """A missing and an empty mask are rejected."""
    url = f"{native_server.url}/v1/images/edits"
    files = {"image": file_of(picture())}
    none = httpx2.post(url, data={**FIELDS, "only_masked": "true"}, files=files)
    assert none.json()["error"]["param"] == "only_masked"
    black = {**files, "mask": file_of(Image.new("L", SIZE, 0))}
    empty = httpx2.post(
        url, data={**FIELDS, "only_masked": "true", "mask_mode": "luminance"}, files=black
    )
    assert (empty.status_code, empty.json()["error"]["param"]) == (400, "mask")
    assert "empty" in empty.json()["error"]["message"]


@pytest.mark.parametrize("expand", ["16", "40,0,24,8"])
def test_outpainting(native_server: ServerProcess, expand: str) -> None:
    """The image grows by the border, and its original pixels are unchanged."""
    left, top, right, bottom = [*map(int, expand.split(","))] * (1 if "," in expand else 4)
    answer = httpx2.post(
        f"{native_server.url}/v1/images/edits",
        data={**FIELDS, "expand": expand},
        files={"image": file_of(picture())},
        timeout=60,
    )
    found = image_of(answer).convert("RGB")
    assert found.size == (SIZE[0] + left + right, SIZE[1] + top + bottom)
    inner = found.crop((left, top, left + SIZE[0], top + SIZE[1]))
    assert inner.tobytes() == picture().tobytes()
    border = {found.getpixel((x, found.height - 1)) for x in range(0, found.width, 9)}
    assert len(border) > 1
    assert answer.json()["parameters"]["strength"] == 1.0


def test_outpainting_beside_a_mask(native_server: ServerProcess) -> None:
    """The border and the masked part are both generated."""
    answer = httpx2.post(
        f"{native_server.url}/v1/images/edits",
        data={**FIELDS, "expand": "0,0,32,0", "mask_mode": "luminance"},
        files={"image": file_of(picture()), "mask": file_of(mask())},
        timeout=60,
    )
    found = image_of(answer)
    assert found.size == (SIZE[0] + 32, SIZE[1])
    inner = found.convert("RGB").crop((0, 0, *SIZE))
    assert unchanged_outside(inner, picture(), BOX)
    assert inner.crop(BOX).tobytes() != picture().crop(BOX).tobytes()


def test_padding_paints_the_border_alone(native_server: ServerProcess) -> None:
    """fit pad without a mask keeps the input image in the middle and generates the border."""
    wide = picture().crop((0, 0, 128, 64))
    answer = httpx2.post(
        f"{native_server.url}/v1/images/edits",
        data={**FIELDS, "fit": "pad", "size": "128x128"},
        files={"image": file_of(wide)},
        timeout=60,
    )
    found = image_of(answer).convert("RGB")
    assert found.crop((0, 32, 128, 96)).tobytes() == wide.tobytes()
    assert len({found.getpixel((x, 5)) for x in range(128)}) > 1


def test_a_job_that_waits_keeps_its_picture(native_server: ServerProcess) -> None:
    """A background job uses the stored image and mask."""
    answer = httpx2.post(
        f"{native_server.url}/v1/images/edits",
        data={**FIELDS, "only_masked": "true", "mask_mode": "luminance"},
        files={"image": file_of(picture()), "mask": file_of(mask())},
        headers={"Prefer": "respond-async"},
    )
    state = wait_for(native_server, answer.json()["id"], "completed")
    found = opened(httpx2.get(state["images"][0]["url"]).content)
    assert unchanged_outside(found, picture(), BOX)
