"""The Model Context Protocol over HTTP, /mcp: tools for agents, with the official package ``mcp``.

The package's session manager answers the requests. They pass the same middleware and the same
checks of bodies as the requests of every other route. The package is imported at the first request,
because the import takes a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from sdstream.core.errors import (
    ImageServiceError,
    InvalidRequest,
    MethodNotAllowed,
    NotAcceptable,
    NotFound,
    NotInstalled,
    PayloadTooLarge,
    Reason,
    Unavailable,
    UnsupportedMediaType,
)
from sdstream.core.job import ImageResult, Job
from sdstream.dialects.rendering import JsonObject, ResponseFormat, error_body
from sdstream.tools import extra
from sdstream.tools.toolbox import Caller, Toolbox
from sdstream.web import bodies, respond
from sdstream.web.route import ApiRoute, Dialect, Operation
from sdstream.web.routes.images import ImageRoutes
from sdstream.web.schemas import EVENTS, STRING, json_of, parameter, ref

PATH: Final = "/mcp"

#: Headers of the body as it was sent. The package does not get them, as it reads a decoded body.
_OF_BODIES: Final = (b"content-type", b"content-encoding", b"content-length")


def _error_body(error: ImageServiceError) -> JsonObject:
    """Return an error as JSON-RPC, which MCP clients read, with the fields of all other routes."""
    return {"jsonrpc": "2.0", "id": None, **error_body(error)}


_BAD_REQUEST: Final = InvalidRequest("The request is not valid for the Model Context Protocol.")
#: Status -> error, for answers of the package that do not contain JSON.
_BARE_ERRORS: Final[Mapping[int, ImageServiceError]] = {
    405: MethodNotAllowed(
        "Method not allowed: the protocol from 2026-07-28 on uses POST only.",
        reason=Reason.METHOD_NOT_ALLOWED,
    ),
    406: NotAcceptable(
        "The Accept header must allow application/json and text/event-stream.",
        reason=Reason.NOT_ACCEPTABLE,
    ),
}

MCP: Final = Dialect(_error_body, "McpError", PATH)

_SESSION: Final = (
    parameter("Mcp-Session-Id", "header", STRING),
    parameter("Mcp-Protocol-Version", "header", STRING),
)
_ERRORS: Final = (InvalidRequest, NotFound, MethodNotAllowed, NotAcceptable, NotInstalled)
_SEND: Final = Operation(
    "Send a message of the Model Context Protocol",
    {200: {**json_of(ref("McpMessage")), **EVENTS}, 202: {}},
    json_of(ref("McpMessage")),
    (*_ERRORS, PayloadTooLarge, UnsupportedMediaType, Unavailable),
    _SESSION,
)
_LISTEN: Final = Operation(
    "Follow the server's messages (MCP)", {200: EVENTS}, None, _ERRORS, _SESSION
)
_END: Final = Operation("End a session (MCP)", {200: {}}, None, _ERRORS, _SESSION)


@dataclass
class McpRoute:
    """The route /mcp. The application's lifespan must enter ``running``.

    Attributes:
        draw: Provides the base URL of links, their tokens, and the size limit of bodies.
        toolbox: The tools.
    """

    draw: ImageRoutes
    toolbox: Toolbox
    _wanted: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _ready: asyncio.Future[Any] | None = field(default=None, init=False)

    def routes(self) -> list[ApiRoute]:
        """Return the routes of this class."""
        return [
            ApiRoute(PATH, self.send, _SEND, method="POST", dialect=MCP),
            ApiRoute(PATH, self.listen, _LISTEN, dialect=MCP, same_origin=True),
            ApiRoute(PATH, self.end, _END, method="DELETE", dialect=MCP),
        ]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the session manager from the first request to the end of the application."""
        self._ready = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def send(self, request: Request) -> Response:
        """POST /mcp: handle a message of the client."""
        extra.check()
        body, message = await bodies.read_raw_json(request, self.draw.max_form_bytes)
        if message.get("jsonrpc") != "2.0":
            raise InvalidRequest(
                "'jsonrpc' must be 2.0: this route accepts messages of the Model Context Protocol.",
                param="jsonrpc",
            )
        return _Forwarded(await self._sessions(), body)

    async def listen(self, request: Request) -> Response:
        """GET /mcp: stream the messages of the server that do not belong to a request."""
        extra.check()
        return _Forwarded(await self._sessions(), until=self.draw.service.drain_began)

    async def end(self, request: Request) -> Response:
        """DELETE /mcp: end a session."""
        extra.check()
        return _Forwarded(await self._sessions())

    async def _sessions(self) -> Any:
        """Return the session manager, which starts at the first request."""
        assert self._ready is not None
        self._wanted.set()
        return await asyncio.shield(self._ready)

    async def _run(self) -> None:
        # The same task must enter and exit the manager, which has a task group of anyio.
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            ready = self._ready
            assert ready is not None
            try:
                module = await asyncio.to_thread(extra.load, "sessions")
                sessions = module.HttpSessions(self.toolbox, self._caller, self.draw.max_form_bytes)
                async with sessions.running():
                    ready.set_result(sessions)
                    await asyncio.Event().wait()
            except Exception as fault:
                if ready.done():
                    raise
                self._ready = asyncio.get_running_loop().create_future()  # for the next request
                ready.set_exception(fault)

    def _caller(self, context: Any) -> Caller:
        request: Request = context.request
        form = ResponseFormat(base_url=self.draw.base_url(request), sign=self.draw.signer(request))

        def link(_job: Job, image: ImageResult) -> str | None:
            return form.link(image)

        async def report(percent: float, message: str) -> None:
            await context.session.report_progress(percent, 100.0, message)

        return Caller(
            owner=request.state.owner,
            traceparent=getattr(request.state, "traceparent", ""),
            link=link,
            report=report,
            note=partial(setattr, request.state, "job"),
            left=request.state.mcp_left,
        )


