"""Deadlines for connections, which uvicorn has none of: slow heads, slow bodies, stalled readers.

A connection is cut when

- a request's line and headers are not complete in ``head_seconds`` or within ``max_head_bytes``,
- a body comes slower than ``body_rate`` after its first ``body_seconds``,
- more than ``max_unread_bytes`` of a body come after its answer, which did not need it,
- an answer waits in the send buffer and not a byte of it leaves for ``stall_seconds``.

No time counts while the server itself does not read, or while a request that came before has no
answer yet. uvicorn's own keep-alive timeout closes connections that are idle between requests.
"""

from __future__ import annotations

import asyncio
from typing import Final, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_KIB: Final = 1024


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol with deadlines. Seconds, bytes, bytes a second."""

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

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The first request must come soon."""
        super().connection_made(transport)
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
        super().on_headers_complete()
        self._in_body = True
        self._begin_body()
        if not self.cycle.keep_alive:
            self.cycle.transport = cast(asyncio.Transport, _ClosesGently(self))

    def on_message_complete(self) -> None:
        """What follows is the next request, which may take its time until it begins."""
        super().on_message_complete()
        self._in_body = False
        self._head_bytes = 0
        self._expect_by(None)
        if self._closes_after_body:
            self.transport.close()

    def on_response_complete(self) -> None:
        """Reading goes on where it had to wait for the answer."""
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

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is left to wait for."""
        self._expect_by(None)
        self._forget_stall()
        super().connection_lost(exc)

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


class _ClosesGently:
    """The transport as uvicorn sees it of a client that asked for one answer only."""

    def __init__(self, protocol: GuardedProtocol) -> None:
        self._protocol = protocol

    def write(self, data: bytes) -> None:
        self._protocol.transport.write(data)

    def is_closing(self) -> bool:
        return self._protocol.transport.is_closing()

    def close(self) -> None:
        self._protocol.close_gently()
