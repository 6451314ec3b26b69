"""The command line's side of the HTTP API: prompts in, progress, images and jobs out."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

import httpx2

#: One event holds a whole image in base64, or a preview of one as PNG.
_MAX_EVENT_BYTES: Final = 256 * 2**20
#: Tries to reach a server again that was lost while a job was watched, and the pause before each.
_RECONNECTS: Final = 150
_RECONNECT_SECONDS: Final = 2.0

JsonObject = dict[str, Any]


ENDINGS: Final = ("completed", "failed", "cancelled")
#: Those that change what is known of a job; previews do not.
_JOB_EVENTS: Final = ("queued", "progress", *ENDINGS)


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

    async def models(self) -> list[JsonObject]:
        """The server's catalogue."""
        data: list[JsonObject] = (await self._json("GET", "/v1/models"))["data"]
        return data

    async def begin(self, options: JsonObject) -> JsonObject:
        """Start a job that goes on by itself; returns it."""
        headers = {"Prefer": "respond-async"}
        return await self._json("POST", "/v1/images/generations", json=options, headers=headers)

    async def jobs(self, *, status: str, limit: int) -> list[JsonObject]:
        """The newest jobs; ``status`` names one or several, empty is all."""
        query = {"status": status, "limit": str(limit)}
        data: list[JsonObject] = (await self._json("GET", "/v1/jobs", params=query))["data"]
        return data

    async def cancel(self, job: str) -> JsonObject:
        """Stop a job; returns it as it is then."""
        return await self._json("POST", f"{_path(job)}/cancel")

    async def image(self, url: str) -> bytes:
        """The file of a job's image."""
        # By the address that this client was given; the server may know itself by another.
        answer = await self._http.get(urlsplit(url).path)
        _raise_for(answer.status_code, answer.content)
        return answer.content

    async def follow(self, job: str) -> AsyncIterator[JsonObject]:
        """A job as it is now and after each change, to its end.

        The connection may be lost, and the server restarted, in the middle.

        Raises:
            ServerSaysNo: There is no such job.
            httpx2.HTTPError: The server is gone and does not come back.
        """
        known: JsonObject = {}
        last_event = ""
        failures = 0
        while True:
            try:
                headers = {"Last-Event-ID": last_event} if last_event else {}
                async with self._http.stream(
                    "GET", f"{_path(job)}/events", headers=headers
                ) as answer:
                    if answer.status_code == 204:
                        return
                    if answer.status_code != 200:
                        _raise_for(answer.status_code, await answer.aread())
                    events = httpx2.EventSource(answer, max_event_size=_MAX_EVENT_BYTES)
                    async for event in events:
                        last_event, failures = event.id or last_event, 0
                        if event.event in _JOB_EVENTS:
                            known |= json.loads(event.data)
                            yield known
            except httpx2.SSEError:
                raise  # the same event would be too large the next time too
            except httpx2.TransportError:
                failures += 1
                if not known or failures > _RECONNECTS:
                    raise
            if known.get("status") in ENDINGS:
                return
            await asyncio.sleep(_RECONNECT_SECONDS)

    async def _json(self, method: str, path: str, **options: Any) -> JsonObject:
        answer = await self._http.request(method, path, **options)
        _raise_for(answer.status_code, answer.content)
        body: JsonObject = answer.json()
        return body

    async def generate(self, options: JsonObject) -> AsyncIterator[Step | Picture]:
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


def _path(job: str) -> str:
    return f"/v1/jobs/{quote(job, safe='')}"


def _raise_for(status: int, body: bytes) -> None:
    if status in (200, 202):
        return
    try:
        message = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = f"The server answered with status {status}."
    raise ServerSaysNo(message)
