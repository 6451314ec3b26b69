"""xinference-client from PyPI, unmodified."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image, ImageDraw

from tests.e2e.conftest import KEY
from tests.support.pictures import changed_box, from_base64, opened
from tests.support.servers import ServerProcess, wait_until

xinference_client = pytest.importorskip("xinference_client")

FEW_STEPS: dict[str, Any] = {"num_inference_steps": 3, "seed": 5}


def model(server: ServerProcess, name: str = "embedded") -> Any:
    """Return the client's handle of a model."""
    return xinference_client.RESTfulClient(server.url).get_model(name)


def served(answer: Any) -> Image.Image:
    """Download the image of a response's URL."""
    (item,) = answer["data"]
    assert item["b64_json"] is None
    assert isinstance(answer["created"], int)
    file = httpx2.get(item["url"])
    assert file.headers["Content-Type"] == "image/png"
    return opened(file.content)


def test_models(fake_server: ServerProcess) -> None:
    """Models are listed, and the handle of a model is that of an image model."""
    client = xinference_client.RESTfulClient(fake_server.url)
    assert client.list_models()["embedded"]["model_type"] == "image"
    assert hasattr(client.get_model("embedded"), "text_to_image")
    with pytest.raises(RuntimeError, match="not in the catalogue"):
        client.get_model("kolors")


def test_text_to_image(native_server: ServerProcess) -> None:
    """A size with *, options as kwargs, and a URL that serves the image are supported."""
    answer = model(native_server).text_to_image("an apple", size="128*64", **FEW_STEPS)
    image = served(answer)
    assert image.size == (128, 64)
    assert "Steps: 3," in image.info["parameters"]
    assert "Seed: 5," in image.info["parameters"]


def test_text_to_image_as_base64(fake_server: ServerProcess) -> None:
    """n and response_format are supported."""
    handle = model(fake_server)
    answer = handle.text_to_image("an apple", 2, "64*64", "b64_json", guidance_scale=2.5)
    assert [from_base64(item["b64_json"]).size for item in answer["data"]] == [(64, 64)] * 2


@pytest.mark.parametrize(
    ("name", "sampler", "schedule"),
    [
        ("default", "euler", "discrete"), ("Euler a", "euler_a", "discrete"),
        ("DPM++ 2M", "dpm++2m", "discrete"), ("DPM++ 2M Karras", "dpm++2m", "karras"),
    ],
)  # fmt: skip
def test_its_own_names_of_samplers(
    fake_server: ServerProcess, name: str, sampler: str, schedule: str
) -> None:
    """The sampler names of Xinference's documentation are accepted."""
    answer = model(fake_server).text_to_image("an apple", size="64*64", sampler_name=name)
    told = answer["parameters"]
    assert (told["sampler"], told["schedule"]) == (sampler, schedule)


def test_options_that_cannot_be_had(fake_server: ServerProcess) -> None:
    """An unknown kwarg is named in the client's error."""
    handle = model(fake_server)
    with pytest.raises(RuntimeError, match="Unknown field 'padding_mask_crop'"):
        handle.text_to_image("an apple", size="64*64", padding_mask_crop=8)


def test_its_own_default_size(fake_server: ServerProcess) -> None:
    """The client's default size, 1024*1024, is accepted; the built-in model upscales to it."""
    told = model(fake_server).text_to_image("an apple")["parameters"]
    assert told["size"] == "1024x1024"


def test_image_to_image(native_server: ServerProcess, pictures: Path) -> None:
    """A variation with a prompt has the size of the image or the requested one."""
    data = (pictures / "input.png").read_bytes()
    handle = model(native_server)
    image = served(handle.image_to_image(data, "an apple", strength=0.6, **FEW_STEPS))
    assert image.size == (64, 64)
    assert "Denoising strength: 0.6" in image.info["parameters"]
    options = {**FEW_STEPS, "padding_image_to_multiple": 8}
    larger = handle.image_to_image([data], "an apple", "dark", 1, "128*128", **options)
    assert served(larger).size == (128, 128)


