"""Several models side by side within a memory budget, on the fake engine."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from sdstream.system import available_cores
from tests.integration.test_http import error_of
from tests.support.jobs import begin, look, wait_for
from tests.support.servers import ServerProcess, running_server, wait_until

QUICK: dict[str, Any] = {"prompt": "step=0.02", "size": "64x64", "sample_steps": 5}
LONG: dict[str, Any] = {"prompt": "step=0.1", "size": "64x64", "sample_steps": 20}


def catalogue(folder: Path, **models: str) -> Path:
    """Write a models.yaml of fake models; each value is YAML that is added to an entry."""
    entries = [
        f"  - {{id: {name}, family: sd3, files: {{model: x}}, size: {{min: 64}}{more}}}"
        for name, more in models.items()
    ]
    path = folder / "models.yaml"
    path.write_text("models:\n" + "\n".join(entries) + "\n")
    return path


def state_of(server: ServerProcess, model: str) -> dict[str, Any]:
    """Return a model as the server reports it."""
    found: dict[str, Any] = httpx2.get(f"{server.url}/v1/models/{model}").json()
    return found


@pytest.fixture(scope="module")
def worker_mb(fake_server: ServerProcess) -> float:
    """The memory of a fake worker, in MiB."""
    return float(state_of(fake_server, "embedded")["resident_bytes"]) / 2**20


def test_three_models_in_room_for_two(tmp_path: Path, worker_mb: float) -> None:
    """Sixty mixed requests at once all succeed, and memory stays within the budget."""
    models = catalogue(tmp_path, a="", b="", c="")
    budget = int(2.6 * worker_mb)
    with running_server(
        tmp_path, engine="fake", models=models, memory_mb=budget, queue_images=100
    ) as server:
        highest = 0
        over = threading.Event()

        def look_at_memory() -> None:
            nonlocal highest
            while not over.wait(0.05):
                data = httpx2.get(f"{server.url}/v1/models").json()["data"]
                highest = max(highest, sum(model["resident_bytes"] for model in data))

        watcher = threading.Thread(target=look_at_memory)
        watcher.start()
        with ThreadPoolExecutor(20) as pool:
            bodies = [{**QUICK, "model": "abc"[n * 7 % 3], "seed": n} for n in range(60)]
            answers = [*pool.map(server.post, bodies)]
        over.set()
        watcher.join()
        assert {answer.status_code for answer in answers} == {200}
        for body, answer in zip(bodies, answers, strict=True):
            assert answer.json()["model"] == body["model"]
            assert answer.json()["data"][0]["seed"] == body["seed"]
        assert highest <= budget * 2**20
        evictions = server.metric("sdstream_worker_evictions_total")
        assert 1 <= evictions < 60
        loads = len(server.log_lines(" loaded in "))
        assert loads == evictions + len(
            [w for w in "abc" if state_of(server, w)["state"] != "unloaded"]
        )
        assert server.metric("sdstream_worker_starts_total") >= loads  # stops do not lower it


def test_a_busy_model_is_never_stopped(tmp_path: Path, worker_mb: float) -> None:
    """Another model waits for memory until the running job ends, and then goes first."""
    models = catalogue(tmp_path, a="", b="")
    with running_server(
        tmp_path, engine="fake", models=models, memory_mb=int(1.5 * worker_mb)
    ) as server:
        running = begin(server, {**LONG, "model": "a"})["id"]
        wait_for(server, running, "running")
        other = begin(server, {**QUICK, "model": "b"})["id"]
        later = begin(server, {**QUICK, "model": "a"})["id"]
        assert look(server, other)["status"] == "queued"
        ends = {job: wait_for(server, job, "completed") for job in (running, other, later)}
        assert ends[running]["attempts"] == 1
        assert ends[running]["ended"] <= ends[other]["started"] <= ends[later]["started"]


def test_models_draw_at_the_same_time(tmp_path: Path) -> None:
    """A job does not wait for a job of another model if there is enough memory."""
    models = catalogue(tmp_path, a="", b="")
    with running_server(tmp_path, engine="fake", models=models) as server:
        slow = begin(server, {**LONG, "model": "a"})["id"]
        wait_for(server, slow, "running")
        assert server.post({**QUICK, "model": "b"}).status_code == 200
        assert look(server, slow)["status"] == "running"
        assert server.metric("sdstream_running_jobs") == 1


def test_a_loading_model_is_loaded_once(tmp_path: Path) -> None:
    """A model is loaded once, however many jobs wait for it."""
    models = catalogue(tmp_path, a="", b="")
    with running_server(tmp_path, engine="fake", models=models) as server:
        with ThreadPoolExecutor(10) as pool:
            answers = [
                *pool.map(lambda n: server.post({**QUICK, "model": "b", "seed": n}), range(10))
            ]
        assert {answer.status_code for answer in answers} == {200}
        assert len(server.log_lines("model b loaded")) == 1


def test_replicas(tmp_path: Path) -> None:
    """Two workers of a model run two jobs at once; if one dies, the other's job continues."""
    models = catalogue(tmp_path, a=", replicas: 2")
    with running_server(tmp_path, engine="fake", models=models) as server:
        jobs = [begin(server, {**LONG, "seed": n})["id"] for n in range(2)]
        for job in jobs:
            wait_for(server, job, "running")
        assert server.metric("sdstream_running_jobs") == 2
        model = state_of(server, "a")
        assert (model["workers"], model["replicas"], model["state"]) == (2, 2, "busy")
        assert server.metric("sdstream_worker_starts_total") == 2
        pid = server.worker_pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        tries = sorted(wait_for(server, job, "completed")["attempts"] for job in jobs)
        assert tries == [1, 2]
        assert server.metric("sdstream_worker_starts_total") == 3


