"""openai from PyPI, unmodified: edits, variations and streams, with the newest release and 1.x."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests.e2e.conftest import KEY
from tests.support.clients import extra, run_python
from tests.support.pictures import changed_box, from_base64, opened
from tests.support.servers import ServerProcess

OLD_OPENAI = ("openai==1.109.1",)
MASKED = (16, 16, 48, 48)
#: The client deprecates create_variation, because OpenAI no longer has a model for it.
DEPRECATED = pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
QUICK: dict[str, Any] = {"prompt": "a red circle", "size": "64x64"}
FEW_STEPS: dict[str, Any] = {"seed": 5, "sample_steps": 4}


@pytest.fixture(scope="module")
def client(native_server: ServerProcess) -> Iterator[openai.OpenAI]:
    """OpenAI's client with the real runtime."""
    url = f"{native_server.url}/v1"
    with openai.OpenAI(base_url=url, api_key="unused", max_retries=0) as client:
        yield client


def drawn_box(answer: Any, pictures: Path) -> tuple[int, int, int, int]:
    """Return the box in which the returned image differs from input.png."""
    image = from_base64(answer.data[0].b64_json)
    assert image.size == (64, 64)
    box = changed_box(image, pictures)
    assert box is not None
    return box


def test_edit_one_file(client: openai.OpenAI, pictures: Path) -> None:
    """An open file can be edited; extra_body contains options that OpenAI does not have."""
    with (pictures / "input.png").open("rb") as image:
        answer = client.images.edit(image=image, extra_body={**FEW_STEPS, "strength": 0.5}, **QUICK)
    assert drawn_box(answer, pictures)
    assert extra(answer, "parameters")["strength"] == 0.5
    assert answer.data[0].seed == 5
    assert answer.usage.input_tokens_details.text_tokens == 3


def test_edit_a_list(client: openai.OpenAI, pictures: Path) -> None:
    """A list of one image is edited; two images are rejected if the model accepts only one."""
    data = (pictures / "input.png").read_bytes()
    assert client.images.edit(image=[data], extra_body=FEW_STEPS, **QUICK).data
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.edit(image=[data, data], extra_body=FEW_STEPS, **QUICK)
    assert caught.value.param == "image"
    assert "one input image" in caught.value.message


def test_edit_under_a_mask(client: openai.OpenAI, pictures: Path) -> None:
    """The transparent part of OpenAI's mask is generated; all other pixels are unchanged."""
    answer = client.images.edit(
        image=(pictures / "input.png").read_bytes(),
        mask=(pictures / "mask.png").read_bytes(),
        extra_body=FEW_STEPS,
        **QUICK,
    )
    left, top, right, bottom = drawn_box(answer, pictures)
    assert left >= MASKED[0]
    assert top >= MASKED[1]
    assert right <= MASKED[2]
    assert bottom <= MASKED[3]


def test_edit_bytes_without_a_name(client: openai.OpenAI, pictures: Path) -> None:
    """BytesIO, sent without a known MIME type, is accepted: its bytes determine the format."""
    image = io.BytesIO((pictures / "input.png").read_bytes())
    assert client.images.edit(image=image, extra_body=FEW_STEPS, **QUICK).data


@DEPRECATED
def test_variation(client: openai.OpenAI, pictures: Path) -> None:
    """Variations need no prompt and have consecutive seeds; extra_body can set a prompt."""
    image = (pictures / "input.png").read_bytes()
    answer = client.images.create_variation(image=image, n=2, extra_body={"steps": 2})
    assert answer.size == "64x64"
    seed = extra(answer, "parameters")["seed"]
    assert [extra(item, "seed") for item in answer.data or ()] == [seed, seed + 1]
    answer = client.images.create_variation(image=image, extra_body={"prompt": "a", "steps": 2})
    assert extra(answer, "parameters")["prompt"] == "a"


@DEPRECATED
def test_a_variation_as_a_link(client: openai.OpenAI, pictures: Path) -> None:
    """response_format url returns the URL of the image."""
    image = (pictures / "input.png").read_bytes()
    answer = client.images.create_variation(
        image=image, response_format="url", extra_body={"steps": 2}
    )
    assert answer.data is not None
    assert answer.data[0].b64_json is None
    file = httpx2.get(str(answer.data[0].url))
    assert file.headers["Content-Type"] == "image/png"
    assert opened(file.content).size == (64, 64)


@pytest.mark.parametrize("partial_images", [0, 1, 2, 3])
def test_stream_of_a_generation(client: openai.OpenAI, partial_images: int) -> None:
    """The stream contains the requested number of partial images, numbered and in the generated
    size, and then the finished image with its usage."""
    stream = client.images.generate(
        stream=True, partial_images=partial_images, extra_body=FEW_STEPS, **QUICK
    )
    *partial, last = stream
    assert [event.type for event in partial] == ["image_generation.partial_image"] * partial_images
    assert [event.partial_image_index for event in partial] == [*range(partial_images)]
    assert last.type == "image_generation.completed"
    assert last.size == "64x64"
    assert last.usage.total_tokens == last.usage.input_tokens + last.usage.output_tokens
    assert all(from_base64(event.b64_json).size == (128, 128) for event in partial)
    assert from_base64(last.b64_json).size == (64, 64)


@pytest.mark.parametrize("partial_images", [0, 3])
def test_stream_of_an_edit(client: openai.OpenAI, pictures: Path, partial_images: int) -> None:
    """An edit streams the events image_edit.partial_image and image_edit.completed."""
    stream = client.images.edit(
        image=(pictures / "input.png").read_bytes(),
        stream=True,
        partial_images=partial_images,
        extra_body={**FEW_STEPS, "strength": 1.0},
        **QUICK,
    )
    *partial, last = stream
    assert [event.type for event in partial] == ["image_edit.partial_image"] * partial_images
    assert last.type == "image_edit.completed"
    assert from_base64(last.b64_json).size == (64, 64)


