"""The waiting and the running jobs, their places in the queue, and estimates of when they end.

Sending every waiting job its place after every change would take quadratic time. Instead, one task
goes through the queue after a change, a few jobs at a time, and then sleeps for a multiple of the
time that this took. The places therefore take a fixed share of the processor, however many jobs
wait and however often the queue changes. A job near the front gets its exact place. A job far
behind gets a new place only after a larger change.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from typing import Final

from sdstream.core.job import Job, JobStatus, Queued
from sdstream.core.queue import FairQueue, Priority
from sdstream.notifier import Notifier
from sdstream.service.estimates import Speed
from sdstream.service.live_jobs import NO_WORK, LiveJob, LiveJobs, Work

#: Longest Retry-After in seconds; clients that honour the header give up on longer times.
_MAX_RETRY_AFTER: Final = 120
#: Assumed seconds of an image when none was measured yet.
_GUESSED_SECONDS: Final = 5.0

#: A new place is sent if it differs by at least this fraction (1/16); below 32, every change is.
_COARSENESS: Final = 16
#: Jobs that get a new place, or are only checked, before other tasks on the event loop run.
_TOLD_AT_ONCE: Final = 4
_SEEN_AT_ONCE: Final = 64
#: In a longer queue, a new job gets an upper bound of its place instead of the exact place.
_COUNTED: Final = 256
#: Pause after each pass through the queue, as a multiple of the pass's duration.
_REST: Final = 4


class JobQueue:
    """The only queue of the server. Its owner runs ``tell_places`` as a task.

    Args:
        jobs: Applies the events that report places.
        changed: Notified when a job may start.

    Attributes:
        running: Jobs that have a worker.
        speed: The measured speed of models.
    """

    def __init__(self, jobs: LiveJobs, changed: Notifier) -> None:
        self._jobs = jobs
        self._changed = changed
        self.waiting: FairQueue[LiveJob] = FairQueue()
        self.models: Counter[str] = Counter()
        self.running: list[LiveJob] = []
        self.speed = Speed()
        #: Work of all waiting jobs: that of the last pass, plus the jobs that came since.
        self._all_waiting = NO_WORK
        self._moved = asyncio.Event()
        #: The best priority of the jobs that came since the last pass.
        self._best_newcomer: Priority | None = None

    def oldest_seconds(self) -> float:
        """Return how long the oldest waiting job has waited, 0 if none waits."""
        return max((live.clock() - live.job.created for live in self.waiting), default=0.0)

    # --- changes --------------------------------------------------------------------------------

    def enqueue(self, live: LiveJob, *, first: bool = False) -> None:
        """Add a job to the queue; with ``first``, before all others of its priority."""
        job = live.job
        self.waiting.push(
            live,
            owner=job.terms.owner,
            images=job.request.n,
            priority=job.terms.priority,
            first=first,
        )
        self.models[job.request.model] += 1
        live.ahead = self._all_waiting
        self._all_waiting = live.ahead.plus(self._work_of(live))
        self._jobs.apply(live, Queued(len(self.running) + self._first_place(live)))
        best = self._best_newcomer
        if best is None or job.terms.priority.outranks(best):
            self._best_newcomer = job.terms.priority
        self._moved.set()
        self._changed.notify()

    def begin(self, live: LiveJob) -> None:
        """Move a waiting job to the running jobs."""
        self.waiting.take(live)
        self._left(live)
        self.running.append(live)

    def remove(self, live: LiveJob) -> None:
        """Remove a job from the queue without starting it; do nothing if it is not there."""
        if self.waiting.remove(live):
            self._left(live)

    def pop(self) -> LiveJob:
        """Remove and return the next job; raises IndexError if none waits."""
        live = self.waiting.pop()
        self._left(live)
        return live

    def _left(self, live: LiveJob) -> None:
        model = live.job.request.model
        self.models[model] -= 1
        if not self.models[model]:
            del self.models[model]
        self._moved.set()

    # --- places ---------------------------------------------------------------------------------

    def _first_place(self, live: LiveJob) -> int:
        """Return the number of jobs before a new one, or an upper bound in a long queue."""
        if len(self.waiting) > _COUNTED:
            return self.waiting.jobs(live.job.terms.priority) - 1
        return next(place for place, other in enumerate(self.waiting) if other is live)

    async def tell_places(self) -> None:
        """Send the waiting jobs their places after each change, until cancelled."""
        clock = asyncio.get_running_loop().time
        while True:
            await self._moved.wait()
            self._moved.clear()
            began = clock()
            newcomer, self._best_newcomer = self._best_newcomer, None
            await self._go_through(newcomer)
            await asyncio.sleep(_REST * (clock() - began))

    async def _go_through(self, newcomer: Priority | None) -> None:
        told = 0
        ahead = NO_WORK
        for seen, live in enumerate(self.waiting.snapshot()):
            if told == _TOLD_AT_ONCE or seen % _SEEN_AT_ONCE == _SEEN_AT_ONCE - 1:
                told = 0
                await asyncio.sleep(0)
            if live not in self.waiting:
                continue  # it left the queue meanwhile
            live.ahead = ahead
            ahead = ahead.plus(self._work_of(live))
            told += self._tell(live, len(self.running) + seen, newcomer)
        self._all_waiting = ahead

    def _tell(self, live: LiveJob, position: int, newcomer: Priority | None) -> bool:
        """Send a waiting job its place if that changed enough; return whether it was sent.

        The reported place grows only if a job of a better priority came. If another owner's job
        goes first for fairness, the reported place stays the same until it is correct again.
        """
        job = live.job
        if job.status is not JobStatus.QUEUED:
            return False  # the job is next, and its status (loading) shows that
        known = job.queue_position
        may_grow = newcomer is not None and newcomer.outranks(job.terms.priority)
        change = position - known if may_grow else min(0, position - known)
        if abs(change) < max(1, known // _COARSENESS):
            return False
        return self._jobs.apply(live, Queued(known + change))

    # --- times ----------------------------------------------------------------------------------

    def seconds_left(self, job: Job) -> float | None:
        """Return the estimated seconds until a job ends.

        None if the job has ended, or if no similar image was measured.
        """
        if job.terminal:
            return None
        own, live = self._remaining(job), self._jobs.known(job.id)
        if own is None or live is None or live not in self.waiting:
            return own
        ahead = self._running_work().plus(live.ahead)
        return None if ahead.seconds is None else own + ahead.seconds / max(1, len(self.running))

    def retry_after(self, images: int, owner: str | None) -> int:
        """Return the seconds until ``images`` images, of one owner or of all, leave the queue."""
        ahead = self._all_waiting
        for live in self.waiting if owner is None else self.waiting.of_owner(owner):
            images -= live.job.request.n
            if images <= 0:
                ahead = live.ahead  # a job leaves the queue when it starts, not when it ends
                break
        work = self._running_work().plus(ahead)
        seconds = _GUESSED_SECONDS * work.images if work.seconds is None else work.seconds
        seconds /= max(1, len(self.running))
        return min(_MAX_RETRY_AFTER, max(1, math.ceil(seconds)))

    def _running_work(self) -> Work:
        work = NO_WORK
        for live in self.running:
            work = work.plus(self._work_of(live))
        return work

    def _work_of(self, live: LiveJob) -> Work:
        return Work(live.job.request.n, self._remaining(live.job))

    def _remaining(self, job: Job) -> float | None:
        """Return the seconds of work left of a job; None if no similar image was measured."""
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
            speed = None  # it may be that of the first pass; the second pass is slower
        now = steps_left / speed if speed else image * steps_left / max(1, current.steps)
        return now + image * (left - 1)
