"""Edits that generate a part: only the masked part, or a border around the image.

They run on the real runtime, by every edit route. All other pixels must be unchanged.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from tests.support.jobs import wait_for
from tests.support.pictures import file_of, opened, png
from tests.support.servers import ServerProcess, running_server

Array = np.ndarray[Any, np.dtype[np.uint8]]

NOISE: Array = np.random.default_rng(3).integers(0, 256, (131, 203, 3), dtype=np.uint8)
HOLE = (120, 40, 150, 70)
OPTIONS = {"prompt": "a red circle", "seed": 5, "steps": 3}


IMAGE = file_of(Image.fromarray(NOISE))


def mask(*, paint: int = 255) -> Image.Image:
    """Return a mask with the value ``paint`` in the hole, and its inverse outside."""
    image = Image.new("L", (203, 131), 255 - paint)
    image.paste(paint, HOLE)
    return image


def alpha_mask() -> Image.Image:
    """Return a mask that is transparent in the hole."""
    image = Image.new("RGBA", (203, 131), (0, 0, 0, 255))
    image.putalpha(mask(paint=0))
    return image


def multipart(server: ServerProcess, files: dict[str, bytes], **options: Any) -> httpx2.Response:
    """Send an edit as a form."""
    data = {name: str(value) for name, value in {**OPTIONS, **options}.items()}
    return httpx2.post(f"{server.url}/v1/images/edits", files=files, data=data, timeout=60)


def as_json(server: ServerProcess, files: dict[str, bytes], **options: Any) -> httpx2.Response:
    """Send an edit as JSON."""
    pictures = {
        name: f"data:image/png;base64,{base64.b64encode(data).decode()}"
        for name, data in files.items()
    }
    body = {**OPTIONS, **options, **pictures}
    return httpx2.post(f"{server.url}/v1/images/edits", json=body, timeout=60)


def inpainting(server: ServerProcess, files: dict[str, bytes], **options: Any) -> httpx2.Response:
    """Send an edit to Xinference's route."""
    data = {name: str(value) for name, value in {**OPTIONS, **options}.items()}
    renamed = {{"mask": "mask_image"}.get(name, name): file for name, file in files.items()}
    return httpx2.post(f"{server.url}/v1/images/inpainting", files=renamed, data=data, timeout=60)


def a1111(server: ServerProcess, files: dict[str, bytes], **options: Any) -> httpx2.Response:
    """Send an edit to AUTOMATIC1111's img2img."""
    image, *_ = (base64.b64encode(data).decode() for data in (files["image"],))
    body = {**OPTIONS, "width": 128, "height": 128, **options, "init_images": [image]}
    if "mask" in files:
        body["mask"] = base64.b64encode(files["mask"]).decode()
    return httpx2.post(f"{server.url}/sdapi/v1/img2img", json=body, timeout=60)


def image_of(answer: httpx2.Response) -> Array:
    """Return the first image of a response."""
    assert answer.status_code == 200, answer.text
    body = answer.json()
    text = body["data"][0]["b64_json"] if "data" in body else body["images"][0]
    return np.asarray(opened(base64.b64decode(text)).convert("RGB"))


def check_hole(image: Array) -> None:
    """Check that only the pixels in the hole have changed."""
    assert image.shape == NOISE.shape
    changed = (image != NOISE).any(axis=2)
    left, top, right, bottom = HOLE
    assert changed[top:bottom, left:right].mean() > 0.9
    changed[top:bottom, left:right] = False
    assert not changed.any()


Route = Callable[..., httpx2.Response]


@pytest.mark.parametrize("route", [multipart, as_json, inpainting])
def test_only_masked(native_server: ServerProcess, route: Route) -> None:
    """The result has the size of the input image, 203x131, which no model can generate."""
    files = {"image": IMAGE, "mask": file_of(mask())}
    answer = route(native_server, files, only_masked=True, only_masked_padding=8)
    check_hole(image_of(answer))
    body = answer.json()
    assert body["size"] == "203x131"
    shown = body["parameters"]
    assert (shown["size"], shown["only_masked"], shown["only_masked_padding"]) == (
        "128x128", True, 8,
    )  # fmt: skip
    file = opened(base64.b64decode(body["data"][0]["b64_json"]))
    assert "Inpaint area: Only masked, Masked area padding: 8" in file.info["parameters"]


def test_only_masked_of_automatic1111(native_server: ServerProcess) -> None:
    """inpaint_full_res, the default, generates only the masked part; inpainting_mask_invert inverts
    the mask."""
    files = {"image": IMAGE, "mask": file_of(mask())}
    options = {"inpaint_full_res": True, "inpaint_full_res_padding": 32, "inpainting_fill": 1}
    answer = a1111(native_server, files, **options)
    check_hole(image_of(answer))
    body = answer.json()
    assert "warnings" not in body
    info = json.loads(body["info"])
    assert "Inpaint area: Only masked, Masked area padding: 32" in info["infotexts"][0]
    inverted = {"image": IMAGE, "mask": file_of(mask(paint=0))}
    check_hole(image_of(a1111(native_server, inverted, inpainting_mask_invert=1)))
    whole = image_of(a1111(native_server, files, inpaint_full_res=False))
    assert whole.shape == (128, 128, 3)


