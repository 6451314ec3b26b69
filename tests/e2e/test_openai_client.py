"""openai-python with the fake engine, as its users call it."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI
from PIL import Image

from tests.support.clients import extra
from tests.support.servers import Call, ServerProcess, running_server


@pytest.fixture
def client(fake_server: ServerProcess) -> Iterator[OpenAI]:
    """A client that is configured only with this server's address."""
    with OpenAI(base_url=f"{fake_server.url}/v1", api_key="any", max_retries=0) as client:
        yield client


def picture(item: Any) -> Image.Image:
    """Open the image in one entry of ``data``."""
    return Image.open(io.BytesIO(base64.b64decode(item.b64_json)))


def test_generate(client: OpenAI) -> None:
    """A call with OpenAI's options fills the fields of OpenAI's response."""
    answer = client.images.generate(
        model="embedded",
        prompt="a red circle",
        n=2,
        size="256x256",
        quality="low",
        output_format="webp",
        output_compression=80,
        background="opaque",
        moderation="low",
        style="vivid",
        user="somebody",
        response_format="b64_json",
    )
    assert answer.data is not None
    assert [picture(item).size for item in answer.data] == [(256, 256)] * 2
    assert (answer.size, answer.quality, answer.output_format) == ("256x256", "low", "webp")
    assert answer.background == "opaque"
    assert answer.created > 1_700_000_000
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert answer.usage.input_tokens_details.text_tokens == 3
    assert answer._request_id


def test_extra_body(client: OpenAI) -> None:
    """extra_body sets options that OpenAI does not have; the response has them as extra
    attributes."""
    answer = client.images.generate(
        prompt="a red circle",
        extra_body={"seed": 77, "num_inference_steps": 3, "sampler": "heun", "size": "64x80"},
    )
    assert answer.data is not None
    assert picture(answer.data[0]).size == (64, 80)
    assert extra(answer.data[0], "seed") == 77
    assert extra(answer, "parameters")["sample_steps"] == 3
    assert extra(answer, "parameters")["sampler"] == "heun"


def test_nulls(client: OpenAI) -> None:
    """The client sends None as null, which is treated as an omitted option."""
    answer = client.images.generate(
        prompt="a red circle",
        model=None,
        n=None,
        size=None,
        quality=None,
        output_format=None,
        output_compression=None,
        background=None,
        partial_images=None,
        response_format=None,
        stream=None,
        style=None,
        extra_body={"seed": None},
    )
    assert answer.data is not None
    assert picture(answer.data[0]).format == "PNG"


def test_url(client: OpenAI) -> None:
    """An image can be downloaded from its URL."""
    answer = client.images.generate(prompt="a red circle", response_format="url")
    assert answer.data is not None
    url = answer.data[0].url
    assert url is not None
    file = client._client.get(url).content
    assert Image.open(io.BytesIO(file)).format == "PNG"


#: The server recognises OpenAI's library and sends it OpenAI's stream unless the request sets this.
CHUNKS = {"stream_options": {"dialect": "image.chunk"}}


def test_stream(client: OpenAI) -> None:
    """The client yields every frame of the image.chunk dialect if the request chooses it."""
    options = {"steps": 4, "n": 2, "size": "64x64", **CHUNKS}
    events: list[Any] = list(
        client.images.generate(prompt="a red circle", stream=True, extra_body=options)
    )
    assert {event.type for event in events} == {"image_generation.progress"}
    items = [event.data[0] for event in events]
    assert [item["index"] for item in items if item["finish_reason"]] == [0, 1]
    assert items[-1]["progress"] == 100
    assert Image.open(io.BytesIO(base64.b64decode(items[-1]["b64_json"]))).size == (64, 64)
    assert events[-1].usage["total_tokens"] > 0


def test_a_stream_can_be_left(client: OpenAI, fake_server: ServerProcess) -> None:
    """Closing the stream cancels its job."""
    before = fake_server.metric("sdstream_jobs_total", outcome="cancelled")
    options = {"steps": 150, **CHUNKS}
    stream = client.images.generate(prompt="step=0.05", stream=True, extra_body=options)
    for event in stream:
        if event.data[0]["progressed_steps"] == 2:  # type: ignore[union-attr]
            break
    stream.close()
    client.images.generate(prompt="a red circle")
    assert fake_server.metric("sdstream_jobs_total", outcome="cancelled") == before + 1


def test_bad_request(client: OpenAI) -> None:
    """An invalid value raises BadRequestError with the field, the code and the type."""
    for options in ({"n": 99}, {"n": 99, "stream": True}):
        with pytest.raises(openai.BadRequestError) as caught:
            client.images.generate(prompt="a", **options)  # type: ignore[call-overload]
        error = caught.value
        assert (error.param, error.code, error.type) == ("n", "400", "invalid_request_error")
        assert error.body["reason"] == "invalid_value"  # type: ignore[index]
        assert error.request_id
        assert "'n'" in error.message


