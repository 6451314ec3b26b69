"""Cores and memory with the limits of containers, and without what only Linux has."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from sdstream import system


@pytest.fixture
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of the kernel's, without limits as yet; the process may use 8 cores."""
    monkeypatch.setattr(system, "_CGROUPS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {*range(8)}, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "200000 100000"}, 2),
        ({"cpu.max": "10000 100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu.max": "garbage"}, 8),
    ],
)
def test_cores(cgroups: Path, files: dict[str, str], cores: int) -> None:
    """The affinity, or the quota of a control group of either version."""
    for name, text in files.items():
        (cgroups / name).parent.mkdir(exist_ok=True)
        (cgroups / name).write_text(text)
    assert system.available_cores() == cores


@pytest.mark.parametrize(
    ("name", "text", "limited"),
    [
        ("memory.max", "1000000", True),
        ("memory.max", "max", False),
        ("memory/memory.limit_in_bytes", "1000000", True),
        ("memory/memory.limit_in_bytes", "9223372036854771712", False),
    ],
)
def test_memory(cgroups: Path, name: str, text: str, limited: bool) -> None:
    """The machine's, or the limit of a control group of either version."""
    (cgroups / name).parent.mkdir(exist_ok=True)
    (cgroups / name).write_text(text)
    assert system.total_memory() == (1_000_000 if limited else psutil.virtual_memory().total)


def test_without_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    """No affinity, no prctl, no /proc: the answers of every system remain."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(system, "_CGROUPS", Path("/nowhere"))
    monkeypatch.setattr(system.sys, "platform", "darwin")
    monkeypatch.setattr(system.ctypes, "CDLL", None)
    assert system.available_cores() == os.cpu_count()
    assert 0 < system.free_memory() <= system.total_memory()
    assert system.resident_bytes(os.getpid()) > 2**20
    assert system.resident_bytes(2**22 + 1) == 0
    system.end_with_parent(os.getppid())
