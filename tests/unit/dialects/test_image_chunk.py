"""Conversion of a job's events to the stream of GPUStack and llama-box."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
    Loading,
    PreviewReady,
    Queued,
    Requeued,
    Running,
)
from sdstream.core.messages import Phase, Progress
from sdstream.core.request import GenerationRequest
from sdstream.dialects.openai.image_chunk import ChunkOptions, ImageChunkStream
from sdstream.dialects.rendering import ResponseFormat

GOLDEN = Path(__file__).parents[2] / "golden"


def a_stream(
    n: int = 1, options: ChunkOptions | None = None, steps: int = 2
) -> tuple[Job, ImageChunkStream]:
    """A new job with this many steps per image, and its stream."""
    request = GenerationRequest("m", "a cat", "", 64, 64, steps, "euler", "default", 3.0, 9, n)
    job = Job("job_1", request, 1000.0)
    return job, ImageChunkStream(job, options or ChunkOptions(ResponseFormat()))


def play(
    *events: JobEvent, n: int = 1, options: ChunkOptions | None = None, steps: int = 2
) -> list[bytes]:
    """Return the frames of a job to which these events happen, at second 1001, 1002 …"""
    job, stream = a_stream(n, options, steps)
    frames: list[bytes] = []
    for at, event in enumerate(events, start=1001):
        assert job.apply(event, float(at))
        frames += stream.frames(Entry(float(at), event))
    return frames


def step(index: int, number: int, phase: Phase = Phase.SAMPLING) -> Progress:
    """Progress of an image with two steps."""
    return Progress("job_1", index, phase, number, 2)


def image(index: int, data: bytes = b"image") -> ImageReady:
    """A finished image."""
    return ImageReady(ImageResult(index, 9 + index, data, len(data), 2, 0.5, 1.0, 0.5))


def items(frames: list[bytes]) -> list[dict[str, Any]]:
    """Return the single item of each data frame."""
    bodies = [json.loads(f.removeprefix(b"data: ")) for f in frames if f != b"data: [DONE]\n\n"]
    return [body["data"][0] for body in bodies]


WHOLE = (
    Queued(1), Queued(0), Loading(), Running(), step(0, 0, Phase.ENCODING), step(0, 0),
    step(0, 1), step(0, 2), step(0, 2, Phase.DECODING), image(0), Completed(),
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "events"),
    [
        ("image_chunk_success", WHOLE),
        (
            "image_chunk_failure",
            (Queued(0), Running(), step(0, 1), JobFailed(Reason.WORKER_CRASHED, "It died.")),
        ),
    ],
)
def test_golden_streams(name: str, events: tuple[JobEvent, ...]) -> None:
    """The stream is the golden file, byte for byte."""
    golden = GOLDEN / f"{name}.sse"
    assert b"".join(play(*events)) == golden.read_bytes()


def test_one_frame_a_step_below_100_until_the_image() -> None:
    """Progress is 100·k/(N+1), and reaches 100 only with the image."""
    seen = items(play(*WHOLE))
    assert [item["progress"] for item in seen] == [0, 0, 0, 0, 33.33, 66.67, 100]
    assert [("b64_json" in item) for item in seen] == [False] * 6 + [True]
    assert [item["status"] for item in seen[:4]] == ["queued", "queued", "loading", "running"]


def test_usage_comes_with_the_last_image() -> None:
    """Only the last image's frame contains usage."""
    frames = play(Running(), image(0), image(1), Completed(), n=2)
    bodies = [json.loads(frame.removeprefix(b"data: ")) for frame in frames[1:3]]
    assert bodies[0]["usage"] is None
    assert bodies[1]["usage"]["generation_per_second"] == 2.0


def test_usage_can_be_left_out() -> None:
    """include_usage false omits usage."""
    frames = play(Running(), image(0), options=ChunkOptions(ResponseFormat(), include_usage=False))
    assert json.loads(frames[-1].removeprefix(b"data: "))["usage"] is None


