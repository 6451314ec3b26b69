"""Adds deadlines for connections and checks of request headers to uvicorn's HTTP/1 protocol.

The server aborts a connection if

- the request line and the headers are not complete within ``head_seconds`` and ``max_head_bytes``,
- a body arrives more slowly than ``body_rate``, with an allowance of ``body_seconds``,
- more than ``max_unread_bytes`` of a body arrive after the request was answered without them,
- no byte of a waiting answer leaves the send buffer for ``stall_seconds``.

The deadlines for reading do not apply while the server itself does not read, or while an earlier
request on the connection has no answer yet. uvicorn's own keep-alive timeout closes connections
that are idle between requests.

Two servers may parse a connection differently if a request violates certain rules of RFC 9112. The
server rejects such requests and closes their connections: requests without a Host header, with
several Host headers, or with a transfer coding other than chunked. The server ignores upgrades that
a client offers, such as h2c, and serves the request without them.

If many connections end at the same moment, they take turns on the event loop; see web/turns.py.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
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

#: The host of a URL, with an optional port.
_HOST: Final = re.compile(rb"[\w.~!$&'()*+,;=%:\[\]-]*", re.ASCII)

#: The scheme and the host of a request target in absolute form.
_ABSOLUTE: Final = re.compile(rb"https?://([^/?#]*)", re.IGNORECASE)


class TimeoutProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol with deadlines.

    The limits are in seconds, bytes, and bytes per second.

    Args:
        args, options: Arguments of uvicorn's protocol.
        ends: Ends the server's connections one by one.
    """

    head_seconds = 10.0
    max_head_bytes = 64 * _KIB
    body_seconds = 10.0
    body_rate = 16 * _KIB
    #: Large enough for clients that send the whole body before they read a 401, 404 or 415.
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
        #: Requests without a complete answer, oldest first. ``cycle`` is the last one, and uvicorn
        #: notifies only that one of the end of the connection.
        self._open: deque[RequestResponseCycle] = deque()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Set the deadline for the first request."""
        super().connection_made(transport)
        self.parser = cast(httptools.HttpRequestParser, _Parser(self))
        self._expect_by(self.loop.time() + self.head_seconds)

    def data_received(self, data: bytes) -> None:
        """Feed the parser, then set the deadline that applies now."""
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
        """Start the request, and set the deadline for its body."""
        if self.parser.should_upgrade():
            return  # _Parser parses the headers again, without the upgrade
        if self.transport.is_closing():
            return  # the previous answer announced the end of the connection
        version = self.parser.get_http_version()
        absolute = _ABSOLUTE.match(self.url)
        if absolute is not None:  # its host replaces the one in Host (RFC 9112, 3.2.2)
            self.headers[:] = [
                (name, absolute[1] if name == b"host" else value) for name, value in self.headers
            ]
        fault = _fault_of(self.headers, version)
        self._begin_request(respond.failure(fault) if fault else self.app)
        self._in_body = True
        self._begin_body()
        if fault is not None:
            self.cycle.keep_alive = False
        if version == "1.0":
            self.cycle.send = _Unchunked(self.cycle).send  # type: ignore[assignment,method-assign]
        self.cycle.transport = cast(asyncio.Transport, _ClosesGently(self))

    def on_message_complete(self) -> None:
        """End the request; there is no deadline until the next one begins."""
        if self.parser.should_upgrade():
            return
        super().on_message_complete()
        self._in_body = False
        self._head_bytes = 0
        self._expect_by(None)
        if self._closes_after_body:
            self.transport.close()

    def _begin_request(self, app: ASGIApp) -> None:
        """Make uvicorn pass the request whose headers are complete to this application."""
        usual, self.app = self.app, cast(Any, app)
        try:
            super().on_headers_complete()
        finally:
            self.app = usual
        self._open.append(self.cycle)

    def on_response_complete(self) -> None:
        """Restart the deadline of the body if the request was answered before its body ended."""
        if self._open:  # empty after the end of the connection
            self._open.popleft()
        super().on_response_complete()
        if self._in_body:
            self._begin_body()

    def pause_writing(self) -> None:
        """Watch whether the client still reads, as it reads more slowly than the server writes."""
        super().pause_writing()
        self._unsent = 0
        self._check_stall()

    def resume_writing(self) -> None:
        """Stop watching: the client has read enough of the send buffer."""
        super().resume_writing()
        self._forget_stall()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Close the connection in its turn, after the client has closed its side."""
        self._write_no_more()
        self._ends.call(self.transport.close)
        return True  # otherwise the loop would close all ended connections at once

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the deadlines, and notify the request of the end of its connection."""
        self._expect_by(None)
        self._forget_stall()
        if exc is None:
            self._end(exc)
        else:  # the connection broke: the request is notified in its turn
            self._write_no_more()
            self._ends.call(partial(self._end, exc))

    def _end(self, exc: Exception | None) -> None:
        self._write_no_more()
        for cycle in self._open:
            cycle.message_event.set()
        super().connection_lost(exc)
        self._open.clear()
        self.pipeline.clear()
        # The protocol and its cycle refer to each other. The garbage collector would find many
        # such pairs at once, and block the event loop.
        self.cycle = cast(RequestResponseCycle, None)

    def _write_no_more(self) -> None:
        for cycle in self._open:
            cycle.disconnected = True

    def close_gently(self) -> None:
        """Close the connection, but not before the end of the request's body.

        An earlier close would reset the connection, and the client would lose the answer.
        """
        if self._in_body and len(self._open) == 1:  # else this is the body of a later request
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
        # Also aborts a closing connection, which a client that does not read would keep open.
        self.transport.abort()


class _Parser:
    """httptools' parser, with support for requests that offer an upgrade.

    httptools stops after the headers of such a request and does not parse the rest, including the
    body. This class starts a new parser and feeds it the same headers without the offer, then the
    rest.
    """

    def __init__(self, protocol: TimeoutProtocol) -> None:
        self._protocol = protocol
        self._renew()

    def feed_data(self, data: bytes) -> None:
        """Parse data and call the protocol's methods; raises httptools.HttpParserError."""
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
        """Return whether the request offers an upgrade, at which httptools stops."""
        return bool(self._parser.should_upgrade())

    def should_keep_alive(self) -> bool:
        """Return whether another request may follow."""
        return bool(self._parser.should_keep_alive())

    def get_http_version(self) -> str:
        """Return the HTTP version of the request."""
        return str(self._parser.get_http_version())

    def get_method(self) -> bytes:
        """Return the method of the request."""
        return bytes(self._parser.get_method())

    def _renew(self) -> None:
        self._parser = httptools.HttpRequestParser(self._protocol)
        # As in uvicorn: data after the last request is ignored and is not an error.
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
    """Return the error of a request whose headers are not acceptable, or None."""
    hosts = [value for name, value in headers if name == b"host"]
    codings = [item for name, value in headers if name == b"transfer-encoding"
               for item in _items(value)]  # fmt: skip
    if len(hosts) > 1 or (not hosts and version != "1.0"):
        return _broken(f"A request must have exactly one Host header; this one has {len(hosts)}.")
    if hosts and not _HOST.fullmatch(hosts[0]):
        return _broken("The Host header must be a host, with or without a port.")
    if codings and version == "1.0":
        return _broken("HTTP/1.0 does not support Transfer-Encoding.")
    if codings and codings != [b"chunked"]:
        return CodingNotSupported(
            "The server supports no Transfer-Encoding except chunked.",
            reason=Reason.CODING_NOT_SUPPORTED,
        )
    return None


def _broken(message: str) -> InvalidRequest:
    return InvalidRequest(message, reason=Reason.INVALID_HTTP)


class _Unchunked:
    """A ``send`` for HTTP/1.0 clients, which do not support chunks and read until the end."""

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._send = cycle.send
        self._counted = True

    async def send(self, message: Message) -> None:
        """Send a message; an answer without Content-Length is not sent in chunks."""
        if message["type"] == "http.response.start":
            names = {name.lower() for name, _ in message.get("headers", [])}
            self._counted = b"content-length" in names
            if not self._counted:
                self._cycle.chunked_encoding = False
        elif not self._counted:
            # uvicorn requires a length, so the length of each part is set right before it is sent.
            self._cycle.expected_content_length = len(message.get("body", b""))
        await self._send(cast(Any, message))


class _ClosesGently:
    """The transport that uvicorn uses for an answer, which may be the last of its connection."""

    def __init__(self, protocol: TimeoutProtocol) -> None:
        self._protocol = protocol

    def write(self, data: bytes) -> None:
        self._protocol.transport.write(data)

    def is_closing(self) -> bool:
        return self._protocol.transport.is_closing()

    def close(self) -> None:
        self._protocol.close_gently()
