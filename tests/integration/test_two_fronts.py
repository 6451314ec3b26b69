"""Two servers on one PostgreSQL: one serves, and the other stands by and takes over."""

from __future__ import annotations

import http.client
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.integration.test_http import error_of
from tests.integration.test_webhooks import SETTINGS as WEBHOOKS
from tests.integration.test_webhooks import receiver
from tests.support.haproxy import haproxy
from tests.support.jobs import ASYNC, ENDINGS, EventStream, Told, begin, look, wait_for
from tests.support.postgres import Postgres
from tests.support.s3 import S3
from tests.support.servers import (
    BUSY,
    GENERATIONS,
    Call,
    ServerProcess,
    running_server,
    wait_until,
)

QUICK: dict[str, Any] = {"prompt": "a circle", "size": "64x64", "sample_steps": 3}
#: Two seconds of work.
LONG: dict[str, Any] = {"prompt": "step=0.1", "size": "64x64", "sample_steps": 20}

#: Limit for a takeover on an idle machine, where it takes 1 to 2 s.
TAKEOVER_SECONDS = 5.0


@dataclass(frozen=True)
class Fronts:
    """Two servers that share a database and a folder of images.

    Attributes:
        url: Address of the database.
        folder: Folder of the logs and the data.
        settings: Settings of both servers.
        stack: Ends the servers.
    """

    url: str
    folder: Path
    settings: dict[str, Any]
    stack: ExitStack

    def start(self, **changes: Any) -> ServerProcess:
        """Start a server, which serves if no other does, and otherwise stands by."""
        settings = {"engine": "fake", "standby": True, "database": self.url, **self.settings}
        server = running_server(self.folder, wait=False, **{**settings, **changes})
        return self.stack.enter_context(server)

    def pair(self) -> tuple[ServerProcess, ServerProcess]:
        """Start a server that serves and one that stands by."""
        return in_order(self.start(), self.start())


@contextmanager
def fronts(postgres: Postgres, folder: Path, **settings: Any) -> Iterator[Fronts]:
    """Create a database, and yield a starter of servers that share it and a folder."""
    with ExitStack() as stack:
        yield Fronts(postgres.new(), folder, settings, stack)


def in_order(one: ServerProcess, other: ServerProcess) -> tuple[ServerProcess, ServerProcess]:
    """Wait until one of two servers serves and the other stands by; return them in this order."""
    wait_until(lambda: {state_of(one), state_of(other)} == {"ok", "standby"}, 20, "none serves")
    return (one, other) if state_of(one) == "ok" else (other, one)


def state_of(server: ServerProcess) -> str:
    """Return the status that /readyz reports, or "gone" without an answer."""
    try:
        return str(httpx2.get(f"{server.url}/readyz", timeout=20).json()["status"])
    except httpx2.HTTPError:
        return "gone"


def seconds_until_ready(server: ServerProcess) -> float:
    """Wait until a server is ready; return how long that took."""
    began = time.monotonic()
    server.wait_ready(TAKEOVER_SECONDS)
    return time.monotonic() - began


def test_a_server_that_stands_by(postgres: Postgres, tmp_path: Path) -> None:
    """A standby server is alive but not ready, and rejects requests with a reason.

    A third server without --standby exits with an error message.
    """
    with fronts(postgres, tmp_path, api_keys="the-key") as pair:
        _, second = pair.pair()
        assert httpx2.get(f"{second.url}/livez").status_code == 200
        ready = httpx2.get(f"{second.url}/readyz")
        assert (ready.status_code, ready.headers["Retry-After"]) == (503, "1")
        assert "another server runs the jobs" in ready.json()["message"]
        for method, path in (("POST", GENERATIONS), ("GET", "/v1/jobs"), ("GET", "/")):
            answer = httpx2.request(method, second.url + path, json=QUICK)
            assert (answer.status_code, error_of(answer)["reason"]) == (503, "standby")
            assert answer.headers["Retry-After"] == "1"
        alone = pair.start(standby=False)
        assert alone.process.wait(60) == 78
        (sentence,) = alone.log_lines("Error:")
        assert "in use by another server; start this one with --standby" in sentence
        assert second.stop() in (0, -signal.SIGTERM)


