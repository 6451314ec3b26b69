"""The dispatch of waiting jobs to workers, and the end of each job.

One task gives the waiting jobs to free workers, in the order of the queue. Each running job has a
task that handles the worker's events until the job ends. No job overtakes a job that waits for
memory, because that one might wait forever. Everything runs on one event loop, except the work on
pixels, which runs in the image processor's threads.

How a job ends; the first event wins (``Job.apply`` ignores the others):

    what happens                  status     sent to the client
    all images generated          completed  the images
    cancel while queued           cancelled  499; the runtime is never given the job
    cancel while loading          cancelled  499; the model is loaded for the next job
    cancel while running          cancelled  499; the worker stops within a step
    the client leaves             cancelled  the connection is closed
    the worker dies or hangs      failed     500 worker_crashed | worker_killed | worker_hung
    its machine is lost, twice    failed     503 worker_lost
    the model cannot be loaded    failed     503 model_unavailable
    shutdown while queued         failed     503 shutting_down, at once
    shutdown while running        failed     503 shutting_down, when the grace time is over

A background job runs without a client. If its worker or the server dies, the job goes back into
the queue, once. Each shutdown defers it to the next start; a client that waits for it gets 503
shutting_down too.

If a job's worker is lost with its machine, the job goes back into the queue, once; it need not be
a background job. This does not count as an attempt, because the job did not cause it.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing, suppress
from typing import Final

from sdstream.core.errors import Reason, Unavailable
from sdstream.core.job import (
    MAX_ATTEMPTS,
    Completed,
    ImageReady,
    Job,
    JobCancelled,
    JobFailed,
    JobStatus,
    Loading,
    PreviewReady,
    Requeued,
    Running,
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
from sdstream.core.pixels import Inputs
from sdstream.engine.worker import Worker
from sdstream.imaging.processor import Finished, ImageProcessor, ImageRejected
from sdstream.notifier import Notifier
from sdstream.service.job_queue import JobQueue
from sdstream.service.live_jobs import LiveJob, LiveJobs
from sdstream.service.metrics import Metrics
from sdstream.service.models import Models
from sdstream.service.tracing import NO_ATTRIBUTES, Attributes, Span
from sdstream.storage.job_store import JobStore

logger = logging.getLogger(__name__)

#: A background job gets a second attempt after these.
_SECOND_CHANCE: Final = (Reason.WORKER_CRASHED, Reason.WORKER_KILLED, Reason.WORKER_HUNG)

#: Number of waiting jobs that fail at once, before other tasks on the event loop run.
_FAILED_AT_ONCE: Final = 16


class Dispatcher:
    """Gives waiting jobs to workers and handles each until its end. Its owner runs ``run``.

    Args:
        models: The catalogue and the workers.
        queue: The waiting and the running jobs.
        jobs: Applies events to jobs.
        changed: Notified when a job may start.
        processor: Makes image files from pixels.
        store: Stores jobs.
        metrics: Counts and times generated images.
        grace_seconds: Time that running jobs have to end at shutdown.
    """

    def __init__(
        self,
        models: Models,
        queue: JobQueue,
        jobs: LiveJobs,
        changed: Notifier,
        *,
        processor: ImageProcessor,
        store: JobStore,
        metrics: Metrics,
        grace_seconds: float,
    ) -> None:
        self.drain_began = asyncio.Event()
        self._models = models
        self._pool = models.pool
        self._queue = queue
        self._jobs = jobs
        self._changed = changed
        self._processor = processor
        self._store = store
        self._metrics = metrics
        self._grace_seconds = grace_seconds
        self._drain_task: asyncio.Task[None] | None = None
        self._losses_seen = -1

    @property
    def draining(self) -> bool:
        """True from the moment ``drain_began`` is set."""
        return self.drain_began.is_set()

    def begin_drain(self) -> None:
        """Accept no more jobs, and give running jobs the grace time; may be called repeatedly."""
        if self.draining:
            return
        self.drain_began.set()
        while self._queue.waiting:
            self._stop(self._queue.pop())
        self._drain_task = asyncio.create_task(self._end_running())

    async def drained(self) -> None:
        """Wait until the running jobs have ended or their grace time is over."""
        if self._drain_task is not None:
            await asyncio.wait((self._drain_task,))

    async def run(self) -> None:
        """Load the default model, then give jobs to workers until cancelled."""
        places = asyncio.create_task(self._queue.tell_places())
        places.add_done_callback(lambda _: self._changed.notify())
        try:
            while True:
                self._load_default()
                if self._dispatch():
                    await self._changed.wait()
                else:
                    await asyncio.sleep(0)
                if places.done():
                    await places  # raises the error that ended it
        finally:
            places.cancel()
            self.begin_drain()
            if self._drain_task is not None:
                self._drain_task.cancel()
            for live in list(self._queue.running):
                self._stop(live)
                if live.task is not None:
                    live.task.cancel()
            await asyncio.shield(self._pool.close())
            self._processor.close()

    def _load_default(self) -> None:
        """Load the default model at the start, and again if its worker was lost during the load.

        If no machine can run it yet, the next call tries again.
        """
        default = self._models.catalog.find(None)
        if default is None or self._losses_seen == self._pool.losses:
            return
        losses, has_it = self._pool.losses, self._pool.workers(default.id)
        if has_it or self._pool.is_ready(default) or self._pool.start(default):
            self._losses_seen = losses

    def _dispatch(self) -> bool:
        """Start each waiting job for which a worker is free, and load models for the others.

        Stops early when the models of all waiting jobs are busy. Returns False if it must be
        called again after other tasks on the event loop have run.
        """
        beginning: list[tuple[LiveJob, Worker]] = []
        failing: list[tuple[LiveJob, JobFailed]] = []
        busy = set[str]()
        for live in self._queue.waiting:
            model = live.job.request.model
            if model in busy:
                continue
            failure = self._why_never(model)
            if failure is not None:
                failing.append((live, failure))
            elif (worker := self._pool.free(model)) is not None:
                self._pool.take(worker)
                beginning.append((live, worker))
            else:
                busy.add(model)
                if not self._load_for(live):
                    break  # no room yet
            if len(busy) == len(self._queue.models) or len(failing) == _FAILED_AT_ONCE:
                break
        for live, worker in beginning:
            self._begin(live, worker)
        for live, failure in failing:
            self._queue.remove(live)
            self._jobs.apply(live, failure)
        return len(failing) < _FAILED_AT_ONCE

    def _why_never(self, model: str) -> JobFailed | None:
        """Return why the waiting jobs of a model can never run, None if they can."""
        if self._models.catalog.find(model) is None:
            # A job of an earlier run of the server may name it, or it was removed since.
            why = self._models.catalog.why_missing(model)
            return JobFailed(Reason.MODEL_UNAVAILABLE, why)
        failed = self._pool.failed(model)
        if failed is None:
            return None
        error = failed.unavailable()
        return JobFailed(error.reason, error.message)

    def _load_for(self, live: LiveJob) -> bool:
        """Load a worker for a job; return False if its model has none and there is no room yet."""
        spec = self._models.catalog.find(live.job.request.model)
        assert spec is not None
        coming = self._pool.coming(spec.id)
        # Load no more workers than jobs of the model wait.
        if (coming < self._queue.models[spec.id] and self._pool.start(spec)) or coming:
            self._jobs.apply(live, Loading())
            return True
        return bool(self._pool.workers(spec.id))

    def _begin(self, live: LiveJob, worker: Worker) -> None:
        self._queue.begin(live)
        live.worker = worker
        live.task = asyncio.create_task(self._see_to(live, worker))

    async def _see_to(self, live: LiveJob, worker: Worker) -> None:
        """Run a job on a worker and return the worker to the pool: the task of a running job."""
        try:
            await self._run(live, worker)
        except Exception:
            logger.exception("job %s failed inside the server", live.job.id)
            self._jobs.apply(live, JobFailed(Reason.INTERNAL_ERROR, "Internal server error."))
        finally:
            self._queue.running.remove(live)
            live.worker = live.task = None
            self._pool.give_back(worker)
        if live.job.status is JobStatus.QUEUED and not live.over:
            if self.draining:
                self._stop(live)
            else:
                self._queue.enqueue(live, first=True)

    async def _run(self, live: LiveJob, worker: Worker) -> None:
        job = live.job
        try:
            inputs = await self._store.inputs(job)
        except (OSError, ValueError):
            logger.exception("the input images of job %s cannot be read", job.id)
            lost = JobFailed(Reason.INTERNAL_ERROR, "The job's input images were lost.")
            self._jobs.apply(live, lost)
            return
        if not self._jobs.apply(live, Running()):
            return  # cancelled meanwhile
        # Store the attempt before the runtime starts: if that crashes the server, it has counted.
        await self._store.update(job)
        if not await self._is_ready(live, worker):  # the worker may have died since
            return
        if worker.loaded is not None:
            model_hash = self._models.checksum(job.request.model) or ""
            job.generated_with(kernels=worker.loaded.kernels, model_hash=model_hash)
        self._measure_wait(live)
        order = Generate(job.id, job.request, inputs.of_runtime, first=len(job.images))
        async with aclosing(worker.generate(order)) as events:
            async for event in events:
                await self._take(live, inputs, event)

    async def _is_ready(self, live: LiveJob, worker: Worker) -> bool:
        """Wait for the worker; return False if the job has ended or is queued again."""
        try:
            await worker.ready()
        except Unavailable as error:
            self._fail(live, JobFailed(error.reason, error.message))
            return False
        return not live.over

    async def _take(self, live: LiveJob, inputs: Inputs, event: Event) -> None:
        """Apply an event of the worker to the job."""
        match event:
            case Progress():
                self._jobs.apply(live, event)
            case Preview(index=index, step=step):
                shown = await self._processor.preview(live.job.request, inputs, event)
                self._jobs.apply(live, PreviewReady(index, step, shown))
            case ImageDrawn():
                await self._finish_image(live, inputs, event)
            case Done():
                self._jobs.apply(live, Completed())
            case Cancelled():
                self._jobs.apply(live, live.wanted_ending or JobCancelled("The job was cancelled."))
            case Failed(reason=reason, message=message):
                self._fail(live, JobFailed(Reason(reason), message))

    def _fail(self, live: LiveJob, ending: JobFailed) -> None:
        job = live.job
        if ending.reason is Reason.WORKER_LOST and not live.was_lost:
            live.was_lost = True
            if self._jobs.apply(live, Requeued(counts=False)):
                logger.warning("job %s is generated again: %s", job.id, ending.message)
                return
        again = job.terms.background and job.attempts < MAX_ATTEMPTS
        if again and ending.reason in _SECOND_CHANCE and self._jobs.apply(live, Requeued()):
            logger.warning("job %s is retried: %s", job.id, ending.message)
            return
        self._jobs.apply(live, ending)

    async def _finish_image(self, live: LiveJob, inputs: Inputs, drawn: ImageDrawn) -> None:
        drawn_at = live.clock()
        live.job.warn(drawn.warnings)
        request, terms = live.job.request, live.job.terms
        try:
            finished = await self._processor.develop(
                request, inputs, drawn, must_keep=terms.background or terms.as_url
            )
        except ImageRejected as spoiled:
            self._give_up(live, spoiled.ending)
            return
        except Exception:
            # The worker still has the job: _give_up cancels it there.
            logger.exception("an image of job %s could not be finished", live.job.id)
            self._give_up(live, JobFailed(Reason.INTERNAL_ERROR, "Internal server error."))
            return
        image = finished.image
        if not self._jobs.apply(live, ImageReady(image)):
            if image.id is not None:
                self._store.drop(image.id, request.output_format)
            return
        self._measure_image(live, drawn, drawn_at, finished)

    def _measure_wait(self, live: LiveJob) -> None:
        """Record how long a job waited in the queue and for its model."""
        now = live.clock()
        waited = self._observe(live.job, live.span, "queue", live.waits_since, now)
        if live.loads_since is not None:
            self._observe(live.job, waited, Phase.LOADING, live.loads_since, now, _where(live))

    def _measure_image(
        self, live: LiveJob, drawn: ImageDrawn, drawn_at: float, finished: Finished
    ) -> None:
        """Record the times and counts of a finished image.

        Args:
            live: Its job.
            drawn: The runtime's report of the image.
            drawn_at: Unix seconds of that report.
            finished: The result of the image processor.
        """
        job, model = live.job, live.job.request.model
        self._queue.speed.note(job.request, drawn)
        self._metrics.images.labels(model).inc()
        self._metrics.steps.labels(model).inc(drawn.steps)
        self._metrics.conditions.labels(model, "computed").inc(drawn.conditions_computed)
        self._metrics.conditions.labels(model, "reused").inc(drawn.conditions_reused)
        decoding = drawn_at - drawn.decode_seconds
        sampling = decoding - drawn.sample_seconds
        began = sampling - drawn.encode_seconds
        ended = live.clock()
        storing = ended - finished.store_seconds
        about = {"sdstream.image": drawn.index, "sdstream.steps": drawn.steps, **_where(live)}
        span = live.span.stage("image", began, ended, about)
        self._observe(job, span, Phase.ENCODING, began, sampling)
        self._observe(job, span, Phase.SAMPLING, sampling, decoding)
        self._observe(job, span, Phase.DECODING, decoding, drawn_at)
        self._observe(job, span, "file", storing - finished.file_seconds, storing)
        self._observe(job, span, "store", storing, ended)

    def _observe(
        self,
        job: Job,
        span: Span,
        phase: str,
        began: float,
        ended: float,
        attributes: Attributes = NO_ATTRIBUTES,
    ) -> Span:
        """Record a stage of a job in the metrics, and as a child of a span in the trace."""
        self._metrics.phase_seconds.labels(job.request.model, phase).observe(ended - began)
        return span.stage(phase, began, ended, attributes)

    # --- endings --------------------------------------------------------------------------------

    def end_early(self, live: LiveJob, ending: JobCancelled | JobFailed) -> None:
        """Stop a job: at once if it waits, within one step if it runs."""
        worker = live.worker
        if worker is not None and worker.has(live.job.id):
            live.wanted_ending = live.wanted_ending or ending
            worker.cancel(live.job.id)
            return
        self._queue.remove(live)
        self._jobs.apply(live, ending)

    def _give_up(self, live: LiveJob, ending: JobFailed) -> None:
        """End a running job that the server itself cannot finish, and cancel it on its worker."""
        self._jobs.apply(live, ending)
        if live.worker is not None:
            live.worker.cancel(live.job.id)

    async def _end_running(self) -> None:
        """Wait for running jobs to end within the grace time, then stop the others."""
        running = list(self._queue.running)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._grace_seconds):
                for live in running:
                    await self._jobs.end_of(live)
        for live in running:
            # Do not cancel the job on its worker, which would take further seconds.
            self._stop(live)

    def _stop(self, live: LiveJob) -> None:
        """Stop a job at shutdown: defer a background job, fail any other."""
        if not live.job.terms.background:
            self._jobs.apply(live, JobFailed(Reason.SHUTTING_DOWN, "The server is shutting down."))
        elif not live.over:
            self._jobs.apply(live, Requeued(counts=False))
            live.deferred = True
            live.end_span("deferred")
            live.changed.notify()


def _where(live: LiveJob) -> Attributes:
    """Return the machine that a job runs on as an attribute; empty without a cluster."""
    place = live.worker.place if live.worker is not None else ""
    return {"sdstream.machine": place} if place else NO_ATTRIBUTES
