"""What uvicorn leaves out of HTTP/1: deadlines for connections, and rules for heads of requests.

A connection is cut when

- a request's line and headers are not complete in ``head_seconds`` or within ``max_head_bytes``,
- a body comes slower than ``body_rate`` after its first ``body_seconds``,
- more than ``max_unread_bytes`` of a body come after its answer, which did not need it,
- an answer waits in the send buffer and not a byte of it leaves for ``stall_seconds``.

No time counts while the server itself does not read, or while a request that came before has no
answer yet. uvicorn's own keep-alive timeout closes connections that are idle between requests.

A request that breaks a rule of RFC 9112 whose breach lets two servers read one connection in two
ways is rejected, and its connection is closed: no Host or two, other codings than chunked. An
upgrade that is offered, such as h2c, is ignored: the request is served as if it had not been.

Connections that end at once take turns on the event loop: see web/turns.py.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from functools import partial
from typing import Any, Final, cast

import httptools
from starlette.types import ASGIApp, Message
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from sdstream.core.errors import CodingNotSupported, ImageServiceError, InvalidRequest, Reason
from sdstream.web import respond
from sdstream.web.turns import Turns

_KIB: Final = 1024

#: A host of a URL, and perhaps a port.
_HOST: Final = re.compile(rb"[\w.~!$&'()*+,;=%:\[\]-]*", re.ASCII)


class TimeoutProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol with deadlines. Seconds, bytes, bytes a second.

    Args:
        args, options: Of uvicorn.
        ends: Turns in which the connections of a server end.
    """

    head_seconds = 10.0
    max_head_bytes = 64 * _KIB
    body_seconds = 10.0
    body_rate = 16 * _KIB
    #: Clients that send all before they read still get their 401, 404 or 415.
    max_unread_bytes = 64 * _KIB * _KIB
    stall_seconds = 30.0

    _deadline: asyncio.TimerHandle | None = None
    _stall_check: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _in_body = False
    _closes_after_body = False
    _body_bytes = 0
    _body_began = 0.0
    _unsent = 0

    def __init__(self, *args: Any, ends: Turns | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self._ends = ends or Turns()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The first request must come soon."""
        super().connection_made(transport)
        self.parser = cast(httptools.HttpRequestParser, _Parser(self))
        self._expect_by(self.loop.time() + self.head_seconds)

    def data_received(self, data: bytes) -> None:
        """Feed the parser, then see which deadline holds now."""
        self._head_bytes += len(data)
        self._body_bytes += len(data)
        super().data_received(data)
        if self._in_body:
            if self._is_answered() and self._body_bytes > self.max_unread_bytes:
                self._cut()
            allowed = self.body_seconds + self._body_bytes / self.body_rate
            self._expect_by(self._body_began + allowed)
        elif self._head_bytes > self.max_head_bytes:
            self._cut()
        elif self._is_answered() and self._deadline is None:
            self._expect_by(self.loop.time() + self.head_seconds)

    def on_headers_complete(self) -> None:
        """What follows is the body, if there is one."""
        if self.parser.should_upgrade():
            return  # the parser will come again, with a head that offers nothing
        if self.transport.is_closing():
            return  # the answer before announced that it is the last
        version = self.parser.get_http_version()
        fault = _fault_of(self.headers, version)
        self._begin_request(respond.failure(fault) if fault else self.app)
        self._in_body = True
        self._begin_body()
        if fault is not None:
            self.cycle.keep_alive = False
        if version == "1.0":
            self.cycle.send = _Unchunked(self.cycle).send  # type: ignore[assignment,method-assign]
        if not self.cycle.keep_alive:
            self.cycle.transport = cast(asyncio.Transport, _ClosesGently(self))

    def on_message_complete(self) -> None:
        """What follows is the next request, which may take its time until it begins."""
        if self.parser.should_upgrade():
            return
        super().on_message_complete()
        self._in_body = False
        self._head_bytes = 0
        self._expect_by(None)
        if self._closes_after_body:
            self.transport.close()

    def _begin_request(self, app: ASGIApp) -> None:
        """Have uvicorn serve the request whose head is complete by this application."""
        usual, self.app = self.app, cast(Any, app)
        try:
            super().on_headers_complete()
        finally:
            self.app = usual

    def on_response_complete(self) -> None:
        """Reading continues where it had to wait for the answer."""
        super().on_response_complete()
        if self._in_body:
            self._begin_body()

    def pause_writing(self) -> None:
        """The client reads more slowly than the server writes: watch whether it reads at all."""
        super().pause_writing()
        self._unsent = 0
        self._check_stall()

    def resume_writing(self) -> None:
        """The client has caught up."""
        super().resume_writing()
        self._forget_stall()

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client has left; its connection is closed in its turn."""
        self._write_no_more()
        self._ends.call(self.transport.close)
        return True  # else the loop would close it now, with all others that ended

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is left to wait for."""
        self._expect_by(None)
        self._forget_stall()
        if exc is None:
            self._end(exc)
        else:  # it broke: the request learns of that in its turn
            self._write_no_more()
            self._ends.call(partial(self._end, exc))

    def _end(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        # The two refer to each other. The garbage collector would find a whole crowd of them at
        # once, and block the event loop.
        self.cycle = cast(RequestResponseCycle, None)

    def _write_no_more(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True

    def close_gently(self) -> None:
        """Close after the body: a reset would take the answer from a client that still sends."""
        if self._in_body:
            self._closes_after_body = True
        else:
            self.transport.close()

    def _is_answered(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _begin_body(self) -> None:
        self._body_bytes, self._body_began = 0, self.loop.time()
        self._expect_by(self._body_began + self.body_seconds)

    def _expect_by(self, when: float | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_at(when, self._late) if when is not None else None

    def _late(self) -> None:
        if self.flow.read_paused or self.pipeline:
            self._begin_body()
        else:
            self._cut()

    def _check_stall(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        if unsent == self._unsent:
            self._cut()
            return
        self._unsent = unsent
        self._stall_check = self.loop.call_later(self.stall_seconds, self._check_stall)

    def _forget_stall(self) -> None:
        if self._stall_check is not None:
            self._stall_check.cancel()
            self._stall_check = None

    def _cut(self) -> None:
        # Also when it is closing: a reader that stalls would keep it closing for ever.
        self.transport.abort()


class _Parser:
    """httptools' parser as uvicorn sees it, which continues where an upgrade is offered.

    The parser ends at such a head, and returns the rest unread, also the body. A new parser is fed
    the same head without the offer, then the rest.
    """

    def __init__(self, protocol: TimeoutProtocol) -> None:
        self._protocol = protocol
        self._renew()

    def feed_data(self, data: bytes) -> None:
        """Parse; the protocol is called back. Raises httptools.HttpParserError."""
        while True:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
            if self.get_method() == b"CONNECT":
                raise httptools.HttpParserError("this server is not a proxy")
            line = (self.get_method(), self._protocol.url, self.get_http_version().encode())
            head = _head_without_offer(line, self._protocol.headers)
            self._renew()
            self._parser.feed_data(head)

    def should_upgrade(self) -> bool:
        """True at a head that the parser ends at."""
        return bool(self._parser.should_upgrade())

    def should_keep_alive(self) -> bool:
        """True when another request may follow."""
        return bool(self._parser.should_keep_alive())

    def get_http_version(self) -> str:
        """Of the request."""
        return str(self._parser.get_http_version())

    def get_method(self) -> bytes:
        """Of the request."""
        return bytes(self._parser.get_method())

    def _renew(self) -> None:
        self._parser = httptools.HttpRequestParser(self._protocol)
        # As in uvicorn: what follows a last request is not parsed, and is not an error.
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)


def _head_without_offer(
    line: tuple[bytes, bytes, bytes], headers: Iterable[tuple[bytes, bytes]]
) -> bytes:
    kept = []
    for name, value in headers:
        if name == b"connection":
            options = [option for option in _items(value) if option != b"upgrade"]
            kept.append((name, b", ".join(options)))
        elif name != b"upgrade":
            kept.append((name, value))
    lines = [b"%b %b HTTP/%b" % line, *(b"%b: %b" % header for header in kept), b"", b""]
    return b"\r\n".join(lines)


def _items(value: bytes) -> list[bytes]:
    return [item.strip().lower() for item in value.split(b",")]


def _fault_of(headers: Iterable[tuple[bytes, bytes]], version: str) -> ImageServiceError | None:
    """Why a request is rejected by its head alone."""
    hosts = [value for name, value in headers if name == b"host"]
    codings = [item for name, value in headers if name == b"transfer-encoding"
               for item in _items(value)]  # fmt: skip
    if len(hosts) > 1 or (not hosts and version != "1.0"):
        return _broken(f"A request has one Host header; this one has {len(hosts)}.")
    if hosts and not _HOST.fullmatch(hosts[0]):
        return _broken("The Host header is not a host and a port.")
    if codings and version == "1.0":
        return _broken("HTTP/1.0 has no Transfer-Encoding.")
    if codings and codings != [b"chunked"]:
        return CodingNotSupported(
            "The server reads no Transfer-Encoding but chunked; send the body as it is.",
            reason=Reason.CODING_NOT_SUPPORTED,
        )
    return None


def _broken(message: str) -> InvalidRequest:
    return InvalidRequest(message, reason=Reason.INVALID_HTTP)


class _Unchunked:
    """``send`` for a client of HTTP/1.0, which reads to the end of the connection instead."""

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._send = cycle.send
        self._counted = True

    async def send(self, message: Message) -> None:
        """Send without chunks what has no length."""
        if message["type"] == "http.response.start":
            names = {name.lower() for name, _ in message.get("headers", [])}
            self._counted = b"content-length" in names
            if not self._counted:
                self._cycle.chunked_encoding = False
        elif not self._counted:
            # uvicorn requires the announced length. Each part is announced right before it is sent.
            self._cycle.expected_content_length = len(message.get("body", b""))
        await self._send(cast(Any, message))


class _ClosesGently:
    """The transport as uvicorn sees it of a client that asked for one answer only."""

    def __init__(self, protocol: TimeoutProtocol) -> None:
        self._protocol = protocol

    def write(self, data: bytes) -> None:
        self._protocol.transport.write(data)

    def is_closing(self) -> bool:
        return self._protocol.transport.is_closing()

    def close(self) -> None:
        self._protocol.close_gently()
