"""Builds responses: streams, JSON and errors. Only this module imports sse_starlette.

Deliberate oddities:

1. ``sep`` is LF, because simple clients lose frames that end with the library's CRLF. The frames
   are bytes, which the library sends unchanged.
2. The library's pings are off: they are comments, which break some clients of POST streams. Each
   dialect has its own keep-alive frame.
3. The library's task group is not used. anyio leaves each task that it cancels in a reference cycle
   that contains the job. When many clients disconnect together, the garbage collector finds all
   these cycles at once and blocks the event loop.
4. At shutdown the library would end every stream at once, including those of the package ``mcp``,
   which uses it too. This is switched off: the service ends every job within the grace time, and
   the stream of a job ends with the job.
"""

from __future__ import annotations

import asyncio
import string
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping
from contextlib import suppress
from itertools import accumulate
from typing import Final, TypeVar
from urllib.parse import quote

from sse_starlette import EventSourceResponse  # noqa: TID251
from sse_starlette.sse import AppStatus  # noqa: TID251
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from sdstream.core.errors import (
    ImageServiceError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    Reason,
)
from sdstream.dialects.rendering import compact, error_headers
from sdstream.web.route import DEFAULT, Dialect, dialect_of, nearest_route, plain_path, route_of

T = TypeVar("T")

AppStatus.enable_automatic_graceful_drain = False

_STREAM_HEADERS: Final = {
    "Cache-Control": "no-cache, no-transform",
    "Content-Type": "text/event-stream; charset=utf-8",
}

_STATUS_ERRORS: Final = {
    404: (NotFound, Reason.ROUTE_NOT_FOUND, "Route not found."),
    405: (MethodNotAllowed, Reason.METHOD_NOT_ALLOWED, "Method not allowed on this route."),
}


#: Maximum number of characters of a path in an error message.
_LONGEST_PATH: Final = 200

#: Characters that a warning in X-Warnings contains as they are. A comma separates warnings.
_PLAIN: Final = (string.punctuation + " ").translate({ord(","): None, ord("%"): None})
#: Limits of a warning and of all warnings in X-Warnings: a proxy may reject longer headers.
_LONGEST_WARNING: Final = 200
_LONGEST_WARNINGS: Final = 2048


class ClientLeft(Exception):
    """The client closed the connection before its answer was ready."""


class _EventStream(EventSourceResponse):
    """A stream that ends when its client disconnects."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD":
            await super().__call__(scope, receive, send)
            return
        with suppress(ClientLeft):
            await unless_client_leaves(self._stream_response(send), receive)


def stream(frames: AsyncIterator[bytes], headers: Mapping[str, str]) -> Response:
    """Return a response of server-sent events; each item of ``frames`` is sent separately."""
    response = _EventStream(
        frames,
        headers={**_STREAM_HEADERS, **headers},
        sep="\n",
        ping=0,
    )
    # The library sends keep-alive even if the client asked the server to close the connection.
    del response.headers["Connection"]
    return response


def warning_headers(warnings: Iterable[str]) -> dict[str, str]:
    """Return X-Warnings, for an answer that is a file and thus has no field for warnings.

    Long warnings are shortened, and those that exceed the limit of the header are left out.
    """
    parts = [quote(warning[:_LONGEST_WARNING], _PLAIN, errors="replace") for warning in warnings]
    ends = accumulate(len(part) + 1 for part in parts)
    told = [part for part, end in zip(parts, ends, strict=True) if end <= _LONGEST_WARNINGS]
    return {"X-Warnings": ",".join(told)} if told else {}


def json_bytes(
    body: bytes, headers: Mapping[str, str] | None = None, status: int = 200
) -> Response:
    """Return a response with JSON that is already encoded."""
    return Response(body, status, headers, media_type="application/json")


def failure(
    error: ImageServiceError,
    headers: Mapping[str, str] | None = None,
    dialect: Dialect = DEFAULT,
) -> Response:
    """Return the response for an error, in the form of a dialect."""
    body = dialect.error_body(error)
    every = {**(headers or {}), **error_headers(error)}
    if error.status == 413:
        # Clients that read before the end of their body stop sending it; see web/protocol.py.
        every["Connection"] = "close"
    return json_bytes(compact(body), every, error.status)


async def unless_client_leaves(work: Awaitable[T], receive: Receive) -> T:
    """Await ``work``, and cancel it if the client disconnects.

    Starlette does not notify a handler of a disconnect, so this function watches for it.

    Raises:
        ClientLeft: The client disconnected first.
    """
    doing = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((doing, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise ClientLeft
        return doing.result()
    finally:
        for task in (doing, leaving):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def on_service_error(request: Request, error: Exception) -> Response:
    """Handle an ImageServiceError that a route raised."""
    assert isinstance(error, ImageServiceError)
    request.state.outcome = error.reason.value
    return failure(error, dialect=dialect_of(request.scope))


async def on_http_error(request: Request, error: Exception) -> Response:
    """Handle a request that Starlette itself rejects: unknown route or wrong method."""
    assert isinstance(error, HTTPException)
    kind, reason, message = _STATUS_ERRORS.get(
        error.status_code, (InvalidRequest, Reason.INVALID_VALUE, error.detail)
    )
    request.state.outcome = reason.value
    if error.status_code == 404:
        message = _unrouted(request)
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_methods(request)) or headers.get("Allow", "GET, HEAD")
        if request.method == "OPTIONS":
            return Response(status_code=204, headers={"Allow": f"{headers['Allow']}, OPTIONS"})
    return failure(kind(message, reason=reason), headers, dialect_of(request.scope))


def _unrouted(request: Request) -> str:
    path = request.scope["raw_path"].decode("ascii")
    found = nearest_route(request.scope)
    what = f"Route not found: {request.method} {path[:_LONGEST_PATH]}."
    if found is None:
        return what
    method = "" if found.method == request.method else f"{found.method} "
    return f"{what} Did you mean {method}{plain_path(found)}?"


def _methods(request: Request) -> list[str]:
    """Return the methods of all routes with the path of the route that matched."""
    matched = route_of(request.scope)
    if not isinstance(matched, Route):
        return []
    routes = (route for route in request.app.routes if isinstance(route, Route))
    found = {m for route in routes if route.path == matched.path for m in route.methods or ()}
    return sorted(found - {request.method})


async def on_disconnect(request: Request, _error: Exception) -> Response:
    """Handle a client that disconnects while it sends its body; it does not read the answer."""
    request.state.outcome = "client_left"
    return Response(status_code=499)


async def on_fault(request: Request, error: Exception) -> Response:
    """Handle any other exception: the traceback is logged, and the client gets a short message."""
    request.state.outcome = Reason.INTERNAL_ERROR.value
    fault = ImageServiceError("Internal server error.", reason=Reason.INTERNAL_ERROR)
    # This handler runs outside of the middleware that adds the id.
    headers = {"X-Request-Id": request.state.request_id}
    return failure(fault, headers, dialect_of(request.scope))
