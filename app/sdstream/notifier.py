"""Waking every task that waits for a change, without queues and without lost wake-ups."""

from __future__ import annotations

import asyncio


class Notifier:
    """``while not condition(): await wakeup.wait()`` on one side, ``notify()`` on the other.

    Both sides run on one event loop, so nothing can change between the check and the wait.
    """

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        """Wake all that wait now."""
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self) -> None:
        """Sleep until the next ``notify``."""
        await self._event.wait()
