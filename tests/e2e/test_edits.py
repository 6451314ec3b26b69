"""Edits, variations and inpainting on the real runtime: which pixels change."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.support.pictures import file_of
from tests.support.servers import ServerProcess

SIDE = 64
BOX = (16, 16, 48, 48)  # left, top, right, bottom of the area that the masks select


def scene() -> Image.Image:
    """Return an image of a red disc on blue."""
    image = Image.new("RGB", (SIDE, SIDE), (20, 40, 200))
    ImageDraw.Draw(image).ellipse((8, 8, 40, 40), fill=(220, 30, 30))
    return image


def luminance_mask() -> Image.Image:
    """Return a mask that is white in BOX and black elsewhere."""
    mask = Image.new("L", (SIDE, SIDE), 0)
    mask.paste(255, BOX)
    return mask


def alpha_mask() -> Image.Image:
    """Return a mask that is transparent in BOX and black elsewhere."""
    mask = Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), BOX)
    return mask


def post(
    server: ServerProcess,
    files: Any,
    path: str = "/v1/images/edits",
    **fields: str,
) -> httpx2.Response:
    """Send a form with a prompt, a seed and few steps."""
    data = {"prompt": "a green square", "seed": "5", "steps": "4", **fields}
    return httpx2.post(server.url + path, files=files, data=data, timeout=60)


def drawn(answer: httpx2.Response, index: int = 0) -> np.ndarray[Any, np.dtype[np.int16]]:
    """Return the pixels of an image in a response, as [height, width, 3]."""
    assert answer.status_code == 200, answer.text
    data = base64.b64decode(answer.json()["data"][index]["b64_json"])
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB")).astype(np.int16)


def pixels(image: Image.Image) -> np.ndarray[Any, np.dtype[np.int16]]:
    """Return the pixels of an image, as [height, width, 3]."""
    return np.asarray(image.convert("RGB")).astype(np.int16)


def test_an_image_without_what_the_prompt_names(native_server: ServerProcess) -> None:
    """A nearly plain image is warned of, unless the prompt asks for one."""
    plain = {"image": file_of(Image.new("RGB", (128, 128), "white"))}
    found = {
        prompt: post(native_server, plain, prompt=prompt, strength="0.05").json().get("warnings")
        for prompt in ("a red circle", "a plain white background")
    }
    assert found["a plain white background"] is None
    assert [text for text in found["a red circle"] if "shows nothing that the prompt" in text]


INSIDE = pixels(luminance_mask().convert("RGB"))[..., 0] > 0


def test_strength_is_the_distance_from_the_image(native_server: ServerProcess) -> None:
    """A higher strength changes the input image more; strength 0 hardly changes it."""
    image = scene()
    distances = [
        np.abs(drawn(post(native_server, {"image": file_of(image)}, strength=s)) - pixels(image))
        .mean()
        .item()
        for s in ("0", "0.2", "0.9")
    ]
    assert distances == sorted(distances)
    assert distances[0] < 10
    assert distances[1] < distances[2] / 2


@pytest.mark.parametrize("kind", ["RGB", "P"])
@pytest.mark.parametrize("mask", [luminance_mask(), alpha_mask()], ids=["luminance", "alpha"])
def test_only_the_mask_changes(native_server: ServerProcess, mask: Image.Image, kind: str) -> None:
    """Pixels outside of the mask are unchanged, for both kinds of masks and for palette images."""
    image = scene().convert(kind)
    answer = post(native_server, {"image": file_of(image), "mask": file_of(mask)})
    difference = np.abs(drawn(answer) - pixels(image)).max(axis=2)
    assert difference[~INSIDE].max() == 0
    assert difference[INSIDE].mean() > 10


def test_a_soft_edge_stays_inside(native_server: ServerProcess) -> None:
    """mask_blur fades inwards: pixels outside of the mask are unchanged."""
    image = scene()
    files = {"image": file_of(image), "mask": file_of(luminance_mask())}
    hard, soft = drawn(post(native_server, files)), drawn(post(native_server, files, mask_blur="4"))
    assert np.abs(soft - pixels(image)).max(axis=2)[~INSIDE].max() == 0
    assert (hard != soft).any()


def test_the_prompt_acts_inside_the_mask(native_server: ServerProcess) -> None:
    """Different prompts give different pixels inside the mask."""
    files = {"image": file_of(scene()), "mask": file_of(alpha_mask())}
    one = drawn(post(native_server, files, prompt="a green square"))
    two = drawn(post(native_server, files, prompt="a yellow star"))
    assert (one != two)[INSIDE].any()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_usual_files(native_server: ServerProcess, kind: str) -> None:
    """Each file format is accepted as an input image, whatever its MIME type."""
    files = {"image": ("upload", file_of(scene(), kind), "application/octet-stream")}
    image = drawn(post(native_server, files, strength="0.1"))
    assert np.abs(image - pixels(scene())).mean() < 100


@pytest.mark.parametrize(
    ("source", "size", "found"),
    [((100, 70), "", (100, 70)), ((100, 70), "128x64", (128, 64)), ((30, 30), "", (30, 30))],
)
def test_sizes(
    native_server: ServerProcess, source: tuple[int, int], size: str, found: tuple[int, int]
) -> None:
    """The result has the size of the input image unless the request contains a size."""
    image = file_of(scene().resize(source))
    height, width, _ = drawn(post(native_server, {"image": image}, size=size)).shape
    assert (width, height) == found


def test_a_stream_of_an_edit(native_server: ServerProcess) -> None:
    """An edit streams the same frames as a generation; previews have the size that the model
    generates."""
    body = {"prompt": "a cat", "steps": "4", "stream": "true", "stream_options_preview": "true"}
    answer = httpx2.post(
        f"{native_server.url}/v1/images/edits",
        files={"image": file_of(scene())},
        data=body,
        timeout=60,
    )
    frames = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert frames[-1] == "[DONE]"
    items = [json.loads(frame)["data"][0] for frame in frames[:-1]]
    previews = [item for item in items if item.get("preview")]
    assert len(previews) == items[-1]["progress_steps"] - 1
    with Image.open(io.BytesIO(base64.b64decode(previews[0]["b64_json"]))) as preview:
        assert preview.size == (128, 128)
    assert items[-1]["progress"] == 100.0


def test_previews_come_nearer(native_server: ServerProcess) -> None:
    """Each partial image of OpenAI's stream is closer to the final image than the one before."""
    body = {
        "prompt": "a cat", "size": "128x128", "steps": 12, "seed": 1, "stream": True,
        "partial_images": 3,
    }  # fmt: skip
    answer = httpx2.post(f"{native_server.url}/v1/images/generations", json=body, timeout=60)
    frames = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    pictures = []
    for frame in frames[:-1]:
        data = base64.b64decode(json.loads(frame)["b64_json"])
        with Image.open(io.BytesIO(data)) as image:
            pictures.append(pixels(image.convert("RGB")))
    assert len(pictures) == 4
    distances = [np.abs(picture - pictures[-1]).mean() for picture in pictures[:-1]]
    assert distances == sorted(distances, reverse=True)


