"""Notifies systemd that the server is ready, alive or stopping; see sd_notify(3).

systemd sets NOTIFY_SOCKET for a unit with ``Type=notify``, and WATCHDOG_USEC for a unit with
``WatchdogSec=``. The event loop feeds the watchdog, so systemd restarts a server whose event loop
hangs.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Final

logger = logging.getLogger(__name__)

#: Messages in each period of the watchdog, as sd_watchdog_enabled(3) recommends.
_PER_PERIOD: Final = 2


class Notifications:
    """The notifications of one server; without systemd they do nothing.

    Args:
        address: NOTIFY_SOCKET: a path, or an abstract socket that begins with ``@``.
        watchdog_usec: WATCHDOG_USEC: microseconds without a message after which systemd restarts
            the server.
    """

    def __init__(self, address: str | None, watchdog_usec: str | None) -> None:
        self._address = "\0" + address[1:] if address and address[0] == "@" else address
        usec = int(watchdog_usec) if watchdog_usec and watchdog_usec.isdecimal() else 0
        self._period = usec / 1_000_000 / _PER_PERIOD
        self._feeding: asyncio.Task[None] | None = None

    def ready(self) -> None:
        """Report that the server listens, and start to feed the watchdog."""
        self._send("READY=1")
        if self._address and self._period:
            self._feeding = asyncio.create_task(self._feed())

    def stopping(self) -> None:
        """Report that the server is stopping."""
        self._send("STOPPING=1")

    async def _feed(self) -> None:
        while True:
            self._send("WATCHDOG=1")
            await asyncio.sleep(self._period)

    def _send(self, state: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
                connection.setblocking(False)
                connection.sendto(state.encode(), self._address)
        except OSError as error:
            logger.warning("systemd was not notified of %s: %s", state, error)
