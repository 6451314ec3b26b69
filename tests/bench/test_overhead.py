"""The benchmark itself runs: figures that nobody can measure any more are worth nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.servers import free_port


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_quick_benchmark(tmp_path: Path) -> None:
    """All contestants draw the same pixels, and the table is printed."""
    figures = tmp_path / "figures.json"
    command = [sys.executable, str(Path(__file__).with_name("overhead.py")), "--quick"]
    done = subprocess.run(
        [*command, "--json", str(figures), "--port", str(free_port())],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "same pixels as bare: plain yes, streamed yes" in done.stdout
    assert json.loads(figures.read_text())


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_benchmark_of_waiting_streams(tmp_path: Path) -> None:
    """A crowd comes, leaves, and comes again to be served."""
    figures = tmp_path / "figures.json"
    command = [sys.executable, str(Path(__file__).with_name("crowd.py")), "--streams", "20"]
    done = subprocess.run(
        [*command, "--json", str(figures)], capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr
    phases = [row["phase"] for row in json.loads(figures.read_text())]
    assert phases == ["come", "first leaves", "leave", "finish"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_quick_benchmark_of_the_kernels(tmp_path: Path) -> None:
    """All contestants draw, and the table has their rows."""
    figures = tmp_path / "figures.json"
    command = [sys.executable, str(Path(__file__).with_name("speed.py")), "--quick", "--rounds=1"]
    done = subprocess.run(
        [*command, "--json", str(figures)],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "autoencoder" in done.stdout
    assert {*json.loads(figures.read_text())["built-in model"]} == {"llamafile", "exact", "auto"}
