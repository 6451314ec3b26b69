"""Long runs with crashes and faults; ``scripts/test -m slow`` runs them, CI does not."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from tests.integration.test_store_faults import locked
from tests.support.jobs import ASYNC, ENDINGS, begin, wait_for
from tests.support.servers import DONE, Call, ServerProcess, free_port, running_server, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SMALL: dict[str, Any] = {"size": "64x64", "sample_steps": 5}


def test_kill_9_at_twenty_moments(tmp_path: Path) -> None:
    """Every accepted job ends once after kill -9 at twenty moments, with its image on the disk.

    Ten jobs are created before each kill. A job that was running at two kills fails with a reason.
    """
    randomness = random.Random(20)
    accepted: list[str] = []
    port = free_port()
    for _ in range(20):
        with running_server(tmp_path, engine="fake", port=port, queue_images=500) as server:
            body = {**SMALL, "prompt": "step=0.05"}
            accepted += [begin(server, {**body, "seed": n})["id"] for n in range(10)]
            time.sleep(randomness.uniform(0.0, 2.5))
            server.stop(signal.SIGKILL)
            finished = server.log.read_text().count("Traceback")
            assert finished == 0
    with running_server(tmp_path, engine="fake", port=port, queue_images=500) as server:
        ended = [wait_for(server, job, *ENDINGS, seconds=300) for job in accepted]
        outcomes = Counter(job["status"] for job in ended)
        images = [job["images"][0]["url"] for job in ended if job["status"] == "completed"]
        for url in images:
            assert httpx2.get(url).status_code == 200
        given_up = [job for job in ended if job["status"] == "failed"]
        assert {job["error"]["reason"] for job in given_up} <= {"interrupted"}
        assert all(job["attempts"] == 2 for job in given_up)
        files = {path.stem for path in (tmp_path / "data" / "images").iterdir()}
        assert files == {url.split("/")[-2] for url in images}
        assert len(images) == len(set(images))
    sys.stderr.write(f"\n{len(accepted)} accepted: {dict(outcomes)}\n")
    assert sum(outcomes.values()) == len(accepted) == 200
    assert outcomes["completed"] + outcomes["failed"] == 200


def _open_files(server: ServerProcess) -> int:
    return len([*Path(f"/proc/{server.process.pid}/fd").iterdir()])


def _resident(server: ServerProcess) -> int:
    pages = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Visitor:
    """Clients of the long run, and the answers that they received.

    Args:
        server: The server that they use.

    Attributes:
        told: Id of a background job -> the final status that a client saw.
        rejected: Number of rejected or failed requests by reason.
    """

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.told: dict[str, str] = {}
        self.rejected: Counter[str] = Counter()

    def visit(self, number: int) -> None:
        """Send one request; some leave early, some stream, some start a job and may cancel it."""
        randomness = random.Random(number)
        body = {**SMALL, "prompt": "step=0.04", "seed": number}
        kind = randomness.random()
        if kind < 0.35:
            call = Call(self.server, {**body, "stream": True})
            if call.answer.status != 200:
                self._reject(json.loads(call.answer.read()))
            elif kind < 0.1:
                next(call.events(), None)
                call.leave(randomness.choice(["fin", "rst"]))
            else:
                assert [*call.frames()][-1] == DONE
        elif kind < 0.75:
            answer = self.server.post(body, headers=ASYNC)
            if answer.status_code != 202:
                self._reject(answer.json())
                return
            job = answer.json()["id"]
            if kind < 0.45:
                time.sleep(randomness.uniform(0, 0.3))
                self._ask("POST", f"{job}/cancel")
            self.told[job] = self._end_of(job)
        else:
            answer = self.server.post(body)
            # A job whose worker was killed gets a 500; one that was not stored a 507 or 503.
            if answer.status_code != 200:
                self._reject(answer.json())

    def _reject(self, answer: dict[str, Any]) -> None:
        self.rejected[answer["error"]["reason"]] += 1

    def _ask(self, method: str, path: str) -> httpx2.Response:
        """Send a request to the jobs API until the database is available; return the answer."""
        while True:
            url = f"{self.server.url}/v1/jobs/{path}"
            answer = httpx2.request(method, url, timeout=60)
            if answer.status_code not in (503, 507):
                return answer
            time.sleep(0.2)

    def _end_of(self, job: str) -> str:
        while True:
            status = str(self._ask("GET", job).json()["status"])
            if status in ENDINGS:
                return status
            time.sleep(0.05)


def jobs_of(server: ServerProcess) -> dict[str, str]:
    """Return the status of all jobs of a server by their ids."""
    found: dict[str, str] = {}
    query: dict[str, Any] = {"limit": 100}
    while page := httpx2.get(f"{server.url}/v1/jobs", params=query, timeout=20).json()["data"]:
        assert not found.keys() & {job["id"] for job in page}
        found |= {job["id"]: job["status"] for job in page}
        query["after"] = page[-1]["id"]
    return found


#: Shifts the server's clock by an offset from a file; the machine's clock is not changed.
_CLOCK = """
import os, threading, time
real, offset = time.time, [0.0]

def follow():
    while True:
        with open(os.environ["SOAK_CLOCK"]) as file:
            offset[0] = float(file.read() or 0)
        time.sleep(0.1)

