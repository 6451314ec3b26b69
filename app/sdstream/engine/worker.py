"""The supervisor that starts, watches and restarts a worker process.

The first of these events ends a job:

    event                                         how the job ends
    the child sends Done, Cancelled or Failed     as the child reports
    the child's process ends                      Failed; the exit code determines the reason
    the child's machine cannot be reached         Failed(worker_lost); the worker stops
    no progress within the phase's time limit     Failed(worker_hung); the child is terminated
    a cancel has no effect in the grace time      Cancelled; the child is terminated

The watchdog checks progress instead of heartbeats. Native code releases the GIL, so a heartbeat
thread would keep running in a process that hangs. A worker does not repeat a job that crashed it;
service/dispatch.py decides whether the next worker does.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final

from sdstream.core.enums import DescribedEnum
from sdstream.core.errors import Reason, Unavailable
from sdstream.core.messages import (
    Cancel,
    Cancelled,
    Done,
    Event,
    Failed,
    Generate,
    ImageDrawn,
    Load,
    Loaded,
    Phase,
    Preview,
    Progress,
    RequestPreview,
    Share,
)
from sdstream.core.runtime_options import KERNELS_OFF
from sdstream.engine.pace import Pace
from sdstream.engine.process import LoadRefused, PlaceGone, Process, Spawn, WorkerProcess
from sdstream.notifier import Notifier

logger = logging.getLogger(__name__)

_MAX_FAILED_LOADS: Final = 3
_MAX_BACKOFF_SECONDS: Final = 30.0
#: A worker is unsteady for some time after this many crashes without a finished job in between.
_UNSTEADY_CRASHES: Final = 3
_UNSTEADY_SECONDS: Final = 60.0
#: After this many crashes with CPU kernels in use, the model is loaded without them.
_MAX_KERNEL_CRASHES: Final = 2
_LOST: Final = "The machine of the worker became unreachable."


class WorkerState(DescribedEnum):
    """States of a worker; each value has a one-line description."""

    STARTING = "starting", "the process starts and loads the model"
    READY = "ready", "the model is loaded and idle"
    BUSY = "busy", "a job is running"
    FAILED = "failed", "the model could not be loaded, and is not tried again"
    STOPPED = "stopped", "the process was told to exit"


@dataclass(frozen=True)
class WorkerOptions:
    """Options for starting and watching workers.

    Attributes:
        engine: "native" or "fake".
        environment: Environment variables of the child process.
        hang_seconds: Minimum time limit of a phase. A phase that has not been measured yet has ten
            times this limit.
        cancel_seconds: Seconds after which the process of a cancelled job is terminated if the job
            has not stopped.
        kernel_crashes: Model -> number of crashes with CPU kernels in use; all workers share it.
    """

    engine: str
    environment: Mapping[str, str]
    hang_seconds: float = 60.0
    cancel_seconds: float = 5.0
    kernel_crashes: Counter[str] = field(default_factory=Counter)


class Worker:
    """A worker, which keeps one model loaded in a process.

    The owner runs ``run`` as a task and cancels the task to stop the worker.

    Args:
        load: The command that loads the model.
        options: Options for starting and watching the process.
        on_change: Called whenever ``state`` changes.
        spawn: Starts the worker's processes.
        place: Name of the machine where the processes run; empty for this machine.
    """

    def __init__(
        self,
        load: Load,
        options: WorkerOptions,
        on_change: Callable[[], None] = lambda: None,
        *,
        spawn: Spawn = WorkerProcess.spawn,
        place: str = "",
    ) -> None:
        self.model = load.model
        self.place = place
        self.state = WorkerState.STARTING
        self.loaded: Loaded | None = None
        self.error = ""
        self.starts = 0
        self.is_refused = False
        self._load = load
        self._options = options
        self._spawn = spawn
        self._on_change = on_change
        self._pace = Pace(options.hang_seconds)
        self._changed = Notifier()
        self._process: Process | None = None
        self._watch: asyncio.Timeout | None = None
        self._job: str | None = None
        self._mailbox: asyncio.Queue[Event] = asyncio.Queue()
        self._cancelling = False
        self._phase = Phase.LOADING
        self._phase_began = 0.0
        self._crashes = 0
        self._crashed_at = 0.0
        self._failed_loads = 0
        self._is_lost = False

    # --- for the owner --------------------------------------------------------------------------

    @property
    def pid(self) -> int | None:
        """Process id of the child; None while no child runs."""
        return self._process.pid if self._process else None

    @property
    def is_up(self) -> bool:
        """True if the model is loaded; a job may be running."""
        return self.state in (WorkerState.READY, WorkerState.BUSY)

    @property
    def resident_bytes(self) -> int:
        """Resident memory of the child process, in bytes."""
        return self._process.resident_bytes if self._process else 0

    @property
    def unsteady(self) -> bool:
        """True if the worker has crashed several times in a row, most recently within a minute."""
        now = asyncio.get_running_loop().time()
        often = self._crashes >= _UNSTEADY_CRASHES
        return often and now - self._crashed_at < _UNSTEADY_SECONDS

    async def run(self) -> None:
        """Start the child and restart it whenever it ends.

        Returns when the worker fails or is stopped; the owner may also cancel it.
        """
        try:
            while self.state not in (WorkerState.FAILED, WorkerState.STOPPED):
                await asyncio.sleep(_backoff(max(self._crashes, self._failed_loads)))
                await self._live()
        finally:
            self.retire()

    def retire(self) -> None:
        """Mark the worker as stopped permanently, and end its job."""
        if self.state not in (WorkerState.FAILED, WorkerState.STOPPED):
            self._become(WorkerState.STOPPED)
        self._end_job(Reason.SHUTTING_DOWN, "The server is shutting down.")

    def lose(self) -> None:
        """Give up the worker, because its machine cannot be reached.

        The job fails with ``worker_lost``, so that another worker can run it.
        """
        if self.state not in (WorkerState.FAILED, WorkerState.STOPPED):
            logger.warning("the worker of model %s on %s is lost", self.model, self.place)
            self._is_lost = True
            self._end_job(Reason.WORKER_LOST, _LOST)
            self._become(WorkerState.STOPPED)

    async def ready(self) -> None:
        """Wait until the worker can take a job; raise Unavailable if it never will."""
        while self.state is not WorkerState.READY:
            if self.state in (WorkerState.FAILED, WorkerState.STOPPED):
                raise self.unavailable()
            await self._changed.wait()

    def unavailable(self) -> Unavailable:
        """Return the error for a job when the worker failed, was lost or was stopped."""
        if self._is_lost:
            return Unavailable(_LOST, reason=Reason.WORKER_LOST, retry_after=10)
        message = f"The model '{self.model}' is not available. {self.error}".rstrip()
        return Unavailable(message, reason=Reason.MODEL_UNAVAILABLE, retry_after=60)

    async def generate(self, order: Generate) -> AsyncGenerator[Event]:
        """Run a job and yield its events; the last one is Done, Cancelled or Failed.

        The worker must be ready.
        """
        job, request = order.job, order.request
        assert self.state is WorkerState.READY
        assert self._process is not None
        self._job, self._mailbox, self._cancelling = job, asyncio.Queue(), False
        self._pace.expect(request, len(order.inputs.references))
        self._become(WorkerState.BUSY)
        self._await(Phase.ENCODING)
        self._process.send(self._pace.share)
        self._process.send(order)
        try:
            while True:
                event = await self._mailbox.get()
                yield event
                if isinstance(event, Done | Cancelled | Failed):
                    return
        finally:
            # The caller closed the iterator before the job ended: its images are not needed.
            if self._job == job and self._process is not None:
                self._process.kill()

    def has(self, job: str) -> bool:
        """Return True while the job runs on this worker."""
        return job == self._job

    def cancel(self, job: str) -> None:
        """Cancel a job that runs on this worker.

        The child is asked to stop the job. If the job has not stopped within the grace time, the
        child is terminated.
        """
        if job == self._job and not self._cancelling and self._process is not None:
            self._cancelling = True
            grace = self._options.cancel_seconds
            if self.loaded is not None and self.loaded.can_abort:
                # Encoding cannot be interrupted. Waiting for its end takes less time than loading
                # the model again.
                grace += 2 * self._pace.usual(self._phase)
            self._rewatch(grace)
            self._process.send(Cancel(job))

    def peek(self, job: str) -> None:
        """Make the next step of a job that runs on this worker emit a preview."""
        if job == self._job and self._process is not None:
            self._process.send(RequestPreview(job))

    def share(self, index: int, workers: int) -> None:
        """Set the worker's share of the CPU, for the current job and later ones.

        Args:
            index: Index of this worker among those that share the CPU, from 0.
            workers: Number of workers that share the CPU.
        """
        share = Share(index, workers)
        if share == self._pace.share:
            return
        self._pace.share = share
        if self._job is not None and self._process is not None:
            self._process.send(share)
            if not self._cancelling:  # the current step may take longer with fewer threads
                self._rewatch(self._pace.limit(self._phase))

    # --- one run of the child -------------------------------------------------------------------

    async def _live(self) -> None:
        self._become(WorkerState.STARTING)
        self.starts += 1
        try:
            process = await self._spawn(self._options.engine, self._options.environment)
        except PlaceGone as error:
            logger.warning(
                "could not start a worker of model %s on %s: %s", self.model, self.place, error
            )
            self.lose()
            return
        except LoadRefused as error:
            self.is_refused = True
            self._failed_loads = _MAX_FAILED_LOADS
            self._load_failed(str(error))
            return
        except Exception as error:
            # No error may end the supervisor or the server.
            logger.exception("the start of a worker process failed")
            why = error.strerror if isinstance(error, OSError) else None
            self._load_failed(f"No worker process could be started: {why or error}.")
            return
        self._process = process
        try:
            async with asyncio.timeout(None) as self._watch:
                gone = await self._serve(process)
            # A job may still arrive while _autopsy waits, and would reschedule this timeout.
            self._watch = None
            if gone:
                code = await self._autopsy(process)
                self._bury(*_cause_of_death(code), in_native_code=code < 0)
        except PlaceGone:
            self.lose()
        except TimeoutError:
            logger.error("worker %d of model %s hung: it sent no messages", process.pid, self.model)
            message = f"The runtime hung while {self._phase.meaning}."
            self._bury(Reason.WORKER_HUNG, message, in_native_code=True)
        finally:
            self._watch = None
            await _to_the_end(process.end())
            self._process = None

    async def _serve(self, process: Process) -> bool:
        """Handle the child's events; return True if the child ended, False if its load failed."""
        self._pace.expect(None)
        self._await(Phase.LOADING)
        process.send(self._order())
        while (event := await process.receive()) is not None:
            match event:
                case Loaded():
                    self._welcome(event)
                case Failed(job=None, message=message):
                    self._load_failed(message)
                    return False
                case Progress() | Preview() | ImageDrawn() | Done() | Cancelled() | Failed():
                    self._hear(event)
        return True

    def _order(self) -> Load:
        """Return the command that loads the model, without CPU kernels after too many crashes."""
        if self._options.kernel_crashes[self.model] < _MAX_KERNEL_CRASHES:
            return self._load
        logger.warning(
            "model %s crashed %d times with CPU kernels and is loaded without them",
            self.model, self._options.kernel_crashes[self.model],
        )  # fmt: skip
        return replace(self._load, runtime={**self._load.runtime, "kernels": KERNELS_OFF})

    def _welcome(self, event: Loaded) -> None:
        self._pace.note(Phase.LOADING, event.seconds)
        self._failed_loads = 0
        self._rewatch(None)
        if self.loaded is None and event.on_cpu and not event.fast_kernels:
            logger.warning(
                "The native library was built without its matrix kernels and runs at less than "
                "half its speed; 'sdstream setup' installs it with them."
            )
        if self.loaded is None and event.kernels_problem:
            logger.warning("%s The runtime's own are used.", event.kernels_problem)
        self.loaded, self.error = event, ""
        logger.info(
            "model %s loaded in %.2f s, kernels: %s", self.model, event.seconds, event.kernels
        )
        self._become(WorkerState.READY)

    def _load_failed(self, message: str) -> None:
        self.error = message
        self._failed_loads += 1
        logger.error("model %s: load %d failed: %s", self.model, self._failed_loads, message)
        if self._failed_loads >= _MAX_FAILED_LOADS:
            self._become(WorkerState.FAILED)

    def _hear(self, event: Progress | Preview | ImageDrawn | Done | Cancelled | Failed) -> None:
        """Handle an event of the child: reset the watchdog and pass the event to the job."""
        if isinstance(event, Progress) and event.phase is Phase.LOADING:
            self._await(event.phase)
            return
        if self._job is None or event.job != self._job:
            return  # a late event of an earlier job
        match event:
            case Progress(phase=phase):
                self._enter(phase)
            case ImageDrawn():
                self._enter(Phase.ENCODING)  # of the job's next image, if any
            case Done() | Cancelled() | Failed():
                self._job, self._cancelling = None, False
                self._rewatch(None)
                self._crashes = 0
                self._become(WorkerState.READY)
        self._mailbox.put_nowait(event)

    async def _autopsy(self, process: Process) -> int:
        """Return the child's exit code; raise PlaceGone if its machine cannot be reached."""
        try:
            code = await asyncio.wait_for(process.exit_code(), 2.0)
        except TimeoutError:  # it closed its socket but keeps running, so it is unusable
            code = 0
        logger.error("worker %d of model %s: %s", process.pid, self.model, _cause_of_death(code)[1])
        return code

    def _bury(self, reason: Reason, message: str, *, in_native_code: bool) -> None:
        """Record the end of a child that ended or hung, and end its job.

        Args:
            reason, message: Why the child ended.
            in_native_code: A signal ended the child, or it hung. A child that Python code ended has
                an exit status, and the CPU kernels are not the cause.
        """
        may_be_kernels = in_native_code and reason is not Reason.WORKER_KILLED
        if may_be_kernels and not self._cancelling and self._has_kernels:
            self._options.kernel_crashes[self.model] += 1
        if self.state is WorkerState.STARTING:
            self._load_failed(message)
        elif not self._cancelling:
            self._crashes += 1
            self._crashed_at = asyncio.get_running_loop().time()
        if self.state is not WorkerState.FAILED:
            self._become(WorkerState.STARTING)
        self._end_job(reason, message)

    @property
    def _has_kernels(self) -> bool:
        """True if the child uses the project's CPU kernels, or may have used them while loading."""
        wanted = self._load.runtime["kernels"] not in (None, KERNELS_OFF)
        return wanted and (self.loaded is None or self.loaded.kernels != KERNELS_OFF)

    def _end_job(self, reason: Reason, message: str) -> None:
        job, self._job = self._job, None
        if job is not None:
            ending = Cancelled(job) if self._cancelling else Failed(job, reason, message)
            self._mailbox.put_nowait(ending)
        self._cancelling = False

    # --- watchdog -------------------------------------------------------------------------------

    def _enter(self, phase: Phase) -> None:
        """Record the duration of the phase or step that just ended, and enter the next one."""
        now = asyncio.get_running_loop().time()
        if phase is not self._phase or phase is Phase.SAMPLING:
            self._pace.note(self._phase, now - self._phase_began)
        self._await(phase)

    def _await(self, phase: Phase) -> None:
        """Set the current phase and start its time limit."""
        self._phase, self._phase_began = phase, asyncio.get_running_loop().time()
        if not self._cancelling:
            self._rewatch(self._pace.limit(phase))

    def _rewatch(self, seconds: float | None) -> None:
        """Set the time until the child's next event is due; None means no limit."""
        if self._watch is not None:
            now = asyncio.get_running_loop().time()
            with suppress(RuntimeError):  # the time has just run out
                self._watch.reschedule(None if seconds is None else now + seconds)

    def _become(self, state: WorkerState) -> None:
        self.state = state
        self._changed.notify()
        self._on_change()


async def _to_the_end(work: Coroutine[None, None, None]) -> None:
    """Await work that must finish even if the current task is cancelled meanwhile."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise


def _backoff(failures: int) -> float:
    """Return the seconds before the next start: 0, 0, 1, 2, 4 … 30."""
    return 0.0 if failures < 2 else min(_MAX_BACKOFF_SECONDS, 2.0 ** (failures - 2))


def _cause_of_death(code: int) -> tuple[Reason, str]:
    if code == -signal.SIGKILL:
        return Reason.WORKER_KILLED, (
            "The worker process was killed; usually because the system ran out of memory."
        )
    if code < 0:
        name = signal.Signals(-code).name
        return Reason.WORKER_CRASHED, f"The worker process died of {name}."
    return Reason.WORKER_CRASHED, f"The worker process ended with status {code}."
