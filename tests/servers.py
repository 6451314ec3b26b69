"""Real servers in processes of their own, for integration and end-to-end tests."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2


class ServerProcess:
    """A running ``sdstream serve``.

    Attributes:
        url: Its base address.
        process: The server's process; the worker is a child of it.
        log: The file that its output goes to.
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
        """Process id of the worker that runs now."""
        children = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        pids = [int(pid) for path in children for pid in path.read_text().split()]
        alive = [pid for pid in pids if _runs_child(pid)]
        return alive[0] if alive else None

    def wait_ready(self, seconds: float = 30.0) -> None:
        """Wait until /readyz says 200."""
        wait_until(
            self.is_ready, seconds, f"{self.url} is not ready:\n{self.log.read_text()[-2000:]}"
        )

    def is_ready(self) -> bool:
        """One look at /readyz."""
        try:
            return httpx2.get(f"{self.url}/readyz", timeout=5).status_code == 200
        except httpx2.HTTPError:
            return False

    def stop(self, number: int = signal.SIGTERM, seconds: float = 15.0) -> int:
        """Send a signal and wait for the end; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


def _runs_child(pid: int) -> bool:
    try:
        return b"app.engine.child" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def wait_until(condition: Any, seconds: float, message: str) -> None:
    """Poll a condition; fail with the message when it stays false."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, message
        time.sleep(0.02)


def free_port() -> int:
    """A port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running_server(folder: Path, *, wait: bool = True, **settings: Any) -> Iterator[ServerProcess]:
    """Start ``sdstream serve`` with settings given by their field names, and stop it after.

    Args:
        folder: For its data, its cache and its log.
        wait: Until the default model is loaded.
        settings: Fields of app.settings.Settings.
    """
    port = free_port()
    chosen = {"data_dir": folder / "data", "cache_dir": folder / "cache", **settings, "port": port}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SDSTREAM_")}
    environment |= {f"SDSTREAM_{name.upper()}": str(value) for name, value in chosen.items()}
    log = folder / f"server-{port}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "app", "serve"],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    server = ServerProcess(process, f"http://127.0.0.1:{port}", log)
    try:
        if wait:
            server.wait_ready()
        yield server
    finally:
        if process.poll() is None:
            server.stop()
