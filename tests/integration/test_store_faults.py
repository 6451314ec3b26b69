"""A database that cannot be written: no job is lost, and no reported status is taken back."""

from __future__ import annotations

import errno
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from sdstream.settings import Settings
from sdstream.storage.ports import StoreError, StoreUnreachable
from sdstream.web.server import Server
from tests.integration.test_http import error_of
from tests.support.jobs import ENDINGS, begin, events_of, look, wait_for
from tests.support.servers import Call, ServerProcess, running_server, wait_until

QUICK: dict[str, Any] = {"prompt": "a circle", "size": "64x64", "sample_steps": 3}
#: One second of work.
LONG: dict[str, Any] = {"prompt": "step=0.1", "size": "64x64", "sample_steps": 10}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the write lock of a server's database, as a shell or a backup may."""
    other = sqlite3.connect(folder / "data/jobs.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.rollback()
        other.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server for one test, whose data folder is ``data`` in ``tmp_path``."""
    with running_server(tmp_path, engine="fake") as running:
        yield running


def wait_for_end(server: ServerProcess, job: str) -> None:
    """Wait until the server reports that a job ended; ignore each 503 meanwhile."""
    wait_until(lambda: status_of(server, job) in ENDINGS, 30, "the job has not ended")


def status_of(server: ServerProcess, job: str) -> str:
    """Return the status that GET /v1/jobs/{id} reports, or "busy" for a 503."""
    answer = httpx2.get(f"{server.url}/v1/jobs/{job}", timeout=20)
    return "busy" if answer.status_code == 503 else str(answer.json()["status"])


def test_what_a_client_was_told_survives_a_lock_and_a_kill(
    tmp_path: Path, server: ServerProcess
) -> None:
    """A job that ends during a lock is not reported as completed before the database has it."""
    told = set()
    job = begin(server, LONG)
    wait_for(server, job["id"], "running")
    with locked(tmp_path):
        ending = time.monotonic() + 7
        while time.monotonic() < ending:
            told.add(status_of(server, job["id"]))
            time.sleep(0.2)
        listed = httpx2.get(f"{server.url}/v1/jobs", timeout=20)
        assert "completed" not in told
        assert listed.status_code == 503
        server.stop(signal.SIGKILL)
    with running_server(tmp_path, engine="fake") as again:
        done = wait_for(again, job["id"], *ENDINGS)
        assert (done["status"], done["attempts"]) == ("completed", 2)


def test_a_write_that_failed_is_tried_again(tmp_path: Path, server: ServerProcess) -> None:
    """After the lock the list and the result agree, and no image is generated twice."""
    job = begin(server, LONG)
    with locked(tmp_path):
        time.sleep(9)
    events = events_of(server, job["id"])
    assert events[-1].name == "completed"
    (listed,) = httpx2.get(f"{server.url}/v1/jobs").json()["data"]
    assert listed["status"] == "completed"
    result = httpx2.get(job["result_url"]).json()
    server.stop(signal.SIGKILL)
    with running_server(tmp_path, engine="fake") as again:
        done = look(again, job["id"])
        assert (done["status"], done["attempts"]) == ("completed", 1)
        later = httpx2.get(f"{again.url}/v1/jobs/{job['id']}/result").json()
        assert [i["b64_json"] for i in later["data"]] == [i["b64_json"] for i in result["data"]]


@pytest.mark.parametrize("way", ["post", "get", "list", "delete", "cancel", "result", "image"])
def test_every_route_says_that_the_database_is_locked(
    tmp_path: Path, server: ServerProcess, way: str
) -> None:
    """A locked database causes a 503 with Retry-After; the same request works afterwards."""
    old = begin(server, QUICK)
    wait_for(server, old["id"], "completed")
    job = begin(server, LONG)
    waiting = begin(server, LONG)
    jobs = f"{server.url}/v1/jobs"
    asked: dict[str, tuple[str, str, dict[str, Any]]] = {
        "post": ("POST", f"{server.url}/v1/images/generations", {"json": QUICK}),
        "get": ("GET", f"{jobs}/{job['id']}", {}),
        "list": ("GET", jobs, {}),
        "delete": ("DELETE", f"{jobs}/{old['id']}", {}),
        "cancel": ("POST", f"{jobs}/{waiting['id']}/cancel", {}),
        "result": ("GET", f"{jobs}/{job['id']}/result", {}),
        "image": ("GET", f"{server.url}/v1/images/unknown/content", {}),
    }
    method, url, more = asked[way]
    with locked(tmp_path):
        if way not in ("post", "delete", "cancel"):
            time.sleep(4)
        answer = httpx2.request(method, url, timeout=20, **more)
        assert answer.status_code == 503, answer.text
        assert error_of(answer)["reason"] == "storage_unavailable"
        assert int(answer.headers["Retry-After"]) > 0
    for one in (job, waiting):
        wait_for_end(server, one["id"])
    after = httpx2.request(method, url, timeout=20, **more)
    assert after.status_code == (404 if way == "image" else 200)


def test_readiness_is_lost_with_the_store(tmp_path: Path, server: ServerProcess) -> None:
    """The server is not ready while its database is locked or its folder is missing."""
    assert server.is_ready()
    with locked(tmp_path):
        wait_until(lambda: not server.is_ready(), 10, "ready with a locked database")
    server.wait_ready(10)
    data = tmp_path / "data"
    data.rename(tmp_path / "elsewhere")
    assert not server.is_ready()
    answer = server.post(QUICK)
    assert (answer.status_code, error_of(answer)["reason"]) == (503, "storage_unavailable")
    (tmp_path / "elsewhere").rename(data)
    server.wait_ready(10)


def test_a_client_that_waits_for_its_picture_gets_it(tmp_path: Path, server: ServerProcess) -> None:
    """A waiting client gets its image even while the database is locked."""
    call = Call(server, {**LONG, "stream": True})
    call.wait_for("running")
    with locked(tmp_path):
        events = list(call.events())
        assert events[-1]["data"][0]["b64_json"]


def test_a_start_with_a_locked_database_ends_with_a_sentence(tmp_path: Path) -> None:
    """A server that starts with a locked database exits with an error message and code 78."""
    with running_server(tmp_path, engine="fake"):
        pass
    with locked(tmp_path), running_server(tmp_path, engine="fake", wait=False) as late:
        assert late.process.wait(90) == 78
        assert "locked" in late.log.read_text()
        assert "Traceback" not in late.log.read_text()


def test_a_start_that_cannot_recover_the_jobs_ends_with_a_sentence(tmp_path: Path) -> None:
    """A database that fails after it was opened ends the start with its error."""
    folder = tmp_path / "data"
    server = Server(Settings(data_dir=folder, cache_dir=tmp_path, engine="fake", port=0))
    with closing(sqlite3.connect(folder / "jobs.sqlite")) as other:
        other.execute("DROP TABLE images")
    with pytest.raises(StoreError, match="jobs cannot be recovered: no such table: images"):
        server.run()


def test_a_start_with_another_folder_of_images_ends_with_a_sentence(tmp_path: Path) -> None:
    """A server without its images does not delete its jobs, and a later start finds them."""
    with running_server(tmp_path, engine="fake") as server:
        job = server.post({**QUICK, "response_format": "url"}).headers["x-job-id"]
    images = tmp_path / "data" / "images"
    images.rename(tmp_path / "elsewhere")
    with running_server(tmp_path, engine="fake", wait=False) as late:
        assert late.process.wait(90) == 78
        assert "lacks every image that the database names (1)" in late.log.read_text()
        assert "Traceback" not in late.log.read_text()
    images.rmdir()
    (tmp_path / "elsewhere").rename(images)
    with running_server(tmp_path, engine="fake") as server:
        assert httpx2.get(f"{server.url}/v1/jobs/{job}", timeout=10).json()["status"] == "completed"


def test_a_bucket_that_stops_answering_during_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later start may succeed, so the exit code is 1, and the error names the fault."""

    def silent(*_: object) -> set[str]:
        raise ConnectionError(errno.EHOSTUNREACH, "no answer")

    server = Server(Settings(data_dir=tmp_path, cache_dir=tmp_path, engine="fake", port=0))
    store = server.config.app.state.store  # type: ignore[union-attr]
    monkeypatch.setattr(store._images, "sweep", silent)
    with pytest.raises(StoreUnreachable, match=r"the image store cannot be used: .*no answer"):
        server.run()