def test_the_death_of_the_server(postgres: Postgres, tmp_path: Path) -> None:
    """The standby is ready within seconds; jobs, idempotency keys, links and tokens stay valid."""
    with (
        receiver() as (port, told),
        fronts(
            postgres, tmp_path, **WEBHOOKS, webhook_hosts=f"127.0.0.1:{port}", api_keys="k"
        ) as pair,
    ):
        first, second = pair.pair()
        key = {"Authorization": "Bearer k"}
        hook = {"webhook_url": f"http://127.0.0.1:{port}/hook"}
        named = {**key, "Idempotency-Key": "mine"}
        done = begin(first, {**QUICK, **hook, "response_format": "url"}, named)
        token = httpx2.post(f"{first.url}/v1/tokens", headers=key).json()["token"]
        wait_until(lambda: look(first, done["id"], key)["status"] == "completed", 10, "not done")
        running = begin(first, {**LONG, **hook}, key)
        waiting = begin(first, {**QUICK, **hook}, key)
        client = Call(first, {**LONG, "stream": True, **hook}, key)
        wait_until(
            lambda: look(first, running["id"], key)["status"] == "running", 10, "not running"
        )
        path = f"/v1/jobs/{running['id']}/events?token={token}"
        with EventStream(first, path) as stream:
            seen = [next(stream.events()) for _ in range(3)]
            first.process.send_signal(signal.SIGKILL)
        print(f"ready after {seconds_until_ready(second):.2f} s")
        with EventStream(second, path, {"Last-Event-ID": seen[-1].id}) as stream:
            later = list(stream.events())
        assert later[-1].name == "completed"
        assert all(event.number > seen[-1].number for event in later)
        ids = [job["id"] for job in (done, running, waiting)]
        for job in ids:
            wait_until(lambda job=job: look(second, job, key)["status"] in ENDINGS, 20, job)
        attempts = [look(second, job, key)["attempts"] for job in ids]
        assert attempts == [1, 2, 1]
        again = httpx2.post(
            second.url + GENERATIONS, json=done_body(hook), headers={**named, **ASYNC}
        )
        assert again.json()["id"] == done["id"]
        image = httpx2.get(f"{second.url}/v1/jobs/{done['id']}/result", headers=key).json()
        link = image["data"][0]["url"].replace(first.url, second.url)
        assert httpx2.get(link).status_code == 200
        lost = httpx2.get(f"{second.url}/v1/jobs", params={"status": "failed"}, headers=key).json()
        assert [job["error"]["reason"] for job in lost["data"]] == ["interrupted"]
        wait_until(lambda: len(told) >= 4, 20, "not all ends were posted")
        assert Counter(message["id"] for message in told).most_common(1)[0][1] == 1
        assert {message["data"]["id"] for message in told} >= set(ids)
        client.leave()


def done_body(hook: dict[str, str]) -> dict[str, Any]:
    """Return the request of the completed job."""
    return {**QUICK, **hook, "response_format": "url"}


def read_to_the_end(server: ServerProcess, path: str) -> list[Told]:
    """Read events as an EventSource does: reconnect after a closed connection, fail on a status."""
    seen: list[Told] = []
    while not seen or seen[-1].name not in ENDINGS:
        last = {"Last-Event-ID": seen[-1].id} if seen else {}
        try:
            with EventStream(server, path, {"Accept": "text/event-stream", **last}) as stream:
                assert stream.answer.status == 200
                seen.extend(stream.events())
        except (OSError, http.client.HTTPException):
            time.sleep(0.2)  # a browser waits for two seconds
    return seen


def test_behind_haproxy(postgres: Postgres, s3_server: S3, tmp_path: Path) -> None:
    """Jobs, events and links survive a takeover behind HAProxy, with images in a bucket.

    Clients see closed connections and 503 for a few seconds.
    """
    settings = {
        "images": f"s3://{s3_server.new()}/images",
        "environment": {**os.environ, **s3_server.environment},
    }
    with fronts(postgres, tmp_path, **settings) as pair:
        first, second = pair.pair()
        with haproxy(tmp_path, first, second) as url, ThreadPoolExecutor(1) as readers:
            proxy = ServerProcess(first.process, url, first.log)
            named = {"Idempotency-Key": "mine"}
            body = {**QUICK, "response_format": "url"}
            done = begin(proxy, body, named)
            link = wait_for(proxy, done["id"], "completed")["images"][0]["url"]
            assert link.startswith(url)
            job = begin(proxy, LONG)
            reading = readers.submit(read_to_the_end, proxy, f"/v1/jobs/{job['id']}/events")
            wait_for(proxy, job["id"], "running")
            time.sleep(0.5)
            first.process.send_signal(signal.SIGKILL)
            began = time.monotonic()
            wait_until(lambda: accepts(proxy), TAKEOVER_SECONDS, "requests are not served again")
            print(f"served again after {time.monotonic() - began:.2f} s")
            seen = reading.result(60)
            assert seen[-1].name == "completed"
            numbers = [event.number for event in seen]
            assert numbers == sorted(set(numbers))
            assert numbers[-1] - numbers[0] > 1_000_000  # read from both servers
            assert httpx2.get(link).content.startswith(b"\x89PNG")
            assert begin(proxy, body, named)["id"] == done["id"]
        data = tmp_path / "data"
        assert not data.exists() or not any(data.rglob("*.png"))


