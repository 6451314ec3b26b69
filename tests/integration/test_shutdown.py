"""How a server ends: by a signal or by a fault, always without leaving processes behind."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.jobs import begin, look, wait_for
from tests.support.servers import DONE, Call, ServerProcess, running_server, wait_until

#: Fifteen seconds of work, in steps of 100 ms.
LONG: dict[str, Any] = {"prompt": "step=0.1", "size": "64x64", "sample_steps": 150, "stream": True}
QUICK: dict[str, Any] = {"prompt": "a circle", "size": "64x64", "sample_steps": 2}

#: Seconds that are added to limits for a busy machine.
PATIENCE = 8.0


@contextmanager
def serving(folder: Path, grace_seconds: float = 5.0) -> Iterator[ServerProcess]:
    """A server on the fake engine."""
    with running_server(folder, engine="fake", grace_seconds=grace_seconds) as server:
        yield server


def is_alive(pid: int) -> bool:
    """Return True while the process runs; a zombie does not."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def error_in(frames: list[bytes]) -> dict[str, Any]:
    """Check the last three frames of a stream that failed, and return its error."""
    line, data, done = frames[-3:]
    assert done == DONE
    assert line.startswith(b"error: ")
    error: dict[str, Any] = json.loads(data.removeprefix(b"data: "))["error"]
    assert json.loads(line.removeprefix(b"error: ")) == error
    return error


def progressed(call: Call, step: int) -> Iterator[bytes]:
    """Return the frames of a stream after the one that reports a step as done."""
    frames = call.frames()
    for frame in frames:
        if json.loads(frame.removeprefix(b"data: "))["data"][0]["progressed_steps"] >= step:
            return frames
    raise AssertionError("the stream ended before the step")


# --- SIGKILL ------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["idle", "busy", "hung", "stopped"])
def test_no_orphan_outlives_a_killed_server(tmp_path: Path, state: str) -> None:
    """The worker ends with a server that is killed."""
    with serving(tmp_path) as server:
        worker = server.worker_pid()
        assert worker is not None
        prompt = {"busy": "step=0.1", "hung": "hang=1 step=0.1"}.get(state)
        if prompt:
            call = Call(server, {**LONG, "prompt": prompt})
            call.wait_for("running")
        if state == "stopped":
            os.kill(worker, signal.SIGSTOP)
        server.stop(signal.SIGKILL)
        wait_until(lambda: not is_alive(worker), 1 + PATIENCE, "the worker is an orphan")


# --- SIGTERM ------------------------------------------------------------------------------------


def test_a_running_job_gets_its_image(tmp_path: Path) -> None:
    """A running job may finish within the grace time, while queued clients get a 503 at once."""
    with serving(tmp_path, 10) as server:
        running = Call(server, {**LONG, "sample_steps": 15})
        rest = progressed(running, 2)
        waiting = Call(server, {**QUICK, "stream": True})
        plain = Call(server, QUICK)
        wait_until(lambda: server.metric("sdstream_queued_images") == 2, 5, "nobody waits")
        server.process.send_signal(signal.SIGTERM)
        told = time.monotonic()
        error = error_in(list(waiting.frames()))
        assert time.monotonic() - told < 1 + PATIENCE
        assert (error["code"], error["reason"]) == (503, "shutting_down")
        assert plain.answer.status == 503
        assert int(plain.answer.headers["Retry-After"]) > 0
        assert json.loads(plain.answer.read())["error"]["reason"] == "shutting_down"
        *_, final, done = rest
        assert done == DONE
        assert json.loads(final.removeprefix(b"data: "))["data"][0]["finish_reason"] == "stop"
        ended = time.monotonic()
        assert server.process.wait(60) in (0, -signal.SIGTERM)
        assert time.monotonic() - ended < 1 + PATIENCE


def test_a_background_job_without_a_client_gets_the_grace_time(tmp_path: Path) -> None:
    """The server ends only after a running job has ended, even if nobody waits for it."""
    with serving(tmp_path, grace_seconds=60) as server:
        body = {"prompt": "step=0.1", "size": "64x64", "sample_steps": 30}
        job = begin(server, body)["id"]
        wait_for(server, job, "running")
        assert server.stop(seconds=60 + PATIENCE) in (0, -signal.SIGTERM)
    with serving(tmp_path) as server:
        seen = look(server, job)
        assert (seen["status"], seen["attempts"]) == ("completed", 1)


