"""The Ray actor that runs one worker process on a machine of a cluster and relays its frames.

The class is in a separate module and has no decorator, so that each machine imports it. Ray would
pickle a decorated class by value, with every global that it names, and some cannot be pickled.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

from sdstream import __version__
from sdstream.cluster import files
from sdstream.core.errors import Reason
from sdstream.core.locations import HubFile
from sdstream.core.messages import Event, Failed, Load, Phase, Progress, encode, unframe
from sdstream.engine.process import WorkerProcess
from sdstream.settings import ASSET_FOLDERS, Settings, worker_environment
from sdstream.weights.hub import Hub
from sdstream.weights.hub_errors import HubError

logger = logging.getLogger(__name__)

#: Least seconds between two measurements of a child's memory, which its events trigger.
_MEASURE_SECONDS: Final = 0.5
#: Seconds between two keep-alive events while files are downloaded.
_TELL_SECONDS: Final = 1.0
#: Prefixes of variables that Ray sets and a child must not inherit: the token, OMP_NUM_THREADS=1.
_OF_RAY: Final = ("RAY_", "OMP_NUM_")


class Host:
    """Starts one child on its machine and relays its frames."""

    def __init__(self) -> None:
        logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(name)s %(message)s")
        self._settings = Settings()
        self._needs: Mapping[str, Any] = {}
        self._child: WorkerProcess | None = None
        self._told: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(
        self, version: str, engine: str, needs: Mapping[str, Any], variables: Mapping[str, str]
    ) -> tuple[int, list[str]]:
        """Start the child, unless this machine cannot load the model.

        Returns:
            The process id, and the reasons why the machine cannot load the model. If there are any,
            no child was started and the id is 0.
        """
        if version != __version__:
            return 0, [f"it has sdstream {__version__}, and the front has {version}"]
        found = await asyncio.to_thread(files.problems, self._settings, needs)
        if found:
            return 0, found
        self._needs = needs
        own = {
            name: value
            for name, value in worker_environment().items()
            if not name.startswith(_OF_RAY)
        }
        self._child = await WorkerProcess.spawn(engine, {**own, **variables})
        self._begin(self._relay(self._child))
        return self._child.pid, []

    async def send(self, frame: bytes) -> None:
        """Send a command to the child; in a Load, replace the paths by this machine's."""
        assert self._child is not None
        message = unframe(frame) if self._needs else None
        if isinstance(message, Load):
            self._begin(self._load(self._child, message))
        else:
            self._child.send_frame(frame)

    async def frames(self) -> AsyncIterator[tuple[bytes, int]]:
        """Yield each event's frame with the child's memory in bytes, then b"" and the exit code."""
        assert self._child is not None
        measured, memory = 0.0, 0
        while (frame := await self._told.get()) is not None:
            now = time.monotonic()
            if now - measured > _MEASURE_SECONDS:
                measured, memory = now, self._child.resident_bytes
            yield frame, memory
        yield b"", await self._child.exit_code()

    async def stop(self) -> None:
        """End the child and wait until it has ended."""
        if self._child is not None:
            await self._child.end()

    async def _relay(self, child: WorkerProcess) -> None:
        while (frame := await child.receive_frame()) is not None:
            self._told.put_nowait(frame)
        self._told.put_nowait(None)

    async def _load(self, child: WorkerProcess, load: Load) -> None:
        """Download the missing files, then send the Load command to the child."""
        needs, self._needs = self._needs, {}
        settings = self._settings
        # Events keep the server from timing out: downloads have their own time limits, and one may
        # wait until another process has downloaded the file.
        alive = asyncio.create_task(self._tell_of_life())
        try:
            for file in await asyncio.to_thread(files.missing, settings, needs):
                await asyncio.to_thread(_fetch, settings, file)
        except HubError as error:
            self._tell(Failed(None, Reason.MODEL_UNAVAILABLE, str(error)))
            return
        except Exception:  # the server would otherwise wait until the load times out
            logger.exception("the files of the model cannot be downloaded")
            message = (
                "The files of the model cannot be downloaded; the machine's log has the cause."
            )
            self._tell(Failed(None, Reason.MODEL_UNAVAILABLE, message))
            return
        finally:
            alive.cancel()
        folders: dict[str, Any] = dict.fromkeys(ASSET_FOLDERS)
        folders |= {name: str(path.resolve()) for name, path in settings.asset_folders().items()}
        own = replace(
            load,
            files=await asyncio.to_thread(files.located, settings, needs),
            cache_dir=str(settings.cache_dir),
            **folders,
        )
        with suppress(ConnectionError):
            child.send(own)

    async def _tell_of_life(self) -> None:
        while True:
            self._tell(Progress("", 0, Phase.LOADING, 0, 1))
            await asyncio.sleep(_TELL_SECONDS)

    def _tell(self, event: Event) -> None:
        self._told.put_nowait(encode(event))

    def _begin(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Log:
    """Logs why a download waits (implements weights.hub.Watcher)."""

    def has(self, _octets: int) -> None:
        """Do nothing when bytes arrive."""

    def says(self, words: str) -> None:
        """Log why no bytes arrive at present."""
        logger.warning("the download waits: %s", words)


def _fetch(settings: Settings, file: HubFile) -> None:
    hub, watcher = Hub(settings.model_dir), _Log()
    remote = hub.look_up(file, None, watcher)
    hub.check_room([remote])
    logger.info("downloading %s", file)
    hub.fetch(remote, watcher)
