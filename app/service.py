"""The one queue and the one policy: every route, plain or streamed, comes through here.

::

    submit ──> queue ──> worker ──> events ──> Job.apply ──> readers (follow)

One task takes jobs off the queue, one at a time, and sees each to its end. Everything runs on
one event loop; what is done to pixels is done in the studio's threads.

Who ends a job, the first of these to come wins (``Job.apply`` ignores the others):

    what happens                  status     told to the client
    all images drawn              completed  the images
    cancel while queued           cancelled  499; the runtime never hears of the job
    cancel while loading          cancelled  499; the model goes on loading for the next job
    cancel while running          cancelled  499; the worker stops within a step
    the client leaves             cancelled  nobody is there
    the worker dies or hangs      failed     500 worker_crashed | worker_killed | worker_hung
    the model cannot be loaded    failed     503 model_unavailable
    shutdown while queued         failed     503 shutting_down, at once
    shutdown while running        failed     503 shutting_down, when the grace time is over
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from app.core.catalog import Catalog, ModelSpec
from app.core.errors import QueueFull, Reason, Unavailable
from app.core.job import (
    Completed,
    Entry,
    ImageReady,
    Job,
    JobCancelled,
    JobEvent,
    JobFailed,
    JobStatus,
    Loading,
    PreviewReady,
    Queued,
    Running,
)
from app.core.messages import Cancelled, Done, Event, Failed, ImageDrawn, Phase, Preview, Progress
from app.core.pixels import Inputs, SourceFiles
from app.core.request import (
    Draft,
    model_of,
    resolve,
)
from app.engine.worker import Worker, WorkerState
from app.metrics import Metrics
from app.studio import Pictures, Spoiled, Studio
from app.wakeup import Wakeup

logger = logging.getLogger(__name__)

#: The clients that honour Retry-After give up on anything longer.
_MAX_RETRY_AFTER: Final = 120


def _log_fault(task: asyncio.Task[None]) -> None:
    """A supervisor never ends by an exception unless the program is wrong."""
    if not task.cancelled() and task.exception() is not None:
        logger.critical("a worker's supervisor stopped by a fault", exc_info=task.exception())


@dataclass(frozen=True)
class Policy:
    """The numbers the service decides by.

    Attributes:
        queue_images: Images that may wait.
        max_pixels: Largest width x height of what is drawn.
        grace_seconds: Time for running jobs at shutdown.
    """

    queue_images: int = 64
    max_pixels: int = 4_194_304
    grace_seconds: float = 30.0


@dataclass
class LiveJob:
    """A job with what its readers and its end need beside it."""

    job: Job
    inputs: Inputs
    keep_images: bool
    changed: Wakeup = field(default_factory=Wakeup)
    #: What a Cancelled of the worker means for this job.
    wanted_ending: JobCancelled | JobFailed | None = None


class ImageService:
    """Submits, runs, cancels and drains jobs. ``run`` is a task of the owner."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        make_worker: Callable[[ModelSpec], Worker],
        studio: Studio,
        metrics: Metrics,
        policy: Policy,
        new_id: Callable[[], str],
        random_seed: Callable[[], int],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.catalog = catalog
        self.studio = studio
        self.draining = False
        self._make_worker = make_worker
        self._metrics = metrics
        self._policy = policy
        self._new_id = new_id
        self._random_seed = random_seed
        self._clock = clock
        self._queue: deque[LiveJob] = deque()
        self._queue_changed = Wakeup()
        self._live: dict[str, LiveJob] = {}
        self._running: LiveJob | None = None
        self._worker: Worker | None = None
        self._worker_task: asyncio.Task[None] | None = None
        self._broken: dict[str, Unavailable] = {}
        self._image_seconds = 1.0
        self._drain_task: asyncio.Task[None] | None = None

    # --- for the doors --------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """True when a job for the loaded model would run at once."""
        loaded = (WorkerState.READY, WorkerState.BUSY)
        return not self.draining and self._worker is not None and self._worker.state in loaded

    @property
    def queued_images(self) -> int:
        """Images that wait, without those of the running job."""
        return sum(live.job.request.n for live in self._queue)

    def worker_of(self, model: str) -> Worker | None:
        """The worker that has the model, None when it is not loaded."""
        return self._worker if self._worker and self._worker.model == model else None

    def why_unavailable(self, model: str) -> str | None:
        """Why the model cannot be loaded, None when nothing is known against it."""
        worker = self.worker_of(model)
        if worker is not None and worker.state is WorkerState.FAILED:
            return worker.unavailable().message
        return self._broken[model].message if model in self._broken else None

    async def submit(
        self, draft: Draft, files: SourceFiles | None = None, *, keep_images: bool = False
    ) -> LiveJob:
        """Accept a request as a job.

        Args:
            draft: What was asked.
            files: The input pictures as they came.
            keep_images: Put the images into the store, for answers with URLs.

        Raises:
            InvalidRequest, NotFound: The request can never work.
            QueueFull: Too many images wait.
            Unavailable: The server is going down, or the model cannot be loaded.
        """
        # Before the pictures are looked at, which costs more than a refusal.
        self._admit(model_of(draft, self.catalog).id, draft.n or 1)
        pictures = Pictures()
        if files is not None:
            looks = model_of(draft, self.catalog).traits.references
            pictures = await self.studio.decode(files, only_references=looks)
        request = resolve(
            draft,
            self.catalog,
            random_seed=self._random_seed,
            max_pixels=self._policy.max_pixels,
            has_checker=self.studio.can_check,
            sources=pictures.sources,
        )
        inputs = Inputs()
        if files is not None:
            inputs = await self.studio.fit(pictures, request)
        self._admit(request.model, request.n)
        live = LiveJob(Job(self._new_id(), request, self._clock()), inputs, keep_images)
        self._live[live.job.id] = live
        self._queue.append(live)
        self._apply(live, Queued(len(self._queue) - 1 + (self._running is not None)))
        self._queue_changed.notify()
        return live

    async def follow(self, live: LiveJob, idle_seconds: float) -> AsyncIterator[Entry | None]:
        """Everything that happened to a job and happens until its end.

        Yields:
            Entries, oldest first; None each time nothing happened for ``idle_seconds``.
        """
        index = 0
        while True:
            while index < len(live.job.entries):
                yield live.job.entries[index]
                index += 1
                # A reader that never really waits would hold the loop after its client left.
                await asyncio.sleep(0)
            if live.job.terminal:
                return
            if index == len(live.job.entries):
                try:
                    async with asyncio.timeout(idle_seconds):
                        await live.changed.wait()
                except TimeoutError:
                    yield None

    async def finished(self, live: LiveJob) -> Job:
        """Wait until the job has ended."""
        while not live.job.terminal:
            await live.changed.wait()
        return live.job

    async def cancel(self, live: LiveJob, message: str) -> None:
        """Stop a job: at once when it waits, within a step when it runs."""
        await self._end_early(live, JobCancelled(message))

    async def peek(self, live: LiveJob) -> None:
        """Have a running job give a preview with its next step."""
        if live is self._running and self._worker is not None:
            await self._worker.peek(live.job.id)

    def begin_drain(self) -> None:
        """Take no more work, and give the running job the grace time; callable repeatedly."""
        if self.draining:
            return
        self.draining = True
        going = JobFailed(Reason.SHUTTING_DOWN, "The server is going down.")
        for live in list(self._queue):
            self._apply(live, going)
        self._queue.clear()
        self._queue_changed.notify()
        self._drain_task = asyncio.create_task(self._end_running(going))

    # --- the service task -----------------------------------------------------------------------

    async def run(self) -> None:
        """Load the default model, then run jobs one after the other until cancelled."""
        try:
            await self._worker_for(self.catalog.models[self.catalog.default])
            while True:
                live = await self._next()
                try:
                    await self._run(live)
                except Exception:
                    logger.exception("job %s failed inside the server", live.job.id)
                    fault = JobFailed(Reason.INTERNAL_ERROR, "The server made a mistake.")
                    self._apply(live, fault)
                finally:
                    self._running = None
        finally:
            self.begin_drain()
            if self._drain_task is not None:
                self._drain_task.cancel()
            if self._running is not None:
                self._apply(
                    self._running, JobFailed(Reason.SHUTTING_DOWN, "The server is going down.")
                )
            await asyncio.shield(self._stop_worker())
            self.studio.close()

    async def _next(self) -> LiveJob:
        while not self._queue:
            await self._queue_changed.wait()
        live = self._running = self._queue.popleft()
        self._renumber()
        return live

    async def _run(self, live: LiveJob) -> None:
        job = live.job
        worker = await self._worker_for(self.catalog.models[job.request.model])
        if worker.state is not WorkerState.READY:
            self._apply(live, Loading())
        try:
            await worker.ready()
        except Unavailable as error:
            self._broken[worker.model] = error
            self._apply(live, JobFailed(error.reason, error.message))
            await self._bring_default_back()
        if job.terminal:
            return
        self._apply(live, Running())
        self._observe(job, "queue", self._clock() - job.created)
        began = self._clock()
        async for event in worker.generate(job.id, job.request, live.inputs):
            await self._take(live, event)
        if job.status is JobStatus.COMPLETED:
            each = (self._clock() - began) / job.request.n
            self._image_seconds = 0.7 * self._image_seconds + 0.3 * each

    async def _take(self, live: LiveJob, event: Event) -> None:
        """Translate an event of the worker into one of the job."""
        match event:
            case Progress():
                self._apply(live, event)
            case Preview(index=index, step=step):
                self._apply(live, PreviewReady(index, step, await self.studio.preview(event)))
            case ImageDrawn():
                await self._finish_image(live, event)
            case Done():
                self._apply(live, Completed())
            case Cancelled():
                self._apply(live, live.wanted_ending or JobCancelled("The job was cancelled."))
            case Failed(reason=reason, message=message):
                self._apply(live, JobFailed(Reason(reason), message))

    async def _finish_image(self, live: LiveJob, drawn: ImageDrawn) -> None:
        request = live.job.request
        try:
            image = await self.studio.develop(request, live.inputs, drawn, keep=live.keep_images)
        except Spoiled as spoiled:
            await self._give_up(live, spoiled.ending)
            return
        if self._apply(live, ImageReady(image)):
            self._metrics.images.labels(request.model).inc()
            self._metrics.steps.labels(request.model).inc(drawn.steps)
            self._observe(live.job, Phase.ENCODING, drawn.encode_seconds)
            self._observe(live.job, Phase.SAMPLING, drawn.sample_seconds)
            self._observe(live.job, Phase.DECODING, drawn.decode_seconds)

    # --- endings --------------------------------------------------------------------------------

    async def _end_early(self, live: LiveJob, ending: JobCancelled | JobFailed) -> None:
        if live.job.status is JobStatus.RUNNING and self._worker is not None:
            live.wanted_ending = live.wanted_ending or ending
            await self._worker.cancel(live.job.id)
            return
        if live in self._queue:
            self._queue.remove(live)
            self._renumber()
        self._apply(live, ending)

    async def _give_up(self, live: LiveJob, ending: JobFailed) -> None:
        """End a running job that the server itself cannot finish, and spare the worker the rest."""
        self._apply(live, ending)
        if self._worker is not None:
            await self._worker.cancel(live.job.id)

    async def _end_running(self, ending: JobFailed) -> None:
        """Let the running job end by itself within the grace time, and end it then."""
        live = self._running
        if live is None:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(self._policy.grace_seconds):
                await self.finished(live)
        # Not by way of the worker, which has a grace time of its own.
        self._apply(live, ending)

    def _apply(self, live: LiveJob, event: JobEvent) -> bool:
        job = live.job
        if not job.apply(event, self._clock()):
            return False
        if job.terminal:
            self._live.pop(job.id, None)
            self._metrics.jobs.labels(job.request.model, job.status.value).inc()
        live.changed.notify()
        return True

    # --- admission ------------------------------------------------------------------------------

    def _admit(self, model: str, images: int) -> None:
        """Raise what keeps a job of that model and size out now."""
        if self.draining:
            raise Unavailable(
                "The server is going down.", reason=Reason.SHUTTING_DOWN, retry_after=10
            )
        worker = self.worker_of(model)
        if worker is not None and worker.state is WorkerState.FAILED:
            raise worker.unavailable()
        if model in self._broken:
            raise self._broken[model]
        waiting = self.queued_images
        if waiting and waiting + images > self._policy.queue_images:
            seconds = math.ceil(self._image_seconds * waiting)
            raise QueueFull(
                f"{waiting} images are waiting and this server holds {self._policy.queue_images}.",
                reason=Reason.QUEUE_FULL,
                retry_after=min(_MAX_RETRY_AFTER, max(1, seconds)),
            )

    def _renumber(self) -> None:
        ahead = self._running is not None
        for position, live in enumerate(self._queue, start=int(ahead)):
            self._apply(live, Queued(position))

    # --- workers --------------------------------------------------------------------------------

    async def _worker_for(self, spec: ModelSpec) -> Worker:
        """The worker that has the model, in place of the one with another model."""
        if self._worker is None or self._worker.model != spec.id:
            await self._stop_worker()
            self._worker = self._make_worker(spec)
            self._worker_task = asyncio.create_task(self._worker.run())
            self._worker_task.add_done_callback(_log_fault)
        return self._worker

    async def _bring_default_back(self) -> None:
        """After a model that cannot be loaded: nobody else may have to wait for the default one."""
        if self.catalog.default not in self._broken:
            await self._worker_for(self.catalog.models[self.catalog.default])

    async def _stop_worker(self) -> None:
        if self._worker_task is not None:
            self._worker_task.cancel()
            with suppress(asyncio.CancelledError):
                await self._worker_task
        self._worker = self._worker_task = None

    # --- numbers --------------------------------------------------------------------------------

    def _observe(self, job: Job, phase: str, seconds: float) -> None:
        self._metrics.phase_seconds.labels(job.request.model, phase).observe(seconds)

    def measure(self) -> None:
        """Bring the gauges up to date; called when somebody looks."""
        self._metrics.queued_images.set(self.queued_images)
        self._metrics.running_jobs.set(int(self._running is not None))
        worker = self._worker
        if worker is not None:
            up = worker.state in (WorkerState.READY, WorkerState.BUSY)
            self._metrics.worker_up.labels(worker.model).set(int(up))
            self._metrics.worker_starts.labels(worker.model).set(worker.starts)
            self._metrics.worker_memory.labels(worker.model).set(worker.resident_bytes)
