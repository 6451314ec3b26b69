"""Answers of the HTTP API as Python values: JSON, streams of events and errors."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import httpx2

from sdstream.client.connections import proxy_for
from sdstream.client.results import Image, ImagesResponse, JsonObject, Progress

#: Limit on one event, which may contain a whole image in base64.
_MAX_EVENT_BYTES: Final = 256 * 2**20
_NOT_FOUND: Final = 404
_MAX_PORT: Final = 65535
#: Default port of a server.
_USUAL_PORT: Final = 8000
#: Error for an answer that no sdstream gives.
STRANGER: Final = "the server at this address is not sdstream."


class APIError(Exception):
    """The server answered with an error, or the job failed.

    Attributes:
        message: The server's own message.
        status: HTTP status code; 200 if the answer began before the error.
        reason: Stable machine-readable name of the error, None if the answer contained none.
        param: The option that caused the error, or None.
    """

    def __init__(self, status: int, message: str, error: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        known = error or {}
        self.message = message
        self.status = status
        self.reason: str | None = known.get("reason")
        self.param: str | None = known.get("param")


class ConnectionFailed(Exception):
    """The server cannot be reached, or the address or the API key cannot be used."""


def response(images: list[Image], body: JsonObject) -> ImagesResponse:
    """Return the response; ``body`` is a plain answer or the last frame of a stream."""
    return ImagesResponse(
        data=tuple(sorted(images, key=lambda image: image.index)),
        model=body["model"],
        parameters=body["parameters"],
        usage=body["usage"],
        warnings=tuple(body.get("warnings", ())),
    )


@contextmanager
def reaching() -> Iterator[None]:
    """Convert the HTTP library's errors to ConnectionFailed."""
    try:
        yield
    except httpx2.HTTPError as error:
        raise ConnectionFailed(why_lost(error)) from error


def why_lost(error: httpx2.HTTPError) -> str:
    """Return the message for a failed connection.

    It contains the address, the variable of the proxy if one is used, and, if no server answers,
    the command that starts a server.
    """
    try:
        url = error.request.url
    except RuntimeError:  # it was raised without a request
        return f"the server cannot be reached: {error}."
    place, why = f"{url.scheme}://{url.netloc.decode()}", str(error) or type(error).__name__
    proxy = proxy_for(url)
    if not isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
        through = f" through the proxy of {proxy}" if proxy else ""
        lost = f"the connection to {place}{through} was lost: {why}."
        if error.request.headers.get("Content-Type", "").startswith("multipart/"):
            lost += " The server's --max-body-mb limits the size of an upload."
        return lost
    if proxy:
        return (
            f"the proxy of {proxy}, or the server at {place} behind it, does not answer ({why}). "
            f"With NO_PROXY={url.host}, the proxy is not used."
        )
    if url.port in (None, _USUAL_PORT):
        remedy = "'sdstream serve' starts one" + (" on port 8000" if url.port is None else "")
    else:
        remedy = f"'sdstream serve --port {url.port}' starts one"
    return f"no server answers at {place} ({str(error) or 'timeout'}). {remedy}."


@contextmanager
def understanding() -> Iterator[None]:
    """Convert errors in the reading of an answer to ConnectionFailed.

    Raises:
        ConnectionFailed: A field is missing or not valid, so the answer is not from sdstream.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError):
        raise ConnectionFailed(STRANGER) from None


def address(url: str) -> httpx2.URL:
    """Return the address of a server; ``host:port`` without a scheme is an http address.

    Raises:
        ConnectionFailed: The text is not an address.
    """
    try:
        found = httpx2.URL(url if "://" in url else f"http://{url}")
        found.host.encode("idna")  # later, the socket's error would not be caught
    except (httpx2.InvalidURL, UnicodeError):
        found = httpx2.URL("")
    if found.scheme not in ("http", "https") or not found.host or (found.port or 0) > _MAX_PORT:
        raise ConnectionFailed(
            f"'{url}' is not an address of a server; write http://localhost:8000."
        )
    return found


async def events(answer: httpx2.Response) -> httpx2.EventSource:
    """Return the events of a streamed answer; raises APIError if the answer is an error."""
    if answer.status_code != 200:
        await answer.aread()
        raise_for(answer)
    if not is_stream(answer):
        raise ConnectionFailed(STRANGER)
    return httpx2.EventSource(answer, max_event_size=_MAX_EVENT_BYTES)


def is_stream(answer: httpx2.Response) -> bool:
    """Return whether an answer is a stream of events."""
    return bool(answer.headers.get("Content-Type", "").startswith("text/event-stream"))


def items(frame: JsonObject, output_format: str) -> list[Progress | Image]:
    """Return the progress and the images that one frame of a stream contains."""
    with understanding():
        return [_item(item, output_format) for item in frame["data"]]


def _item(item: JsonObject, output_format: str) -> Progress | Image:
    if item["finish_reason"] == "stop":
        return image(item, output_format)
    return Progress(
        item["index"],
        item["progress"],
        item["status"],
        item["progressed_steps"],
        item["progress_steps"] - 1,  # the last step is decoding
        base64.b64decode(item["b64_json"]) if item.get("preview") else None,
    )


def image(item: JsonObject, output_format: str) -> Image:
    """Return the image that an item of an answer contains in base64."""
    content = base64.b64decode(item["b64_json"])
    return Image(item["index"], item["seed"], content, output_format)


def raise_for(answer: httpx2.Response) -> None:
    """Raise APIError for any status except 200 and 202; the body must have been read."""
    status = answer.status_code
    if status in (200, 202):
        return
    url = answer.request.url
    doubled = status == _NOT_FOUND and "/v1/v1/" in url.path
    remedy = " The address of the server must not end in /v1." if doubled else ""
    try:
        error = json.loads(answer.content)["error"]
        message = str(error["message"])
    except (ValueError, KeyError, TypeError):
        place = f"{url.scheme}://{url.netloc.decode()}"
        message = f"The server at {place} answered with status {status}.{remedy}"
        raise APIError(status, message) from None
    raise APIError(status, message + remedy, error)