time.time = lambda: real() + offset[0]
threading.Thread(target=follow, daemon=True).start()
"""


class Faults:
    """Faults that are caused one after the other.

    Args:
        folder: The server's folder.
        server: The server that gets the faults.
    """

    def __init__(self, folder: Path, server: ServerProcess) -> None:
        self._folder = folder
        self._server = server
        self.done: Counter[str] = Counter()

    def next(self, number: int) -> None:
        """Cause the fault with this number; return when it is over."""
        kinds = (self.kill, self.lock, self.kill, self.fill_disk, self.kill, self.set_clock)
        fault = kinds[number % len(kinds)]
        fault()
        self.done[fault.__name__] += 1

    def kill(self) -> None:
        """Kill the worker, while it generates if a job runs."""
        with suppress(AssertionError):
            wait_until(lambda: self._server.metric("sdstream_running_jobs") > 0, 0.2, "idle")
        with suppress(ProcessLookupError):
            if worker := self._server.worker_pid():
                os.kill(worker, signal.SIGKILL)

    def lock(self) -> None:
        """Hold the database's lock in another process."""
        with locked(self._folder):
            time.sleep(5)

    def fill_disk(self) -> None:
        """Prevent files from growing, the log included."""
        process = psutil.Process(self._server.process.pid)
        usual = process.rlimit(psutil.RLIMIT_FSIZE)
        process.rlimit(psutil.RLIMIT_FSIZE, (4096, usual[1]))
        time.sleep(5)
        process.rlimit(psutil.RLIMIT_FSIZE, usual)

    def set_clock(self) -> None:
        """Set the clock three days ahead, three days back, and right again."""
        for days in (3, -3, 0):
            (self._folder / "clock").write_text(str(days * 86400))
            time.sleep(2)


@dataclass(frozen=True)
class Sizes:
    """Numbers that must not grow, at one moment."""

    memory: int
    files: int
    threads: int
    processes: int

    @classmethod
    def of(cls, server: ServerProcess) -> Sizes:
        """Measure a server."""
        process = psutil.Process(server.process.pid)
        return cls(
            _resident(server),
            _open_files(server),
            process.num_threads(),
            len(process.children(recursive=True)),
        )


def test_everything_goes_wrong(tmp_path: Path, soak_seconds: float) -> None:
    """Workers die, clients leave, the database is locked, the disk is full and the clock is set.

    Every accepted job ends once, with the status that clients saw, and keeps it after kill -9.
    Memory, descriptors, threads and processes do not grow. ``--soak-seconds`` sets the duration.
    """
    (tmp_path / "sitecustomize.py").write_text(_CLOCK)
    (tmp_path / "clock").write_text("0")
    shifted = {"PYTHONPATH": str(tmp_path), "SOAK_CLOCK": str(tmp_path / "clock")}
    with ExitStack() as stack:
        server = stack.enter_context(
            running_server(tmp_path, engine="fake", environment={**os.environ, **shifted})
        )
        visitor, faults = Visitor(server), Faults(tmp_path, server)
        pool = stack.enter_context(ThreadPoolExecutor(12))
        troubles = stack.enter_context(ThreadPoolExecutor(1))
        visits: list[Future[None]] = []
        sizes: list[Sizes] = []
        began = time.monotonic()
        while time.monotonic() - began < soak_seconds:
            fault = troubles.submit(faults.next, len(sizes))
            for _ in range(40):
                visits.append(pool.submit(visitor.visit, len(visits)))
                time.sleep(0.25)
            fault.result()
            sizes.append(Sizes.of(server))
        for visit in visits:
            visit.result(120)
        _settle(server)
        sizes.append(Sizes.of(server))
        ended = Counter(
            {outcome: server.metric("sdstream_jobs_total", outcome=outcome) for outcome in ENDINGS}
        )
        listed = jobs_of(server)
        sys.stderr.write(
            f"\n{len(visits)} requests, {len(listed)} accepted: {dict(ended)}; rejected or failed: "
            f"{dict(visitor.rejected)}; {dict(faults.done)}\n"
            + "".join(f"{size}\n" for size in sizes[:: max(1, len(sizes) // 12)])
        )
        assert Counter(listed.values()) == {k: v for k, v in ended.items() if v}
        assert len(listed) == server.metric("sdstream_accepted_jobs_total")
        assert visitor.told.items() <= listed.items()
        assert min(ended.values()) > 0
        assert server.log.read_text().count("Traceback") == 0
        server.stop(signal.SIGKILL)
    with running_server(tmp_path, engine="fake") as again:
        assert jobs_of(again) == listed
    assert [*(tmp_path / "data" / "inputs").iterdir()] == []
    first, last = sizes[len(sizes) // 3], sizes[-1]
    assert last.memory - first.memory < 20 * 2**20
    assert last.files <= first.files + 5
    assert last.threads <= max(size.threads for size in sizes[: len(sizes) // 3 + 1]) + 2
    assert last.processes == 1


def _settle(server: ServerProcess) -> None:
    def idle() -> bool:
        waiting = server.metric("sdstream_queued_images") + server.metric("sdstream_running_jobs")
        return waiting == 0 and server.is_ready()

    wait_until(idle, 120, "jobs are left")
    time.sleep(1.0)
