"""Crowds take turns: requests that come or go at the same moment do not hold up the event loop.

asyncio runs all that is ready before it looks at its sockets again. When a thousand clients come or
leave at once, every other client waits for the work of a thousand. Here each turn of the loop lets
one of them continue; the others wait in the order in which they came. Probes do not wait.
"""

from __future__ import annotations

import asyncio
from collections import deque

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sdstream.web.route import is_probe


class Turns:
    """``await turn()`` returns at once if no other caller did so in this turn of the event loop."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._taken = False

    async def turn(self) -> None:
        """Wait for one's turn."""
        loop = asyncio.get_running_loop()
        if not self._taken:
            self._taken = True
            loop.call_soon(self._next)
            return
        mine = loop.create_future()
        self._waiting.append(mine)
        await mine

    def _next(self) -> None:
        while self._waiting:
            following = self._waiting.popleft()
            if not following.done():  # else its task was cancelled
                following.set_result(None)
                asyncio.get_running_loop().call_soon(self._next)
                return
        self._taken = False


class OneByOne:
    """Middleware: requests begin, and learn that their clients left, one after the other."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._turns = Turns()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or is_probe(scope):
            await self._app(scope, receive, send)
            return

        async def receive_in_turn() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect":
                await self._turns.turn()
            return message

        await self._turns.turn()
        await self._app(scope, receive_in_turn, send)
