"""The asynchronous client of the HTTP API, which the command line uses too."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote, urlsplit

import httpx2

from sdstream.client.answers import (
    STRANGER,
    APIError,
    ConnectionFailed,
    address,
    events,
    image,
    is_stream,
    items,
    raise_for,
    reaching,
    response,
    understanding,
)
from sdstream.client.calls import Call
from sdstream.client.connections import UnusableProxy, open_client
from sdstream.client.results import (
    Image,
    ImageFile,
    ImagesResponse,
    JsonObject,
    Progress,
    ProgressCallback,
)

#: Limit on the attempts to reconnect while a job is followed, and the pause before each attempt.
RECONNECTS: Final = 150
RECONNECT_SECONDS: Final = 2.0
#: Statuses that a proxy, or the server itself, returns while the server restarts.
AWAY: Final = (502, 503, 504)

ENDINGS: Final = ("completed", "failed", "cancelled")
#: Events whose data update the state of a job; previews and images do not.
_JOB_EVENTS: Final = ("queued", "progress", *ENDINGS)


class AsyncClient:
    """HTTP client of one sdstream server. Use it as an asynchronous context manager.

    Args:
        base_url: Address of the server, without /v1.
        api_key: Sent as a bearer token if given.
        uds: Path of the server's Unix socket; None connects to the host and port of ``base_url``.

    Attributes:
        jobs: The jobs of this API key.

    Raises:
        ConnectionFailed: The address is not valid, the key cannot be sent, or the environment names
            a proxy that is not supported.
    """

    def __init__(self, base_url: str, api_key: str | None = None, uds: Path | None = None) -> None:
        if api_key and not (api_key.isascii() and api_key.isprintable()):
            raise ConnectionFailed("the API key may have printable ASCII characters only.")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        # A healthy server is never silent for as long as the limit for reading: it resends the
        # last frame of a stream as a keep-alive.
        timeout = httpx2.Timeout(10.0, read=600.0, pool=None)
        try:
            self._http = open_client(address(base_url), headers=headers, timeout=timeout, uds=uds)
        except UnusableProxy as error:
            raise ConnectionFailed(str(error)) from error
        self.jobs = AsyncJobs(self._http)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def models(self) -> list[JsonObject]:
        """List the models of the server; raises APIError and ConnectionFailed."""
        return await _list(self._http, "/v1/models")

    async def reload_models(self) -> JsonObject:
        """Tell the server to read its models.yaml again; returns the changes.

        Raises:
            APIError: The file cannot be used; the server keeps its models.
            ConnectionFailed: The server does not answer.
        """
        return await _json(self._http, "POST", "/v1/models/reload")

    async def image(self, url: str) -> bytes:
        """Download the file of a job's image; raises APIError and ConnectionFailed."""
        # Use only the path: the host in the server's link may differ from this client's base_url.
        with reaching():
            answer = await self._http.get(self._path_of(url))
        raise_for(answer)
        if not answer.headers.get("Content-Type", "").startswith("image/"):
            raise ConnectionFailed(STRANGER)
        return answer.content

    def _path_of(self, url: str) -> str:
        """Return the path of a link below ``base_url``, which may be a path of a proxy."""
        return urlsplit(url).path.removeprefix(self._http.base_url.path.rstrip("/"))

    async def generate(
        self,
        prompt: str,
        *,
        on_progress: ProgressCallback | None = None,
        previews: bool = False,
        **options: Any,
    ) -> ImagesResponse:
        """Generate images and wait for them.

        Args:
            prompt: Text that describes the image.
            on_progress: Called while the job waits and after each sampling step; an exception
                cancels the job.
            previews: Add a preview to the progress of each step.
            options: Other options of the HTTP API: n, size, seed, sample_steps and so on.

        Raises:
            APIError: The server rejected the request, or the job failed.
            ConnectionFailed: The server cannot be reached.
        """
        call = Call.generation({"prompt": prompt, **options})
        return await self.run(call, on_progress=on_progress, previews=previews)

    async def edit(
        self,
        image: ImageFile | Sequence[ImageFile],
        prompt: str,
        *,
        mask: ImageFile | None = None,
        on_progress: ProgressCallback | None = None,
        previews: bool = False,
        **options: Any,
    ) -> ImagesResponse:
        """Generate images from an input image and wait for them.

        Args:
            image: Path or bytes of the input image, or several of them.
            prompt: Text that describes the result.
            mask: Image file that marks the area to repaint; see the option mask_mode.
            on_progress: Called while the job waits and after each sampling step; an exception
                cancels the job.
            previews: Add a preview to the progress of each step.
            options: Other options of the HTTP API: strength, size, seed and so on.

        Raises:
            APIError: The server rejected the request, or the job failed.
            ConnectionFailed: The server cannot be reached.
            OSError: An image file cannot be read.
        """
        images = [image] if isinstance(image, ImageFile) else image
        call = Call.generation({"prompt": prompt, **options}, images=images, mask=mask)
        return await self.run(call, on_progress=on_progress, previews=previews)

    async def stream(
        self, prompt: str, *, previews: bool = False, **options: Any
    ) -> AsyncGenerator[Progress | Image, None]:
        """Generate images and yield progress and images as they come.

        Closing the generator cancels the job. Arguments and errors are those of ``generate``.
        """
        call = Call.generation({"prompt": prompt, **options})
        frames = self._frames(call, previews=previews)
        async with aclosing(frames):
            async for frame in frames:
                for item in items(frame, call.output_format):
                    yield item

    async def run(
        self,
        call: Call,
        *,
        on_progress: ProgressCallback | None = None,
        on_image: Callable[[Image], object] | None = None,
        previews: bool = False,
    ) -> ImagesResponse:
        """Send a request and wait for its images.

        Args:
            call: The request.
            on_progress: Called while the job waits and after each sampling step; an exception
                cancels the job.
            on_image: Called with each image when it is finished.
            previews: Add a preview to the progress of each step.

        Raises:
            APIError: The server rejected the request, or the job failed.
            ConnectionFailed: The server cannot be reached.
            OSError: An image file cannot be read.
        """
        images: list[Image] = []
        frame: JsonObject = {}
        frames = self._frames(call, previews=previews)
        async with aclosing(frames):
            async for frame in frames:
                for item in items(frame, call.output_format):
                    if isinstance(item, Image):
                        images.append(item)
                        if on_image is not None:
                            on_image(item)
                    elif on_progress is not None:
                        on_progress(item)
        with understanding():
            return response(images, frame)

    async def _frames(self, call: Call, *, previews: bool) -> AsyncGenerator[JsonObject, None]:
        """Yield the frames of a streamed answer; raises APIError if a frame reports an error."""
        body = await call.streamed(previews=previews)
        with reaching():
            async with self._http.stream("POST", call.path, **body) as answer:
                async for event in await events(answer):
                    if event.data == "[DONE]":
                        return
                    if not event.data:
                        continue  # the "error:" line for GPUStack's client; a data line follows
                    with understanding():
                        frame = dict(json.loads(event.data))
                        error = frame.get("error")
                        message = error["message"] if error else None
                    if error:
                        raise APIError(answer.status_code, str(message), error)
                    yield frame
        raise APIError(200, "The server closed the stream before all images were complete.")


