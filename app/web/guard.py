"""Deadlines for connections, which uvicorn has none of: slow heads, slow bodies, stalled readers.

A connection is cut when

- a request's line and headers are not complete in ``head_seconds`` or within ``max_head_bytes``,
- a body comes slower than ``body_rate`` after its first ``body_seconds``,
- an answer waits in the send buffer and not a byte of it leaves for ``stall_seconds``.

uvicorn's own keep-alive timeout closes connections that are idle between requests.
"""

from __future__ import annotations

import asyncio
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_KIB: Final = 1024


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol with deadlines. Seconds, bytes, bytes a second."""

    head_seconds = 10.0
    max_head_bytes = 64 * _KIB
    body_seconds = 10.0
    body_rate = 16 * _KIB
    stall_seconds = 30.0

    _deadline: asyncio.TimerHandle | None = None
    _stall_check: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _body_bytes = 0
    _body_began = 0.0
    _unsent = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The first request must come soon."""
        super().connection_made(transport)
        self._expect_by(self.loop.time() + self.head_seconds)

    def data_received(self, data: bytes) -> None:
        """Feed the parser, then see which deadline holds now."""
        if self._reads_head():
            if self._head_bytes == 0:
                self._expect_by(self.loop.time() + self.head_seconds)
            self._head_bytes += len(data)
        else:
            self._body_bytes += len(data)
        super().data_received(data)
        if self._reads_head():
            if self._head_bytes > self.max_head_bytes:
                self._cut()
        elif self.cycle.more_body:
            self._head_complete()
            allowed = self.body_seconds + self._body_bytes / self.body_rate
            self._expect_by(self._body_began + allowed)
        else:
            self._head_complete()
            self._body_bytes, self._body_began = 0, 0.0
            self._expect_by(None)

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

    def _reads_head(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _head_complete(self) -> None:
        if self._head_bytes:
            self._head_bytes = 0
            self._body_began = self.loop.time()

    def _expect_by(self, when: float | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_at(when, self._cut) if when is not None else None

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