def accepts(server: ServerProcess) -> bool:
    """Return True if a request is served."""
    try:
        return server.post(QUICK).status_code == 200
    except httpx2.HTTPError:
        return False


def test_postgres_restarts(postgres: Postgres, tmp_path: Path) -> None:
    """A restart of PostgreSQL causes 503s; no job is lost or runs twice, and the standby stays."""
    with fronts(postgres, tmp_path) as pair:
        first, second = pair.pair()
        jobs = [begin(first, LONG), begin(first, QUICK)]
        wait_for(first, jobs[0]["id"], "running")
        client = Call(first, {**QUICK, "stream": True})
        client.wait_for("queued")
        try:
            postgres.stop(signal.SIGQUIT)
            assert state_of(first) != "ok"
            assert first.post(QUICK).status_code == 503
            asked = httpx2.get(f"{first.url}/v1/jobs/{jobs[0]['id']}", timeout=20)
            assert (asked.status_code, error_of(asked)["reason"]) == (503, "storage_unavailable")
            time.sleep(3)  # the job ends meanwhile, and no other begins
        finally:
            postgres.start()
        wait_until(lambda: "ok" in (state_of(first), state_of(second)), 10, "none is ready")
        ready = first if state_of(first) == "ok" else second
        for job in jobs:
            wait_until(lambda job=job: ended(ready, job["id"]), 20, "it has not ended")
        ends = [look(ready, job["id"]) for job in jobs]
        assert [end["status"] for end in ends] == ["completed"] * 2
        if ready is first:  # the standby waits for it, but only for a limited time
            assert [end["attempts"] for end in ends] == [1, 1]
            assert state_of(second) == "standby"
            assert [*client.events()][-1]["data"][0]["b64_json"]


def ended(server: ServerProcess, job: str) -> bool:
    """Return True if the server reports that a job ended; a 503 counts as False."""
    answer = httpx2.get(f"{server.url}/v1/jobs/{job}", timeout=20)
    return answer.status_code == 200 and answer.json()["status"] in ENDINGS


@pytest.mark.parametrize("stopped", [False, True])
def test_two_servers_never_both_write(postgres: Postgres, tmp_path: Path, stopped: bool) -> None:
    """A server that lost its database session resumes it, or exits if the other took over."""
    with (
        receiver() as (port, told),
        fronts(postgres, tmp_path, **WEBHOOKS, webhook_hosts=f"127.0.0.1:{port}") as pair,
    ):
        first, second = pair.pair()
        hook = {"webhook_url": f"http://127.0.0.1:{port}/hook"}
        jobs = [begin(first, {**LONG, **hook}), begin(first, {**QUICK, **hook})]
        wait_for(first, jobs[0]["id"], "running")
        if stopped:  # it cannot resume the session, so the other one takes over
            first.process.send_signal(signal.SIGSTOP)
        postgres.terminate_lock(pair.url)
        if stopped:
            second.wait_ready(TAKEOVER_SECONDS)
            first.process.send_signal(signal.SIGCONT)
            assert first.process.wait(20 * BUSY) == 70
            (sentence,) = first.log_lines("took over")
            assert "this server exits" in sentence
            assert "Traceback" not in first.log.read_text()
        wait_until(lambda: "ok" in (state_of(first), state_of(second)), 10, "none is ready")
        assert (state_of(first), state_of(second)).count("ok") == 1
        ready = first if state_of(first) == "ok" else second
        for job in jobs:
            wait_until(lambda job=job: ended(ready, job["id"]), 20, "it has not ended")
        wait_until(lambda: len(told) >= 2, 20, "not both ends were posted")
        time.sleep(1)
        assert Counter(message["data"]["id"] for message in told) == {j["id"]: 1 for j in jobs}


def test_one_folder_on_one_machine(tmp_path: Path) -> None:
    """Two servers with SQLite need only the lock of their common folder."""
    settings: dict[str, Any] = {"engine": "fake", "standby": True, "wait": False}
    with (
        running_server(tmp_path, **settings) as one,
        running_server(tmp_path, **settings) as other,
    ):
        first, second = in_order(one, other)
        job = begin(first, LONG)
        wait_for(first, job["id"], "running")
        os.kill(first.process.pid, signal.SIGKILL)
        second.wait_ready(TAKEOVER_SECONDS)
        assert wait_for(second, job["id"], *ENDINGS)["status"] == "completed"