class AsyncJobs:
    """The jobs of one server. Jobs are JSON objects, as documented in the HTTP API.

    Every method raises APIError if the server answers with an error, for example because the job
    does not exist, and ConnectionFailed if the server cannot be reached.
    """

    def __init__(self, http: httpx2.AsyncClient) -> None:
        self._http = http

    async def create(self, prompt: str, **options: Any) -> JsonObject:
        """Start a job that continues without its client, and return the job."""
        return await self.begin(Call.generation({"prompt": prompt, **options}))

    async def begin(self, call: Call) -> JsonObject:
        """Start a job for any request; raises OSError for an image file that cannot be read."""
        headers = {"Prefer": "respond-async"}
        body = await call.plain()
        return await _json(self._http, "POST", call.path, headers=headers, **body)

    async def list(self, *, status: str = "", limit: int = 20, **filters: str) -> _List[JsonObject]:
        """List the newest jobs.

        Args:
            status: One state, or several separated by commas; empty means all.
            limit: Limit on the number of jobs, from 1 to 100.
            filters: ``q``, ``model``, ``group``, ``favorite``, ``since`` and ``until`` of the
                HTTP API.
        """
        query = {"status": status, "limit": str(limit), **filters}
        return await _list(self._http, "/v1/jobs", params=query)

    async def get(self, job: str) -> JsonObject:
        """Return a job as it is now."""
        return await _json(self._http, "GET", _path(job))

    async def result(self, job: str) -> ImagesResponse:
        """Return the images of a completed job; raises APIError with status 202 before its end."""
        query = {"response_format": "b64_json"}
        body = await _json(self._http, "GET", f"{_path(job)}/result", params=query)
        if "data" not in body:
            raise APIError(202, f"The job has not ended: its status is {body.get('status')}.")
        with understanding():
            images = [image(item, body["output_format"]) for item in body["data"]]
            return response(images, body)

    async def cancel(self, job: str) -> JsonObject:
        """Stop a job and return the job; its key ``cancel`` has the outcome."""
        return await _json(self._http, "POST", f"{_path(job)}/cancel")

    async def cancel_group(self, group: str) -> _List[str]:
        """Stop the jobs of a group that have not ended and return their ids."""
        body = {"group": group}
        answer = await _json(self._http, "POST", "/v1/jobs/cancel", json=body)
        with understanding():
            return [str(job) for job in answer["ids"]]

    async def delete(self, job: str) -> None:
        """Delete a job and its images; an unfinished job is stopped first."""
        await _json(self._http, "DELETE", _path(job))

    async def follow(self, job: str) -> AsyncGenerator[JsonObject, None]:
        """Yield a job as it is now and after each change, until it ends.

        The client reconnects after a lost connection or a restart of the server.

        Raises:
            ConnectionFailed: The server cannot be reached, or all attempts to reconnect failed.
        """
        changes = self._changes(job)
        with reaching():
            async with aclosing(changes):
                async for known in changes:
                    yield known

    async def _changes(self, job: str) -> AsyncGenerator[JsonObject, None]:
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
                    if known and (away := _away(answer)):
                        raise httpx2.TransportError(away)
                    async for event in await events(answer):
                        last_event, failures = event.id or last_event, 0
                        if event.event in _JOB_EVENTS:
                            with understanding():
                                known = {**known, **json.loads(event.data)}
                            yield known
            except httpx2.SSEError:
                raise  # after a reconnect, the same event would be too large again
            except httpx2.TransportError:
                failures += 1
                if not known or failures > RECONNECTS:
                    raise
            if known.get("status") in ENDINGS:
                return
            await asyncio.sleep(RECONNECT_SECONDS)


# The method ``list`` hides the type inside AsyncJobs.
_List = list


async def _json(http: httpx2.AsyncClient, method: str, path: str, **options: Any) -> JsonObject:
    with reaching():
        answer = await http.request(method, path, **options)
    raise_for(answer)
    with understanding():
        return dict(answer.json())


async def _list(http: httpx2.AsyncClient, path: str, **options: Any) -> list[JsonObject]:
    body = await _json(http, "GET", path, **options)
    with understanding():
        return [dict(one) for one in body["data"]]


def _away(answer: httpx2.Response) -> str:
    """Return why an answer for a known job is not that of its server; empty if it is."""
    if answer.status_code in AWAY:
        return f"it answers with {answer.status_code}"
    if answer.status_code == 200 and not is_stream(answer):  # the page of a proxy
        return "another server answers at its address"
    return ""


def _path(job: str) -> str:
    return f"/v1/jobs/{quote(job, safe='')}"