@pytest.mark.parametrize(
    ("painted", "options"),
    [
        (alpha_mask(), {}),
        (mask(), {"mask_blur": 4}),
        (mask(), {"mask_mode": "luminance", "size": "64x128"}),
        (mask(), {"n": 2}),
        (mask(), {"strength": 0.5}),
    ],
)
def test_kinds_of_masks(
    native_server: ServerProcess, painted: Image.Image, options: dict[str, Any]
) -> None:
    """Only the masked part changes, for each kind of mask, and for each size of the generated
    part."""
    files = {"image": IMAGE, "mask": file_of(painted)}
    answer = multipart(native_server, files, only_masked="true", **options)
    image = image_of(answer)
    if "mask_blur" not in options:
        check_hole(image)
    left, top, right, bottom = HOLE
    changed = (image != NOISE).any(axis=2)
    assert changed[top + 10 : bottom - 10, left + 10 : right - 10].all()
    changed[top:bottom, left:right] = False
    assert not changed.any()
    assert len(answer.json()["data"]) == options.get("n", 1)


def test_formats_of_the_file(native_server: ServerProcess) -> None:
    """Accept selects the format of the file, which contains the whole image."""
    data = {name: str(value) for name, value in {**OPTIONS, "only_masked": "on"}.items()}
    for kind in ("image/jpeg", "image/webp", "image/png"):
        answer = httpx2.post(
            f"{native_server.url}/v1/images/edits",
            files={"image": IMAGE, "mask": file_of(mask())},
            data=data,
            headers={"Accept": kind},
            timeout=60,
        )
        assert answer.headers["Content-Type"] == kind
        assert opened(answer.content).size == (203, 131)


def test_previews_show_the_whole_image(native_server: ServerProcess) -> None:
    """Each preview has the aspect ratio of the whole image."""
    answer = multipart(
        native_server,
        {"image": IMAGE, "mask": file_of(mask())},
        only_masked="true",
        stream="true",
        stream_options_preview="true",
    )
    frames = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    items = [json.loads(frame)["data"][0] for frame in frames[:-1]]
    previews = [opened(base64.b64decode(i["b64_json"])) for i in items if i.get("preview")]
    assert len(previews) >= 2
    for preview in previews:
        assert preview.width / preview.height == pytest.approx(203 / 131, abs=0.1)
    assert opened(base64.b64decode(items[-1]["b64_json"])).size == (203, 131)


@pytest.mark.parametrize("route", [multipart, as_json])
def test_expand(native_server: ServerProcess, route: Route) -> None:
    """The border has exactly the requested width on each side, and the pixels of the image are
    unchanged."""
    answer = route(native_server, {"image": IMAGE}, expand="17,0,40,5")
    image = image_of(answer)
    assert image.shape == (136, 260, 3)
    assert (image[:131, 17:220] == NOISE).all()
    assert image[:, 220:].std() > 1
    body = answer.json()
    assert (body["size"], body["parameters"]["expand"]) == ("260x136", [17, 0, 40, 5])
    assert body["parameters"]["strength"] == 1
    around = image_of(route(native_server, {"image": IMAGE}, expand=16, mask_blur=2))
    assert (around[16:-16, 16:-16] == NOISE).all()


@pytest.mark.parametrize("route", [multipart, as_json])
def test_pad_paints_the_border(native_server: ServerProcess, route: Route) -> None:
    """fit pad with a size and no mask generates the border and keeps the fitted image."""
    part = Image.fromarray(NOISE[:128, :128])
    image = image_of(route(native_server, {"image": file_of(part)}, fit="pad", size="256x128"))
    assert (image[:, 64:192] == NOISE[:128, :128]).all()
    assert image[:, :64].std() > 1


def test_fill_of_automatic1111(native_server: ServerProcess) -> None:
    """resize_mode 2 also changes the image itself, as in AUTOMATIC1111."""
    files = {"image": file_of(Image.fromarray(NOISE[:128, :128]))}
    answer = a1111(native_server, files, resize_mode=2, width=200, denoising_strength=1)
    image = image_of(answer)
    assert image.shape == (128, 200, 3)
    assert (image[:, 36:164] != NOISE[:128, :128]).any()