def test_previews_ride_on_their_step() -> None:
    """A preview is sent with the progress of its step."""
    frames = play(Running(), PreviewReady(0, 1, b"small"), step(0, 1), step(0, 2))
    assert [item.get("preview") for item in items(frames)] == [None, True, None]


def test_keep_alive_repeats_the_last_progress_without_its_preview() -> None:
    """A keep-alive repeats the last progress without its preview."""
    job, stream = a_stream()
    assert stream.keep_alive() == []
    for event in (Running(), PreviewReady(0, 1, b"small"), step(0, 1)):
        job.apply(event, 1001.0)
        stream.frames(Entry(1001.0, event))
    (again,) = items(stream.keep_alive())
    assert (again["progressed_steps"], "b64_json" in again) == (1, False)


def test_between_images_the_next_one_is_repeated() -> None:
    """Between images, a keep-alive reports the next image; after the last, nothing is sent."""
    job, stream = a_stream(n=2)
    told = []
    for event in (Running(), step(0, 2), image(0), step(1, 0, Phase.ENCODING), image(1)):
        job.apply(event, 1001.0)
        stream.frames(Entry(1001.0, event))
        told.append([(item["index"], item["progress"]) for item in items(stream.keep_alive())])
    assert told == [[(0, 0.0)], [(0, 66.67)], [(1, 0.0)], [(1, 0.0)], []]


def test_a_second_try_takes_no_image_back() -> None:
    """A retry continues at the first missing image, and sends nothing if none is missing."""
    again = (Requeued(), Queued(1), Running())
    events = (Running(), step(0, 2), image(0), *again, step(1, 1), image(1), Completed())
    frames = items(play(*events, n=2))
    seen = [(item["index"], item["progress"]) for item in frames]
    assert seen == [(0, 0), (0, 66.67), (0, 100), (1, 0), (1, 0), (1, 33.33), (1, 100)]
    assert play(Running(), image(0), *again, Completed())[2:] == [b"data: [DONE]\n\n"]


@pytest.mark.parametrize("data_url", [False, True])
def test_pieces_add_up_to_the_image(data_url: bool) -> None:
    """With chunk_result, the pieces join to the image, and only the last has progress 100."""
    picture = image(0, b"x" * 4000)
    options = ChunkOptions(ResponseFormat(data_url=data_url), chunk_size=1024)
    whole = play(Running(), picture, options=ChunkOptions(ResponseFormat(data_url=data_url)))
    pieces = items(play(Running(), picture, options=options))[1:]
    assert len(pieces) > 3
    assert "".join(piece["b64_json"] for piece in pieces) == items(whole)[-1]["b64_json"]
    progress = [piece["progress"] for piece in pieces]
    assert progress == sorted(progress)
    assert all(value < 100 for value in progress[:-1])
    assert [piece["finish_reason"] for piece in pieces] == [None] * (len(pieces) - 1) + ["stop"]


def test_pieces_of_an_upscale() -> None:
    """The pieces of an upscaled image continue the progress of its tiles."""
    tiles = [Progress("job_1", 0, Phase.UPSCALING, number, 4) for number in (1, 2, 3, 4)]
    picture = ImageReady(ImageResult(0, 9, b"x" * 4000, 4000, 0, 0.0, 1.0, 0.5))
    options = ChunkOptions(ResponseFormat(), chunk_size=1024)
    seen = items(play(Running(), *tiles, picture, options=options, steps=0))[1:]
    progress = [item["progress"] for item in seen]
    assert progress == sorted(progress)
    assert {item["progress_steps"] for item in seen} == {5}


def test_frames_are_single_data_lines() -> None:
    """Each frame is one data line and a blank line with LF, which simple parsers expect."""
    for frame in play(*WHOLE):
        assert frame.startswith(b"data: ")
        assert frame.endswith(b"\n\n")
        assert frame.count(b"\n") == 2
        assert b"\r" not in frame