def test_variations_and_inpainting(native_server: ServerProcess) -> None:
    """Xinference's routes vary an image and inpaint the white area of a mask."""
    varied = post(native_server, {"image": file_of(scene())}, "/v1/images/variations", prompt="")
    assert (drawn(varied) != pixels(scene())).any()
    files = {"image": file_of(scene()), "mask_image": file_of(luminance_mask().convert("RGBA"))}
    painted = post(native_server, files, "/v1/images/inpainting")
    assert np.abs(drawn(painted) - pixels(scene())).max(axis=2)[~INSIDE].max() == 0


@pytest.mark.parametrize(
    ("files", "fields", "param"),
    [
        ({"image": b"no image"}, {}, "image"),
        ({"image": b"no image"}, {"stream": "true"}, "image"),
        ({"image": file_of(scene()), "mask": b"no image"}, {}, "mask"),
        (
            {"image": file_of(scene()), "mask": file_of(luminance_mask().resize((32, 32)))},
            {},
            "mask",
        ),
        ({"image": file_of(scene())}, {"strength": "1.1"}, "strength"),
        ({"image": file_of(scene())}, {"mask_blur": "1"}, "mask_blur"),
        ([("image[]", file_of(scene()))] * 2, {}, "image"),
        ({"picture": file_of(scene())}, {}, "picture"),
    ],
)
def test_faults_come_before_any_stream(
    native_server: ServerProcess, files: Any, fields: dict[str, str], param: str
) -> None:
    """An invalid request is rejected with HTTP 400 and the field's name, also if it asks for a
    stream."""
    answer = post(native_server, files, **fields)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["type"], error["param"]) == (400, "invalid_request_error", param)


def test_gpustacks_words_for_an_illegal_image(native_server: ServerProcess) -> None:
    """The error for an invalid image is the one in GPUStack's documentation."""
    error = post(native_server, {"image": b"no image"}).json()["error"]
    expected = {"code": 400, "message": "Invalid image", "type": "invalid_request_error"}
    assert {name: error[name] for name in expected} == expected


def test_a_bomb_is_refused_by_its_header(native_server: ServerProcess) -> None:
    """An image of 20,000x20,000 pixels in a small file is rejected."""
    image = file_of(Image.new("1", (20_000, 20_000)))
    answer = post(native_server, {"image": image})
    assert answer.status_code == 400
    assert "20000x20000" in answer.json()["error"]["message"]
