"""Cores and memory within a container's limits, and on systems other than Linux."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from sdstream import system


@pytest.fixture
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of the kernel's, without limits; the process may use 8 cores."""
    monkeypatch.setattr(system, "_CGROUPS", tmp_path)
    monkeypatch.setattr(system, "_OWN_CGROUPS", tmp_path / "self")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {*range(8)}, raising=False)
    return tmp_path


def write(folder: Path, files: dict[str, str]) -> None:
    """Write files into a folder and create missing folders."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def quota(folder: str, quota: str, period: str = "100000") -> dict[str, str]:
    """Return the files of a CPU quota of cgroup v1."""
    return {f"{folder}/cpu.cfs_quota_us": quota, f"{folder}/cpu.cfs_period_us": period}


SERVICE = "system.slice/sdstream.service"
#: /proc/self/cgroup of a systemd service: v2, v1 (of Debian and of Red Hat), and both.
V2 = {"self": f"0::/{SERVICE}\n"}
V1 = {"self": f"4:memory:/{SERVICE}\n2:cpu,cpuacct:/{SERVICE}\n1:name=systemd:/x\n"}
RED_HAT = {"self": f"4:memory:/{SERVICE}\n2:cpuacct,cpu:/{SERVICE}\n"}
HYBRID = {"self": f"4:memory:/{SERVICE}\n1:cpu:/{SERVICE}\n0::/{SERVICE}\n"}
DOCKER = {"self": "4:memory:/docker/0123abcd\n1:cpu:/docker/0123abcd\n"}


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "200000 100000"}, 2),
        ({"cpu.max": "10000 100000"}, 1),
        ({"cpu.max": "100000 0"}, 8),
        (quota("cpu", "-1"), 8),
        (quota("cpu", "300000"), 3),
        (quota("cpu", "150000", "50000"), 3),
        (quota("cpu", "300000", "0"), 8),
        ({"cpu.max": "garbage"}, 8),
        ({**V2, f"{SERVICE}/cpu.max": "200000 100000"}, 2),
        ({**V2, f"{SERVICE}/cpu.max": "max 100000", "system.slice/cpu.max": "300000 100000"}, 3),
        ({**V1, **quota(f"cpu,cpuacct/{SERVICE}", "200000")}, 2),
        ({**V1, **quota("cpu,cpuacct/system.slice", "200000")}, 2),
        ({**RED_HAT, **quota(f"cpu/{SERVICE}", "200000")}, 2),
        ({**HYBRID, **quota(f"cpu/{SERVICE}", "200000"), **quota("cpu", "400000")}, 2),
        ({**DOCKER, **quota("cpu", "200000")}, 2),
        ({"self": "0::/../elsewhere\n", "cpu.max": "200000 100000"}, 2),
        ({**V1, **quota("cpu,cpuacct/user.slice", "100000")}, 8),
    ],
)
def test_cores(cgroups: Path, files: dict[str, str], cores: int) -> None:
    """The cores are those of the affinity, limited by the smallest quota of the control groups."""
    write(cgroups, files)
    assert system.available_cores() == cores


@pytest.mark.parametrize(
    ("files", "limited"),
    [
        ({}, False),
        ({"memory.max": "1000000"}, True),
        ({"memory.max": "max"}, False),
        ({"memory/memory.limit_in_bytes": "1000000"}, True),
        ({"memory/memory.limit_in_bytes": "9223372036854771712"}, False),
        ({"memory/memory.limit_in_bytes": "-1"}, False),
        ({**V2, f"{SERVICE}/memory.max": "1000000"}, True),
        ({**V2, "system.slice/memory.max": "1000000", f"{SERVICE}/memory.max": "2000000"}, True),
        ({**V1, f"memory/{SERVICE}/memory.limit_in_bytes": "1000000"}, True),
        ({**HYBRID, f"memory/{SERVICE}/memory.limit_in_bytes": "1000000"}, True),
        ({**DOCKER, "memory/memory.limit_in_bytes": "1000000"}, True),
        ({**V1, "memory/user.slice/memory.limit_in_bytes": "1000000"}, False),
    ],
)
def test_memory(cgroups: Path, files: dict[str, str], limited: bool) -> None:
    """The memory is the machine's or the smallest limit of the process's control groups."""
    write(cgroups, files)
    assert system.total_memory() == (1_000_000 if limited else psutil.virtual_memory().total)
    assert limited == (system.free_memory() <= 1_000_000)


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({"memory.max": "1000000", "memory.current": "400000"}, 600_000),
        ({"memory.max": "1000000", "memory.current": "2000000"}, 0),
        (
            {
                "memory.max": "1000000",
                "memory.current": "900000",
                "memory.stat": "anon 1\ninactive_file 300000\n",
            },
            400_000,
        ),
        (
            {
                "memory/memory.limit_in_bytes": "1000000",
                "memory/memory.usage_in_bytes": "900000",
                "memory/memory.stat": "inactive_file 1\ntotal_inactive_file 300000\n",
            },
            400_000,
        ),
    ],
)
def test_free_memory(cgroups: Path, files: dict[str, str], free: int) -> None:
    """Free memory is the limit minus the usage, without the cache of inactive files."""
    write(cgroups, files)
    assert system.free_memory() == free


def test_large_blocks_without_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing happens if the C library has no mallopt."""
    asked: list[tuple[int, ...]] = []

    def accept(*values: int) -> int:
        asked.append(values)
        return 1

    given = {None: SimpleNamespace(mallopt=accept)}
    monkeypatch.setattr(ctypes, "CDLL", given.__getitem__)
    system.return_large_blocks()
    assert asked == [(-3, 2**20)]
    given[None] = SimpleNamespace()
    system.return_large_blocks()


def test_without_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    """The functions return usable values without affinity, prctl and /proc."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(system, "_CGROUPS", Path("/nowhere"))
    monkeypatch.setattr(system, "_OWN_CGROUPS", Path("/nowhere"))
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())
    system.return_large_blocks()
    assert system.available_cores() == os.cpu_count()
    assert 0 < system.free_memory() <= system.total_memory()
    assert system.resident_bytes(os.getpid()) > 2**20
    assert system.resident_bytes(2**22 + 1) == 0
    system.end_with_parent(os.getppid())