def test_automatic_replicas(tmp_path: Path) -> None:
    """A small model has a worker for each concurrent job, up to one for each core."""
    models = catalogue(tmp_path, a=", replicas: auto")
    models.write_text(models.read_text().replace("model: x", "model: sharing"))
    most = min(available_cores(), 8)
    with running_server(tmp_path, engine="fake", models=models, grace_seconds=1) as server:
        for _ in range(3):
            assert server.post({**QUICK, "model": "a"}).status_code == 200
        assert state_of(server, "a")["workers"] == 1
        outlasting = {**LONG, "sample_steps": 100}
        jobs = [begin(server, {**outlasting, "seed": n})["id"] for n in range(most + 1)]
        wait_until(
            lambda: server.metric("sdstream_running_jobs") == most, 20, "jobs wait for a worker"
        )
        model = state_of(server, "a")
        assert (model["workers"], model["replicas"]) == (most, "auto")
        assert server.metric("sdstream_worker_up", model="a") == most
        assert look(server, jobs[-1])["status"] == "queued"


def test_keep_alive(tmp_path: Path) -> None:
    """An idle model is unloaded after its keep_alive, and loaded again when needed."""
    models = catalogue(tmp_path, a="", b=", keep_alive: 0.3")
    with running_server(tmp_path, engine="fake", models=models) as server:
        assert server.post({**QUICK, "model": "b"}).status_code == 200
        wait_until(lambda: state_of(server, "b")["state"] == "unloaded", 5, "it stays")
        assert state_of(server, "a")["state"] == "ready"
        assert server.post({**QUICK, "model": "b"}).status_code == 200


def test_keep_alive_of_nothing(tmp_path: Path) -> None:
    """A model with keep_alive 0 runs the jobs that wait for it before it is unloaded."""
    models = catalogue(tmp_path, a="", b=", keep_alive: 0")
    with running_server(tmp_path, engine="fake", models=models) as server:
        jobs = [begin(server, {**QUICK, "model": "b"})["id"] for _ in range(3)]
        for job in jobs:
            wait_for(server, job, "completed")
        assert len(server.log_lines("model b loaded")) <= len(jobs)
        wait_until(lambda: state_of(server, "b")["state"] == "unloaded", 10, "it stays")


def test_keep_alive_of_a_model_that_never_drew(tmp_path: Path) -> None:
    """keep_alive also unloads an unused default model, one loaded manually, and a crashed one."""
    models = catalogue(tmp_path, a=", keep_alive: 0.3", b=", keep_alive: 0.3")
    with running_server(tmp_path, engine="fake", models=models) as server:
        wait_until(lambda: state_of(server, "a")["state"] == "unloaded", 10, "it stays")
        assert server.is_ready()
        httpx2.post(f"{server.url}/v1/models/b/load", timeout=20)
        wait_until(lambda: state_of(server, "b")["state"] == "unloaded", 10, "it stays")
        assert server.post({**QUICK, "model": "b", "prompt": "crash=1"}).status_code == 500
        wait_until(lambda: state_of(server, "b")["state"] == "unloaded", 10, "it stays")


def test_load_and_unload(tmp_path: Path) -> None:
    """Models can be loaded and unloaded manually; a busy model finishes its job first."""
    models = catalogue(tmp_path, a="", b="")
    with running_server(tmp_path, engine="fake", models=models) as server:
        url = f"{server.url}/v1/models"
        assert (state_of(server, "b")["state"], state_of(server, "b")["device"]) == (
            "unloaded",
            None,
        )
        loaded = httpx2.post(f"{url}/b/load", timeout=20).json()
        assert (loaded["state"], loaded["device"]) == ("ready", "cpu")
        assert httpx2.post(f"{url}/b/load", timeout=20).json()["workers"] == 1
        assert httpx2.post(f"{url}/b/unload").json()["state"] == "unloaded"
        job = begin(server, {**LONG, "sample_steps": 6})["id"]
        wait_for(server, job, "running")
        assert httpx2.post(f"{url}/a/unload").json()["state"] == "busy"
        assert wait_for(server, job, "completed")["attempts"] == 1
        wait_until(lambda: state_of(server, "a")["state"] == "unloaded", 5, "it stays")
        assert httpx2.get(f"{server.url}/readyz").status_code == 200
        assert server.post(QUICK).status_code == 200
        unknown = httpx2.post(f"{url}/nobody/load")
        assert (unknown.status_code, error_of(unknown)["reason"]) == (404, "model_not_found")


