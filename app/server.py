"""The uvicorn server that carries the application: its signals and its deadlines."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

import uvicorn

from app.main import build_app
from app.service import ImageService
from app.settings import Settings
from app.web.guard import GuardedProtocol

#: Beyond the grace time, for the last frames to be written.
_FLUSH_SECONDS = 2


class Server(uvicorn.Server):
    """A uvicorn server whose first signal flips readiness and starts the drain.

    uvicorn alone would tell the application of its end only after the last connection closed,
    which for a stream is after its job.

    Raises:
        CatalogError, SafetyCheckerError, StoreError: It cannot start with these settings.
    """

    def __init__(self, settings: Settings, *, uds: Path | None = None) -> None:
        app = build_app(settings, on_death=self._die)
        # Before anything listens: a folder that cannot be used ends the program with a sentence.
        app.state.store.open()
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            uds=str(uds) if uds else None,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="on",
            http=GuardedProtocol,
            ws="none",
            timeout_graceful_shutdown=math.ceil(settings.grace_seconds) + _FLUSH_SECONDS,
        )
        super().__init__(config)
        self.service: ImageService = app.state.service
        self.died = False
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen; remember the loop for the signal handler."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM or SIGINT: take no more work, then let uvicorn close."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.service.begin_drain)
        super().handle_exit(sig, frame)

    def _die(self) -> None:
        self.died = True
        self.should_exit = True


@asynccontextmanager
async def serving_privately(settings: Settings) -> AsyncIterator[Path]:
    """Run a server on a Unix socket in a private folder, for one command of the CLI.

    Yields:
        The path of the socket; the server is ready to take requests.
    """
    with TemporaryDirectory(prefix="sdstream-") as folder:
        path = Path(folder) / "socket"
        # Its jobs are nobody else's: the usual data folder may be a running server's.
        alone = settings.model_copy(update={"data_dir": Path(folder) / "data"})
        server = Server(alone, uds=path)
        task = asyncio.create_task(server.serve())
        try:
            # uvicorn tells of its start by an attribute only.
            while not server.started and not task.done():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            yield path
        finally:
            server.service.begin_drain()
            server.should_exit = True
            await task