@pytest.mark.parametrize("prompt", ["step=0.1", "step=0.1 deaf=1", "hang=2 step=0.05", "stopped"])
def test_a_job_that_takes_longer_is_told(tmp_path: Path, prompt: str) -> None:
    """A stream that exceeds the grace time ends with error frames, whatever the worker does.

    The server and its worker then exit.
    """
    grace = 0.5
    with serving(tmp_path, grace) as server:
        worker = server.worker_pid()
        assert worker is not None
        rest = progressed(
            Call(server, {**LONG, "prompt": prompt.replace("stopped", "step=0.1")}), 1
        )
        if prompt == "stopped":
            os.kill(worker, signal.SIGSTOP)
        server.process.send_signal(signal.SIGTERM)
        told = time.monotonic()
        error = error_in(list(rest))
        assert time.monotonic() - told < grace + 1 + PATIENCE
        assert (error["code"], error["reason"]) == (503, "shutting_down")
        # A suspended worker is killed after two seconds.
        stubborn = 2 if prompt == "stopped" else 0
        assert server.process.wait(60) in (0, -signal.SIGTERM)
        assert time.monotonic() - told < grace + 1 + stubborn + PATIENCE
        assert not is_alive(worker)


def test_a_plain_job_that_takes_longer_is_told(tmp_path: Path) -> None:
    """A plain request that exceeds the grace time gets a 503 with Retry-After."""
    with serving(tmp_path, 0.5) as server:
        call = Call(server, {**LONG, "stream": False})
        wait_until(lambda: server.metric("sdstream_running_jobs") == 1, 5, "it does not run")
        server.process.send_signal(signal.SIGTERM)
        assert call.answer.status == 503
        assert call.answer.headers["Retry-After"]
        assert json.loads(call.answer.read())["error"]["reason"] == "shutting_down"


@pytest.mark.parametrize("dialect", ["image.chunk", "openai", "both"])
def test_a_stream_of_a_job_that_is_laid_aside(tmp_path: Path, dialect: str) -> None:
    """The stream of a deferred job ends with an error, which says that the job runs later."""
    body = {**LONG, "on_disconnect": "continue", "stream_options": {"dialect": dialect}}
    with serving(tmp_path, 0.5) as server:
        running = Call(server, body)
        wait_until(lambda: server.metric("sdstream_running_jobs") == 1, 10, "it is not begun")
        waiting = Call(server, body)
        wait_until(lambda: server.metric("sdstream_queued_images") == 1, 10, "nobody waits")
        server.process.send_signal(signal.SIGTERM)
        for call in (waiting, running):
            *_, data, done = call.frames()
            assert done == DONE
            error = json.loads(data.removeprefix(b"data: "))["error"]
            assert (error["code"], error["reason"]) == (503, "shutting_down")
            assert "after its next start" in error["message"]


@pytest.mark.parametrize("key", [None, "named"])
def test_an_answer_of_a_job_that_is_laid_aside(tmp_path: Path, key: str | None) -> None:
    """A deferred job's client is asked to retry only if it sent an Idempotency-Key.

    Otherwise a retry would generate the image twice.
    """
    headers = {"Idempotency-Key": key} if key else {}
    body = {**LONG, "stream": False, "on_disconnect": "continue"}
    with serving(tmp_path, 0.2) as server:
        call = Call(server, body, headers)
        wait_until(lambda: server.metric("sdstream_running_jobs") == 1, 10, "it is not begun")
        server.process.send_signal(signal.SIGTERM)
        assert call.answer.status == 503
        assert json.loads(call.answer.read())["error"]["reason"] == "shutting_down"
        told = call.answer.headers
        wanted = ("10", None) if key else (None, "false")
        assert (told["Retry-After"], told["x-should-retry"]) == wanted


def test_coming_back_for_a_job_that_is_laid_aside(tmp_path: Path) -> None:
    """A repeated request gets a 503 even if its body arrives after SIGTERM."""
    body = {**LONG, "stream": False}
    text = json.dumps(body).encode()
    head = (
        "POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\n"
        f"Idempotency-Key: K\r\nContent-Length: {len(text)}\r\n\r\n"
    ).encode()
    with serving(tmp_path, 10) as server, socket.create_connection(server.address) as late:
        running = Call(server, LONG)
        running.wait_for("running")
        late.sendall(head + text[:5])
        named = Call(server, body, {"Idempotency-Key": "K"})
        wait_until(lambda: server.metric("sdstream_queued_images") == 1, 10, "nobody waits")
        server.process.send_signal(signal.SIGTERM)
        assert named.answer.status == 503
        late.sendall(text[5:])
        late.settimeout(60)
        assert late.recv(65536).startswith(b"HTTP/1.1 503 ")
        running.leave()