def test_unloading_what_still_waits_for_room(tmp_path: Path, worker_mb: float) -> None:
    """Unloading a model that waits for memory ends its pending load with an error.

    The worker that must make room is suspended, so the load has to wait.
    """
    models = catalogue(tmp_path, a="", b="")
    with running_server(
        tmp_path, engine="fake", models=models, memory_mb=int(1.5 * worker_mb)
    ) as server:
        pid = server.worker_pid()
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        url = f"{server.url}/v1/models/b"
        with ThreadPoolExecutor(1) as pool:
            loading = pool.submit(httpx2.post, f"{url}/load", timeout=60)
            wait_until(lambda: state_of(server, "b")["state"] == "starting", 10, "it is not begun")
            assert httpx2.post(f"{url}/unload").json()["state"] == "unloaded"
            answer = loading.result()
        assert (answer.status_code, error_of(answer)["reason"]) == (503, "model_unavailable")


def test_a_model_that_cannot_be_loaded_harms_no_other(tmp_path: Path) -> None:
    """A model that cannot be loaded reports the reason, can be retried, and affects no other."""
    models = catalogue(tmp_path, a="")
    broken = "  - {id: broken, family: sd3, files: {model: broken}, size: {min: 64}}\n"
    models.write_text(models.read_text() + broken)
    with running_server(tmp_path, engine="fake", models=models) as server:
        answer = server.post({**QUICK, "model": "broken"})
        assert (answer.status_code, error_of(answer)["reason"]) == (503, "model_unavailable")
        assert state_of(server, "broken")["state"] == "failed"
        assert "damaged" in state_of(server, "broken")["error"]
        again = httpx2.post(f"{server.url}/v1/models/broken/load", timeout=30)
        assert (again.status_code, "damaged" in again.text) == (503, True)
        assert server.post({**QUICK, "model": "a"}).status_code == 200
        time.sleep(0.1)
        assert server.is_ready()


def test_a_default_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    """A server whose default model failed is not ready, even if another model is loaded."""
    models = catalogue(tmp_path, other="")
    broken = "models:\n  - {id: broken, family: sd3, files: {model: broken}, size: {min: 64}}\n"
    models.write_text(models.read_text().replace("models:\n", broken))
    with running_server(tmp_path, engine="fake", models=models, wait=False) as server:
        url = f"{server.url}/readyz"
        wait_until(lambda: server.log_lines("load 3 failed"), 30, "it goes on trying")
        assert server.post({**QUICK, "model": "other"}).status_code == 200
        answer = httpx2.get(url)
        assert (answer.status_code, answer.json()["status"]) == (503, "failed")
        assert "damaged" in answer.json()["message"]


def test_a_default_model_that_crashes_again_and_again(tmp_path: Path) -> None:
    """After three crashes the restarted server is unready until a job succeeds."""
    with running_server(tmp_path, engine="fake") as server:
        for _ in range(3):
            assert server.post({**QUICK, "prompt": "crash=0"}).status_code == 500
        url = f"{server.url}/v1/models/embedded"
        wait_until(lambda: httpx2.get(url).json()["state"] == "ready", 20, "it is not loaded")
        assert not server.is_ready()
        assert server.post(QUICK).status_code == 200
        assert server.is_ready()


def test_a_name_outlives_no_failure_that_passes(tmp_path: Path) -> None:
    """A request that failed for lack of its model can be repeated with its Idempotency-Key."""
    models = catalogue(tmp_path, a="")
    working = models.read_text()
    models.write_text(working + "  - {id: b, family: sd3, files: {model: broken}}\n")
    body, headers = {**QUICK, "model": "b"}, {"Idempotency-Key": "K"}
    with running_server(tmp_path, engine="fake", models=models) as server:
        failed = server.post(body, headers=headers)
        assert error_of(failed)["reason"] == "model_unavailable"
    models.write_text(working + "  - {id: b, family: sd3, files: {model: x}, size: {min: 64}}\n")
    with running_server(tmp_path, engine="fake", models=models) as server:
        drawn = server.post(body, headers=headers)
        assert drawn.status_code == 200
        assert server.post(body, headers=headers).headers["X-Job-Id"] == drawn.headers["X-Job-Id"]
        old = failed.headers["X-Job-Id"]
        assert look(server, old)["status"] == "failed"
