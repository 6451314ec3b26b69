"""Long runs against death and departure; ``scripts/test -m slow`` runs them, CI does not."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.jobs import ENDINGS, begin, wait_for
from tests.support.servers import Call, ServerProcess, free_port, running_server, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SMALL: dict[str, Any] = {"size": "64x64", "sample_steps": 5}


def test_kill_9_at_twenty_moments(tmp_path: Path) -> None:
    """With ten jobs waiting each time: every accepted one ends once, with its image on the disk.

    A job that was being drawn at two deaths is given up, which is an end with a reason.
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


def _one(server: ServerProcess, number: int) -> None:
    """One request of the soak: some leave early, some streams, some in the background."""
    randomness = random.Random(number)
    body = {**SMALL, "prompt": "step=0.005", "seed": number}
    kind = randomness.random()
    try:
        if kind < 0.1:
            call = Call(server, {**body, "stream": True})
            call.wait_for("queued")
            call.leave(randomness.choice(["fin", "rst"]))
        elif kind < 0.4:
            list(Call(server, {**body, "stream": True}).frames())
        elif kind < 0.6:
            server.post(body, headers={"Prefer": "respond-async"})
        else:
            server.post(body)
    except (OSError, httpx2.HTTPError):
        pass  # refused by a full queue in the middle of a read: counted by the server


def test_deaths_and_departures(tmp_path: Path) -> None:
    """1,500 requests, a worker killed at every twentieth: all that was accepted has ended, and
    memory, descriptors and files are what they were."""
    with running_server(tmp_path, engine="fake", image_store_mb=1) as server:
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda n: _one(server, n), range(200)))
        _settle(server)
        memory, files = _resident(server), _open_files(server)
        with ThreadPoolExecutor(16) as pool:
            for number in range(300, 1800):
                last = pool.submit(_one, server, number)
                if number % 20 == 0:
                    last.result()
                    server.wait_ready()
                    os.kill(server.worker_pid() or 0, signal.SIGKILL)
        _settle(server)
        ended = Counter(
            {outcome: server.metric("sdstream_jobs_total", outcome=outcome) for outcome in ENDINGS}
        )
        accepted = server.metric("sdstream_accepted_jobs_total")
        assert sum(ended.values()) == accepted
        assert ended["completed"] > ended["failed"] + ended["cancelled"] > 0
        assert _open_files(server) <= files + 5
        grown = _resident(server) - memory
        sys.stderr.write(f"\n{dict(ended)}, memory grew by {grown / 2**20:.1f} MiB\n")
        assert grown < 40 * 2**20
        assert [*(tmp_path / "data" / "inputs").iterdir()] == []
        stored = sum(path.stat().st_size for path in (tmp_path / "data" / "images").iterdir())
        assert stored <= 2**20
        assert server.log.read_text().count("Traceback") == 0


def _settle(server: ServerProcess) -> None:
    def idle() -> bool:
        waiting = server.metric("sdstream_queued_images") + server.metric("sdstream_running_jobs")
        return waiting == 0 and server.is_ready()

    wait_until(idle, 120, "jobs are left")
    time.sleep(1.0)
