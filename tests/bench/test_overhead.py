"""The benchmarks run without an error, so that their figures can be measured again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.servers import free_port


def measured(folder: Path, script: str, *flags: str, seconds: int) -> tuple[str, Any]:
    """Run a benchmark of this folder; return its output and its figures."""
    figures = folder / "figures.json"
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name(script)), *flags, "--json", str(figures)],
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(figures.read_text())


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_quick_benchmark(tmp_path: Path) -> None:
    """All contestants generate the same pixels, and the table is printed."""
    port = f"--port={free_port()}"
    printed, figures = measured(tmp_path, "overhead.py", "--quick", port, seconds=280)
    assert "same pixels as bare: plain yes, streamed yes" in printed
    assert figures


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_benchmark_of_waiting_streams(tmp_path: Path) -> None:
    """Streams arrive, leave, and arrive again to be processed."""
    _, figures = measured(tmp_path, "crowd.py", "--streams", "20", seconds=110)
    phases = [row["phase"] for row in figures]
    assert phases == ["come", "first leaves", "leave", "finish"]


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_quick_benchmark_of_throughput(tmp_path: Path) -> None:
    """Each number of clients gets images, and four images of a prompt encode it once."""
    _, figures = measured(tmp_path, "throughput.py", "--rounds=1", "--seconds=0.5", seconds=170)
    assert {row["clients"] for row in figures["rates"]} == {1, 4, 16}
    assert all(row["images_per_second"] > 0 for row in figures["rates"])
    one, four = figures["prompts"]
    assert one["computed"] == four["computed"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_quick_benchmark_of_the_kernels(tmp_path: Path) -> None:
    """All contestants generate, and the table has their rows."""
    printed, figures = measured(tmp_path, "speed.py", "--quick", "--rounds=1", seconds=280)
    assert "autoencoder" in printed
    assert "share of the peak" in printed
    contestants = figures["built-in model"]
    assert {*contestants} == {"llamafile", "exact", "auto"}
    works = {name: next(iter(works.values()))[0]["work"] for name, works in contestants.items()}
    # The decoder has no attention, for which the two modes differ.
    assert works["exact"]["decoding"] == works["auto"]["decoding"] > 0
    assert not any(works["llamafile"].values())