class _Forwarded(Response):
    """A response that the session manager sends.

    Args:
        sessions: The session manager.
        body: The request's body, which was already read; None for a request without a body.
        until: Event that ends the response.
    """

    def __init__(
        self, sessions: Any, body: bytes | None = None, until: asyncio.Event | None = None
    ) -> None:
        super().__init__()
        self._sessions = sessions
        self._body = body
        self._until = until

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        state = scope["state"]
        left = state["mcp_left"] = asyncio.Event()
        headers = [pair for pair in scope["headers"] if pair[0] not in _OF_BODIES]
        if self._body is not None:
            # The body is JSON, whatever Content-Type the client sent, and is decompressed.
            headers.append((b"content-type", b"application/json"))
            receive = _replayed(self._body, receive)
        scope = {**scope, "headers": headers}
        answer = _Answer(send)
        work = self._sessions.handle(scope, receive, answer.send, state["owner"])
        try:
            await (work if self._until is None else _until(self._until, work))
        finally:
            left.set()
        await answer.finish(scope, receive)


class _Answer:
    """Forwards an answer of the package, and adds an error body or an end that it lacks."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._open = False
        self._error: ImageServiceError | None = None
        self._headers: dict[str, str] = {}

    async def send(self, message: Message) -> None:
        """Forward a message; ``finish`` replaces an error without JSON."""
        if message["type"] == "http.response.start":
            headers = Headers(raw=message["headers"])
            if message["status"] >= 400 and headers.get("content-type") != "application/json":
                self._error = _BARE_ERRORS.get(message["status"], _BAD_REQUEST)
                self._headers = {"Allow": headers["allow"]} if "allow" in headers else {}
        if self._error is None:
            self._open = message["type"] == "http.response.start" or message.get("more_body", False)
            await self._send(message)

    async def finish(self, scope: Scope, receive: Receive) -> None:
        """Send the error body or the end of the answer if the package has not sent it."""
        if self._error is not None:
            await respond.failure(self._error, self._headers, MCP)(scope, receive, self._send)
        elif self._open:
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a ``receive`` that returns a body which was already read."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


async def _until(event: asyncio.Event, work: Awaitable[None]) -> None:
    """Await ``work``, but cancel it when the event is set."""
    working, stopping = asyncio.ensure_future(work), asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        working.cancel()
        with suppress(asyncio.CancelledError):
            await working
