"""The command line's side of the HTTP API: prompts in, progress, images and jobs out."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
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
#: What a proxy, or the server itself, answers while the server is restarted.
_AWAY: Final = (502, 503, 504)
_MAX_PORT: Final = 65535
_STRANGER: Final = "what answers at this address is no sdstream server."

JsonObject = dict[str, Any]


ENDINGS: Final = ("completed", "failed", "cancelled")
#: Those that change what is known of a job; previews do not.
_JOB_EVENTS: Final = ("queued", "progress", *ENDINGS)


class ServerSaysNo(Exception):
    """The server answered with an error; the message is the server's own."""


class NoServer(Exception):
    """The address or the key cannot be used, or something else answers; the message says what."""


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

    Raises:
        NoServer: The address is none, or the key cannot be sent.
    """

    def __init__(self, base_url: str, api_key: str | None = None, uds: Path | None = None) -> None:
        if api_key and not (api_key.isascii() and api_key.isprintable()):
            raise NoServer("the API key may have printable ASCII characters only.")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx2.AsyncClient(
            base_url=_address(base_url),
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
        return await self._list("/v1/models")

    async def begin(self, options: JsonObject) -> JsonObject:
        """Start a job that goes on by itself; returns it."""
        headers = {"Prefer": "respond-async"}
        return await self._json("POST", "/v1/images/generations", json=options, headers=headers)

    async def jobs(self, *, status: str, limit: int) -> list[JsonObject]:
        """The newest jobs; ``status`` names one or several, empty is all."""
        query = {"status": status, "limit": str(limit)}
        return await self._list("/v1/jobs", params=query)

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
            NoServer: What answers is no sdstream server.
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
                    if known and answer.status_code in _AWAY:
                        raise httpx2.TransportError(f"it answers with {answer.status_code}")
                    async for event in await _events(answer):
                        last_event, failures = event.id or last_event, 0
                        if event.event in _JOB_EVENTS:
                            with understanding():
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
        with understanding():
            return dict(answer.json())

    async def _list(self, path: str, **options: Any) -> list[JsonObject]:
        body = await self._json("GET", path, **options)
        with understanding():
            return [dict(one) for one in body["data"]]

    async def generate(self, options: JsonObject) -> AsyncIterator[Step | Picture]:
        """Draw; raises ServerSaysNo when the server refuses or the job fails."""
        body = {**options, "stream": True, "stream_options": {"dialect": "image.chunk"}}
        async with self._http.stream("POST", "/v1/images/generations", json=body) as answer:
            async for event in await _events(answer):
                if event.data == "[DONE]":
                    return
                with understanding():
                    items = _items(event.data)
                for item in items:
                    yield item
        raise ServerSaysNo("The server closed the stream in the middle.")


@contextmanager
def understanding() -> Iterator[None]:
    """While an answer is read: one that lacks what sdstream sends is told in a sentence.

    Raises:
        NoServer: Something else is at the address.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError):
        raise NoServer(_STRANGER) from None


def _address(url: str) -> httpx2.URL:
    try:
        found = httpx2.URL(url)
        found.host.encode("idna")  # as the socket will, which raises no error of the client's
    except (httpx2.InvalidURL, UnicodeError):
        found = httpx2.URL("")
    if found.scheme not in ("http", "https") or not found.host or (found.port or 0) > _MAX_PORT:
        raise NoServer(f"'{url}' is no address of a server; http://localhost:8000 is one.")
    return found


async def _events(answer: httpx2.Response) -> httpx2.EventSource:
    """The events of a streamed answer, or what it says instead."""
    if answer.status_code != 200:
        _raise_for(answer.status_code, await answer.aread())
    if not answer.headers.get("Content-Type", "").startswith("text/event-stream"):
        raise NoServer(_STRANGER)
    return httpx2.EventSource(answer, max_event_size=_MAX_EVENT_BYTES)


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
