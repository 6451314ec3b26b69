"""What goes back: streams, JSON, image bytes and errors. The only importer of sse_starlette.

Deliberate oddities:

1. ``sep`` is LF: the library's CRLF makes hand-written clients lose frames. Frames come as bytes,
   which the library passes through as they are.
2. Its pings are off: they are comment lines, which break clients of POST streams. Keep-alive is a
   frame of the dialect.
3. Its task group is not used. anyio leaves each task that it cancels in a cycle of references, with
   the job in it; the garbage collector finds those of a whole crowd at once, which blocks the event
   loop.
4. At shutdown the library would cut every stream at once, also those of the package ``mcp``, which
   uses it too. The service ends every job by itself within the grace time, and with the job its
   stream, so the library is set to leave them unchanged.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import suppress
from typing import Final, TypeVar

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


#: Characters of a path in an error.
_LONGEST_PATH: Final = 200


class ClientLeft(Exception):
    """The client closed the connection before its answer was ready."""


class _EventStream(EventSourceResponse):
    """A stream that ends when its client leaves."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD":
            await super().__call__(scope, receive, send)
            return
        with suppress(ClientLeft):
            await unless_client_leaves(self._stream_response(send), receive)


def stream(frames: AsyncIterator[bytes], headers: Mapping[str, str]) -> Response:
    """Server-sent events, each item of ``frames`` flushed by itself."""
    response = _EventStream(
        frames,
        headers={**_STREAM_HEADERS, **headers},
        sep="\n",
        ping=0,
    )
    # The library promises keep-alive also to a client that asked for the connection's end.
    del response.headers["Connection"]
    return response


def json_bytes(
    body: bytes, headers: Mapping[str, str] | None = None, status: int = 200
) -> Response:
    """JSON that is rendered already."""
    return Response(body, status, headers, media_type="application/json")


def failure(
    error: ImageServiceError,
    headers: Mapping[str, str] | None = None,
    dialect: Dialect = DEFAULT,
) -> Response:
    """Return an error in the form of its dialect."""
    body = dialect.error_body(error)
    every = {**(headers or {}), **error_headers(error)}
    if error.status == 413:
        # Else the connection would go on swallowing what the client still sends.
        every["Connection"] = "close"
    return json_bytes(compact(body), every, error.status)


async def unless_client_leaves(work: Awaitable[T], receive: Receive) -> T:
    """Await ``work``; plain handlers are not notified of a disconnect, so this watches for one.

    Raises:
        ClientLeft: The connection was closed first; ``work`` is cancelled.
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
    """Handler for every ImageServiceError that a route raises."""
    assert isinstance(error, ImageServiceError)
    request.state.outcome = error.reason.value
    return failure(error, dialect=dialect_of(request.scope))


async def on_http_error(request: Request, error: Exception) -> Response:
    """Handler for what Starlette itself rejects: no route, wrong method."""
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
    """The methods of the routes that share the path of the one that matched."""
    matched = route_of(request.scope)
    if not isinstance(matched, Route):
        return []
    routes = (route for route in request.app.routes if isinstance(route, Route))
    found = {m for route in routes if route.path == matched.path for m in route.methods or ()}
    return sorted(found - {request.method})


async def on_disconnect(request: Request, _error: Exception) -> Response:
    """Handler for clients that leave in the middle of their body; the answer is not read."""
    request.state.outcome = "client_left"
    return Response(status_code=499)


async def on_fault(request: Request, error: Exception) -> Response:
    """Handler for everything else: the log has the traceback, the client a sentence."""
    request.state.outcome = Reason.INTERNAL_ERROR.value
    fault = ImageServiceError("Internal server error.", reason=Reason.INTERNAL_ERROR)
    # This handler sits outside of the middleware that would add the id.
    headers = {"X-Request-Id": request.state.request_id}
    return failure(fault, headers, dialect_of(request.scope))
