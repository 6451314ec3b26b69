"""Wakes every task that waits for a change, without queues and without lost wake-ups."""

from __future__ import annotations

import asyncio


class Notifier:
    """Wakes all waiting tasks at once.

    A waiting task runs ``while not condition(): await notifier.wait()``. The task that changes the
    condition calls ``notify()``. Both run on one event loop, so the condition cannot change between
    the check and the wait.
    """

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        """Wake all tasks that are waiting now."""
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self) -> None:
        """Sleep until the next ``notify``."""
        await self._event.wait()
