"""Clients that disconnect: their jobs stop within a step, in the queue and in the worker."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import struct
import time
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx2
import pytest

from sdstream.core.job import Job
from sdstream.settings import Settings
from sdstream.web.protocol import TimeoutProtocol
from sdstream.web.server import serving_privately
from tests.support.jobs import EventStream, begin, wait_for
from tests.support.servers import Call, ServerProcess, wait_until

Way = Literal["fin", "rst", "half-close"]

#: Half a minute of work, in steps of 50 ms.
LONG: dict[str, Any] = {"prompt": "step=0.05", "size": "64x64", "sample_steps": 150, "n": 4}
QUICK: dict[str, Any] = {"prompt": "a circle", "size": "64x64", "sample_steps": 2}

#: Seconds for one step, with a margin for a busy machine. A job that was not cancelled would take
#: thirty seconds.
SOON = 10.0


def ended(server: ServerProcess, outcome: str) -> float:
    """Return the number of jobs that ended with an outcome since the server began."""
    return server.metric("sdstream_jobs_total", outcome=outcome)


def wait_for_running(server: ServerProcess) -> None:
    """Wait until a worker runs a job."""
    wait_until(lambda: server.metric("sdstream_running_jobs") == 1, 5, "no job runs")


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
@pytest.mark.parametrize("way", ["fin", "rst", "half-close"])
def test_work_stops_when_its_client_leaves(
    fake_server: ServerProcess, way: Way, stream: bool
) -> None:
    """FIN, RST and half-close end the job within a step; the worker's process stays the same."""
    cancelled, completed = ended(fake_server, "cancelled"), ended(fake_server, "completed")
    pid = fake_server.worker_pid()
    call = Call(fake_server, {**LONG, "stream": stream})
    if stream:
        call.wait_for_step(3)
    else:
        wait_for_running(fake_server)
    call.leave(way)
    left = time.monotonic()
    assert fake_server.post(QUICK).status_code == 200
    assert time.monotonic() - left < SOON
    assert ended(fake_server, "cancelled") == cancelled + 1
    assert ended(fake_server, "completed") == completed + 1
    assert fake_server.worker_pid() == pid


@pytest.mark.parametrize("reset", [True, False], ids=["rst", "fin"])
def test_pipelined_requests_stop_when_their_client_leaves(
    fake_server: ServerProcess, reset: bool
) -> None:
    """The request that runs is notified, although others wait behind it on the connection."""
    cancelled = ended(fake_server, "cancelled")
    faults = len(fake_server.log_lines("Traceback"))
    body = json.dumps(LONG).encode()
    head = "POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    url = urlsplit(fake_server.url)
    with socket.create_connection((url.hostname, url.port)) as client:
        client.sendall((head.encode() + body) * 3)
        wait_for_running(fake_server)
        if reset:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_until(lambda: ended(fake_server, "cancelled") > cancelled, SOON, "it is not cancelled")
    assert fake_server.metric("sdstream_running_jobs") == 0
    assert len(fake_server.log_lines("Traceback")) == faults


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
def test_the_log_tells_that_the_client_left(fake_server: ServerProcess, stream: bool) -> None:
    """The log reports a job as cancelled when its client leaves."""
    call = Call(fake_server, {**LONG, "stream": stream})
    wait_for_running(fake_server)
    job = call.answer.headers["X-Job-Id"] if stream else ""
    lines = len(fake_server.log_lines("outcome="))
    call.leave()
    wait_until(lambda: len(fake_server.log_lines("outcome=")) > lines, 5, "nothing in the log")
    line = fake_server.log_lines("outcome=")[-1]
    assert job in line
    assert "outcome=cancelled" in line