def test_several_images_in_one_stream(client: openai.OpenAI) -> None:
    """With n > 1, which OpenAI's events do not support, each image completes with its index."""
    events = [*client.images.generate(n=2, stream=True, extra_body=FEW_STEPS, **QUICK)]
    assert [(event.type, event.index, event.seed) for event in events] == [
        ("image_generation.completed", 0, 5),
        ("image_generation.completed", 1, 6),
    ]


def test_one_stream_for_both_kinds_of_clients(client: openai.OpenAI) -> None:
    """The dialect both streams image.chunk items; the last one is also an OpenAI event."""
    body = {**FEW_STEPS, "stream_options": {"dialect": "both"}}
    *progress, last = client.images.generate(stream=True, extra_body=body, **QUICK)
    items = [event.data[0] for event in progress]
    assert {item["object"] for item in items} == {"image.chunk"}
    assert max(item["progress"] for item in items) < 100
    assert last.type == "image_generation.completed"
    assert last.data[0]["progress"] == 100
    assert last.data[0]["b64_json"] == last.b64_json
    assert from_base64(last.b64_json).size == (64, 64)


@DEPRECATED
def test_errors(fake_server: ServerProcess, pictures: Path) -> None:
    """Each error raises the exception that OpenAI's client defines for it."""
    url = f"{fake_server.url}/v1"
    with openai.OpenAI(base_url=url, api_key="unused", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError, match="Invalid image") as caught:
            client.images.edit(image=b"no image", prompt="a", stream=True)
        assert (caught.value.param, caught.value.code) == ("image", "400")
        with pytest.raises(openai.NotFoundError):
            client.images.create_variation(
                image=(pictures / "input.png").read_bytes(), model="dall-e-9"
            )
        with pytest.raises(openai.InternalServerError):
            client.images.generate(prompt="crash=2")
        with pytest.raises(openai.APIError) as raised:
            [*client.images.generate(prompt="crash=2", stream=True)]
        assert raised.value.type == "server_error"


def test_keys(keyed_server: ServerProcess) -> None:
    """A wrong key raises AuthenticationError; the right key is accepted."""
    url = f"{keyed_server.url}/v1"
    with openai.OpenAI(base_url=url, api_key="wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
        assert [model.id for model in client.with_options(api_key=KEY).models.list()]


def test_a_failed_generation_is_not_tried_again(fake_server: ServerProcess) -> None:
    """A failed job is not retried, although the client retries 5xx by default."""
    url = f"{fake_server.url}/v1"
    failed = fake_server.metric("sdstream_jobs_total", outcome="failed")
    client = openai.OpenAI(base_url=url, api_key="unused", max_retries=2)
    with client, pytest.raises(openai.InternalServerError):
        client.images.generate(prompt="fail=2")
    assert fake_server.metric("sdstream_jobs_total", outcome="failed") == failed + 1


OLD_CLIENT = textwrap.dedent(
    """
    import io, json, sys
    import openai

    url, image, mask = sys.argv[1], open(sys.argv[2], "rb"), open(sys.argv[3], "rb")
    client = openai.OpenAI(base_url=url + "/v1", api_key="unused", max_retries=0)
    quick = {"prompt": "a red circle", "size": "64x64", "extra_body": {"steps": 4, "seed": 5}}
    data = image.read()
    found = {"version": openai.__version__}
    found["generate"] = client.images.generate(**quick).data[0].b64_json
    found["edit"] = client.images.edit(image=data, mask=mask, **quick).data[0].b64_json
    found["list"] = client.images.edit(image=[io.BytesIO(data)], **quick).data[0].b64_json
    varied = client.images.create_variation(image=data, size="256x256", extra_body={"steps": 2})
    found["variation"] = varied.data[0].b64_json
    found["stream"] = [
        (event.type, bool(event.b64_json))
        for event in client.images.generate(stream=True, partial_images=2, **quick)
    ]
    found["edit_stream"] = [
        event.type
        for event in client.images.edit(image=data, stream=True, partial_images=1, **quick)
    ]
    try:
        client.images.edit(image=b"no image", prompt="a")
    except openai.BadRequestError as error:
        found["error"] = [error.status_code, error.param, error.type]
    print(json.dumps(found))
    """
)


def test_openai_1(native_server: ServerProcess, pictures: Path) -> None:
    """The last 1.x release supports the same calls."""
    files = (str(pictures / "input.png"), str(pictures / "mask.png"))
    found = run_python(OLD_CLIENT, OLD_OPENAI, native_server.url, *files)
    assert found["version"] == "1.109.1"
    assert from_base64(found["generate"]).size == (64, 64)
    assert from_base64(found["list"]).size == (64, 64)
    assert from_base64(found["variation"]).size == (256, 256)
    left, top, right, bottom = changed_box(from_base64(found["edit"]), pictures) or (0, 0, 99, 99)
    assert MASKED[0] <= left < right <= MASKED[2]
    assert MASKED[1] <= top < bottom <= MASKED[3]
    assert found["stream"] == [
        *[["image_generation.partial_image", True]] * 2,
        ["image_generation.completed", True],
    ]
    assert found["edit_stream"] == ["image_edit.partial_image", "image_edit.completed"]
    assert found["error"] == [400, "image", "invalid_request_error"]