def test_several_images_where_the_model_takes_one(
    fake_server: ServerProcess, pictures: Path
) -> None:
    """Two images for a model that accepts one are rejected."""
    data = (pictures / "input.png").read_bytes()
    with pytest.raises(RuntimeError, match="accepts one input image"):
        model(fake_server).image_to_image([data, data], "an apple")


def test_inpainting(native_server: ServerProcess, pictures: Path) -> None:
    """White is generated and black is unchanged, also in an RGBA mask."""
    mask = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    mask.paste((255, 255, 255, 255), (16, 16, 48, 48))
    mask = Image.alpha_composite(Image.new("RGBA", (64, 64), (0, 0, 0, 255)), mask)
    file = io.BytesIO()
    mask.save(file, "PNG")
    data = (pictures / "input.png").read_bytes()
    answer = model(native_server).inpainting(data, file.getvalue(), "an apple", **FEW_STEPS)
    left, top, right, bottom = changed_box(served(answer), pictures) or (0, 0, 99, 99)
    assert 16 <= left < right <= 48
    assert 16 <= top < bottom <= 48


def test_image_edit(native_server: ServerProcess, pictures: Path) -> None:
    """image_edit, the client's newer call, which names its files images, is supported."""
    data = (pictures / "input.png").read_bytes()
    handle = model(native_server)
    assert served(handle.image_edit(data, "an apple", **FEW_STEPS)).size == (64, 64)
    assert served(handle.image_edit([data], "an apple", **FEW_STEPS)).size == (64, 64)
    mask = (pictures / "mask.png").read_bytes()
    masked = handle.image_edit(data, "an apple", mask=mask, **FEW_STEPS)
    assert changed_box(served(masked), pictures) not in (None, (0, 0, 64, 64))


def test_keys(fake_server: ServerProcess, keyed_server: ServerProcess) -> None:
    """A server without keys accepts any key; a server with keys rejects a wrong one."""
    client = xinference_client.RESTfulClient(fake_server.url, api_key="anything")
    assert client.get_model("embedded").text_to_image("a", size="64*64")["data"]
    client = xinference_client.RESTfulClient(keyed_server.url, api_key=KEY)
    assert client.get_model("embedded").text_to_image("a", size="64*64")["data"]
    with pytest.raises(RuntimeError, match="API key"):
        xinference_client.RESTfulClient(keyed_server.url, api_key="wrong").list_models()


def test_requests_by_name(fake_server: ServerProcess) -> None:
    """A request can be followed and aborted by the id that its user chose."""
    client = xinference_client.RESTfulClient(fake_server.url)
    handle = client.get_model("embedded")
    handle.text_to_image("an apple", size="64*64", request_id="mine", **FEW_STEPS)
    assert client.get_progress("mine")["progress"] == 1.0
    assert client.abort_request("embedded", "mine")["msg"] == "NO_OP"
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(
            handle.text_to_image, "step=0.2", size="64*64", request_id="slow",
            num_inference_steps=100,
        )  # fmt: skip
        wait_until(lambda: _begun(client, "slow"), 20, "it does not run")
        assert client.abort_request("embedded", "slow")["msg"] == "DONE"
        with pytest.raises(RuntimeError, match="aborted"):
            slow.result(20)


def _begun(client: Any, name: str) -> bool:
    try:
        return bool(client.get_progress(name)["progress"] > 0)
    except RuntimeError:
        return False  # the request is not known yet


def test_the_model_that_reads_text(fake_server: ServerProcess) -> None:
    """Words of one row are joined by spaces, rows by line breaks."""
    image = Image.new("RGB", (640, 200), "white")
    pen = ImageDraw.Draw(image)
    for words, at in (("Hello", (10, 20)), ("there", (400, 22)), ("below", (10, 120))):
        pen.text(at, words, fill="black", font_size=40)
    file = io.BytesIO()
    image.save(file, "PNG")
    assert model(fake_server, "rapidocr").ocr(file.getvalue()) == "Hello there\nbelow"
