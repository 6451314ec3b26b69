"""What differs between operating systems: processes, cores, memory and limits of containers.

psutil answers where Linux and macOS have the same question. The rest is Linux, with what happens
elsewhere stated at each function.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG: Final = 1
_CGROUPS: Final = Path("/sys/fs/cgroup")
#: cgroup v1 has no word for "no limit": it has a number near 2^63.
_NO_LIMIT: Final = 2**60


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process in bytes, 0 when it is gone."""
    try:
        resident: int = psutil.Process(pid).memory_info().rss
    except psutil.Error:
        return 0
    return resident


def total_memory() -> int:
    """Return the memory of this machine, or of its container, in bytes."""
    total: int = psutil.virtual_memory().total
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        limit = _number(_CGROUPS / name)
        if limit is not None and 0 < limit < _NO_LIMIT:
            return min(total, limit)
    return total


def free_memory() -> int:
    """Return the bytes that a new process can use without swapping."""
    available: int = psutil.virtual_memory().available
    return available


def available_cores() -> int:
    """Return the cores that this process may use: its affinity, or less by a container's limit."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS has no affinity
        cores = os.cpu_count() or 1
    quota = _cpu_quota()
    return cores if quota is None else min(cores, max(1, round(quota)))


def _cpu_quota() -> float | None:
    """The cores that the control group allows, None without a limit."""
    with suppress(OSError, ValueError):
        quota, period = (_CGROUPS / "cpu.max").read_text().split()  # v2
        return int(quota) / int(period)
    quota_us = _number(_CGROUPS / "cpu/cpu.cfs_quota_us")  # v1, -1 without a limit
    period_us = _number(_CGROUPS / "cpu/cpu.cfs_period_us")
    return quota_us / period_us if quota_us and period_us and quota_us > 0 else None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def end_with_parent(parent: int) -> None:
    """End this process when its parent ends; exit at once if the parent is gone.

    On systems other than Linux the process ends when its socket is closed, which is later if the
    runtime is computing.

    Args:
        parent: Process id.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def prefer_for_oom_kill() -> None:
    """Have the kernel kill this process first when memory runs out; no effect beside Linux."""
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")
    except OSError:
        logger.debug("oom_score_adj could not be set")