def test_readiness_flips_at_once(tmp_path: Path) -> None:
    """After the signal the server is not ready and accepts no work, on open connections too."""
    with serving(tmp_path, 2) as server:
        running = Call(server, {**LONG, "sample_steps": 10})
        running.wait_for("running")
        with httpx2.Client(base_url=server.url) as client:
            assert client.get("/readyz").status_code == 200
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.03)  # until the signal arrives
            for path in ("/readyz", "/health"):
                with suppress(httpx2.TransportError):  # it may have stopped listening
                    answer = client.get(path)
                    assert answer.status_code == 503
                    assert answer.json()["status"] == "draining"
            with suppress(httpx2.TransportError):
                assert client.post("/v1/images/generations", json=QUICK).status_code == 503


def test_an_idle_server_goes_at_once(tmp_path: Path) -> None:
    """An idle server exits at once, whatever the grace time and despite open connections."""
    with serving(tmp_path, 30) as server, httpx2.Client(base_url=server.url) as client:
        worker = server.worker_pid()
        assert worker is not None
        client.get("/livez")
        began = time.monotonic()
        assert server.stop() in (0, -signal.SIGTERM)
        assert time.monotonic() - began < 1 + PATIENCE
        assert not is_alive(worker)


def test_ctrl_c_is_no_fault(tmp_path: Path) -> None:
    """SIGINT ends the server in an orderly way, without a traceback."""
    with serving(tmp_path) as server:
        code = server.stop(signal.SIGINT)
        assert code in (0, 130, -signal.SIGINT)
        assert "Traceback" not in server.log.read_text()


def test_a_signal_during_the_start_is_obeyed(tmp_path: Path) -> None:
    """A server that gets SIGTERM during its start exits."""
    with running_server(tmp_path, engine="fake", wait=False) as server:
        wait_until(lambda: server.log_lines("Started server process"), 10, "it does not start")
        assert server.stop() in (0, -signal.SIGTERM)


# --- faults of its own --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("127.0.0.1", "Address already in use"),
        ("192.0.2.1", "Cannot assign requested address"),
        ("no.such.host.invalid", "there is no such host"),
        ("no..host", "there is no such host"),
    ],
)
def test_an_address_that_is_not_to_be_had(tmp_path: Path, host: str, words: str) -> None:
    """A server that cannot listen exits with an error message and starts no worker."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        flags = ["--engine", "fake", "--port", str(port), "--data-dir", str(tmp_path)]
        flags += ["--host", host]
        result = subprocess.run(
            [sys.executable, "-m", "sdstream", "serve", *flags],
            check=False,
            capture_output=True,
            text=True,
            timeout=20,
        )
    assert result.returncode == 78
    *log, sentence = result.stderr.splitlines()
    assert sentence.startswith("Error: host (SDSTREAM_HOST), port (SDSTREAM_PORT): cannot listen")
    assert sentence.endswith(f"{host}:{port}: {words}.")
    assert "Traceback" not in result.stderr
    assert not any("worker" in line for line in log)


def test_a_link_to_nowhere_among_the_images_hinders_nothing(tmp_path: Path) -> None:
    """The cleanup at the start tolerates symbolic links in the folder of images."""
    images = tmp_path / "data" / "images"
    images.mkdir(parents=True)
    (images / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "other").touch(mode=0o644)
    (images / "other.png").symlink_to(tmp_path / "other")
    with running_server(tmp_path, engine="fake") as server:
        assert server.post(QUICK).status_code == 200
    assert (tmp_path / "other").stat().st_mode & 0o777 == 0o644


def test_words_that_no_worker_says_cost_the_worker_only(tmp_path: Path) -> None:
    """Invalid data on a worker's socket counts as a crash: the worker is replaced."""
    with serving(tmp_path) as server:
        worker = server.worker_pid()
        assert worker is not None
        _write_as(worker, b'\x05\0\0\0\0\0\0\0{"a"}')
        wait_until(lambda: server.worker_pid() != worker, 10, "the worker stays")
        server.wait_ready(8)
        assert server.post(QUICK).status_code == 200


def _write_as(worker: int, data: bytes) -> None:
    """Write into the socket of a worker process as if the worker did."""
    descriptor = int(Path(f"/proc/{worker}/cmdline").read_bytes().split(b"\0")[3])
    process = os.pidfd_open(worker)
    libc = ctypes.CDLL(None, use_errno=True)
    pidfd_getfd = 438
    copy = libc.syscall(pidfd_getfd, process, descriptor, 0)
    os.close(process)
    if copy < 0:
        pytest.skip("this system lends no descriptors of another process")
    os.write(copy, data)
    os.close(copy)
