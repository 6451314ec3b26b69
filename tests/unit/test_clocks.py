"""Changes of the system's clock while the server runs."""

from __future__ import annotations

import time
from typing import cast

import pytest

from sdstream.clocks import SteadyClock
from sdstream.core.job import Completed, ImageReady, ImageResult, Job, Queued, Requeued, Running
from sdstream.core.request import GenerationRequest
from sdstream.service.live_jobs import LiveJobs
from sdstream.service.metrics import Metrics
from sdstream.service.tracing import Tracing
from sdstream.storage.job_store import JobStore

REQUEST = GenerationRequest("m", "p", "", 64, 64, 4, "euler", "default", 1.0, 7, 1)
THREE_DAYS = 3 * 86_400


def test_a_steady_clock_has_what_passed() -> None:
    """A steady clock starts at the given time and advances with the monotonic clock."""
    passed = 5.0
    clock = SteadyClock(1_000_000.0, lambda: passed)
    assert clock() == 1_000_000.0
    passed += 2.5
    assert clock() == 1_000_002.5


class NoStore:
    """A store that keeps nothing."""

    def __getattr__(self, _name: str) -> object:
        return lambda *_: None


@pytest.mark.parametrize("jump", [-THREE_DAYS, THREE_DAYS])
def test_a_clock_that_is_set_in_mid_job(monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    """The job's times stay in order, and their differences are the elapsed times."""
    jobs = LiveJobs(cast(JobStore, NoStore()), Metrics(), Tracing(), lambda: None)
    clock = SteadyClock(time.time())
    live = jobs.add(
        Job(
            "job_1",
            REQUEST,
            clock(),
        ),
        clock,
    )
    jobs.apply(live, Queued(0))
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    image = ImageResult(0, 7, b"png", 3, 4, 0.0, 0.0, 0.0)
    for event in (Running(), ImageReady(image), Completed()):
        assert jobs.apply(live, event)
    job = live.job
    assert job.started is not None
    assert job.ended is not None
    assert job.created <= job.started <= job.ended < job.created + 60
    assert 0 <= job.usage().time_to_process_ms < 60_000
    assert 0 <= live.clock() - job.created < 60


def test_a_job_from_before_the_clock_was_set_back() -> None:
    """After a restart, the job does not start before the time at which it was accepted."""
    jobs = LiveJobs(cast(JobStore, NoStore()), Metrics(), Tracing(), lambda: None)
    job = Job("job_1", REQUEST, time.time() + THREE_DAYS)
    job.apply(Running(), job.created + 10)
    job.apply(Requeued(), job.created + 10)
    live = jobs.add_earlier(job)
    assert jobs.apply(live, Running())
    assert job.started is not None
    assert job.started >= job.created + 10
