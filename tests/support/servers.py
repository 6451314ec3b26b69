"""Real servers in separate processes, for integration and end-to-end tests."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import httpx2
from prometheus_client.parser import text_string_to_metric_families

GENERATIONS: Final = "/v1/images/generations"
DONE: Final = b"data: [DONE]\n\n"


class ServerProcess:
    """A running ``sdstream serve``.

    Attributes:
        url: The server's base address.
        process: The server's process; the worker is its child.
        log: The file for the server's output.
    """

    def __init__(self, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
        self.process = process
        self.url = url
        self.log = log

    @property
    def address(self) -> tuple[str, int]:
        """Host and port, for raw sockets."""
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

    def worker_pid(self) -> int | None:
        """Process id of the running worker; None without one."""
        children = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        pids = [int(pid) for path in children for pid in path.read_text().split()]
        alive = [pid for pid in pids if _runs_child(pid)]
        return alive[0] if alive else None

    def wait_ready(self, seconds: float = 30.0) -> None:
        """Wait until /readyz responds with 200."""
        wait_until(
            self.is_ready, seconds, f"{self.url} is not ready:\n{self.log.read_text()[-2000:]}"
        )

    def is_ready(self) -> bool:
        """Return whether /readyz responds with 200."""
        try:
            return httpx2.get(f"{self.url}/readyz", timeout=5).status_code == 200
        except httpx2.HTTPError:
            return False

    def post(self, body: object, **options: Any) -> httpx2.Response:
        """Send one request for images."""
        return httpx2.post(self.url + GENERATIONS, json=body, timeout=60, **options)

    def metric(
        self, name: str, *, headers: Mapping[str, str] | None = None, **labels: str
    ) -> float:
        """Return a metric of /metrics, summed over all samples with these labels; 0 without any."""
        text = httpx2.get(f"{self.url}/metrics", headers=headers, timeout=10).text
        samples = [s for f in text_string_to_metric_families(text) for s in f.samples]
        return sum(
            s.value for s in samples if s.name == name and labels.items() <= s.labels.items()
        )

    def log_lines(self, word: str) -> list[str]:
        """The lines of the log so far that contain a word."""
        return [line for line in self.log.read_text().splitlines() if word in line]

    def stop(self, number: int = signal.SIGTERM, seconds: float = 15.0) -> int:
        """Send a signal and wait until the server ends; return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


class Call:
    """A POST for images on a separate connection, which a test may read or close early.

    Tests need not close it, since it is closed with its last reference.

    Args:
        server: The server that gets the request.
        body: Body of the request, sent as JSON.
        headers: Headers to add to those of http.client.
    """

    def __init__(
        self, server: ServerProcess, body: object, headers: Mapping[str, str] | None = None
    ) -> None:
        self._connection = http.client.HTTPConnection(*server.address, timeout=60)
        self._answer: http.client.HTTPResponse | None = None
        self._connection.request("POST", GENERATIONS, json.dumps(body), headers or {})

    def __del__(self) -> None:
        self.leave()

    @property
    def answer(self) -> http.client.HTTPResponse:
        """The response, once its headers have arrived."""
        if self._answer is None:
            self._answer = self._connection.getresponse()
        return self._answer

    def frames(self) -> Iterator[bytes]:
        """Yield the raw frames of a stream as they arrive, each with its empty line."""
        frame = b""
        while line := self.answer.readline():
            frame += line
            if line in (b"\n", b"\r\n"):
                yield frame
                frame = b""
        if frame:
            yield frame

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield the JSON of a stream's data frames, without [DONE]."""
        for frame in self.frames():
            if frame.startswith(b"data: ") and frame != DONE:
                yield json.loads(frame.removeprefix(b"data: "))

    def wait_for(self, status: str) -> dict[str, Any]:
        """Read until a progress item has this status; return the item."""
        return next(
            item
            for event in self.events()
            for item in event["data"]
            if item.get("status") == status
        )

    def wait_for_step(self, step: int) -> None:
        """Read until this many steps are done."""
        next(e for e in self.events() if e["data"][0]["progressed_steps"] >= step)

    def leave(self, how: Literal["fin", "rst", "half-close"] = "fin") -> None:
        """Disconnect in the middle: properly, with a reset, or only for sending (half-close)."""
        connection = self._connection.sock
        if how == "half-close":
            connection.shutdown(socket.SHUT_WR)
            return
        if how == "rst":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if self._answer is not None:
            self._answer.close()
        self._connection.close()


def _runs_child(pid: int) -> bool:
    try:
        return b"sdstream.engine.child" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


#: A busy machine may take this many times as long as a quiet one.
BUSY: Final = 8

#: Part of a server's log that pytest shows if the test that started the server fails.
_SHOWN_CHARACTERS: Final = 8000


def wait_until(condition: Any, seconds: float, message: str) -> None:
    """Poll a condition; fail with the message when it stays false.

    Args:
        condition: Called until it is true.
        seconds: Maximum duration on a quiet machine.
        message: Message of the failure.
    """
    deadline = time.monotonic() + BUSY * seconds
    while not condition():
        assert time.monotonic() < deadline, message
        time.sleep(0.02)


def free_port() -> int:
    """A port of the loopback interface on which no process listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running_server(
    folder: Path,
    *,
    wait: bool = True,
    python: str | Path = sys.executable,
    cwd: Path | None = None,
    environment: Mapping[str, str] = os.environ,
    **settings: Any,
) -> Iterator[ServerProcess]:
    """Start ``sdstream serve`` with settings given by their field names, and stop it after.

    Args:
        folder: Folder for the server's data, cache and log.
        wait: Whether to wait until the default model is loaded.
        python: The interpreter that runs the server.
        cwd: The server's current folder.
        environment: The server's variables; those of settings are removed.
        settings: Fields of sdstream.settings.Settings; without a port, a free one is chosen.
    """
    port = settings.pop("port", None) or free_port()
    folders = {name: folder / name.removesuffix("_dir") for name in ("data_dir", "cache_dir")}
    # Not the user's model folder, since the server would serve the models in it.
    folders["model_dir"] = folder / "hub"
    # A test that leaves a job running must not wait for it at the end.
    chosen = {**folders, "grace_seconds": 2, **settings, "port": port}
    variables = {k: v for k, v in environment.items() if not k.startswith("SDSTREAM_")}
    variables |= {f"SDSTREAM_{name.upper()}": str(value) for name, value in chosen.items()}
    log = folder / f"server-{port}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [python, "-m", "sdstream", "serve"],
            cwd=cwd,
            env=variables,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    server = ServerProcess(process, f"http://127.0.0.1:{port}", log)
    try:
        if wait:
            server.wait_ready()
        yield server
    except BaseException:
        print(f"--- the end of {log.name}", log.read_text()[-_SHOWN_CHARACTERS:], sep="\n")
        raise
    finally:
        if process.poll() is None:
            server.stop()
