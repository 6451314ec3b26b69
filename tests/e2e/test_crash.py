"""Crashes of the worker while the real runtime generates, and crash loops."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.servers import DONE, Call, ServerProcess, running_server, wait_until

BODY: dict[str, Any] = {
    "prompt": "a red circle",
    "size": "256x256",
    "sample_steps": 6,
    "seed": 1,
    "stream": True,
}
QUICK: dict[str, Any] = {"prompt": "a red circle", "size": "64x64", "sample_steps": 2, "seed": 1}


@pytest.fixture(scope="module")
def mortal_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server whose worker tests may kill, separate from the server that other tests share."""
    with running_server(tmp_path_factory.mktemp("mortal")) as server:
        yield server


@pytest.mark.parametrize("step", [0, 3, 6], ids=["early", "middle", "decoding"])
@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGABRT, "worker_crashed"),
        (signal.SIGSEGV, "worker_crashed"),
        (signal.SIGKILL, "worker_killed"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_dead_worker_costs_its_job_only(
    mortal_server: ServerProcess, number: signal.Signals, reason: str, step: int
) -> None:
    """The stream ends at once with the error frames and [DONE], /readyz returns 503 until the model
    is loaded again, and the same server generates the next image."""
    server = mortal_server
    server.wait_ready()
    worker, pid = server.worker_pid(), server.process.pid
    assert worker is not None
    call = Call(server, BODY)
    frames = call.frames()
    for frame in frames:
        item = json.loads(frame.removeprefix(b"data: "))["data"][0]
        if item["status"] == "running" and item["progressed_steps"] >= step:
            break
    os.kill(worker, number)
    killed = time.monotonic()
    *_, line, data, done = frames
    assert time.monotonic() - killed < 0.25 + 8
    assert not server.is_ready()
    assert done == DONE
    assert line.startswith(b"error: ")
    error = json.loads(data.removeprefix(b"data: "))["error"]
    assert (error["code"], error["reason"]) == (500, reason)
    answer = server.post(QUICK)
    assert answer.status_code == 200
    assert server.process.pid == pid
    assert server.process.poll() is None
    assert server.worker_pid() not in (worker, None)


def test_a_plain_request_hears_of_the_death(mortal_server: ServerProcess) -> None:
    """Without a stream, the response is 500 with x-should-retry: false."""
    mortal_server.wait_ready()
    call = Call(mortal_server, {**BODY, "stream": False})
    wait_until(lambda: mortal_server.metric("sdstream_running_jobs") == 1, 5, "it does not run")
    os.kill(mortal_server.worker_pid() or 0, signal.SIGKILL)
    assert call.answer.status == 500
    assert call.answer.headers["x-should-retry"] == "false"
    assert json.loads(call.answer.read())["error"]["reason"] == "worker_killed"


def test_the_picture_after_a_crash_is_the_same(mortal_server: ServerProcess) -> None:
    """A new worker generates the same image as the one before it."""
    before = mortal_server.post(QUICK).json()["data"][0]["b64_json"]
    pid = mortal_server.worker_pid()
    os.kill(pid or 0, signal.SIGKILL)
    wait_until(lambda: mortal_server.worker_pid() not in (pid, None), 10, "no new process")
    assert mortal_server.post(QUICK).json()["data"][0]["b64_json"] == before


def test_a_crash_loop_is_slowed_down(tmp_path: Path) -> None:
    """Restarts of a crashing worker are delayed; meanwhile the server runs but is not ready. The
    fake engine loads at once, so the delays alone limit the restarts."""
    body = {"prompt": "crash=0", "size": "64x64", "sample_steps": 2}
    with running_server(tmp_path, engine="fake") as server:
        calls = [Call(server, body) for _ in range(8)]
        time.sleep(3.5)  # starts at 0, 0, 1, 3 and 7 seconds
        assert server.metric("sdstream_worker_starts_total") <= 4
        assert httpx2.get(f"{server.url}/livez").status_code == 200
        assert httpx2.get(f"{server.url}/readyz").status_code == 503
        assert calls[0].answer.status == 500


def test_a_model_that_crashes_on_loading_is_given_up(tmp_path: Path) -> None:
    """After three crashes while loading, the server stops restarting the worker and reports why."""
    models = tmp_path / "models.yaml"
    models.write_text(
        "models: [{id: bad, family: ovis_image, files: {model: crash}, defaults: {size: 64x64}}]"
    )
    with running_server(tmp_path, engine="fake", models=models, wait=False) as server:
        wait_until(lambda: _readiness(server).get("status") == "failed", 15, "it goes on trying")
        assert server.metric("sdstream_worker_starts_total") == 3
        assert "SIGABRT" in _readiness(server)["message"]
        assert httpx2.get(f"{server.url}/livez").status_code == 200
        answer = server.post(QUICK)
        assert answer.status_code == 503
        assert answer.json()["error"]["reason"] == "model_unavailable"


def _readiness(server: ServerProcess) -> dict[str, Any]:
    try:
        body: dict[str, Any] = httpx2.get(f"{server.url}/readyz").json()
    except httpx2.TransportError:
        return {}
    return body
