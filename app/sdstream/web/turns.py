"""Crowds take turns: requests that come or go at the same moment do not hold up the event loop.

asyncio runs all that is ready before it looks at its sockets again. When a thousand clients come or
leave at once, every other client waits for the work of a thousand. Here each turn of the loop lets
one of them continue; the others wait in the order in which they came. Probes do not wait.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from sdstream.web.route import is_probe


class Turns:
    """Runs callbacks in the order in which they came, one in each turn of the event loop."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()
        self._taken = False

    def call(self, callback: Callable[[], None]) -> None:
        """Run ``callback`` at once if no other one ran in this turn of the event loop."""
        if self._taken:
            self._waiting.append(callback)
            return
        self._taken = True
        asyncio.get_running_loop().call_soon(self._next)
        callback()

    async def turn(self) -> None:
        """Wait for one's turn."""
        mine = asyncio.get_running_loop().create_future()
        self.call(lambda: None if mine.cancelled() else mine.set_result(None))
        await mine

    def _next(self) -> None:
        if not self._waiting:
            self._taken = False
            return
        asyncio.get_running_loop().call_soon(self._next)
        self._waiting.popleft()()


class OneByOne:
    """Middleware: requests begin one after the other."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._turns = Turns()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http" and not is_probe(scope):
            await self._turns.turn()
        await self._app(scope, receive, send)
