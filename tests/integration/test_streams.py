"""Streams of the image.chunk dialect over the wire, with the fake engine."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.jobs import begin, wait_for
from tests.support.servers import DONE, Call, ServerProcess, running_server

QUICK: dict[str, Any] = {"prompt": "a circle", "stream": True, "size": "64x64", "sample_steps": 4}


def items(server: ServerProcess, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the single item of every frame of a stream."""
    return [item for event in Call(server, body).events() for item in event["data"]]


def decoded(item: dict[str, Any]) -> Image.Image:
    """Decode the image that is attached to an item."""
    return Image.open(io.BytesIO(base64.b64decode(item["b64_json"], validate=True)))


def test_frames_have_one_form(fake_server: ServerProcess) -> None:
    """A frame is `data: ` and one line of JSON, ended by two LF.

    Other fields and comment lines each break some client.
    """
    frames = list(
        Call(fake_server, {**QUICK, "n": 2, "stream_options": {"preview": True}}).frames()
    )
    assert frames[-1] == DONE
    for frame in frames[:-1]:
        assert re.fullmatch(rb"data: \{[^\r\n]*\}\n\n", frame)
        assert isinstance(json.loads(frame[6:]), dict)


def test_frames_name_their_job_and_model(fake_server: ServerProcess) -> None:
    """Every frame has the members of GPUStack's format, and the id in X-Job-Id."""
    call = Call(fake_server, QUICK)
    for event in call.events():
        assert event["object"] == "list"
        assert event["type"] == "image_generation.progress"
        assert event["job_id"] == call.answer.headers["X-Job-Id"]
        assert event["model"] == "embedded"
        assert isinstance(event["created"], int)
        (item,) = event["data"]
        assert item["object"] == "image.chunk"
        assert {"index", "progress", "progressed_steps", "progress_steps", "finish_reason"} <= {
            *item
        }


def test_headers_of_a_stream(fake_server: ServerProcess) -> None:
    """The headers of a stream declare its type, and ask proxies not to buffer it."""
    headers = Call(fake_server, QUICK).answer.headers
    assert headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert headers["Cache-Control"] == "no-cache, no-transform"
    assert headers["X-Accel-Buffering"] == "no"
    assert headers["X-Request-Id"]
    assert headers["X-Job-Id"]


def test_accept_chooses_no_form_of_a_stream(fake_server: ServerProcess) -> None:
    """The Accept header does not change the format of a stream."""
    for accept in ("application/json", "image/png", "text/event-stream"):
        answer = Call(fake_server, QUICK, {"Accept": accept}).answer
        assert answer.headers["Content-Type"].startswith("text/event-stream")


def test_progress_grows_and_is_below_100_until_the_image_is_there(
    fake_server: ServerProcess,
) -> None:
    """Progress is 100·k/(N+1) after step k of N; only the frame with the image has 100."""
    got = items(fake_server, {**QUICK, "n": 3})
    for index in range(3):
        mine = [item for item in got if item["index"] == index]
        assert all(a["progress"] <= b["progress"] for a, b in pairwise(mine))
        steps = {i["progressed_steps"]: i["progress"] for i in mine if not i["finish_reason"]}
        assert steps == {k: 20.0 * k for k in range(0 if index == 0 else 1, 5)}
        assert [i["progress"] for i in mine if "b64_json" in i] == [100]
        assert [i["finish_reason"] for i in mine if i["progress"] == 100] == ["stop"]
        assert mine[-1]["progressed_steps"] == mine[-1]["progress_steps"] == 5
        assert decoded(mine[-1]).size == (64, 64)


def test_n_images_have_their_indexes_and_seeds(fake_server: ServerProcess) -> None:
    """Image i of n has index i and seed + i."""
    got = items(fake_server, {**QUICK, "n": 3, "seed": 40})
    finals = [(i["index"], i["seed"]) for i in got if i["finish_reason"]]
    assert finals == [(0, 40), (1, 41), (2, 42)]


def test_usage_comes_with_the_last_image_only(fake_server: ServerProcess) -> None:
    """Only the frame of the last image contains usage and the effective parameters."""
    events = list(Call(fake_server, {**QUICK, "n": 3}).events())
    assert [event["usage"] is not None for event in events] == [False] * (len(events) - 1) + [True]
    usage = events[-1]["usage"]
    assert usage["generation_per_second"] > 0
    assert usage["time_per_generation_ms"] > 0
    assert usage["time_to_process_ms"] > 0
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["output_tokens"] == 3 * 4 * 4
    assert events[-1]["parameters"]["sample_steps"] == 4


