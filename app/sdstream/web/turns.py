"""Handles requests that start or end together one at a time, with other work in between.

asyncio runs all ready callbacks before it polls its sockets again. If a thousand clients connect or
disconnect at once, every other client waits until all thousand are handled. This module lets one of
them continue in each turn (iteration) of the event loop. The others wait in the order in which they
came. Probes do not wait.
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
        """Run ``callback`` now, or in a later turn if another one has run in this turn."""
        if self._taken:
            self._waiting.append(callback)
            return
        self._taken = True
        asyncio.get_running_loop().call_soon(self._next)
        callback()

    async def turn(self) -> None:
        """Wait for the turn of the caller."""
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
    """Middleware that starts one request in each turn of the event loop."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._turns = Turns()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http" and not is_probe(scope):
            await self._turns.turn()
        await self._app(scope, receive, send)