def test_not_found(client: OpenAI) -> None:
    """An unknown model raises NotFoundError."""
    with pytest.raises(openai.NotFoundError) as caught:
        client.images.generate(prompt="a", model="dall-e-3")
    assert caught.value.param == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("dall-e-3")


def test_models(client: OpenAI) -> None:
    """The client can list and retrieve models."""
    assert [model.id for model in client.models.list()] == ["embedded"]
    assert client.models.retrieve("embedded").owned_by == "sdstream"


def test_an_error_in_mid_stream(client: OpenAI) -> None:
    """A job that fails during a stream raises APIError after the frames before it."""
    options = {"steps": 4, **CHUNKS}
    stream = client.images.generate(prompt="crash=2", stream=True, extra_body=options)
    seen: list[Any] = []
    with pytest.raises(openai.APIError, match="SIGABRT") as caught:
        seen.extend(stream)
    assert seen
    assert caught.value.body["reason"] == "worker_crashed"  # type: ignore[index]


def test_a_failed_job_is_not_retried(fake_server: ServerProcess) -> None:
    """Without a stream, a failed job raises InternalServerError, and the client does not retry
    it."""
    before = fake_server.metric("sdstream_jobs_total", outcome="failed")
    with (
        OpenAI(base_url=f"{fake_server.url}/v1", api_key="any", max_retries=2) as client,
        pytest.raises(openai.InternalServerError),
    ):
        client.images.generate(prompt="fail=1")
    assert fake_server.metric("sdstream_jobs_total", outcome="failed") == before + 1


def test_keys_and_a_full_queue(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A wrong key raises AuthenticationError. A full queue raises RateLimitError after the
    configured number of retries; with room in the queue, the call succeeds."""
    folder = tmp_path_factory.mktemp("small")
    key = {"Authorization": "Bearer right"}
    waits: list[int] = []

    def hurry(answer: httpx2.Response) -> None:
        # Shorten the wait that the server requests, so that the queue is still full at the retry.
        if answer.status_code == 429:
            waits.append(int(answer.headers["Retry-After"]))
            answer.headers["retry-after-ms"] = "100"

    with running_server(folder, engine="fake", api_keys="right", queue_images=1) as server:
        address = f"{server.url}/v1"
        with (
            OpenAI(base_url=address, api_key="wrong") as client,
            pytest.raises(openai.AuthenticationError),
        ):
            client.images.generate(prompt="a")
        running = Call(server, {"prompt": "step=0.5", "sample_steps": 150, "stream": True}, key)
        running.wait_for("running")
        waiting = Call(server, {"prompt": "a", "stream": True}, key)
        next(waiting.events())
        with OpenAI(
            base_url=address,
            api_key="right",
            max_retries=1,
            http_client=openai.DefaultHttpxClient(event_hooks={"response": [hurry]}),
        ) as client:
            with pytest.raises(openai.RateLimitError):
                client.images.generate(prompt="a")
            assert len(waits) == 2
            assert min(waits) >= 1
            assert server.metric("sdstream_http_requests_total", headers=key, status="429") == 2
            running.leave()
            assert list(waiting.events())
            assert client.images.generate(prompt="a").data


#: Documented parameters that all three calls have.
SHARED: dict[str, Any] = {
    "model": "embedded", "n": 2, "size": "256x256", "user": "somebody",
}  # fmt: skip
EVERYTHING: dict[str, Any] = {
    **SHARED, "prompt": "a red circle", "quality": "high", "output_format": "webp",
    "output_compression": 80, "background": "auto",
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the client deprecates variations
def test_all_documented_parameters_in_strict_validation(fake_server: ServerProcess) -> None:
    """Strict validation, which raises on every value that OpenAI does not define, accepts the
    responses."""
    image = io.BytesIO()
    Image.new("RGB", (256, 256)).save(image, "PNG")
    file = ("image.png", image.getvalue(), "image/png")
    with OpenAI(
        base_url=f"{fake_server.url}/v1",
        api_key="any",
        max_retries=0,
        _strict_response_validation=True,
    ) as client:
        answers = [
            client.images.generate(**EVERYTHING, moderation="low", style="natural"),
            client.images.edit(**EVERYTHING, image=[file], mask=file, input_fidelity="high"),
            client.images.create_variation(**SHARED, image=file, response_format="b64_json"),
        ]
    for answer in answers:
        assert answer.data is not None
        assert [picture(item).size for item in answer.data] == [(256, 256)] * 2
        assert answer.quality in ("low", "medium", "high")
        assert answer.usage is not None
        details = answer.usage.input_tokens_details
        assert answer.usage.input_tokens == details.text_tokens + details.image_tokens
    assert [answer.usage.input_tokens_details.image_tokens for answer in answers] == [0, 256, 256]
