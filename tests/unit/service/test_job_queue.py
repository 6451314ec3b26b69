"""Queue positions that a long queue reports, and what reporting costs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, cast

from sdstream.core.job import Job, JobEvent, Terms
from sdstream.core.queue import Priority
from sdstream.core.request import GenerationRequest
from sdstream.notifier import Notifier
from sdstream.service.job_queue import JobQueue
from sdstream.service.live_jobs import LiveJob, LiveJobs

REQUEST = GenerationRequest("m", "p", "", 64, 64, 4, "euler", "default", 1.0, 7, 1)


class CountingJobs:
    """Applies events to jobs and counts them, without a store."""

    def __init__(self) -> None:
        self.told = 0

    def apply(self, live: LiveJob, event: JobEvent) -> bool:
        """Apply an event and count it."""
        news = live.job.apply(event, 0.0)
        self.told += news
        return news


def live_of(number: int, **terms: Any) -> LiveJob:
    """A waiting job."""
    return LiveJob(Job(f"job_{number}", REQUEST, 0.0, Terms(**terms)))


def with_queue(body: Callable[[JobQueue, CountingJobs], Coroutine[Any, Any, None]]) -> None:
    """Run a test while the task that reports positions runs."""

    async def both() -> None:
        jobs = CountingJobs()
        queue = JobQueue(cast(LiveJobs, jobs), Notifier())
        telling = asyncio.create_task(queue.tell_places())
        await body(queue, jobs)
        telling.cancel()
        with suppress(asyncio.CancelledError):
            await telling

    asyncio.run(both())


async def until_told(queue: JobQueue, jobs: CountingJobs) -> None:
    """Wait until no position has been reported for 0.3 seconds."""
    while True:
        before = jobs.told
        await asyncio.sleep(0.3)
        if jobs.told == before and not queue._moved.is_set():
            return


def test_a_crowd_that_leaves_is_not_told_of_every_departure() -> None:
    """Positions stay correct to a sixteenth, with far fewer events than one per job and change."""

    async def body(queue: JobQueue, jobs: CountingJobs) -> None:
        crowd = [live_of(number) for number in range(1_000)]
        for live in crowd:
            queue.enqueue(live)
            await asyncio.sleep(0)
        jobs.told = 0
        for live in crowd[:900]:
            queue.remove(live)
            await asyncio.sleep(0)
        await until_told(queue, jobs)
        # One event per job and change would be half a million.
        assert jobs.told < 100_000
        for place, live in enumerate(crowd[900:]):
            assert place <= live.job.queue_position <= place + place // 15
        assert [live.job.queue_position for live in crowd[900:932]] == [*range(32)]

    with_queue(body)


def test_places_of_a_short_queue_are_exact() -> None:
    """The positions are exact even after a job of a higher class moves the others back."""

    async def body(queue: JobQueue, jobs: CountingJobs) -> None:
        waiting = [live_of(number) for number in range(20)]
        for live in waiting:
            queue.enqueue(live)
        assert [live.job.queue_position for live in waiting] == [*range(20)]
        queue.enqueue(live_of(20, priority=Priority.HIGH))
        await until_told(queue, jobs)
        assert [live.job.queue_position for live in waiting] == [*range(1, 21)]

    with_queue(body)


def test_a_newcomer_of_a_long_queue_is_told_no_place_that_is_too_good() -> None:
    """A new job first gets the worst possible position, until the queue has been traversed."""

    async def body(queue: JobQueue, jobs: CountingJobs) -> None:
        for number in range(400):
            queue.enqueue(live_of(number, owner="many"))
        single = live_of(400, owner="single")
        queue.enqueue(single)
        assert single.job.queue_position == 400
        await until_told(queue, jobs)
        assert single.job.queue_position == 1

    with_queue(body)
