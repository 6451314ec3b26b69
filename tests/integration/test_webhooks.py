"""Webhooks of real jobs on the fake engine, sent to a receiver in the test."""

from __future__ import annotations

import base64
import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2

from sdstream.service.webhooks import signature
from tests.integration.test_http import error_of
from tests.integration.test_jobs import QUICK
from tests.support.jobs import begin, look, wait_for
from tests.support.servers import ServerProcess, running_server, wait_until

KEY = b"s" * 32
SETTINGS: dict[str, Any] = {
    "engine": "fake",
    "webhook_secret": "whsec_" + base64.b64encode(KEY).decode(),
    "webhook_private": True,
}


@contextmanager
def receiver(port: int = 0) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Receive webhooks and check their signatures; yield the port and the messages."""
    told: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            second = int(self.headers["webhook-timestamp"])
            wanted = signature(KEY, self.headers["webhook-id"], second, body)
            assert self.headers["webhook-signature"] == wanted
            told.append({"id": self.headers["webhook-id"], **json.loads(body)})
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1], told
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def told_of(server: ServerProcess, port: int, **options: Any) -> dict[str, Any]:
    """Begin a job with a webhook."""
    return begin(server, {**QUICK, **options, "webhook_url": f"http://127.0.0.1:{port}/hook"})


def test_every_ending_is_told_once(tmp_path: Path) -> None:
    """Completed, failed and cancelled jobs each send one webhook, with the whole job."""
    with (
        receiver() as (port, told),
        running_server(tmp_path, **SETTINGS, webhook_hosts=f"127.0.0.1:{port}") as server,
    ):
        jobs = {
            "completed": told_of(server, port)["id"],
            "failed": told_of(server, port, prompt="fail=1")["id"],
            "cancelled": told_of(server, port, prompt="step=0.1", sample_steps=100)["id"],
        }
        wait_for(server, jobs["cancelled"], "running")
        httpx2.post(f"{server.url}/v1/jobs/{jobs['cancelled']}/cancel")
        wait_until(lambda: len(told) == 3, 10, "not all were told")
        for message in told:
            kind = message["type"].removeprefix("image.job.")
            assert message["data"] == look(server, jobs[kind])
            assert message["id"] == f"msg_{jobs[kind]}"


def test_a_death_between_end_and_delivery(tmp_path: Path) -> None:
    """A webhook that was not delivered before a crash is sent after the restart."""
    with receiver() as (port, _):
        pass  # no server listens on this port from here on
    settings = {**SETTINGS, "webhook_hosts": "127.0.0.1:*"}
    with running_server(tmp_path, **settings) as server:
        job = told_of(server, port)["id"]
        wait_for(server, job, "completed")
        wait_until(lambda: server.log_lines("webhook"), 10, "it was not tried")
        server.stop(signal.SIGKILL)
    with receiver(port) as (_, told), running_server(tmp_path, **settings) as server:
        wait_until(lambda: len(told) == 1, 15, "it was not told")
        assert told[0]["data"]["id"] == job


def test_webhooks_are_off_until_somebody_turns_them_on(
    fake_server: ServerProcess, tmp_path: Path
) -> None:
    """A webhook is rejected by default; a server with webhook hosts but no secret exits."""
    answer = fake_server.post({**QUICK, "webhook_url": "http://example.org/"})
    assert (answer.status_code, error_of(answer)["reason"]) == (400, "webhook_not_allowed")
    assert error_of(answer)["param"] == "webhook_url"
    with running_server(tmp_path, wait=False, engine="fake", webhook_hosts="a.example") as server:
        assert server.process.wait(90) == 78
        assert "webhook_secret" in server.log.read_text()
