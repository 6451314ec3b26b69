"""The jobs that wait and those that run: their places, and when each will be done."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from sdstream.core.job import Job, Queued
from sdstream.core.queue import FairQueue
from sdstream.notifier import Notifier
from sdstream.service.estimates import Speed
from sdstream.service.live_jobs import LiveJob, LiveJobs

#: The clients that honour Retry-After give up on anything longer.
_MAX_RETRY_AFTER: Final = 120
#: What an image takes when none was ever measured.
_GUESSED_SECONDS: Final = 5.0


class JobQueue:
    """The one queue.

    Args:
        jobs: Whose events tell of places.
        changed: Notified when a job may begin.

    Attributes:
        waiting: In the order in which they will go.
        running: Those that have a worker.
        speed: How fast models draw here.
    """

    def __init__(self, jobs: LiveJobs, changed: Notifier) -> None:
        self._jobs = jobs
        self._changed = changed
        self.waiting: FairQueue[LiveJob] = FairQueue()
        self.running: list[LiveJob] = []
        self.speed = Speed()

    def enqueue(self, live: LiveJob, *, first: bool = False) -> None:
        """Put a job in; ``first`` before all others of its class."""
        job = live.job
        self.waiting.push(
            live,
            owner=job.terms.owner,
            images=job.request.n,
            priority=job.terms.priority,
            first=first,
        )
        position = len(self.running) + list(self.waiting).index(live)
        self._jobs.apply(live, Queued(position))
        self.renumber(newcomer=job)
        self._changed.notify()

    def remove(self, live: LiveJob) -> None:
        """Take out a job without its turn, if it waits."""
        if self.waiting.remove(live):
            self.renumber()

    def renumber(self, newcomer: Job | None = None) -> None:
        """Tell the waiting jobs their places.

        What a job was told once grows only when one of a better class came: a fair turn of
        somebody else may delay it, and then its place stays what it was until it is true again.
        """
        for position, live in enumerate(self.waiting, start=len(self.running)):
            known, terms = live.job.queue_position, live.job.terms
            if newcomer is not None and newcomer.terms.priority.outranks(terms.priority):
                known = position
            self._jobs.apply(live, Queued(min(known, position)))

    def seconds_left(self, job: Job) -> float | None:
        """Seconds until an unfinished job ends, None while too little was measured."""
        if job.terminal:
            return None
        own = self._remaining(job)
        running = [live.job for live in self.running]
        if job in running or own is None:
            return own
        ahead = running
        for live in self.waiting:
            if live.job is job:
                break
            ahead.append(live.job)
        seconds = self._seconds_of(ahead)
        return None if seconds is None else own + seconds / max(1, len(self.running))

    def retry_after(self, images: int, owner: str | None) -> int:
        """Seconds until so many images, of one owner or of all, have left the queue."""
        going = [live.job for live in self.running]
        for live in self.waiting:
            if owner in (None, live.job.terms.owner):
                images -= live.job.request.n
            if images <= 0:
                break  # it leaves the queue when its turn comes, not when it is done
            going.append(live.job)
        guess = _GUESSED_SECONDS * sum(job.request.n for job in going)
        seconds = self._seconds_of(going)
        seconds = (guess if seconds is None else seconds) / max(1, len(self.running))
        return min(_MAX_RETRY_AFTER, max(1, math.ceil(seconds)))

    def _seconds_of(self, jobs: Sequence[Job]) -> float | None:
        """Work that is left of all of these, None when that of one is unknown."""
        times = [self._remaining(job) for job in jobs]
        return None if None in times else sum(time for time in times if time is not None)

    def _remaining(self, job: Job) -> float | None:
        """Seconds of work that are left of a job; None when nothing like it was ever measured."""
        image = self.speed.image_seconds(job.request)
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
