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


@asynccontextmanager
async def answering(*bodies: bytes | int) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Serve these streams or statuses in order, and the last one to all further requests.

    Yields the server's URL and the request heads it received.
    """
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        body = bodies[min(len(heads), len(bodies)) - 1]
        kind = "Content-Type: text/event-stream\r\nConnection: close\r\n\r\n"
        if isinstance(body, int):
            writer.write(f"HTTP/1.1 {body} -\r\n{kind}".encode())
        else:
            writer.write(f"HTTP/1.1 200 OK\r\n{kind}".encode() + body)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", heads


async def statuses(*bodies: bytes | int) -> tuple[list[str], int]:
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
    monkeypatch.setattr(http, "_RECONNECT_SECONDS", 0.01)
    began = event(1, "queued", {"status": "queued"})
    ended = event(2, "completed", {"status": "completed"})
    told = asyncio.run(statuses(began, status, status, ended))
    assert told == (["queued", "completed"], 4)
    with pytest.raises(APIError, match=str(status)):
        asyncio.run(statuses(status, EVENTS))
    monkeypatch.setattr(http, "_RECONNECTS", 2)
    with pytest.raises(ConnectionFailed, match=str(status)):
        asyncio.run(statuses(began, status))


def test_other_refusals_end_a_watch() -> None:
    """Any other error status, such as the 404 of a deleted job, ends the watch."""
    with pytest.raises(APIError, match="404"):
        asyncio.run(statuses(event(1, "queued", {"status": "queued"}), 404))
