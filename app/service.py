"""The one queue and the one policy: every route, plain or streamed, comes through here.

::

    submit ──> queue ──> worker ──> events ──> Job.apply ──> readers (follow)

One task takes jobs off the queue, one at a time, and sees each to its end. Everything runs on
one event loop; only the encoding of images and the disk use threads.

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
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final, ParamSpec, Protocol, TypeVar

from app import images
from app.core.catalog import Catalog, ModelSpec
from app.core.errors import InvalidRequest, QueueFull, Reason, Unavailable
from app.core.job import (
    Completed,
    Entry,
    ImageReady,
    ImageResult,
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
from app.core.pixels import Inputs, Pixels, SourceFiles
from app.core.request import (
    Draft,
    GenerationRequest,
    OutputFormat,
    Sources,
    model_of,
    resolve,
)
from app.engine.worker import Worker, WorkerState
from app.metrics import Metrics
from app.wakeup import Wakeup

logger = logging.getLogger(__name__)

#: The clients that honour Retry-After give up on anything longer.
_MAX_RETRY_AFTER: Final = 120


#: Enough for what two cores decode and encode; more would only take memory.
_STUDIO_THREADS: Final = 4

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Pictures:
    """Decoded input pictures, not fitted yet."""

    image: Pixels | None = None
    mask: Pixels | None = None
    references: tuple[Pixels, ...] = ()

    @property
    def sources(self) -> Sources:
        first = self.image or next(iter(self.references), None)
        return Sources(
            size=first.size if first else None,
            drawn_over=self.image is not None,
            masked=self.mask is not None,
            references=len(self.references),
        )


def _decode(files: SourceFiles, looks_at_references: bool, max_pixels: int) -> _Pictures:
    """The files as pictures, the first of them to be drawn over unless the model only looks."""
    pictures = tuple(images.decode(file.data, file.param, max_pixels) for file in files.images)
    if looks_at_references and files.mask is None and not files.own_alpha:
        return _Pictures(references=pictures)
    image, *references = pictures
    mask = image if files.own_alpha else None
    if files.mask is not None:
        mask = images.decode(files.mask.data, files.mask.param, max_pixels)
        if mask.size != image.size:
            raise InvalidRequest(
                f"The mask is {mask.size} and the image {image.size}; they must be of one size.",
                reason=Reason.INVALID_IMAGE,
                param=files.mask.param,
            )
    return _Pictures(image, mask, tuple(references))


def _fit(pictures: _Pictures, request: GenerationRequest) -> Inputs:
    size, how = request.size, request.fit
    image = images.fit(pictures.image, size, how) if pictures.image else None
    mask = None
    if pictures.mask is not None:
        mask = images.mask_of(pictures.mask, size, how, request.mask_mode)
    references = tuple(images.fit(p, p.size, how) for p in pictures.references)
    return Inputs(image, mask, references)


class ImageShelf(Protocol):
    """Where images go that are answered as URLs (store.ImageStore)."""

    def put(self, data: bytes, output_format: OutputFormat) -> str:
        """Keep an image; returns its id."""


@dataclass(frozen=True)
class Policy:
    """The numbers the service decides by.

    Attributes:
        queue_images: Images that may wait.
        max_pixels: Largest width x height of what is drawn.
        max_input_pixels: Largest width x height of an input picture, before it is decoded.
        grace_seconds: Time for running jobs at shutdown.
        embed_parameters: Write prompt and options into image files.
    """

    queue_images: int = 64
    max_pixels: int = 4_194_304
    max_input_pixels: int = 16_777_216
    grace_seconds: float = 30.0
    embed_parameters: bool = True


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
        shelf: ImageShelf,
        metrics: Metrics,
        policy: Policy,
        new_id: Callable[[], str],
        random_seed: Callable[[], int],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.catalog = catalog
        self.draining = False
        self._make_worker = make_worker
        self._shelf = shelf
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
        self._studio = ThreadPoolExecutor(_STUDIO_THREADS, thread_name_prefix="studio")

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
        self._refuse_when_draining()
        pictures = _Pictures()
        if files is not None:
            looks = model_of(draft, self.catalog).traits.references
            pictures = await self._in_studio(_decode, files, looks, self._policy.max_input_pixels)
        request = resolve(
            draft,
            self.catalog,
            random_seed=self._random_seed,
            max_pixels=self._policy.max_pixels,
            sources=pictures.sources,
        )
        inputs = Inputs()
        if files is not None:
            inputs = await self._in_studio(_fit, pictures, request)
        self._admit(request)
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
                self._running = live
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
            self._studio.shutdown(wait=False, cancel_futures=True)

    async def _next(self) -> LiveJob:
        while not self._queue:
            await self._queue_changed.wait()
        live = self._queue.popleft()
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
                small = Pixels(event.width, event.height, event.blob)
                data = await self._in_studio(images.encode, small, "png")
                self._apply(live, PreviewReady(index, step, data))
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
            data, image_id = await self._in_studio(self._develop, live, drawn)
        except OSError:
            logger.exception("image of job %s could not be stored", live.job.id)
            full = JobFailed(Reason.INTERNAL_ERROR, "The image could not be stored.")
            await self._end_early(live, full)
            return
        result = ImageResult(
            index=drawn.index,
            seed=drawn.seed,
            data=data,
            steps=drawn.steps,
            encode_seconds=drawn.encode_seconds,
            sample_seconds=drawn.sample_seconds,
            decode_seconds=drawn.decode_seconds,
            id=image_id,
        )
        if self._apply(live, ImageReady(result)):
            self._metrics.images.labels(request.model).inc()
            self._metrics.steps.labels(request.model).inc(drawn.steps)
            self._observe(live.job, Phase.ENCODING, drawn.encode_seconds)
            self._observe(live.job, Phase.SAMPLING, drawn.sample_seconds)
            self._observe(live.job, Phase.DECODING, drawn.decode_seconds)

    def _develop(self, live: LiveJob, drawn: ImageDrawn) -> tuple[bytes, str | None]:
        """Pixels to a file and, when it is to be kept, its id in the store. Runs in a thread."""
        request = live.job.request
        text = None
        if self._policy.embed_parameters:
            text = images.parameters_text(request, drawn.seed)
        picture = Pixels(drawn.width, drawn.height, drawn.blob)
        image, mask = live.inputs.image, live.inputs.mask
        if image is not None and mask is not None:
            # The runtime's kept pixels have been through the autoencoder: put the real ones back.
            picture = images.composite(picture, image, mask, request.mask_blur)
        data = images.encode(picture, request.output_format, request.output_compression, text)
        return data, self._shelf.put(data, request.output_format) if live.keep_images else None

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

    def _refuse_when_draining(self) -> None:
        if self.draining:
            raise Unavailable(
                "The server is going down.", reason=Reason.SHUTTING_DOWN, retry_after=10
            )

    def _admit(self, request: GenerationRequest) -> None:
        self._refuse_when_draining()
        worker = self.worker_of(request.model)
        if worker is not None and worker.state is WorkerState.FAILED:
            raise worker.unavailable()
        if request.model in self._broken:
            raise self._broken[request.model]
        waiting = self.queued_images
        if waiting and waiting + request.n > self._policy.queue_images:
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
        return self._worker

    async def _stop_worker(self) -> None:
        if self._worker_task is not None:
            self._worker_task.cancel()
            with suppress(asyncio.CancelledError):
                await self._worker_task
        self._worker = self._worker_task = None

    # --- pictures, in threads --------------------------------------------------------------------

    async def _in_studio(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run work on pixels in the bounded pool of threads for it."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._studio, partial(work, *args, **kwargs))

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
