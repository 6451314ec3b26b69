"""Machines of a Ray cluster for tests: processes on 127.0.0.2, 127.0.0.3 and so on.

Ray's processes listen on every interface, whatever address they get, so they always have a token.
They start one after another, since one of two that start at once may time out.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

from tests.support.servers import free_port, wait_until

#: A machine in GET /v1/cluster, for tests without Ray; tests with Ray compare its fields.
MACHINE: Final[dict[str, Any]] = {
    "name": "127.0.0.3", "host": "first", "state": "ready", "reason": "", "since": 1.5,
    "slots": 2, "free_slots": 1, "gpu_bytes": None, "memory_bytes": 24_000_000_000,
    "free_bytes": 10_500_000_000,
    "workers": [{"model": "a", "state": "busy", "resident_bytes": 4_000_000_000}],
}  # fmt: skip

_MARK: Final = "TESTS_CLUSTER"
_RUNS: Final = "This command will now block forever"


def need_ray() -> None:
    """Skip a test if Ray is not installed; fail in CI, where it must be."""
    if importlib.util.find_spec("ray") is None:
        why = "Ray is not installed (scripts/install cluster)"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)


class RayNode:
    """A running ``sdstream cluster head`` or ``sdstream cluster join``.

    Attributes:
        ip: The machine's address.
        process: Process of the command.
        log: File with the output of the command and of Ray.
    """

    def __init__(self, ip: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.ip = ip
        self.process = process
        self.log = log

    def wait_started(self) -> None:
        """Wait until Ray's processes run."""
        wait_until(self._runs, 30, f"{self.ip} did not start: {self.log}")

    def _runs(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()[-2000:]
        return _RUNS in self.log.read_text()

    def processes(self) -> list[psutil.Process]:
        """All processes of the machine, its workers included."""
        with suppress(psutil.NoSuchProcess):
            command = psutil.Process(self.process.pid)
            return [command, *command.children(recursive=True)]
        return []

    def signal_all(self, number: signal.Signals) -> list[psutil.Process]:
        """Send a signal to all processes, one right after another; return the processes."""
        found = self.processes()
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        return found

    def kill(self) -> None:
        """Kill all processes of the machine, like a power cut."""
        for process in self.signal_all(signal.SIGSTOP):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(30)

    def stop(self, seconds: float = 120) -> int:
        """Let the machine leave the cluster properly; return the exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(seconds)


class RayMachines:
    """A head, and the machines that joined it.

    Args:
        folder: Folder for logs and for Ray's files, whose paths must be short.

    Attributes:
        address: Address of the head.
        token: File with the token.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.token = folder / "token"
        self.mark = uuid.uuid4().hex
        self.nodes: list[RayNode] = []
        self.address = f"127.0.0.2:{free_port()}"

    def start_head(self) -> RayNode:
        """Start the head, and wait until Ray's processes run there."""
        return self._start("127.0.0.2", ["head", "--port", self.address.partition(":")[2]])

    def join(self, ip: str, *options: str, wait: bool = True) -> RayNode:
        """Start a machine, and wait until Ray's processes run there."""
        return self._start(ip, ["join", self.address, *options], wait=wait)

    def _start(self, ip: str, arguments: Sequence[str], *, wait: bool = True) -> RayNode:
        log = self.folder / f"{len(self.nodes)}.log"
        common = ["--ip", ip, "--cluster-token-file", str(self.token)]
        common += ["--temp-dir", str(self.folder / str(len(self.nodes)))]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "sdstream", "cluster", *arguments, *common],
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        node = RayNode(ip, process, log)
        self.nodes.append(node)
        if wait:
            node.wait_started()
        return node

    def environment(self) -> dict[str, str]:
        """Variables of every process; one is a mark by which ``alive`` finds the processes."""
        own = {k: v for k, v in os.environ.items() if not k.startswith(("SDSTREAM_", "RAY_"))}
        return {**own, _MARK: self.mark}

    def alive(self) -> list[str]:
        """The command lines of all running processes of this cluster."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(_MARK) == self.mark:
                    found.append(f"{process.pid} {' '.join(process.cmdline())[:160]}")
        return found

    def close(self) -> None:
        """Kill the machines that still run, the head last."""
        for node in reversed(self.nodes):
            if node.process.poll() is None:
                node.kill()


@contextmanager
def ray_machines() -> Iterator[RayMachines]:
    """Run a head, which machines can join."""
    need_ray()
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    machines = RayMachines(folder)
    try:
        machines.start_head()
        yield machines
    finally:
        machines.close()
        shutil.rmtree(folder, ignore_errors=True)
