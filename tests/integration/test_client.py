"""The HTTP client, synchronous and asynchronous, against a server on the fake engine."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from PIL import Image as PillowImage

from sdstream import APIError, AsyncClient, Client, ConnectionFailed, Image, Progress
from tests.support.servers import ServerProcess, free_port, running_server, wait_until

#: An empty dictionary.
NOTHING: dict[str, int] = {}
SLOW = "a cat step=0.2"
KEY = "the-right-key"


@pytest.fixture(scope="module")
def client(fake_server: ServerProcess) -> Iterator[Client]:
    """A client that all tests of this module share."""
    with Client(fake_server.url) as client:
        yield client


def picture_file() -> bytes:
    """Encode a PNG of 64x64."""
    file = io.BytesIO()
    PillowImage.linear_gradient("L").resize((64, 64)).convert("RGB").save(file, "PNG")
    return file.getvalue()


def test_generating(client: Client, tmp_path: Path) -> None:
    """``generate`` reports every step and returns all images with their parameters."""
    reports: list[Progress] = []
    threads: set[int] = set()

    def note(progress: Progress) -> None:
        reports.append(progress)
        threads.add(threading.get_ident())

    response = client.generate(
        "a cat", n=2, size="64x64", steps=3, seed=7, previews=True, on_progress=note
    )
    assert threads == {threading.get_ident()}
    assert {(one.index, one.step) for one in reports if one.step} == {
        (i, step) for i in (0, 1) for step in (1, 2, 3)
    }
    assert sum(one.preview is not None for one in reports) == 6
    assert [image.seed for image in response.data] == [7, 8]
    assert response.parameters["sample_steps"] == 3
    assert response.usage["output_tokens"] == 2 * 4 * 4
    assert response.save(tmp_path / "cat.png") == [tmp_path / "cat-1.png", tmp_path / "cat-2.png"]


def test_streaming(client: Client) -> None:
    """``stream`` yields typed events; closing the iterator cancels the job."""
    events = list(client.stream("a cat", size="64x64", steps=3, output_format="webp"))
    assert [one.step for one in events if isinstance(one, Progress) and one.step] == [1, 2, 3]
    (image,) = (one for one in events if isinstance(one, Image))
    assert image.format == "webp"
    stream = client.stream(SLOW, size="64x64", steps=100)
    next(one for one in stream if isinstance(one, Progress) and one.step)
    assert isinstance(stream, Generator)
    stream.close()
    wait_until(lambda: client.jobs.list(limit=1)[0]["status"] == "cancelled", 20, "the job goes on")


def test_edits(client: Client, tmp_path: Path) -> None:
    """``edit`` uploads files and options of every type as a form."""
    (tmp_path / "input.png").write_bytes(picture_file())
    response = client.edit(
        tmp_path / "input.png",
        "a cat",
        mask=picture_file(),
        mask_mode="luminance",
        strength=0.5,
        vae_tiling=True,
        sigmas=[10.0, 5.0, 0.0],
    )
    parameters = response.parameters
    assert (parameters["strength"], parameters["vae_tiling"]) == (0.5, True)
    assert parameters["sigmas"] == [10.0, 5.0, 0.0]
    with pytest.raises(FileNotFoundError):
        client.edit(tmp_path / "missing.png", "a cat")


def test_jobs(client: Client) -> None:
    """``jobs`` can create, follow, get, list, cancel and delete a job and return its images."""
    job = client.jobs.create("a cat", size="64x64", steps=3)["id"]
    statuses = [one["status"] for one in client.jobs.follow(job)]
    assert statuses[-1] == "completed"
    known = client.jobs.get(job)
    assert known["id"] in [one["id"] for one in client.jobs.list(status="completed")]
    response = client.jobs.result(job)
    assert response.parameters["sample_steps"] == 3
    assert client.image(known["images"][0]["url"]) == response.data[0].content
    client.jobs.delete(job)
    with pytest.raises(APIError) as caught:
        client.jobs.get(job)
    assert (caught.value.status, caught.value.reason) == (404, "job_not_found")
    slow = client.jobs.create(SLOW, size="64x64", steps=100)["id"]
    with pytest.raises(APIError) as caught:
        client.jobs.result(slow)
    assert caught.value.status == 202
    assert client.jobs.cancel(slow)["cancel"] in ("done", "stopping")


def test_models(client: Client) -> None:
    """``models`` lists the server's models."""
    assert "embedded" in [model["id"] for model in client.models()]


def test_errors(client: Client) -> None:
    """APIError has the status, reason and option; a callback's own exception reaches the caller."""
    with pytest.raises(APIError) as caught:
        client.generate("a cat", size="9x64")
    assert (caught.value.status, caught.value.param) == (400, "size")
    with pytest.raises(APIError) as caught:
        client.generate("a cat fail=1", size="64x64")
    assert (caught.value.status, caught.value.reason) == (200, "generation_failed")
    with pytest.raises(TypeError, match="response_format"):
        client.generate("a cat", response_format="url")
    with pytest.raises(KeyError):
        client.generate(SLOW, size="64x64", steps=50, on_progress=lambda _: NOTHING["missing"])


def test_servers_that_cannot_be_reached() -> None:
    """An unreachable server and an invalid address raise ConnectionFailed."""
    port = free_port()
    remedy = (
        f"no server answers at http://127.0.0.1:{port} .* 'sdstream serve --port {port}' starts"
    )
    with (
        Client(f"127.0.0.1:{port}") as client,
        pytest.raises(ConnectionFailed, match=remedy),
    ):
        client.generate("a cat")
    with pytest.raises(RuntimeError, match="closed"):
        client.models()
    with pytest.raises(ConnectionFailed, match="'ftp://nowhere' is not an address"):
        Client("ftp://nowhere")


def test_keys(tmp_path: Path) -> None:
    """The client sends its key; a wrong key raises APIError with status 401."""
    with running_server(tmp_path, engine="fake", api_keys=KEY) as server:
        with Client(server.url, api_key=KEY) as client:
            assert client.generate("a cat", size="64x64", steps=2).data
        with Client(server.url, api_key="wrong") as client, pytest.raises(APIError) as caught:
            client.generate("a cat")
        assert caught.value.status == 401


def test_the_asynchronous_client(fake_server: ServerProcess) -> None:
    """AsyncClient has the same methods as coroutines and asynchronous iterators."""

    async def use() -> None:
        async with AsyncClient(fake_server.url) as client:
            response = await client.generate("a cat", size="64x64", steps=2)
            edited = await client.edit(response.data[0].content, "a dog", steps=2)
            assert edited.data[0].content != response.data[0].content
            events = [one async for one in client.stream("a cat", size="64x64", steps=2)]
            assert isinstance(events[-1], Image)

    asyncio.run(use())
