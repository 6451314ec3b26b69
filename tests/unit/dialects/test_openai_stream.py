"""Conversion of a job's events to OpenAI's stream, alone and combined with image.chunk."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any, Literal

import pytest

from sdstream.core.errors import Reason
from sdstream.core.job import (
    Completed,
    Entry,
    ImageReady,
    ImageResult,
    Job,
    JobEvent,
    JobFailed,
    PreviewReady,
    Queued,
    Running,
)
from sdstream.core.messages import Phase, Progress
from sdstream.core.request import GenerationRequest
from sdstream.dialects.openai.image_chunk import ChunkOptions, ImageChunkStream
from sdstream.dialects.openai.stream import OpenAIStream
from sdstream.dialects.rendering import ResponseFormat

GOLDEN = Path(__file__).parents[2] / "golden"
DONE = b"data: [DONE]\n\n"


def job_of(n: int = 1) -> Job:
    """A job that was just accepted."""
    request = GenerationRequest("m", "a cat", "", 64, 64, 2, "euler", "default", 3.0, 9, n)
    return Job("job_1", request, 1000.0)


def image(index: int) -> ImageReady:
    """A finished image."""
    return ImageReady(ImageResult(index, 9 + index, b"image", 5, 2, 0.5, 1.0, 0.5))


def play(
    *events: JobEvent, n: int = 1, operation: Literal["generation", "edit"] = "generation"
) -> list[bytes]:
    """Return the frames of OpenAI's stream for a job to which these events happen."""
    job = job_of(n)
    stream = OpenAIStream(job, ResponseFormat(), operation)
    frames: list[bytes] = []
    for at, event in enumerate(events, start=1001):
        assert job.apply(event, float(at))
        frames += stream.frames(Entry(float(at), event))
    return frames


def events_of(frames: list[bytes]) -> list[dict[str, Any]]:
    """Return the JSON of every frame except [DONE]."""
    return [json.loads(frame.removeprefix(b"data: ")) for frame in frames if frame != DONE]


STORY = (
    Queued(0), Running(), PreviewReady(0, 1, b"one"), Progress("job_1", 0, Phase.SAMPLING, 1, 2),
    PreviewReady(0, 2, b"two"), image(0), Completed(),
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "events"),
    [
        ("openai_success", STORY),
        ("openai_failure", (Running(), JobFailed(Reason.WORKER_CRASHED, "It died."))),
    ],
)
def test_golden_streams(name: str, events: tuple[JobEvent, ...]) -> None:
    """The stream is the golden file, byte for byte."""
    assert b"".join(play(*events)) == (GOLDEN / f"{name}.sse").read_bytes()


def test_pictures_only() -> None:
    """The stream has numbered partial images and a completed event with usage, but no progress."""
    frames = play(*STORY)
    events = events_of(frames)
    assert [event["type"].partition(".")[2] for event in events] == [
        "partial_image",
        "partial_image",
        "completed",
    ]
    assert [event.get("partial_image_index") for event in events] == [0, 1, None]
    assert base64.b64decode(events[2]["b64_json"]) == b"image"
    assert set(events[2]["usage"]) >= {
        "input_tokens", "output_tokens", "total_tokens", "input_tokens_details",
    }  # fmt: skip
    assert frames[-1] == DONE


def test_edits_have_their_own_names() -> None:
    """Events of an edit begin with image_edit instead of image_generation."""
    (event,) = events_of(play(Running(), image(0), operation="edit"))
    assert event["type"] == "image_edit.completed"


def test_one_completed_event_an_image() -> None:
    """With n above 1, each completed event contains the image's index."""
    events = events_of(play(Running(), image(0), image(1), Completed(), n=2))
    assert [(event["index"], event["seed"]) for event in events] == [(0, 9), (1, 10)]


def test_both_dialects_in_one_frame() -> None:
    """The last image.chunk frame is also OpenAI's completed event."""
    job = job_of()
    options = ChunkOptions(ResponseFormat(), completed_type="image_generation.completed")
    stream = ImageChunkStream(job, options)
    frames: list[bytes] = []
    for event in (Running(), image(0), Completed()):
        job.apply(event, 1001.0)
        frames += stream.frames(Entry(1001.0, event))
    first, last = events_of(frames)
    assert first["type"] == "image_generation.progress"
    assert last["type"] == "image_generation.completed"
    assert last["b64_json"] == last["data"][0]["b64_json"]
    assert last["data"][0]["progress"] == 100.0
    assert last["usage"]["total_tokens"] > 0
