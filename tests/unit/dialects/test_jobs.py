"""Conversion of a job's events to the JSON of its server-sent events."""

from __future__ import annotations

import json
from typing import Any

from sdstream.core.job import (
    ImageReady,
    ImageResult,
    Job,
    JobEvent,
    Queued,
    Requeued,
    Running,
)
from sdstream.core.messages import Phase, Progress
from sdstream.core.request import GenerationRequest
from sdstream.dialects.jobs import JobEvents, job_fields


def image(index: int) -> ImageReady:
    """A finished image."""
    return ImageReady(ImageResult(index, 9 + index, b"image", 5, 4, 0.5, 1.0, 0.5))


def test_events_after_another_try() -> None:
    """A copy that is updated with each event is the job, also when the job waits again."""
    request = GenerationRequest("m", "a cat", "", 64, 64, 4, "euler", "default", 3.0, 9, 2)
    job = Job("job_1", request, 1000.0)
    job.images = {0: image(0).image}
    job.first_event = 7  # the first image is from an earlier run of the server
    rendering = JobEvents(job, "", lambda: None)
    copy = job_fields(job, "", None)
    again: list[dict[str, Any]] = []
    events: list[JobEvent] = [
        Queued(0), Running(), Progress("job_1", 1, Phase.SAMPLING, 3, 4), Requeued(), Running(),
        image(1), Requeued(),
    ]  # fmt: skip
    for event in events:
        assert job.apply(event, 1001.0)
        text = rendering.event(job.last_event, job.entries[-1])
        assert text is not None
        data = json.loads(text.partition(b"data: ")[2])
        if not isinstance(event, ImageReady):
            copy |= data
        if isinstance(event, Requeued):
            again.append(data)
            now = job_fields(job, "", None)
            moving = ("status", "queue_position", "progress", "index", "step", "steps")
            assert {name: copy[name] for name in moving} == {name: now[name] for name in moving}
    assert [data["progress"] for data in again] == [50.0, 99.99]
    replayed = rendering.event(job.first_event + 4, job.entries[3])
    assert replayed is not None
    assert json.loads(replayed.partition(b"data: ")[2])["progress"] == 50.0
