"""The uvicorn server that carries the application: its signals and its deadlines."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import os
import signal
import socket
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Final, cast

import uvicorn

from sdstream.core.errors import CatalogRejected, ConfigurationError
from sdstream.service.service import ImageService
from sdstream.settings import Settings, variable
from sdstream.storage.ports import StoreInUse
from sdstream.web.application import build_app, set_log_level
from sdstream.web.hosts import exposure_warnings
from sdstream.web.protocol import TimeoutProtocol
from sdstream.web.systemd import Notifications
from sdstream.web.turns import Turns

logger = logging.getLogger(__name__)

#: For the last frames to be written, whatever the grace time.
_LEAST_SECONDS = 2

#: The garbage collector's thresholds. The last one is 10 by default: while 800 streams come, it
#: then looks through all objects twice, which blocks the event loop for 50 and for 120 ms of CPU
#: time. A request leaves few objects to the collector, and no images.
_COLLECTIONS: Final = (700, 10, 100)

#: Of the path of a Unix socket, in bytes; what the kernel has room for.
_LONGEST_SOCKET = 107


class ServerError(ConfigurationError):
    """The server cannot listen; the message has the address and the reason."""


class Server(uvicorn.Server):
    """A uvicorn server whose first signal flips readiness and starts the drain.

    uvicorn alone would notify the application of its end only after the last connection closed,
    which for a stream is after its job.

    Args:
        settings: Frozen.
        uds: Path of the Unix socket of a private server, whose signals are its command's.

    Raises:
        CatalogError, ModelError, SafetyCheckerError, StoreError, WebhookSettingsError: It cannot
            start with these settings.
    """

    def __init__(self, settings: Settings, *, uds: Path | None = None) -> None:
        for warning in exposure_warnings(settings) if uds is None else ():
            logger.warning(warning)
        app = build_app(settings, on_death=self._die, on_loss=self._leave)
        # Before anything listens: a folder that cannot be used ends the program with an error.
        try:
            app.state.store.open()
        except StoreInUse as error:
            if not settings.standby:
                raise
            logger.warning("standing by: %s", error)
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            uds=str(uds) if uds else None,
            log_config=None,
            access_log=False,
            server_header=False,
            # Its trust would reach further than links: see web/addresses.py.
            proxy_headers=False,
            lifespan="on",
            http=cast(type[asyncio.Protocol], partial(TimeoutProtocol, ends=Turns())),
            ws="none",
            timeout_graceful_shutdown=max(_LEAST_SECONDS, math.ceil(settings.grace_seconds)),
        )
        super().__init__(config)
        self.service: ImageService = app.state.service
        self._log_level = settings.log_level
        self.died = False
        self._loop: asyncio.AbstractEventLoop | None = None
        address = variable("NOTIFY_SOCKET") if uds is None else None
        self._systemd = Notifications(address, variable("WATCHDOG_USEC"))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen; remember the loop for the signal handler.

        Raises:
            ServerError: The address cannot be listened on.
        """
        self._loop = asyncio.get_running_loop()
        if self.config.uds is None:
            await _try_address(self.config.host, self.config.port)
        try:
            await super().startup(sockets)
        except SystemExit:  # uvicorn's way with a start that fails, after it logged why
            self._die()
        self._reload_on_hangup()
        self._change_log_level_on_signals()
        # Objects of modules are never freed. Collecting garbage among them, which each burst of
        # requests triggers, would block the event loop for a tenth of a second.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_COLLECTIONS)
        if self.started:
            self._systemd.ready()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Have ``handle_exit`` called, but not in a private server."""
        if self.config.uds is not None:
            yield
            return
        with super().capture_signals():
            yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM or SIGINT: take no more work, then let uvicorn close."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.service.begin_drain)
        self._systemd.stopping()
        super().handle_exit(sig, frame)

    def _reload_on_hangup(self) -> None:
        """Have SIGHUP reload models.yaml, where it does not say that the terminal is gone."""
        usual = signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
        if self.config.uds is None and usual and not _has_terminal():
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGHUP, self._begin_reload)

    def _change_log_level_on_signals(self) -> None:
        """Have SIGUSR1 set the log level to debug, and SIGUSR2 set it back to the setting."""
        if self.config.uds is None:
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGUSR1, _log_from, "debug", "may contain prompts")
            loop.add_signal_handler(
                signal.SIGUSR2, _log_from, self._log_level, "as in the settings"
            )

    def _begin_reload(self) -> None:
        self._reloading = asyncio.create_task(self._reload())

    async def _reload(self) -> None:
        with suppress(CatalogRejected):  # the log has why
            await self.service.reload_catalog()

    def _die(self) -> None:
        self.died = True
        self.should_exit = True

    def _leave(self) -> None:
        """End at once: the clients of this server are to come to the one that took over."""
        self.config.timeout_graceful_shutdown = _LEAST_SECONDS
        self._die()


def _log_from(level: str, remark: str) -> None:
    set_log_level(level)
    # At any level, so that the log gives the reason for more or fewer lines.
    logger.log(
        max(logging.WARNING, logger.getEffectiveLevel()), "log level: %s (%s)", level, remark
    )


async def _try_address(host: str, port: int) -> None:
    """See whether the address is free, before anything starts; uvicorn would only log it, later."""
    loop = asyncio.get_running_loop()
    try:
        probe = await loop.create_server(asyncio.Protocol, host, port, start_serving=False)
    except (OSError, UnicodeError) as error:
        raise ServerError(
            f"host (SDSTREAM_HOST), port (SDSTREAM_PORT): cannot listen on {host}:{port}: "
            f"{_why(error)}."
        ) from None
    probe.close()


def _has_terminal() -> bool:
    """True when the process has a controlling terminal, whose end sends SIGHUP."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _why(error: OSError | UnicodeError) -> str:
    if isinstance(error, socket.gaierror | UnicodeError):
        return "there is no such host"
    return os.strerror(error.errno or 0)


@asynccontextmanager
async def serving_privately(settings: Settings) -> AsyncIterator[Path]:
    """Run a server on a Unix socket in a private folder, for one command of the CLI.

    The folder, which has the prompt, goes at the end, also at one by Ctrl-C or SIGTERM.

    Yields:
        The path of the socket; the server is ready to take requests.

    Raises:
        ServerError: The folder of temporary files has too long a path for a socket.
    """
    with _ending_by_signals(), TemporaryDirectory(prefix="sdstream-") as folder:
        path = Path(folder) / "socket"
        if len(os.fsencode(path)) > _LONGEST_SOCKET:
            raise ServerError(f"TMPDIR is too long a path for a socket: {path.parent.parent}.")
        # Its jobs are for this command alone: the usual data folder may be a running server's.
        alone = settings.private(Path(folder) / "data")
        server = Server(alone, uds=path)
        task = asyncio.create_task(server.serve())
        try:
            # uvicorn reports its start by an attribute only.
            while not server.started and not task.done():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            yield path
        finally:
            server.service.begin_drain()
            server.should_exit = True
            await task


@contextmanager
def _ending_by_signals() -> Iterator[None]:
    """Cancel this task at SIGTERM or SIGHUP, so that it can clean up, and end by the signal then.

    SIGINT is asyncio's own, which does the same. A signal that is ignored, as by nohup, stays so.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    received: list[int] = []

    def end(number: int) -> None:
        if not received:
            task.cancel()
        received.append(number)

    numbers = [
        number
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is signal.SIG_DFL
    ]
    for number in numbers:
        loop.add_signal_handler(number, end, number)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
        if received:
            signal.raise_signal(received[0])
