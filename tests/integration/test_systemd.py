"""What the server reports to systemd."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from tests.support.documents import ROOT, Page
from tests.support.servers import running_server


def test_ready_watchdog_and_stopping(tmp_path: Path) -> None:
    """The server sends READY once it listens, then WATCHDOG repeatedly, and STOPPING at SIGTERM."""
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(address))
        listener.settimeout(60)
        environment = {**os.environ, "NOTIFY_SOCKET": str(address), "WATCHDOG_USEC": "200000"}
        with running_server(tmp_path, engine="fake", environment=environment) as server:
            received = [listener.recv(64) for _ in range(4)]
            assert received == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1", b"WATCHDOG=1"]
            server.process.terminate()
            while (state := listener.recv(64)) == b"WATCHDOG=1":
                pass
            assert state == b"STOPPING=1"


def test_an_abstract_address_that_nobody_listens_on(tmp_path: Path) -> None:
    """The server starts without a listener at the address, and its log has a warning."""
    environment = {**os.environ, "NOTIFY_SOCKET": "@sdstream-test-nobody"}
    with running_server(tmp_path, engine="fake", environment=environment) as server:
        assert server.log_lines("systemd was not notified of READY=1")


def test_the_unit_is_valid(tmp_path: Path) -> None:
    """``systemd-analyze verify`` accepts the unit in the documentation."""
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed (Debian: apt install systemd)")
    page = Page(ROOT / "docs/deploy/systemd.md")
    unit, _environment = (text for language, text in page.fences() if language == "ini")
    assert unit.count("/opt/sdstream/.venv/bin/sdstream") == 1
    path = tmp_path / "sdstream.service"
    path.write_text(unit.replace("/opt/sdstream/.venv/bin/sdstream", "/bin/true"))
    command = [program, "verify", "--man=no", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
