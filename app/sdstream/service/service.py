"""The one queue and the one policy: every route, plain or streamed, comes through here.

::

    submit ──> queue ──> worker ──> events ──> Job.apply ──> readers (follow)

One task gives the waiting jobs to free workers, in the order of the queue, and a task for each
running job sees it to its end. A job that waits for room in memory is overtaken by none, else it
might wait for ever. Everything runs on one event loop; what is done to pixels is done in the
image processor's threads.

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

A background job needs no client that waits for its end: whoever leaves, leaves it running; the
death of its worker or of the server puts it back into the queue, once; and at shutdown it is laid
aside for the next start, however often that happens. Who waits for it then is told 503
shutting_down too.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final
from weakref import WeakValueDictionary

from sdstream.core.ask import ParsedRequest
from sdstream.core.catalog import Catalog
from sdstream.core.errors import (
    Forbidden,
    KeyReused,
    NotFound,
    QueueFull,
    Reason,
    Unavailable,
)
from sdstream.core.job import (
    MAX_ATTEMPTS,
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
    Requeued,
    Running,
    Terms,
)
from sdstream.core.messages import (
    Cancelled,
    Done,
    Event,
    Failed,
    Generate,
    ImageDrawn,
    Phase,
    Preview,
    Progress,
)
from sdstream.core.model_spec import ModelSpec
from sdstream.core.pixels import Inputs
from sdstream.core.queue import FairQueue, Priority
from sdstream.core.request import NO_ASSETS, Assets, Limits
from sdstream.core.resolve import check_count, model_of, resolve
from sdstream.engine.pool import WorkerPool
from sdstream.engine.worker import Worker, WorkerState
from sdstream.imaging.processor import ImageProcessor, ImageRejected, Pictures
from sdstream.notifier import Notifier
from sdstream.service.estimates import Speed
from sdstream.service.metrics import Metrics
from sdstream.storage.job_store import JobStore, Page

logger = logging.getLogger(__name__)

#: The clients that honour Retry-After give up on anything longer.
_MAX_RETRY_AFTER: Final = 120
#: What an image takes when none was ever measured.
_GUESSED_SECONDS: Final = 5.0
#: Ended jobs whose history is kept for readers that come back, some kilobytes each.
_REMEMBERED: Final = 256
#: Events that a restart must not take back; they are told when they are on the disk.
_KEPT: Final = (ImageReady, Completed, JobFailed, JobCancelled)
#: States of workers, the most useful first.
_BEST_FIRST: Final = (
    WorkerState.READY,
    WorkerState.BUSY,
    WorkerState.STARTING,
    WorkerState.FAILED,
)
#: A background job gets another try after these.
_SECOND_CHANCE: Final = (Reason.WORKER_CRASHED, Reason.WORKER_KILLED, Reason.WORKER_HUNG)
#: What passes: a request that came to this is made anew when it comes again under its name.
_PASSING: Final = (Reason.MODEL_UNAVAILABLE, Reason.SHUTTING_DOWN, Reason.INTERRUPTED)


def _going_down() -> Unavailable:
    return Unavailable("The server is shutting down.", reason=Reason.SHUTTING_DOWN, retry_after=10)


def deferred_error(job: Job) -> Unavailable:
    """What a client is told that waits for a job which is laid aside."""
    message = f"The server is going down; the job {job.id} is done after its next start."
    error = Unavailable(message, reason=Reason.SHUTTING_DOWN, retry_after=10)
    if job.terms.idempotency_key is None:
        # A client that tries again by itself would have the work done twice.
        error.retry_after, error.should_retry = None, False
    return error


@dataclass(frozen=True)
class Policy:
    """The numbers the service decides by.

    Attributes:
        queue_images: Images that may wait.
        queue_images_per_key: Images of one API key that may wait.
        high_priority_owners: Who may ask for high priority; empty is everybody. The store, whose
            secret they depend on, must be open when this is called.
        limits: Of sizes.
        grace_seconds: Time for running jobs at shutdown.
    """

    queue_images: int
    queue_images_per_key: int
    high_priority_owners: Callable[[], frozenset[str]]
    limits: Limits
    grace_seconds: float


@dataclass
class LiveJob:
    """A job with what its readers and its end need beside it.

    Attributes:
        job: What is known of it.
        changed: Wakes its readers.
        wanted_ending: What a Cancelled of the worker means for it.
        deferred: It waits for the next start of the server; readers are to leave.
    """

    job: Job
    changed: Notifier = field(default_factory=Notifier)
    wanted_ending: JobCancelled | JobFailed | None = None
    deferred: bool = False

    #: Has the job while it runs.
    worker: Worker | None = None
    task: asyncio.Task[None] | None = None

    @property
    def over(self) -> bool:
        """True when nothing more will happen to it in this life of the server."""
        return self.job.terminal or self.deferred


class ImageService:
    """Submits, runs, cancels and drains jobs. ``run`` is a task of the owner."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        make_pool: Callable[[Callable[[], None]], WorkerPool],
        processor: ImageProcessor,
        store: JobStore,
        metrics: Metrics,
        policy: Policy,
        new_id: Callable[[], str],
        random_seed: Callable[[], int],
        refresh_catalog: Callable[[], Catalog] | None = None,
        assets: Callable[[], Assets] = lambda: NO_ASSETS,
        on_end: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.catalog = catalog
        self._refresh_catalog = refresh_catalog
        self.processor = processor
        self.drain_began = asyncio.Event()
        self._store = store
        self._metrics = metrics
        self._policy = policy
        self._new_id = new_id
        self._random_seed = random_seed
        self._ended = on_end
        self.assets = assets
        self._clock = clock
        self._queue: FairQueue[LiveJob] = FairQueue()
        self._changed = Notifier()
        self.pool = make_pool(self._changed.notify)
        #: Accepted, and being written to the disk.
        self._entering: list[Job] = []
        self._live: dict[str, LiveJob] = {}
        self._recent: OrderedDict[str, LiveJob] = OrderedDict()
        self._names: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
        self._running: list[LiveJob] = []
        self._speed = Speed()
        self._drain_task: asyncio.Task[None] | None = None

    # --- for the doors --------------------------------------------------------------------------

    @property
    def draining(self) -> bool:
        """True when the service takes no more work, since ``drain_began`` was set."""
        return self.drain_began.is_set()

    @property
    def ready(self) -> bool:
        """True when jobs are taken and those of the default model are drawn."""
        default = self.catalog.models[self.catalog.default]
        return not self.draining and self.pool.is_ready(default)

    @property
    def limits(self) -> Limits:
        """Upper bounds of sizes."""
        return self._policy.limits

    @property
    def queued_images(self) -> int:
        """Images that wait, without those of the running jobs."""
        return self._queue.images()

    def why_unavailable(self, model: str) -> str | None:
        """Why the model cannot be loaded, None when nothing is known against it."""
        worker = self.pool.failed(model)
        return worker.unavailable().message if worker is not None else None

    def model_state(self, model: str) -> str:
        """Return the state of the model's best worker, "unloaded" if it has none."""
        states = [worker.state for worker in self.pool.workers(model)]
        best = next((state for state in _BEST_FIRST if state in states), None)
        return best.value if best else "unloaded"

    async def refresh_catalog(self) -> Catalog:
        """The catalogue with what was pulled or removed since the start."""
        if self._refresh_catalog is not None:
            self.catalog = await asyncio.to_thread(self._refresh_catalog)
        return self.catalog

    async def get_model(self, name: str, param: str = "model") -> ModelSpec:
        """The model of that name, pulled lately perhaps; raises NotFound."""
        spec = self.catalog.find(name) or (await self.refresh_catalog()).find(name)
        if spec is None:
            raise NotFound(
                self.catalog.why_missing(name), reason=Reason.MODEL_NOT_FOUND, param=param
            )
        return spec

    async def load(self, spec: ModelSpec) -> None:
        """Load a model ahead of its first job, also one that could not be loaded before.

        Raises:
            Unavailable: There is no room now, or it cannot be loaded.
        """
        if self.pool.failed(spec.id) is not None:
            self.pool.unload(spec.id)
        if not self.pool.workers(spec.id) and not self.pool.start(spec):
            raise Unavailable(
                f"Not enough memory for '{spec.id}' while other models are busy; try again later.",
                reason=Reason.MODEL_UNAVAILABLE,
                retry_after=10,
            )
        worker = self.pool.workers(spec.id)[0]
        if worker.state is not WorkerState.BUSY:
            await worker.ready()

    def unload(self, spec: ModelSpec) -> None:
        """Stop a model's workers, each as soon as its job is over."""
        self.pool.unload(spec.id)

    async def submit(self, ask: ParsedRequest, terms: Terms) -> LiveJob:
        """Accept a request as a job, or find the one that its idempotency key names.

        Args:
            ask: What was asked, with the input images as they came.
            terms: For whom, and how the job is kept.

        Raises:
            InvalidRequest, NotFound: The request can never work.
            Forbidden: This owner may not ask for that priority.
            KeyReused: The idempotency key names another request.
            QueueFull: Too many images wait.
            StorageFull: The disk has no room.
            Unavailable: The server is going down, or the model cannot be loaded.
        """
        if terms.idempotency_key is None:
            return await self._accept(ask, terms)
        # Two requests of one name at the same moment: the second finds what the first began.
        name = (terms.owner, terms.idempotency_key)
        async with self._names.setdefault(name, asyncio.Lock()):
            known = await self._job_of_key(terms)
            return known or await self._accept(ask, terms)

    async def find(self, job_id: str, owner: str) -> LiveJob:
        """A job of this owner, whether it lives or ended in the past; raises NotFound."""
        live = self._live.get(job_id)
        if live is None and not self._store.is_written(job_id):
            live = self._recent.get(job_id)  # its row is behind
        job = await self._store.get(job_id) if live is None else None
        if job is not None:  # what has expired there is not told of from memory
            live = self._recent.get(job_id) or (LiveJob(job) if job.terminal else None)
        if live is None or live.job.terms.owner != owner:
            raise NotFound("Job not found; it may have expired.", reason=Reason.JOB_NOT_FOUND)
        return live

    async def earlier_images(self, live: LiveJob) -> list[Entry]:
        """Images of an unfinished job from an earlier life of the server, with their files.

        They are no entries of this life.
        """
        job = live.job
        if live.over:
            return []
        images = [image for _, image in sorted(job.images.items()) if image.data is None]
        return [
            Entry(
                job.created,
                ImageReady(await self._store.with_file(image, job.request.output_format)),
            )
            for image in images
        ]

    async def with_files(self, job: Job) -> Job:
        """An ended job with the files of its images; raises NotFound when they are gone."""
        if all(image.data is not None for image in job.images.values()):
            return job
        try:
            return await self._store.with_files(job)
        except FileNotFoundError:
            raise NotFound(
                "The job's images have expired.", reason=Reason.IMAGE_NOT_FOUND
            ) from None

    async def page(
        self, owner: str, *, statuses: Sequence[JobStatus], limit: int, after: str | None
    ) -> Page:
        """An owner's jobs, newest first; see JobStore.page."""
        page = await self._store.page(owner, statuses=statuses, limit=limit, after=after)
        known = (self._live.get(job.id) for job in page.jobs)
        jobs = [live.job if live else job for live, job in zip(known, page.jobs, strict=True)]
        return Page(jobs, page.more)

    async def delete(self, live: LiveJob) -> None:
        """Delete a job and its images, stopping it first."""
        if not live.over:
            self.cancel(live, "The job was deleted.")
            await self._end_of(live)
        self._recent.pop(live.job.id, None)
        await self._store.delete(live.job.id)

    def seconds_left(self, job: Job) -> float | None:
        """Seconds until an unfinished job ends, None while too little was measured."""
        if job.terminal:
            return None
        own = self._remaining(job)
        running = [live.job for live in self._running]
        if job in running or own is None:
            return own
        ahead = running
        for live in self._queue:
            if live.job is job:
                break
            ahead.append(live.job)
        seconds = self._seconds_of(ahead)
        return None if seconds is None else own + seconds / max(1, len(self._running))

    async def follow(
        self, live: LiveJob, idle_seconds: float, start: int = 0
    ) -> AsyncIterator[Entry | None]:
        """Everything that happened to a job and happens until its end.

        Args:
            live: The job.
            idle_seconds: After this much silence comes a None.
            start: Entries to leave out.

        Yields:
            Entries, oldest first; None each time nothing happened for ``idle_seconds``.
        """
        index = start
        while True:
            while index < len(live.job.entries):
                entry = live.job.entries[index]
                if isinstance(entry.event, _KEPT):
                    async for silence in self.until_written(live, idle_seconds):
                        yield silence
                yield entry
                index += 1
                # A reader that never really waits would hold the loop after its client left.
                await asyncio.sleep(0)
            if live.over:
                return
            if index == len(live.job.entries):
                try:
                    async with asyncio.timeout(idle_seconds):
                        await live.changed.wait()
                except TimeoutError:
                    yield None

    async def finished(self, live: LiveJob) -> Job:
        """Wait until the job has ended, or is laid aside for the next start.

        Raises:
            StorageFull, Unavailable: It has ended, and its end cannot be written yet.
        """
        await self._end_of(live)
        await self.settled(live)
        return live.job

    async def _end_of(self, live: LiveJob) -> None:
        while not live.over:
            await live.changed.wait()

    async def until_written(self, live: LiveJob, idle_seconds: float) -> AsyncIterator[None]:
        """Wait until what is known of the job may be told; yields at each such silence."""
        while not self._store.is_written(live.job.id):
            try:
                async with asyncio.timeout(idle_seconds):
                    await self._store.written(live.job)
                return
            except TimeoutError:
                yield None

    async def settled(self, live: LiveJob) -> None:
        """Wait until what is known of the job may be told: a restart must not take it back.

        Raises:
            StorageFull, Unavailable: It cannot be written yet; see JobStore.settled.
        """
        await self._store.settled(live.job)

    def cancel(self, live: LiveJob, message: str) -> None:
        """Stop a job: at once when it waits, within a step when it runs."""
        self._end_early(live, JobCancelled(message))

    def peek(self, live: LiveJob) -> None:
        """Have a running job give a preview with its next step."""
        if live.worker is not None:
            live.worker.peek(live.job.id)

    async def recover(self) -> None:
        """Take up the background jobs that an earlier life of the server left."""
        for job in await self._store.recover():
            self._enqueue(self._remember(job))

    def begin_drain(self) -> None:
        """Take no more work, and give running jobs the grace time; callable repeatedly."""
        if self.draining:
            return
        self.drain_began.set()
        while self._queue:
            self._stop(self._queue.pop())
        self._drain_task = asyncio.create_task(self._end_running())

    # --- the service task -----------------------------------------------------------------------

    async def run(self) -> None:
        """Load the default model, then give jobs to workers until cancelled."""
        try:
            self.pool.start(self.catalog.models[self.catalog.default])
            while True:
                self._dispatch()
                await self._changed.wait()
        finally:
            self.begin_drain()
            if self._drain_task is not None:
                self._drain_task.cancel()
            for live in list(self._running):
                self._stop(live)
                if live.task is not None:
                    live.task.cancel()
            await asyncio.shield(self.pool.close())
            self.processor.close()

    def _dispatch(self) -> None:
        """Begin every waiting job that a worker is free for, and load models for the others."""
        announced = set[str]()
        for live in list(self._queue):
            spec = self.catalog.find(live.job.request.model)
            if spec is None:
                # It was taken up from an earlier life of the server, or removed since.
                self._queue.remove(live)
                why = self.catalog.why_missing(live.job.request.model)
                self._apply(live, JobFailed(Reason.MODEL_UNAVAILABLE, why))
                continue
            failed = self.pool.failed(spec.id)
            if failed is not None:
                error = failed.unavailable()
                self._queue.remove(live)
                self._apply(live, JobFailed(error.reason, error.message))
                continue
            worker = self.pool.free(spec.id)
            if worker is not None:
                self._begin(live, worker)
            elif self.pool.start(spec) or self.pool.is_coming(spec.id):
                if spec.id not in announced:
                    announced.add(spec.id)
                    self._apply(live, Loading())
            elif not self.pool.workers(spec.id):
                break  # no room yet
        self._renumber()

    def _begin(self, live: LiveJob, worker: Worker) -> None:
        self._queue.take(live)
        self.pool.take(worker)
        live.worker = worker
        self._running.append(live)
        live.task = asyncio.create_task(self._see_to(live, worker))

    async def _see_to(self, live: LiveJob, worker: Worker) -> None:
        """A running job's task."""
        try:
            await self._run(live, worker)
        except Exception:
            logger.exception("job %s failed inside the server", live.job.id)
            self._apply(live, JobFailed(Reason.INTERNAL_ERROR, "Internal server error."))
        finally:
            self._running.remove(live)
            live.worker = live.task = None
            self.pool.give_back(worker)
        if live.job.status is JobStatus.QUEUED and not live.over:
            if self.draining:
                self._stop(live)
            else:
                self._enqueue(live, first=True)

    async def _run(self, live: LiveJob, worker: Worker) -> None:
        job = live.job
        try:
            inputs = await self._store.inputs(job)
        except (OSError, ValueError):
            logger.exception("the pictures of job %s cannot be read", job.id)
            lost = JobFailed(Reason.INTERNAL_ERROR, "The job's input images were lost.")
            self._apply(live, lost)
            return
        if not self._apply(live, Running()):
            return  # cancelled meanwhile
        # Before the runtime sees the job: if it takes the server with it, the try has counted.
        await self._store.update(job)
        if not await self._is_ready(live, worker):  # it may have died since
            return
        self._observe(job, "queue", self._clock() - job.created)
        order = Generate(job.id, job.request, inputs.of_runtime, first=len(job.images))
        async for event in worker.generate(order):
            await self._take(live, inputs, event)

    async def _is_ready(self, live: LiveJob, worker: Worker) -> bool:
        """Wait for the worker; False when the job has ended without it."""
        try:
            await worker.ready()
        except Unavailable as error:
            self._apply(live, JobFailed(error.reason, error.message))
        return not live.over

    async def _take(self, live: LiveJob, inputs: Inputs, event: Event) -> None:
        """Translate an event of the worker into one of the job."""
        match event:
            case Progress():
                self._apply(live, event)
            case Preview(index=index, step=step):
                shown = await self.processor.preview(live.job.request, inputs, event)
                self._apply(live, PreviewReady(index, step, shown))
            case ImageDrawn():
                await self._finish_image(live, inputs, event)
            case Done():
                self._apply(live, Completed())
            case Cancelled():
                self._apply(live, live.wanted_ending or JobCancelled("The job was cancelled."))
            case Failed(reason=reason, message=message):
                self._fail(live, JobFailed(Reason(reason), message))

    def _fail(self, live: LiveJob, ending: JobFailed) -> None:
        job = live.job
        again = job.terms.background and job.attempts < MAX_ATTEMPTS
        if again and ending.reason in _SECOND_CHANCE and self._apply(live, Requeued()):
            logger.warning("job %s gets a second try: %s", job.id, ending.message)
            return
        self._apply(live, ending)

    async def _finish_image(self, live: LiveJob, inputs: Inputs, drawn: ImageDrawn) -> None:
        request, terms = live.job.request, live.job.terms
        try:
            image = await self.processor.develop(
                request, inputs, drawn, must_keep=terms.background or terms.as_url
            )
        except ImageRejected as spoiled:
            self._give_up(live, spoiled.ending)
            return
        except Exception:
            # The worker is to hear of it, else it would be ended for leaving a job alone.
            logger.exception("an image of job %s could not be finished", live.job.id)
            self._give_up(live, JobFailed(Reason.INTERNAL_ERROR, "Internal server error."))
            return
        if not self._apply(live, ImageReady(image)):
            if image.id is not None:
                self._store.drop(image.id, request.output_format)
            return
        self._measure_image(live.job, drawn)

    def _measure_image(self, job: Job, drawn: ImageDrawn) -> None:
        model = job.request.model
        if job.request.upscaled is None:  # which takes its own time
            self._speed.note(job.request, drawn)
        self._metrics.images.labels(model).inc()
        self._metrics.steps.labels(model).inc(drawn.steps)
        self._observe(job, Phase.ENCODING, drawn.encode_seconds)
        self._observe(job, Phase.SAMPLING, drawn.sample_seconds)
        self._observe(job, Phase.DECODING, drawn.decode_seconds)

    # --- endings --------------------------------------------------------------------------------

    def _end_early(self, live: LiveJob, ending: JobCancelled | JobFailed) -> None:
        worker = live.worker
        if worker is not None and worker.has(live.job.id):
            live.wanted_ending = live.wanted_ending or ending
            worker.cancel(live.job.id)
            return
        if self._queue.remove(live):
            self._renumber()
        self._apply(live, ending)

    def _give_up(self, live: LiveJob, ending: JobFailed) -> None:
        """End a running job that the server itself cannot finish, and spare the worker the rest."""
        self._apply(live, ending)
        if live.worker is not None:
            live.worker.cancel(live.job.id)

    async def _end_running(self) -> None:
        """Let running jobs end by themselves within the grace time, and stop them then."""
        running = list(self._running)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._policy.grace_seconds):
                for live in running:
                    await self._end_of(live)
        for live in running:
            # Not by way of the worker, which has a grace time of its own.
            self._stop(live)

    def _stop(self, live: LiveJob) -> None:
        """At shutdown: a background job is laid aside, any other fails."""
        if not live.job.terms.background:
            self._apply(live, JobFailed(Reason.SHUTTING_DOWN, "The server is shutting down."))
        elif not live.over:
            self._apply(live, Requeued(counts=False))
            live.deferred = True
            live.changed.notify()

    def _apply(self, live: LiveJob, event: JobEvent) -> bool:
        job = live.job
        if live.deferred or not job.apply(event, self._clock()):
            return False
        match event:
            case ImageReady(image):
                self._store.note_image(job, image)
            case Loading() | Requeued():
                self._store.note(job)
        if job.terminal:
            self._store.note_end(job)
            self._ended()
            self._live.pop(job.id, None)
            self._recent[job.id] = LiveJob(job.without_files())
            while len(self._recent) > _REMEMBERED:
                self._recent.popitem(last=False)
            self._metrics.jobs.labels(job.request.model, job.status.value).inc()
        live.changed.notify()
        return True

    # --- admission ------------------------------------------------------------------------------

    async def _accept(self, ask: ParsedRequest, terms: Terms) -> LiveJob:
        if self.catalog.find(ask.params.model) is None:
            await self.refresh_catalog()
        # Before the pictures are looked at, which costs more than a refusal.
        spec = model_of(ask, self.catalog)
        self._admit(spec.id, ask.params.n or 1, terms)
        pictures = Pictures()
        if ask.files is not None:
            # A border is painted around an image that is kept, not looked at.
            looks = spec.traits.references and not (ask.only_upscale or ask.params.expand)
            check_count(ask, spec, len(ask.files.images))
            pictures = await self.processor.decode(
                ask.files, only_references=looks, mask_mode=ask.params.mask_mode or "auto"
            )
        request = resolve(
            ask,
            self.catalog,
            assets=await asyncio.to_thread(self.assets),
            random_seed=self._random_seed,
            limits=self._policy.limits,
            has_checker=self.processor.can_check,
            sources=pictures.sources,
        )
        inputs = Inputs()
        if ask.files is not None:
            inputs = await self.processor.fit(pictures, request)
        self._admit(request.model, request.n, terms)
        job = Job(self._new_id(), request, self._clock(), terms)
        self._entering.append(job)
        try:
            await self._store.add(job, inputs)
        finally:
            self._entering.remove(job)
        live = self._remember(job)
        self._metrics.accepted_jobs.labels(job.request.model).inc()
        if self.draining:  # since it was admitted
            self._apply(live, JobFailed(Reason.SHUTTING_DOWN, "The server is shutting down."))
            raise _going_down()
        self._enqueue(live)
        return live

    async def _job_of_key(self, terms: Terms) -> LiveJob | None:
        """The job that the idempotency key of these terms names; raises KeyReused, Unavailable.

        One that ended by what passes has the name no more: its end would be told for ever.
        """
        assert terms.idempotency_key is not None
        job = await self._store.job_by_idempotency_key(terms.owner, terms.idempotency_key)
        if job is None:
            return None
        if job.terms.fingerprint != terms.fingerprint:
            raise KeyReused(
                "This Idempotency-Key was used for a different request.",
                reason=Reason.IDEMPOTENCY_KEY_REUSED,
                param="Idempotency-Key",
            )
        # It may have ended since it was read.
        live = self._live.get(job.id) or self._recent.get(job.id)
        if live is not None and live.deferred:
            raise deferred_error(live.job)
        if live is not None and not live.over:
            return live
        ended = (live.job if live is not None else await self._store.get(job.id)) or job
        if isinstance(ended.ending, JobFailed) and ended.ending.reason in _PASSING:
            await self._store.unname(job.id)
            return None
        return LiveJob(await self.with_files(ended))

    def _admit(self, model: str, images: int, terms: Terms) -> None:
        """Raise what keeps a job of that model and size out now."""
        if self.draining:
            raise _going_down()
        allowed = self._policy.high_priority_owners()
        if terms.priority is Priority.HIGH and allowed and terms.owner not in allowed:
            raise Forbidden(
                "This API key is not allowed to request high priority.",
                reason=Reason.PRIORITY_NOT_ALLOWED,
                param="priority",
            )
        failed = self.pool.failed(model)
        if failed is not None:
            raise failed.unavailable()
        self._admit_to_queue(images, terms.owner)

    def _admit_to_queue(self, images: int, owner: str) -> None:
        entering = sum(job.request.n for job in self._entering)
        waiting, most = self._queue.images() + entering, self._policy.queue_images
        whose, counted = "this server holds", None
        if owner and not (waiting and waiting + images > most):
            entering = sum(job.request.n for job in self._entering if job.terms.owner == owner)
            waiting, most = self._queue.images(owner) + entering, self._policy.queue_images_per_key
            whose, counted = "an API key may have", owner
        if waiting and waiting + images > most:
            raise QueueFull(
                f"{waiting} images are waiting and {whose} {most}.",
                reason=Reason.QUEUE_FULL,
                retry_after=self._retry_after(waiting + images - most, counted),
            )

    def _retry_after(self, images: int, owner: str | None) -> int:
        """Seconds until so many images, of one owner or of all, have left the queue."""
        going = [live.job for live in self._running]
        for live in self._queue:
            if owner in (None, live.job.terms.owner):
                images -= live.job.request.n
            if images <= 0:
                break  # it leaves the queue when its turn comes, not when it is done
            going.append(live.job)
        guess = _GUESSED_SECONDS * sum(job.request.n for job in going)
        seconds = self._seconds_of(going)
        seconds = (guess if seconds is None else seconds) / max(1, len(self._running))
        return min(_MAX_RETRY_AFTER, max(1, math.ceil(seconds)))

    def _seconds_of(self, jobs: Sequence[Job]) -> float | None:
        """Work that is left of all of these, None when that of one is unknown."""
        times = [self._remaining(job) for job in jobs]
        return None if None in times else sum(time for time in times if time is not None)

    def _remember(self, job: Job) -> LiveJob:
        live = self._live[job.id] = LiveJob(job)
        return live

    def _enqueue(self, live: LiveJob, *, first: bool = False) -> None:
        job = live.job
        self._queue.push(
            live,
            owner=job.terms.owner,
            images=job.request.n,
            priority=job.terms.priority,
            first=first,
        )
        position = len(self._running) + list(self._queue).index(live)
        self._apply(live, Queued(position))
        self._renumber(newcomer=job)
        self._changed.notify()

    def _renumber(self, newcomer: Job | None = None) -> None:
        """Tell the waiting jobs their places.

        What a job was told once grows only when one of a better class came: a fair turn of
        somebody else may delay it, and then its place stays what it was until it is true again.
        """
        for position, live in enumerate(self._queue, start=len(self._running)):
            known, terms = live.job.queue_position, live.job.terms
            if newcomer is not None and newcomer.terms.priority.outranks(terms.priority):
                known = position
            self._apply(live, Queued(min(known, position)))

    def _remaining(self, job: Job) -> float | None:
        """Seconds of work that are left of a job; None when nothing like it was ever measured."""
        image = self._speed.image_seconds(job.request)
        left = job.request.n - len(job.images)
        current, speed = job.progress, job.steps_per_second
        if current is None or current.index in job.images:
            return None if image is None else image * left
        steps_left = current.steps - current.step
        if image is None:
            image = None if speed is None else current.steps / speed
        if image is None:
            return None
        if job.request.second_pass is not None:
            speed = None  # of the first pass, as yet, and the second is a slower one
        now = steps_left / speed if speed else image * steps_left / max(1, current.steps)
        return now + image * (left - 1)

    # --- numbers --------------------------------------------------------------------------------

    def _observe(self, job: Job, phase: str, seconds: float) -> None:
        self._metrics.phase_seconds.labels(job.request.model, phase).observe(seconds)

    def measure(self) -> None:
        """Bring the gauges up to date; called when somebody looks."""
        self._metrics.queued_images.set(self.queued_images)
        self._metrics.running_jobs.set(len(self._running))
        self._metrics.measure_workers(self.pool.workers(), self.pool.evictions)
