"""models.yaml is reloaded while the server runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import httpx2
import pytest
from click.testing import CliRunner

from sdstream.cli.main import main
from tests.integration.test_http import error_of
from tests.integration.test_models import LONG, QUICK, catalogue, state_of
from tests.support.jobs import begin, look, wait_for
from tests.support.servers import ServerProcess, running_server, wait_until


def reload(server: ServerProcess) -> httpx2.Response:
    """Send a request to reload the catalogue."""
    return httpx2.post(f"{server.url}/v1/models/reload", timeout=20)


def ids(server: ServerProcess) -> list[str]:
    """Return the ids of the models that the server lists."""
    return [model["id"] for model in httpx2.get(f"{server.url}/v1/models").json()["data"]]


def test_what_changed_is_told_and_done(tmp_path: Path) -> None:
    """A reload lists the changes and restarts the idle worker of a changed entry only."""
    models = catalogue(tmp_path, a="", b="", c="")
    with running_server(tmp_path, engine="fake", models=models) as server:
        for model in "ab":
            assert server.post({**QUICK, "model": model}).status_code == 200
        first = server.worker_pid()
        assert reload(server).json() == {
            "object": "models.reload", "added": [], "removed": [], "changed": [], "default": "a",
        }  # fmt: skip
        assert server.worker_pid() == first
        catalogue(tmp_path, a=", description: new", b="", d="")
        told = reload(server).json()
        assert (told["added"], told["removed"], told["changed"]) == (["d"], ["c"], ["a"])
        assert ids(server) == ["a", "b", "d"]
        assert state_of(server, "a")["description"] == "new"
        assert state_of(server, "b")["state"] == "ready"
        server.wait_ready()
        assert server.worker_pid() != first
        assert server.post({**QUICK, "model": "d"}).status_code == 200
        gone = server.post({**QUICK, "model": "c"})
        assert error_of(gone)["reason"] == "model_not_found"
        assert server.log_lines("was reloaded: added d; removed c; changed a")


def test_jobs_of_models_that_are_removed_or_changed(tmp_path: Path) -> None:
    """A running job completes; a queued job fails if its model was removed."""
    models = catalogue(tmp_path, a="", b="")
    with running_server(tmp_path, engine="fake", models=models) as server:
        slow = {**LONG, "prompt": "step=0.5"}
        running = {name: begin(server, {**slow, "model": name}) for name in "ab"}
        for job in running.values():
            wait_for(server, job["id"], "running")
        waiting = {name: begin(server, {**QUICK, "model": name}) for name in "ab"}
        workers = state_of(server, "a")["workers"]
        catalogue(tmp_path, a=", description: new")
        assert reload(server).json()["removed"] == ["b"]
        failed = wait_for(server, waiting["b"]["id"], "failed", "completed")
        assert failed["error"]["reason"] == "model_unavailable"
        assert "'b' is not in the catalogue" in failed["error"]["message"]
        assert look(server, running["a"]["id"])["status"] == "running"
        for job in (*running.values(), waiting["a"]):
            assert wait_for(server, job["id"], "completed", "failed")["status"] == "completed"
        assert state_of(server, "a")["workers"] == workers
        wait_until(lambda: server.metric("sdstream_worker_up") == 1, 10, "the worker of b stays")


BROKEN: dict[str, str] = {
    "not YAML": "models: [",
    "no models": "models: []",
    "no such default": "default: z\nmodels: [{id: a, family: sd3, files: {model: x}}]",
    "unknown key": "models: [{id: a, family: sd3, files: {model: x}, colour: red}]",
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_a_wrong_catalogue_changes_nothing(tmp_path: Path, text: str) -> None:
    """An invalid catalogue is reported with its line, and the previous models stay."""
    models = catalogue(tmp_path, a="", b="")
    with running_server(tmp_path, engine="fake", models=models) as server:
        models.write_text(text)
        for path in ("/v1/models/reload", "/sdapi/v1/refresh-checkpoints"):
            answer = httpx2.post(server.url + path, timeout=20)
            assert answer.status_code == 422
            assert "models.yaml was not reloaded: line" in answer.text
            assert str(tmp_path) not in answer.text
        models.unlink()
        assert error_of(reload(server))["reason"] == "catalog_invalid"
        assert ids(server) == ["a", "b"]
        assert server.post({**QUICK, "model": "b"}).status_code == 200


def test_all_problems_of_a_wrong_catalogue_are_told(tmp_path: Path) -> None:
    """All problems of an invalid catalogue are listed with their lines, as at the start."""
    models = catalogue(tmp_path, a="")
    with running_server(tmp_path, engine="fake", models=models) as server:
        models.write_text("models:\n - id: a\n   colour: red\n   files: {model: x}\n")
        message = error_of(reload(server))["message"]
        assert message == (
            "models.yaml was not reloaded: line 2: the key 'models.a.family' is missing; "
            "line 3: unknown key 'models.a.colour'"
        )


@pytest.fixture
def without_terminal(tmp_path: Path) -> Path:
    """A Python that runs in a separate session, as a supervisor starts it."""
    path = tmp_path / "python"
    path.write_text(f'#!/bin/sh\nexec setsid "{sys.executable}" "$@"\n')
    path.chmod(0o700)
    return path


def test_sighup_without_a_terminal_reloads(tmp_path: Path, without_terminal: Path) -> None:
    """SIGHUP reloads the catalogue; the server continues even if the file is invalid."""
    models = catalogue(tmp_path, a="")
    settings: dict[str, Any] = {"engine": "fake", "models": models}
    with running_server(tmp_path, python=without_terminal, **settings) as server:
        catalogue(tmp_path, a="", b="")
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: ids(server) == ["a", "b"], 10, "not reloaded")
        models.write_text("models: [")
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: server.log_lines("was not reloaded"), 10, "not told")
        assert ids(server) == ["a", "b"]
        assert server.is_ready()


def test_signals_change_the_log_level(tmp_path: Path) -> None:
    """SIGUSR1 sets the level debug, SIGUSR2 that of the settings; a worker ignores them."""
    with running_server(tmp_path, engine="fake", log_level="warning") as server:
        assert not server.log_lines("GET /livez")
        worker = server.worker_pid()
        assert worker is not None
        os.kill(worker, signal.SIGUSR1)
        server.process.send_signal(signal.SIGUSR1)
        wait_until(lambda: server.log_lines("log level: debug (may contain prompts)"), 10, "unset")
        httpx2.get(f"{server.url}/livez")
        wait_until(lambda: server.log_lines("GET /livez"), 10, "probes are not logged")
        seen = len(server.log_lines("GET /livez"))
        server.process.send_signal(signal.SIGUSR2)
        wait_until(lambda: server.log_lines("log level: warning (as in the settings)"), 10, "unset")
        httpx2.get(f"{server.url}/livez")
        answer = server.post({"prompt": "a", "size": "64x64"})
        assert answer.status_code == 200
        assert len(server.log_lines("GET /livez")) == seen
        assert server.worker_pid() == worker


@pytest.mark.parametrize("command", [["serve"], ["cluster", "join", "127.0.0.1:1"]])
def test_signals_of_the_log_level_do_not_end_a_command_that_starts(
    monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    """SIGUSR1 and SIGUSR2 are ignored before the command is imported."""
    numbers = (signal.SIGUSR1, signal.SIGUSR2)
    seen: list[object] = []

    def import_module(_name: str) -> NoReturn:
        seen.extend(map(signal.getsignal, numbers))
        raise SystemExit

    monkeypatch.setattr("sdstream.cli.main.importlib.import_module", import_module)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        CliRunner().invoke(main, command)
    finally:
        for number, action in before.items():
            signal.signal(number, action)
    assert seen == [signal.SIG_IGN] * 2


def test_signals_of_the_log_level_do_not_end_a_worker_that_starts() -> None:
    """A worker ignores SIGUSR1 and SIGUSR2 before its imports, which take most of its start."""
    program = """
import runpy, signal, sys
sys.modules["sdstream.core"] = None
try:
    runpy.run_module("sdstream.engine.child", run_name="__main__")
except ModuleNotFoundError:
    print(*map(signal.getsignal, (signal.SIGUSR1, signal.SIGUSR2)))
"""
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ended.stdout.split() == [str(signal.SIG_IGN)] * 2, ended.stderr


def test_refreshing_checkpoints_reloads(tmp_path: Path) -> None:
    """AUTOMATIC1111's route to refresh checkpoints reloads the catalogue."""
    models = catalogue(tmp_path, a="")
    with running_server(tmp_path, engine="fake", models=models) as server:
        catalogue(tmp_path, a="", b="")
        answer = httpx2.post(f"{server.url}/sdapi/v1/refresh-checkpoints", timeout=20)
        assert (answer.status_code, answer.json()) == (200, None)
        listed = httpx2.get(f"{server.url}/sdapi/v1/sd-models").json()
        assert [model["model_name"] for model in listed] == ["a", "b"]
