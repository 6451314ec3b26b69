"""The command line's side of the HTTP API."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest

from app import client as client_module
from app.client import Client


def event(number: int, name: str, data: dict[str, Any]) -> bytes:
    """One event of a job's stream."""
    return f"id: {number}\nevent: {name}\ndata: {json.dumps(data)}\n\n".encode()


#: A job with a preview of four megabytes in the middle.
EVENTS = (
    event(1, "queued", {"status": "queued"})
    + event(2, "preview", {"image": "A" * 4_000_000})
    + event(3, "completed", {"status": "completed"})
)


@asynccontextmanager
async def answering(body: bytes) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that answers every request with this stream; yields its address and the heads."""
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
        writer.write(head + body)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", heads


async def statuses(body: bytes) -> tuple[list[str], int]:
    """What following a job tells, and how many requests that took."""
    async with answering(body) as (url, heads), Client(url) as client:
        told = [job["status"] async for job in client.follow("job_1")]
        return told, len(heads)


def test_large_previews_are_passed_over() -> None:
    """An event of megabytes does not stop a watch, or send it back to the server."""
    assert asyncio.run(statuses(EVENTS)) == (["queued", "completed"], 1)


def test_events_without_measure_end_a_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once: a reconnect would meet the same event again, for ever."""
    monkeypatch.setattr(client_module, "_MAX_EVENT_BYTES", 1_000_000)
    with pytest.raises(httpx2.SSEError, match="byte limit"):
        asyncio.run(statuses(EVENTS))
