"""The asynchronous HTTP client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sdstream.client import answers, http
from sdstream.client.answers import APIError, ConnectionFailed
from sdstream.client.http import AsyncClient


def event(number: int, name: str, data: dict[str, Any]) -> bytes:
    """Format one event of a job's stream."""
    return f"id: {number}\nevent: {name}\ndata: {json.dumps(data)}\n\n".encode()


#: A job with a four-megabyte preview between its two states.
EVENTS = (
    event(1, "queued", {"status": "queued"})
    + event(2, "preview", {"image": "A" * 4_000_000})
    + event(3, "completed", {"status": "completed"})
)


#: A page that a proxy shows while its server restarts, with status 200.
PAGE = "<html>Back soon</html>"


@asynccontextmanager
async def answering(*bodies: bytes | int | str) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Serve these streams, statuses or pages in order, and the last one to all further requests.

    Yields the server's URL and the request heads it received.
    """
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        body = bodies[min(len(heads), len(bodies)) - 1]
        kind = "Content-Type: text/event-stream\r\nConnection: close\r\n\r\n"
        if isinstance(body, int):
            writer.write(f"HTTP/1.1 {body} -\r\n{kind}".encode())
        elif isinstance(body, str):
            writer.write(
                f"HTTP/1.1 200 OK\r\n{kind}{body}".replace("event-stream", "html").encode()
            )
        else:
            writer.write(f"HTTP/1.1 200 OK\r\n{kind}".encode() + body)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", heads


async def statuses(*bodies: bytes | int | str) -> tuple[list[str], int]:
    """Follow a job; return the statuses received and the number of requests it took."""
    async with answering(*bodies) as (url, heads), AsyncClient(url) as client:
        told = [job["status"] async for job in client.jobs.follow("job_1")]
        return told, len(heads)


def test_earlier_states_of_a_job_stay_as_they_were() -> None:
    """Following yields a new object for each change."""

    async def followed() -> list[dict[str, Any]]:
        async with answering(EVENTS) as (url, _heads), AsyncClient(url) as client:
            return [job async for job in client.jobs.follow("job_1")]

    assert asyncio.run(followed()) == [{"status": "queued"}, {"status": "completed"}]


def test_large_previews_are_passed_over() -> None:
    """An event of several megabytes neither ends the watch nor causes a reconnect."""
    assert asyncio.run(statuses(EVENTS)) == (["queued", "completed"], 1)


def test_events_without_measure_end_a_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event over the byte limit ends the watch at once, since a reconnect would repeat it."""
    monkeypatch.setattr(answers, "_MAX_EVENT_BYTES", 1_000_000)
    with pytest.raises(ConnectionFailed, match="byte limit"):
        asyncio.run(statuses(EVENTS))


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_proxy_without_its_server_is_waited_out(
    monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """The client retries while a proxy's server restarts, unless the first request fails."""
    monkeypatch.setattr(http, "RECONNECT_SECONDS", 0.01)
    began = event(1, "queued", {"status": "queued"})
    ended = event(2, "completed", {"status": "completed"})
    told = asyncio.run(statuses(began, status, status, ended))
    assert told == (["queued", "completed"], 4)
    with pytest.raises(APIError, match=str(status)):
        asyncio.run(statuses(status, EVENTS))
    monkeypatch.setattr(http, "RECONNECTS", 2)
    with pytest.raises(ConnectionFailed, match=str(status)):
        asyncio.run(statuses(began, status))


def test_other_refusals_end_a_watch() -> None:
    """Any other error status, such as the 404 of a deleted job, ends the watch."""
    with pytest.raises(APIError, match="404"):
        asyncio.run(statuses(event(1, "queued", {"status": "queued"}), 404))


def test_a_page_of_a_proxy_is_waited_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a job is followed, a page that a proxy shows during a restart causes a retry."""
    monkeypatch.setattr(http, "RECONNECT_SECONDS", 0.01)
    began = event(1, "queued", {"status": "queued"})
    ended = event(2, "completed", {"status": "completed"})
    assert asyncio.run(statuses(began, PAGE, ended)) == (["queued", "completed"], 3)
    with pytest.raises(ConnectionFailed, match="not sdstream"):
        asyncio.run(statuses(PAGE, EVENTS))


def test_a_page_of_a_proxy_is_no_image() -> None:
    """A download that is not an image raises ConnectionFailed."""

    async def download() -> bytes:
        async with answering(PAGE) as (url, _heads), AsyncClient(url) as client:
            return await client.image("/v1/images/x/content")

    with pytest.raises(ConnectionFailed, match="not sdstream"):
        asyncio.run(download())


@pytest.fixture
def without_proxies(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without the variables of proxies."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "socks://127.0.0.1:9"])
def test_proxies_that_cannot_be_used(without_proxies: pytest.MonkeyPatch, proxy: str) -> None:
    """The error for an unsupported proxy names its variable."""
    without_proxies.setenv("ALL_PROXY", proxy)
    without_proxies.setenv("HTTP_PROXY", "127.0.0.1:9")
    with pytest.raises(ConnectionFailed, match=r"not support the proxy of ALL_PROXY\."):
        AsyncClient("http://images.example")


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "http://127.0.0.1:9"])
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_no_proxy_for_this_machine(
    without_proxies: pytest.MonkeyPatch, proxy: str, host: str
) -> None:
    """Requests to this machine use no proxy."""
    for name in ("HTTP_PROXY", "ALL_PROXY"):
        without_proxies.setenv(name, proxy)

    async def followed() -> list[dict[str, Any]]:
        async with (
            answering(EVENTS) as (url, _heads),
            AsyncClient(url.replace("127.0.0.1", host)) as client,
        ):
            return [job async for job in client.jobs.follow("job_1")]

    assert len(asyncio.run(followed())) == 2


async def models_of(url: str) -> None:
    """Request the models of a server."""
    async with AsyncClient(url) as client:
        await client.models()


def test_a_proxy_that_does_not_answer(without_proxies: pytest.MonkeyPatch) -> None:
    """The error for a missing proxy names its variable and does not advise to start a server."""
    without_proxies.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with pytest.raises(ConnectionFailed) as caught:
        asyncio.run(models_of("http://images.example"))
    assert "the proxy of HTTP_PROXY, or the server at http://images.example" in str(caught.value)
    assert "NO_PROXY=images.example" in str(caught.value)
    assert "sdstream serve" not in str(caught.value)


def test_an_address_with_the_version_of_the_api() -> None:
    """The error for an address that ends in /v1 says so, and that of a foreign server names it."""

    async def call(path: str) -> None:
        async with answering(404) as (url, _heads):
            await models_of(url + path)

    with pytest.raises(APIError, match=r"at http://127\.0\.0\.1:\d+ answered with status 404\.$"):
        asyncio.run(call(""))
    with pytest.raises(APIError, match="must not end in /v1"):
        asyncio.run(call("/v1"))


def test_many_requests_at_once() -> None:
    """A client has no limit on concurrent requests, and none waits for a free connection."""

    async def call() -> int:
        arrived = 0
        every = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal arrived
            await reader.readuntil(b"\r\n\r\n")
            arrived += 1
            if arrived == 150:
                every.set()
            await every.wait()
            writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{"data":[]}')
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=200)
        async with server, AsyncClient(f"127.0.0.1:{server.sockets[0].getsockname()[1]}") as client:
            async with asyncio.timeout(60):
                await asyncio.gather(*(client.models() for _ in range(150)))
        return arrived

    assert asyncio.run(call()) == 150


def test_a_lost_upload() -> None:
    """If the connection is lost while files are sent, the error names the limit of uploads."""

    async def call() -> None:
        async with answering(b"") as (url, _heads), AsyncClient(url) as client:
            await client.edit(b"image", "a cat")

    with pytest.raises(ConnectionFailed, match=r"was lost: .* --max-body-mb"):
        asyncio.run(call())


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"cfg_scale": float("nan")}, "cfg_scale"),
        ({"sigmas": [1.0, float("inf")]}, "sigmas.1"),
        ({"lora": [{"id": "a", "scale": float("inf")}]}, "lora.0.scale"),
    ],
)
def test_numbers_that_json_lacks(options: dict[str, Any], param: str) -> None:
    """The error for infinity or NaN is the one that the server has for it in a form."""

    async def call() -> None:
        async with AsyncClient("http://localhost:1") as client:
            await client.generate("a cat", **options)

    with pytest.raises(
        APIError, match=f"'{param}' must be a finite number, not (nan|inf)"
    ) as caught:
        asyncio.run(call())
    assert (caught.value.status, caught.value.param) == (400, param)