def test_include_usage_false_leaves_usage_out(fake_server: ServerProcess) -> None:
    """``include_usage: false`` makes usage null in every frame."""
    body = {**QUICK, "stream_options": {"include_usage": False}}
    assert {json.dumps(event["usage"]) for event in Call(fake_server, body).events()} == {"null"}


def test_preview_puts_a_small_picture_on_progress_frames(fake_server: ServerProcess) -> None:
    """``preview: true`` adds a small image to each step's frame, marked as a preview."""
    got = items(fake_server, {**QUICK, "stream_options": {"preview": True}})
    steps = [item for item in got if item["progressed_steps"] and not item["finish_reason"]]
    assert [item["progressed_steps"] for item in steps] == [1, 2, 3, 4]
    for item in steps:
        assert item["preview"] is True
        assert decoded(item).size == (8, 8)
    assert "preview" not in got[-1]
    assert decoded(got[-1]).size == (64, 64)


@pytest.mark.parametrize("response_format", ["b64_json", "B64Json"])
def test_chunk_result_pieces_make_the_image(
    fake_server: ServerProcess, response_format: str
) -> None:
    """``chunk_result`` splits the base64 over frames whose progress is 100 on the last one only."""
    body = {**QUICK, "seed": 5, "n": 2, "size": "256x256", "response_format": response_format}
    whole = [i["b64_json"] for i in items(fake_server, body) if i["finish_reason"]]
    options = {"chunk_result": True, "chunk_size": 1024}
    got = items(fake_server, {**body, "stream_options": options})
    for index in (0, 1):
        pieces = [i for i in got if i["index"] == index and "b64_json" in i]
        assert len(pieces) > 1
        assert all(len(piece["b64_json"]) == 1024 for piece in pieces[:-1])
        assert "".join(piece["b64_json"] for piece in pieces) == whole[index]
        assert all(a["progress"] <= b["progress"] < 100 for a, b in pairwise(pieces[:-1]))
        assert [piece["finish_reason"] for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
        assert (pieces[-1]["progress"], pieces[-1]["finish_reason"]) == (100, "stop")


def test_url_replaces_the_bytes(fake_server: ServerProcess) -> None:
    """response_format url ends each image with a link instead of its bytes."""
    final = items(fake_server, {**QUICK, "response_format": "url"})[-1]
    assert "b64_json" not in final
    assert final["url"].startswith(f"{fake_server.url}/v1/images/")


def test_the_first_frame_comes_at_once_while_another_job_runs(fake_server: ServerProcess) -> None:
    """A queued client receives the headers, its status and its queue position at once."""
    running = Call(fake_server, {**QUICK, "prompt": "step=0.05", "sample_steps": 150})
    running.wait_for("running")
    second = Call(fake_server, QUICK)
    first_of_second = next(second.events())
    third = Call(fake_server, QUICK)
    first_of_third = next(third.events())
    assert fake_server.metric("sdstream_running_jobs") == 1
    assert fake_server.metric("sdstream_queued_images") == 2
    running.leave()
    for event, position in ((first_of_second, 1), (first_of_third, 2)):
        (item,) = event["data"]
        assert (item["status"], item["queue_position"], item["progress"]) == ("queued", position, 0)
    for call in (second, third):
        assert list(call.frames())[-1] == DONE


def test_the_place_in_the_queue_counts_the_running_job(fake_server: ServerProcess) -> None:
    """A queued client gets each new position, which is never 0 while another job runs."""
    calls = []
    for prompt in ("step=0.2", "step=0.2", "a circle"):
        calls.append(Call(fake_server, {**QUICK, "prompt": prompt}))
        next(calls[-1].events())
    last = [item for event in calls[-1].events() for item in event["data"]]
    moves = [item["queue_position"] for item in last if item.get("status") == "queued"]
    for call in calls[:-1]:
        call.leave()
    assert moves == [1]


@pytest.fixture(scope="module")
def restless_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that resends the last frame of a silent stream ten times a second."""
    folder = tmp_path_factory.mktemp("restless")
    with running_server(folder, engine="fake", keepalive_seconds=0.1) as server:
        yield server


def test_keep_alive_repeats_the_last_progress_frame(restless_server: ServerProcess) -> None:
    """A silent stream resends its last frame unchanged as a keep-alive."""
    body = {**QUICK, "prompt": "step=0.45", "sample_steps": 2}
    frames = list(Call(restless_server, body).frames())
    progress = [json.loads(frame[6:])["data"][0]["progressed_steps"] for frame in frames[:-2]]
    assert progress == sorted(progress)
    for step in (0, 1, 2):
        assert progress.count(step) >= 3
    assert len({*frames}) == 6  # queued, running, two steps, the image, [DONE]


def test_keep_alive_in_the_queue(restless_server: ServerProcess) -> None:
    """The stream of a queued job is kept alive as well."""
    running = Call(restless_server, {**QUICK, "prompt": "step=0.05", "sample_steps": 150})
    running.wait_for("running")
    waiting = Call(restless_server, QUICK).frames()
    frames = [next(waiting) for _ in range(4)]
    running.leave()
    assert len({*frames}) == 1
    assert list(waiting)[-1] == DONE


def test_keep_alive_never_takes_a_finished_image_back(restless_server: ServerProcess) -> None:
    """After an image is sent, no keep-alive frame with its index and a lower progress follows."""
    got = items(restless_server, {**QUICK, "prompt": "step=0.3", "sample_steps": 2, "n": 2})
    ends = next(at for at, item in enumerate(got) if item["finish_reason"])
    assert [item for item in got[ends + 1 :] if item["index"] == 0] == []


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [("fail=2", "generation_failed"), ("crash=2", "worker_crashed"), ("segv=0", "worker_crashed")],
)
def test_a_failure_in_mid_stream_is_told_in_both_forms(
    fake_server: ServerProcess, prompt: str, reason: str
) -> None:
    """A failure ends a stream with GPUStack's ``error:`` frame, OpenAI's error frame and [DONE]."""
    *progress, line, data, done = Call(fake_server, {**QUICK, "prompt": prompt}).frames()
    assert done == DONE
    assert re.fullmatch(rb"error: \{[^\r\n]*\}\n\n", line)
    told, body = json.loads(line[7:]), json.loads(data[6:])
    assert {"code", "message", "type"} <= {*told}
    assert (told["code"], told["type"]) == (500, "server_error")
    assert body == {"error": told, "detail": told["message"]}
    assert told["reason"] == reason
    assert all(json.loads(frame[6:])["data"][0]["progress"] < 100 for frame in progress)
    assert list(Call(fake_server, QUICK).frames())[-1] == DONE


def test_images_before_a_failure_are_kept(tmp_path: Path) -> None:
    """Images that were finished before a failure are sent, and the error follows them."""
    with running_server(tmp_path, engine="fake", cancel_seconds=1) as server:
        call = Call(server, {**QUICK, "prompt": "step=0.1", "n": 10})
        frames = call.frames()
        for frame in frames:
            if b'"finish_reason":"stop"' in frame:
                break
        pid = server.worker_pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        *_, line, data, done = frames
        assert line.startswith(b"error: ")
        assert json.loads(data[6:])["error"]["reason"] == "worker_killed"
        assert done == DONE


def test_streams_at_the_same_time_keep_apart(fake_server: ServerProcess) -> None:
    """Each of twelve concurrent streams has its own job, seed and image."""

    def one(seed: int) -> tuple[set[str], int, bytes]:
        call = Call(fake_server, {**QUICK, "seed": seed, "prompt": f"picture {seed}"})
        events = list(call.events())
        ids = {event["job_id"] for event in events} | {call.answer.headers["X-Job-Id"]}
        final = events[-1]["data"][0]
        return ids, final["seed"], decoded(final).tobytes()

    with ThreadPoolExecutor(12) as pool:
        results = list(pool.map(one, range(12)))
    assert all(len(ids) == 1 for ids, _, _ in results)
    assert len(set.union(*(ids for ids, _, _ in results))) == 12
    assert [seed for _, seed, _ in results] == list(range(12))
    assert len({pixels for _, _, pixels in results}) == 12


def test_a_fault_before_the_stream_is_plain_http(fake_server: ServerProcess) -> None:
    """An invalid request gets an HTTP status before any stream begins."""
    call = Call(fake_server, {**QUICK, "n": 0})
    assert call.answer.status == 400
    assert call.answer.headers["Content-Type"] == "application/json"
    assert json.loads(call.answer.read())["error"]["param"] == "n"


def test_what_the_engine_found_is_told(tmp_path: Path) -> None:
    """An engine's warning is in the plain answer, in a stream's last frame and in the job.

    It appears once for all images, and survives a restart.
    """
    body = {"prompt": "warn=1", "size": "64x64", "sample_steps": 2, "n": 2}
    warnings = ["The fake engine warns as requested."]
    with running_server(tmp_path, engine="fake") as server:
        assert server.post(body).json()["warnings"] == warnings
        *_, last = Call(server, {**body, "stream": True}).events()
        assert last["warnings"] == warnings
        job = begin(server, body)["id"]
        assert wait_for(server, job, "completed")["warnings"] == warnings
        assert "warnings" not in server.post({**body, "prompt": "a circle"}).json()
    with running_server(tmp_path, engine="fake") as server:
        assert wait_for(server, job, "completed")["warnings"] == warnings
