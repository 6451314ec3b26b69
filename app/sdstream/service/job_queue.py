"""The jobs that wait and those that run: their places, and when each will be done.

Sending every waiting job its place at every change would cost the square of their number. One task
goes through the queue when something has changed, a few jobs at a time, and then rests for longer
than that took: however many wait and however fast they change, places take a fixed share of the
processor. A job gets its exact place when few are before it, and in coarser steps when many
are.
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

#: The clients that honour Retry-After give up on anything longer.
_MAX_RETRY_AFTER: Final = 120
#: What an image takes when none was ever measured.
_GUESSED_SECONDS: Final = 5.0

#: A place is sent when it differs by more than this part of it: exactly up to twice this.
_COARSENESS: Final = 16
#: Jobs that get their places, or are only looked at, before other tasks of the event loop run.
_TOLD_AT_ONCE: Final = 4
_SEEN_AT_ONCE: Final = 64
#: In a longer queue, a new job gets the upper bound of its place instead of a count.
_COUNTED: Final = 256
#: Rest after each time through the queue, in parts of how long that took.
_REST: Final = 4


class JobQueue:
    """The one queue. ``tell_places`` is a task of the owner.

    Args:
        jobs: Whose events report places.
        changed: Notified when a job may begin.

    Attributes:
        running: Jobs that have a worker.
        speed: How fast models generate here.
    """

    def __init__(self, jobs: LiveJobs, changed: Notifier) -> None:
        self._jobs = jobs
        self._changed = changed
        self.waiting: FairQueue[LiveJob] = FairQueue()
        self.models: Counter[str] = Counter()
        self.running: list[LiveJob] = []
        self.speed = Speed()
        #: Of all that wait, as far as is known.
        self._all_waiting = NO_WORK
        self._moved = asyncio.Event()
        #: The best class of the jobs that came since places were sent.
        self._best_newcomer: Priority | None = None

    def oldest_seconds(self) -> float:
        """Return how long the oldest waiting job has waited, 0 when none waits."""
        return max((live.clock() - live.job.created for live in self.waiting), default=0.0)

    # --- changes --------------------------------------------------------------------------------

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
        """A job that waits has its turn."""
        self.waiting.take(live)
        self._left(live)
        self.running.append(live)

    def remove(self, live: LiveJob) -> None:
        """Take out a job without its turn, if it waits."""
        if self.waiting.remove(live):
            self._left(live)

    def pop(self) -> LiveJob:
        """Take out the next job; raises IndexError when none waits."""
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
        """Jobs before one that has just come; of a long queue the most that there can be."""
        if len(self.waiting) > _COUNTED:
            return self.waiting.jobs(live.job.terms.priority) - 1
        return next(place for place, other in enumerate(self.waiting) if other is live)

    async def tell_places(self) -> None:
        """Send the waiting jobs their places whenever these change, until cancelled."""
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
                continue  # it left meanwhile
            live.ahead = ahead
            ahead = ahead.plus(self._work_of(live))
            told += self._tell(live, len(self.running) + seen, newcomer)
        self._all_waiting = ahead

    def _tell(self, live: LiveJob, position: int, newcomer: Priority | None) -> bool:
        """Send a waiting job its place if it changed enough; returns whether it did.

        The place of a job grows only when a job of a better class came: a fair turn of
        another job may delay it, and then its place stays what it was until it is true again.
        """
        job = live.job
        if job.status is not JobStatus.QUEUED:
            return False  # it is next, and its state shows that
        known = job.queue_position
        may_grow = newcomer is not None and newcomer.outranks(job.terms.priority)
        change = position - known if may_grow else min(0, position - known)
        if abs(change) < max(1, known // _COARSENESS):
            return False
        return self._jobs.apply(live, Queued(known + change))

    # --- times ----------------------------------------------------------------------------------

    def seconds_left(self, job: Job) -> float | None:
        """Seconds until an unfinished job ends, None while too little was measured."""
        if job.terminal:
            return None
        own, live = self._remaining(job), self._jobs.known(job.id)
        if own is None or live is None or live not in self.waiting:
            return own
        ahead = self._running_work().plus(live.ahead)
        return None if ahead.seconds is None else own + ahead.seconds / max(1, len(self.running))

    def retry_after(self, images: int, owner: str | None) -> int:
        """Seconds until so many images, of one owner or of all, have left the queue."""
        ahead = self._all_waiting
        for live in self.waiting if owner is None else self.waiting.of_owner(owner):
            images -= live.job.request.n
            if images <= 0:
                ahead = live.ahead  # it leaves the queue when its turn comes, not when it is done
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
