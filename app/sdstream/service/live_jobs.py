"""The jobs of this run of the server: their events, their readers, and the writes to the store.

Readers receive an image, or the end of a job, only after it is stored: a restart must not undo
what a client has received.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Final

from sdstream.clocks import SteadyClock
from sdstream.core.errors import NotFound, Reason, Unavailable
from sdstream.core.job import (
    Completed,
    Entry,
    ImageReady,
    Job,
    JobCancelled,
    JobEvent,
    JobFailed,
    Loading,
    Requeued,
)
from sdstream.core.job_filter import JobFilter
from sdstream.engine.worker import Worker
from sdstream.notifier import Notifier
from sdstream.service.metrics import Metrics
from sdstream.service.tracing import NO_SPAN, Attributes, Span, Tracing
from sdstream.storage.job_rows import Page
from sdstream.storage.job_store import JobStore

#: Ended jobs whose events are kept in memory for clients that reconnect; some kilobytes each.
_REMEMBERED: Final = 256

#: Events that a restart must not undo; readers receive them once they are stored.
_KEPT: Final = (ImageReady, Completed, JobFailed, JobCancelled)


def going_down() -> Unavailable:
    """Return the error for a client that requests a new job during the shutdown."""
    return Unavailable("The server is shutting down.", reason=Reason.SHUTTING_DOWN, retry_after=10)


def standing_by() -> Unavailable:
    """Return the error for clients of a standby server."""
    return Unavailable(
        "This server is on standby: another server runs the jobs.",
        reason=Reason.STANDBY,
        retry_after=1,
    )


def deferred_error(job: Job) -> Unavailable:
    """Return the error for a client that waits for a deferred job."""
    message = f"The server is shutting down; it will run the job {job.id} after its next start."
    error = Unavailable(message, reason=Reason.SHUTTING_DOWN, retry_after=10)
    if job.terms.idempotency_key is None:
        # A client that retries automatically would submit a second job.
        error.retry_after, error.should_retry = None, False
    return error


@dataclass(frozen=True, slots=True)
class Work:
    """Remaining work of jobs: their images, and the seconds that one worker needs, if known."""

    images: int
    seconds: float | None

    def plus(self, other: Work) -> Work:
        """Return the sum of both."""
        known = self.seconds is not None and other.seconds is not None
        seconds = (self.seconds or 0.0) + (other.seconds or 0.0)
        return Work(self.images + other.images, seconds if known else None)


NO_WORK: Final = Work(0, 0.0)


@dataclass(eq=False)
class LiveJob:
    """A job with its state in this run of the server.

    Attributes:
        job: The job.
        changed: Wakes the readers of the job.
        wanted_ending: The ending to apply when the worker reports Cancelled; None until the
            server has cancelled the job.
        deferred: The job waits for the next start of the server; readers must stop.
        was_lost: A worker that ran the job was lost with its machine.
        ahead: Work of the waiting jobs before this one, as of the last pass through the queue.
        clock: Unix seconds of the job's events; setting the system's clock does not affect it.
        span: Span of the job.
        waits_since: Unix seconds when the latest wait in the queue began.
        loads_since: Unix seconds when the loading of the model began, None before.
    """

    job: Job
    clock: SteadyClock = field(default_factory=lambda: SteadyClock(time.time()))
    changed: Notifier = field(default_factory=Notifier)
    wanted_ending: JobCancelled | JobFailed | None = None
    deferred: bool = False
    was_lost: bool = False
    ahead: Work = NO_WORK
    span: Span = NO_SPAN
    waits_since: float = field(init=False)
    loads_since: float | None = None

    #: The worker and the task that run the job, None while it does not run.
    worker: Worker | None = None
    task: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self.waits_since = self.job.created

    def end_span(self, outcome: str) -> None:
        """End the span of the job."""
        ending = self.job.ending
        error = ending.reason.value if isinstance(ending, JobFailed) else ""
        found: Attributes = {
            "sdstream.outcome": outcome,
            "sdstream.finished_images": len(self.job.images),
        }
        self.span.end(self.clock(), found, error=error)

    @property
    def over(self) -> bool:
        """True when nothing more will happen to the job before the next start of the server."""
        return self.job.terminal or self.deferred


class LiveJobs:
    """The unfinished and the recently ended jobs by id, and access to all stored jobs.

    Args:
        store: Stores the jobs.
        metrics: Counts ended jobs.
        tracing: Creates the jobs' spans.
        on_end: Called when a job has ended.
    """

    def __init__(
        self, store: JobStore, metrics: Metrics, tracing: Tracing, on_end: Callable[[], None]
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._tracing = tracing
        self._ended = on_end
        self._live: dict[str, LiveJob] = {}
        self._recent: OrderedDict[str, LiveJob] = OrderedDict()

    def add(self, job: Job, clock: SteadyClock) -> LiveJob:
        """Add a job that is already stored."""
        live = self._live[job.id] = LiveJob(job, clock, span=self._tracing.job(job))
        return live

    def add_earlier(self, job: Job) -> LiveJob:
        """Add a job of an earlier run of the server, whose clock may have been ahead."""
        return self.add(job, SteadyClock(max(time.time(), job.created, job.started or 0.0)))

    def known(self, job_id: str) -> LiveJob | None:
        """Return a job that is unfinished or ended recently, None for any other."""
        return self._live.get(job_id) or self._recent.get(job_id)

    def apply(self, live: LiveJob, event: JobEvent) -> bool:
        """Apply an event to a job, queue its write and wake the readers; False if it is ignored."""
        job = live.job
        if live.deferred or not job.apply(event, live.clock()):
            return False
        match event:
            case ImageReady(image):
                self._store.note_image(job, image)
            case Loading():
                live.loads_since = live.clock()
                self._store.note(job)
            case Requeued():
                live.waits_since, live.loads_since = live.clock(), None
                self._store.note(job)
        if job.terminal:
            self._store.note_end(job)
            self._ended()
            self._live.pop(job.id, None)
            self._recent[job.id] = LiveJob(job.without_files())
            while len(self._recent) > _REMEMBERED:
                self._recent.popitem(last=False)
            self._metrics.jobs.labels(job.request.model, job.status.value).inc()
            live.end_span(job.status.value)
        live.changed.notify()
        return True

    # --- for readers ----------------------------------------------------------------------------

    async def find(self, job_id: str, owner: str, param: str | None = None) -> LiveJob:
        """Return a job of this owner, unfinished or ended; raises NotFound.

        Args:
            job_id: Id of the job.
            owner: Owner of the job.
            param: The client's field that contains the id, for the error.
        """
        live = self._live.get(job_id)
        if live is None and not self._store.is_written(job_id):
            live = self._recent.get(job_id)  # its end is not in the row yet
        # A database cannot look for unpaired surrogates, which JSON may contain; ids are ASCII.
        job = await self._store.get(job_id) if live is None and job_id.isascii() else None
        if job is not None:  # a job that expired from the store is not returned from memory
            live = self._recent.get(job_id) or (LiveJob(job) if job.terminal else None)
        if live is None or live.job.terms.owner != owner:
            raise NotFound(
                "Job not found; it may have expired.", reason=Reason.JOB_NOT_FOUND, param=param
            )
        return live

    async def page(self, owner: str, which: JobFilter, *, limit: int, after: str | None) -> Page:
        """Return a page of an owner's jobs, newest first; see JobStore.page."""
        page = await self._store.page(owner, which, limit=limit, after=after)
        known = (self._live.get(job.id) for job in page.jobs)
        jobs = [live.job if live else job for live, job in zip(known, page.jobs, strict=True)]
        return Page(jobs, page.more)

    async def earlier_images(self, live: LiveJob) -> list[Entry]:
        """Return the images that an unfinished job had before the server restarted, with files.

        The job's entries do not contain them.
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
        """Return an ended job with its image files; raises NotFound if they were deleted."""
        if all(image.data is not None for image in job.images.values()):
            return job
        try:
            return await self._store.with_files(job)
        except FileNotFoundError:
            raise NotFound(
                "The job's images have expired.", reason=Reason.IMAGE_NOT_FOUND
            ) from None

    async def follow(
        self, live: LiveJob, idle_seconds: float, start: int = 0
    ) -> AsyncIterator[Entry | None]:
        """Yield the events of a job, past and coming, until its end.

        Args:
            live: The job.
            idle_seconds: Seconds without an event after which None is yielded.
            start: Number of entries to skip.

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
                # Let other tasks run, else this loop continues even if its client has left.
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
        """Wait until the job has ended, or is deferred until the server starts again.

        Raises:
            StorageFull, Unavailable: The job has ended, but its end cannot be stored yet.
        """
        await self.end_of(live)
        await self.settled(live)
        return live.job

    async def end_of(self, live: LiveJob) -> None:
        """Wait until nothing more will happen to the job before the next start of the server."""
        while not live.over:
            await live.changed.wait()

    async def until_written(self, live: LiveJob, idle_seconds: float) -> AsyncIterator[None]:
        """Wait until the job's state may be sent; yields after each ``idle_seconds`` of waiting."""
        while not self._store.is_written(live.job.id):
            try:
                async with asyncio.timeout(idle_seconds):
                    await self._store.written(live.job)
                return
            except TimeoutError:
                yield None

    async def settled(self, live: LiveJob) -> None:
        """Wait until the job's state may be sent: a restart must not undo it.

        Raises:
            StorageFull, Unavailable: The state cannot be stored yet; see JobStore.settled.
        """
        await self._store.settled(live.job)

    async def mark(self, live: LiveJob, *, favorite: bool) -> None:
        """Mark a job as a favorite, or remove the mark; raises StorageFull, see JobStore.mark."""
        await self._store.mark(live.job.id, favorite=favorite)
        # A job that ended meanwhile has been replaced by a copy.
        for known in (live, self.known(live.job.id)):
            if known is not None:
                known.job.favorite = favorite

    async def delete(self, live: LiveJob) -> None:
        """Delete an ended job and its images."""
        self._recent.pop(live.job.id, None)
        await self._store.delete(live.job.id)
