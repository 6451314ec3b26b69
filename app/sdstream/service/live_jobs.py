"""The jobs since the start of the server: their events, their readers, and what is stored of them.

Readers receive an event that ends a job, or an image, after it is written: a restart must not
take it back.
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

#: Ended jobs whose history is kept for readers that come back, some kilobytes each.
_REMEMBERED: Final = 256

#: Events that a restart must not take back; readers receive them when they are on the disk.
_KEPT: Final = (ImageReady, Completed, JobFailed, JobCancelled)


def going_down() -> Unavailable:
    """Return the error for a client that requests a new job during the shutdown."""
    return Unavailable("The server is shutting down.", reason=Reason.SHUTTING_DOWN, retry_after=10)


def standing_by() -> Unavailable:
    """Return the error for clients of a server that stands by."""
    return Unavailable(
        "This server stands by: another one has the jobs.", reason=Reason.STANDBY, retry_after=1
    )


def deferred_error(job: Job) -> Unavailable:
    """Return the error for a client that waits for a deferred job."""
    message = f"The server is going down; the job {job.id} is done after its next start."
    error = Unavailable(message, reason=Reason.SHUTTING_DOWN, retry_after=10)
    if job.terms.idempotency_key is None:
        # A client that tries again by itself would have the work done twice.
        error.retry_after, error.should_retry = None, False
    return error


@dataclass(frozen=True, slots=True)
class Work:
    """What several jobs still take: their images, and seconds of a worker if these are known."""

    images: int
    seconds: float | None

    def plus(self, other: Work) -> Work:
        """Both together."""
        known = self.seconds is not None and other.seconds is not None
        seconds = (self.seconds or 0.0) + (other.seconds or 0.0)
        return Work(self.images + other.images, seconds if known else None)


NO_WORK: Final = Work(0, 0.0)


@dataclass(eq=False)
class LiveJob:
    """A job with what its readers and its end need beside it.

    Attributes:
        job: What is known of it.
        changed: Wakes its readers.
        wanted_ending: What a Cancelled of the worker means for it.
        deferred: It waits for the next start of the server; readers are to leave.
        was_lost: A worker that had it was lost with its machine.
        ahead: Of the waiting jobs before it, as it was found last.
        clock: Unix seconds of its events; a clock that is set in the middle of a job does not make
            its times wrong.
        span: Of the job.
        waits_since: Unix seconds since when it waits, or has waited before it ran.
        loads_since: Unix seconds since when its model is loaded for it, None before.
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

    #: Has the job while it runs.
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
        """True when nothing more will happen to it before the next start of the server."""
        return self.job.terminal or self.deferred


class LiveJobs:
    """Jobs by id, and what their readers wait for.

    Args:
        store: Where they are kept.
        metrics: Counts how they end.
        tracing: Makes their spans.
        on_end: Called when one has ended.
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
        """Take up a job that is stored."""
        live = self._live[job.id] = LiveJob(job, clock, span=self._tracing.job(job))
        return live

    def add_earlier(self, job: Job) -> LiveJob:
        """Take up a job of an earlier run of the server, whose clock may have been ahead."""
        return self.add(job, SteadyClock(max(time.time(), job.created, job.started or 0.0)))

    def known(self, job_id: str) -> LiveJob | None:
        """A job that lives or ended lately."""
        return self._live.get(job_id) or self._recent.get(job_id)

    def apply(self, live: LiveJob, event: JobEvent) -> bool:
        """Take up what happened to a job, store it and wake the readers; False if it is ignored."""
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

    async def find(self, job_id: str, owner: str) -> LiveJob:
        """A job of this owner, whether it lives or ended in the past; raises NotFound."""
        live = self._live.get(job_id)
        if live is None and not self._store.is_written(job_id):
            live = self._recent.get(job_id)  # its row is behind
        job = await self._store.get(job_id) if live is None else None
        if job is not None:  # a job that has expired there is not returned from memory
            live = self._recent.get(job_id) or (LiveJob(job) if job.terminal else None)
        if live is None or live.job.terms.owner != owner:
            raise NotFound("Job not found; it may have expired.", reason=Reason.JOB_NOT_FOUND)
        return live

    async def page(self, owner: str, which: JobFilter, *, limit: int, after: str | None) -> Page:
        """An owner's jobs, newest first; see JobStore.page."""
        page = await self._store.page(owner, which, limit=limit, after=after)
        known = (self._live.get(job.id) for job in page.jobs)
        jobs = [live.job if live else job for live, job in zip(known, page.jobs, strict=True)]
        return Page(jobs, page.more)

    async def earlier_images(self, live: LiveJob) -> list[Entry]:
        """Images of an unfinished job from an earlier run of the server, with their files.

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
        """Wait until the job has ended, or is deferred to the next start.

        Raises:
            StorageFull, Unavailable: It has ended, and its end cannot be written yet.
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
        """Wait until the job's state may be sent: a restart must not take it back.

        Raises:
            StorageFull, Unavailable: It cannot be written yet; see JobStore.settled.
        """
        await self._store.settled(live.job)

    async def mark(self, live: LiveJob, *, favorite: bool) -> None:
        """Make a job a favorite or an ordinary one; raises StorageFull, see JobStore.mark."""
        await self._store.mark(live.job.id, favorite=favorite)
        # A job that ended meanwhile has been replaced by a copy.
        for known in (live, self.known(live.job.id)):
            if known is not None:
                known.job.favorite = favorite

    async def delete(self, live: LiveJob) -> None:
        """Delete an ended job and its images."""
        self._recent.pop(live.job.id, None)
        await self._store.delete(live.job.id)
