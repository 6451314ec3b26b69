"""The uvicorn server that runs the application: start, signals and graceful shutdown."""

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

from sdstream.core.errors import CatalogRejected, ConfigurationError, ImageServiceError
from sdstream.service.service import ImageService
from sdstream.settings import Settings, variable
from sdstream.storage.job_store import JobStore
from sdstream.storage.ports import StoreError, StoreInUse, StoreUnreachable
from sdstream.web.application import build_app, set_log_level
from sdstream.web.hosts import exposure_warnings
from sdstream.web.protocol import TimeoutProtocol
from sdstream.web.systemd import Notifications
from sdstream.web.turns import Turns

logger = logging.getLogger(__name__)

#: Minimum seconds for the shutdown, so that the last frames are sent even without grace time.
_LEAST_SECONDS = 2

#: The garbage collector's thresholds. Full collections never start automatically: with 5000 open
#: streams, one would block the event loop for 600 ms.
_COLLECTIONS: Final = (700, 10, 1_000_000_000)
#: Seconds between two full collections while few connections are open, and otherwise. A request
#: leaves few objects to the collector, and no images.
_COLLECT_SECONDS: Final = (60, 3600)
_FEW_CONNECTIONS: Final = 100

#: Maximum number of bytes in the path of a Unix socket, a limit of the kernel.
_LONGEST_SOCKET = 107


class ServerError(ConfigurationError):
    """The server cannot listen; the message contains the address and the reason."""


class Server(uvicorn.Server):
    """A uvicorn server whose service stops accepting jobs at the first signal.

    uvicorn alone notifies the application of the shutdown only after the last connection has
    closed, and the connection of a stream closes only after its job has ended.

    Args:
        settings: The server's settings.
        uds: Path of the Unix socket of a private server, which leaves signals to its command.

    Raises:
        CatalogError, ModelError, SafetyCheckerError, StoreError, WebhookSettingsError: The server
            cannot start with these settings.
    """

    def __init__(self, settings: Settings, *, uds: Path | None = None) -> None:
        for warning in exposure_warnings(settings) if uds is None else ():
            logger.warning(warning)
        app = build_app(settings, on_death=self._die, on_loss=self._leave)
        # Opened before the server listens: an unusable folder ends the program with an error.
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
            # uvicorn would use these headers for more than links; see web/addresses.py.
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
        """Start to listen, install signal handlers, and configure the garbage collector.

        Raises:
            ServerError: The server cannot listen on the address.
            StoreError: The stored jobs cannot be recovered.
        """
        self._loop = asyncio.get_running_loop()
        if self.config.uds is None:
            await _try_address(self.config.host, self.config.port)
        await self._recover()
        try:
            await super().startup(sockets)
        except SystemExit:  # uvicorn raises it after it has logged why the start failed
            self._die()
        self._reload_on_hangup()
        self._change_log_level_on_signals()
        if self.config.uds is None:  # a private server runs in the process of its user's program
            # Objects of modules are never freed. If the collector scanned them in each burst of
            # requests, it would block the event loop for a tenth of a second.
            gc.collect()
            gc.freeze()
            gc.set_threshold(*_COLLECTIONS)
        if self.started:
            self._systemd.ready()

    async def on_tick(self, counter: int) -> bool:
        """Do uvicorn's periodic work, ten times a second, and collect garbage when it is cheap."""
        few = len(self.server_state.connections) < _FEW_CONNECTIONS
        seconds = _COLLECT_SECONDS[0 if few else 1]
        if self.config.uds is None and (counter + 1) % (10 * seconds) == 0:
            gc.collect()
        return await super().on_tick(counter)

    async def _recover(self) -> None:
        """Recover the stored jobs, if no other server may hold them.

        The application would also do this, but uvicorn would log its error as a traceback.
        """
        store: JobStore = self.config.app.state.store  # type: ignore[union-attr]
        if not store.is_open or store.takeover:
            return
        try:
            await self.service.recover()
        except StoreError:
            await store.close()
            raise
        except ImageServiceError as error:
            await store.close()
            if isinstance(error.__cause__, ConnectionError):
                raise StoreUnreachable(
                    f"the image store cannot be used: {error.__cause__}"
                ) from None
            raise StoreError(
                f"the stored jobs cannot be recovered: {error.__cause__ or error}; if the database "
                "is damaged, restore the data folder from a backup, or move it away to start "
                "without its jobs"
            ) from None
        except Exception:
            return  # a bug: it also occurs in the application, whose traceback uvicorn logs

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Make signals call ``handle_exit``, except in a private server."""
        if self.config.uds is not None:
            yield
            return
        with super().capture_signals():
            yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle SIGTERM or SIGINT: accept no more jobs, then let uvicorn shut down."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._drain)
        self._systemd.stopping()
        super().handle_exit(sig, frame)

    def _drain(self) -> None:
        """Accept no more jobs, and make uvicorn wait for the running ones.

        uvicorn itself waits only for connections, and a background job may have none.
        """
        self.service.begin_drain()
        task = asyncio.create_task(self.service.drained())
        self.server_state.tasks.add(task)
        task.add_done_callback(self.server_state.tasks.discard)

    def _reload_on_hangup(self) -> None:
        """Make SIGHUP reload models.yaml, unless the process has a terminal that may send it."""
        usual = signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
        if self.config.uds is None and usual and not _has_terminal():
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGHUP, self._begin_reload)

    def _change_log_level_on_signals(self) -> None:
        """Make SIGUSR1 set the log level to debug, and SIGUSR2 reset it to the setting."""
        if self.config.uds is None:
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGUSR1, _log_from, "debug", "may contain prompts")
            loop.add_signal_handler(
                signal.SIGUSR2, _log_from, self._log_level, "as in the settings"
            )

    def _begin_reload(self) -> None:
        self._reloading = asyncio.create_task(self._reload())

    async def _reload(self) -> None:
        with suppress(CatalogRejected):  # the service has logged the reason
            await self.service.reload_catalog()

    def _die(self) -> None:
        self.died = True
        self.should_exit = True

    def _leave(self) -> None:
        """Stop at once, so that the clients connect to the server that took over."""
        self.config.timeout_graceful_shutdown = _LEAST_SECONDS
        self._die()


def _log_from(level: str, remark: str) -> None:
    set_log_level(level)
    # Logged at every level, so that the log explains why it has more or fewer lines from here on.
    logger.log(
        max(logging.WARNING, logger.getEffectiveLevel()), "log level: %s (%s)", level, remark
    )


async def _try_address(host: str, port: int) -> None:
    """Raise ServerError if the server cannot listen; uvicorn would only log the error, later."""
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
    """Return whether the process has a controlling terminal, which sends SIGHUP when it closes."""
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

    The folder contains the prompt. It is deleted at the end, also after Ctrl-C, SIGTERM or SIGHUP.

    Yields:
        The path of the socket; the server is ready to take requests.

    Raises:
        ServerError: The path of the folder for temporary files is too long for a socket.
    """
    with _ending_by_signals(), TemporaryDirectory(prefix="sdstream-") as folder:
        path = Path(folder) / "socket"
        if len(os.fsencode(path)) > _LONGEST_SOCKET:
            raise ServerError(f"TMPDIR is too long a path for a socket: {path.parent.parent}.")
        # A separate data folder: the default one may belong to a running server.
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
    """Cancel this task at SIGTERM or SIGHUP so that it can clean up, then raise the signal again.

    asyncio does the same for SIGINT. A signal that the process ignores, for example under nohup,
    stays ignored.
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
