"""The command line's side of the HTTP API: one prompt in, progress and images out."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx2

#: One frame holds a whole image in base64.
_MAX_EVENT_BYTES: Final = 256 * 2**20


class ServerSaysNo(Exception):
    """The server answered with an error; the message is the server's own."""


@dataclass(frozen=True, slots=True)
class Step:
    """Progress of one image, 0..100 percent."""

    index: int
    percent: float
    status: str
    done_steps: int
    all_steps: int


@dataclass(frozen=True, slots=True)
class Picture:
    """One finished image as a file."""

    index: int
    seed: int
    data: bytes


class Client:
    """Talks to one server. Use it as an async context manager.

    Args:
        base_url: Of the server, without /v1.
        api_key: Sent as a bearer token when given.
        uds: Path of a Unix socket to reach the server by.
    """

    def __init__(self, base_url: str, api_key: str | None = None, uds: Path | None = None) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx2.AsyncClient(
            base_url=base_url,
            headers=headers,
            transport=httpx2.AsyncHTTPTransport(uds=str(uds)) if uds else None,
            # Between two frames there may be one long sampling step, but no more than that:
            # the server repeats itself when it has nothing to say.
            timeout=httpx2.Timeout(10.0, read=600.0),
        )

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self._http.aclose()

    async def models(self) -> list[dict[str, Any]]:
        """The server's catalogue."""
        answer = await self._http.get("/v1/models")
        _raise_for(answer.status_code, answer.content)
        data: list[dict[str, Any]] = answer.json()["data"]
        return data

    async def generate(self, options: dict[str, Any]) -> AsyncIterator[Step | Picture]:
        """Draw; raises ServerSaysNo when the server refuses or the job fails."""
        body = {**options, "stream": True, "stream_options": {"dialect": "image.chunk"}}
        async with self._http.stream("POST", "/v1/images/generations", json=body) as answer:
            if answer.status_code != 200:
                _raise_for(answer.status_code, await answer.aread())
            events = httpx2.EventSource(answer, max_event_size=_MAX_EVENT_BYTES)
            async for event in events:
                if event.data == "[DONE]":
                    return
                for item in _items(event.data):
                    yield item
        raise ServerSaysNo("The server closed the stream in the middle.")


def _items(data: str) -> list[Step | Picture]:
    if not data:
        return []  # the "error:" line for GPUStack's client: the next frame says it again
    frame = json.loads(data)
    if "error" in frame:
        raise ServerSaysNo(frame["error"]["message"])
    found: list[Step | Picture] = []
    for item in frame["data"]:
        if item["finish_reason"] == "stop":
            image = base64.b64decode(item["b64_json"])
            found.append(Picture(item["index"], item["seed"], image))
        else:
            done, steps = item["progressed_steps"], item["progress_steps"]
            found.append(Step(item["index"], item["progress"], item["status"], done, steps))
    return found


def _raise_for(status: int, body: bytes) -> None:
    if status == 200:
        return
    try:
        message = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = f"The server answered with status {status}."
    raise ServerSaysNo(message)