@pytest.mark.parametrize(
    ("files", "options", "param"),
    [
        ({"image": IMAGE}, {"only_masked": "true"}, "only_masked"),
        ({"image": IMAGE}, {"only_masked_padding": "3"}, "only_masked_padding"),
        (
            {"image": IMAGE, "mask": file_of(Image.new("L", (203, 131)))},
            {"only_masked": "true"},
            "mask",
        ),
        ({"image": IMAGE}, {"expand": "8,8"}, "expand"),
        ({"image": IMAGE}, {"expand": "4000"}, "expand"),
        ({"image": IMAGE}, {"expand": "8", "fit": "crop"}, "fit"),
        ({"image": IMAGE}, {"reference_size": "original"}, "reference_size"),
    ],
)
def test_faults(
    native_server: ServerProcess, files: dict[str, bytes], options: dict[str, Any], param: str
) -> None:
    """An invalid request is rejected with a 400 that names the field."""
    answer = multipart(native_server, files, **options)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_an_empty_mask_of_automatic1111(native_server: ServerProcess) -> None:
    """The error for an empty mask names AUTOMATIC1111's field."""
    files = {"image": IMAGE, "mask": file_of(Image.new("L", (203, 131)))}
    answer = a1111(native_server, files)
    assert answer.status_code == 400
    assert "'inpaint_full_res'" in answer.text


# --- on the fake engine ---------------------------------------------------------------------------

MODELS = """
models:
  - {id: plain, family: sd1, files: {model: a}, defaults: {size: 128x128, steps: 2}}
  - {id: looker, family: flux_kontext, files: {model: a}, defaults: {steps: 2}}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server whose second model supports references."""
    folder = tmp_path_factory.mktemp("parts")
    (folder / "a").write_bytes(b"not read by the fake engine")
    (folder / "models.yaml").write_text(MODELS)
    with running_server(folder, engine="fake", models=folder / "models.yaml") as found:
        yield found


def got(answer: httpx2.Response) -> str:
    """Return the engine's report of its input images."""
    assert answer.status_code == 500, answer.text
    return str(answer.json()["error"]["message"])


def test_the_engine_gets_references_of_its_own_size(server: ServerProcess) -> None:
    """The engine receives a reference at about one megapixel, or unscaled with reference_size
    original."""
    files = {"image": png(4000, 3000)}
    options = {"prompt": "inputs=1", "model": "looker"}
    assert got(multipart(server, files, **options)) == "The fake engine got reference 0 1184x880."
    own = multipart(server, files, **options, reference_size="original")
    assert got(own) == "The fake engine got reference 0 4000x3000."
    two = [("image[]", png(4000, 3000)), ("image[]", png(500, 1000))]
    answer = httpx2.post(f"{server.url}/v1/images/edits", files=two, data=options, timeout=60)
    assert got(answer) == "The fake engine got reference 0 1184x880, reference 1 720x1456."
    expanded = multipart(server, {"image": png(512, 512)}, **options, expand=64)
    assert got(expanded) == "The fake engine got image 640x640, mask 640x640."


def test_the_engine_gets_the_part_only(server: ServerProcess) -> None:
    """The engine receives only the masked part of a large image."""
    files = {"image": png(2000, 1000), "mask": png(2000, 1000, "white")}
    answer = multipart(server, files, prompt="inputs=1", only_masked="true")
    assert got(answer) == "The fake engine got image 128x128, mask 128x128."


def test_a_request_that_is_sent_twice(server: ServerProcess) -> None:
    """A repeated request with the same key is one job; other options with that key are rejected."""
    files = {"image": IMAGE, "mask": file_of(mask())}

    def send(padding: int) -> httpx2.Response:
        data = {"prompt": "a cat", "only_masked": "true", "only_masked_padding": str(padding)}
        return httpx2.post(
            f"{server.url}/v1/images/edits",
            files=files,
            data=data,
            headers={"Idempotency-Key": "one"},
            timeout=60,
        )

    first, again, other = send(4), send(4), send(5)
    assert first.headers["X-Job-Id"] == again.headers["X-Job-Id"]
    check_hole(image_of(again))
    assert other.status_code == 422
    job = httpx2.get(f"{server.url}/v1/jobs/{first.headers['X-Job-Id']}").json()
    assert (job["images"][0]["width"], job["images"][0]["height"]) == (203, 131)
    assert job["parameters"]["only_masked_padding"] == 4


def test_a_part_outlives_the_server(tmp_path: Path) -> None:
    """A queued job with its image is completed after a restart of the server."""
    files = {"image": IMAGE, "mask": file_of(mask())}
    settings: dict[str, Any] = {"engine": "fake", "grace_seconds": 0}
    with running_server(tmp_path, **settings) as server:
        answer = httpx2.post(
            f"{server.url}/v1/images/edits",
            files=files,
            data={"prompt": "step=0.5", "only_masked": "true"},
            headers={"Prefer": "respond-async"},
        )
        job = answer.json()["id"]
    with running_server(tmp_path, **settings) as server:
        wait_for(server, job, "completed")
        check_hole(image_of(httpx2.get(f"{server.url}/v1/jobs/{job}/result")))