def test_the_log_tells_that_a_job_goes_on(fake_server: ServerProcess) -> None:
    """The log reports a background job as unfinished when its creator or an observer leaves."""
    job = begin(fake_server, LONG)["id"]
    wait_for(fake_server, job, "running")
    with EventStream(fake_server, f"/v1/jobs/{job}/events") as stream:
        next(stream.events())
    call = Call(fake_server, {**LONG, "stream": True, "on_disconnect": "continue"})
    next(call.events())
    waiting = call.answer.headers["X-Job-Id"]
    call.leave()
    wait_until(lambda: fake_server.log_lines(f"job={waiting}"), 5, "nothing in the log")
    wait_until(lambda: fake_server.log_lines(f"{job}/events"), 5, "nothing in the log")
    lines = fake_server.log_lines(f"job={job}") + fake_server.log_lines(f"job={waiting}")
    for one in (job, waiting):
        httpx2.delete(f"{fake_server.url}/v1/jobs/{one}", timeout=20)
    outcomes = {line.partition("outcome=")[2] for line in lines}
    assert outcomes <= {"queued", "loading", "running"}


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
@pytest.mark.parametrize("way", ["fin", "rst"])
def test_a_job_that_waits_never_runs(fake_server: ServerProcess, way: Way, stream: bool) -> None:
    """A queued job never runs after its client leaves; its prompt would crash the worker."""
    starts = fake_server.metric("sdstream_worker_starts_total")
    cancelled = ended(fake_server, "cancelled")
    running = Call(fake_server, {**LONG, "stream": True})
    running.wait_for("running")
    waiting = Call(fake_server, {**QUICK, "prompt": "crash=0", "stream": stream})
    wait_until(lambda: fake_server.metric("sdstream_queued_images") == 1, 5, "nobody waits")
    waiting.leave(way)
    wait_until(lambda: fake_server.metric("sdstream_queued_images") == 0, 5, "it still waits")
    assert ended(fake_server, "cancelled") == cancelled + 1
    assert fake_server.metric("sdstream_running_jobs") == 1
    running.leave()
    assert fake_server.post(QUICK).status_code == 200
    assert fake_server.metric("sdstream_worker_starts_total") == starts


def test_who_waits_moves_up(fake_server: ServerProcess) -> None:
    """A queued job gets an event with its new position when a job in front of it is cancelled."""
    running = Call(fake_server, {**LONG, "stream": True})
    running.wait_for("running")
    front = Call(fake_server, {**QUICK, "stream": True})
    next(front.events())
    back = Call(fake_server, {**QUICK, "stream": True})
    events = back.events()
    assert next(events)["data"][0]["queue_position"] == 2
    front.leave()
    assert next(events)["data"][0]["queue_position"] == 1
    running.leave()
    assert list(events)[-1]["data"][0]["progress"] == 100


def test_a_client_that_never_reads_its_answer(fake_server: ServerProcess) -> None:
    """A client that resets its connection right after the request leaves no running job."""
    before = ended(fake_server, "cancelled")
    for stream in (True, False):
        Call(fake_server, {**LONG, "stream": stream}).leave("rst")
    assert fake_server.post(QUICK).status_code == 200
    # Both clients may have left before their jobs existed.
    assert ended(fake_server, "cancelled") - before <= 2
    assert fake_server.metric("sdstream_running_jobs") == 0


def test_many_clients_leave_at_once(fake_server: ServerProcess) -> None:
    """The next image is generated at once after fifty clients have left."""
    before = ended(fake_server, "cancelled")
    calls = [Call(fake_server, {**LONG, "n": 1, "stream": k % 2 == 0}) for k in range(50)]
    wait_until(lambda: fake_server.metric("sdstream_queued_images") == 49, 10, "they do not wait")
    for number, call in enumerate(calls):
        call.leave("fin" if number % 3 else "rst")
    left = time.monotonic()
    assert fake_server.post(QUICK).status_code == 200
    assert time.monotonic() - left < SOON
    assert ended(fake_server, "cancelled") == before + 50


async def leave_behind(path: Path, body: dict[str, Any]) -> None:
    """Request a stream, and disconnect when it begins."""
    reader, writer = await asyncio.open_unix_connection(path)
    data = json.dumps(body)
    head = "POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\n"
    head += f"Content-Length: {len(data)}\r\n"
    writer.write(f"{head}Content-Type: application/json\r\n\r\n{data}".encode())
    first = await reader.read(4096)
    assert b" 200 " in first.split(b"\r\n")[0], first
    writer.close()
    await writer.wait_closed()


def test_clients_that_leave_leave_nothing_to_the_garbage_collector(tmp_path: Path) -> None:
    """Clients that leave create no reference cycles.

    Collecting those of many clients at once would block the event loop.
    """
    settings = Settings(engine="fake", data_dir=tmp_path / "data", grace_seconds=1)

    async def crowd() -> list[str]:
        async with serving_privately(settings) as path:
            gc.collect()
            gc.disable()
            gc.set_debug(gc.DEBUG_SAVEALL)
            for _ in range(5):
                await leave_behind(path, {**LONG, "stream": True})
            await asyncio.sleep(0.5)
            gc.collect()
            gc.set_debug(0)
        kinds = (Job, TimeoutProtocol, asyncio.CancelledError)
        return [type(found).__name__ for found in gc.garbage if isinstance(found, kinds)]

    try:
        assert asyncio.run(crowd()) == []
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
