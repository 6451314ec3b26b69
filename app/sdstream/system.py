"""Functions that depend on the operating system: processes, cores, memory and container limits.

psutil covers Linux and macOS. The other functions are written for Linux; on other systems they use
a fallback or have no effect.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Final

import psutil

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG: Final = 1
_M_MMAP_THRESHOLD: Final = -3
#: Freed blocks of at least this many bytes are returned to the system.
_LARGE_BLOCK: Final = 2**20
_CGROUPS: Final = Path("/sys/fs/cgroup")
_OWN_CGROUPS: Final = Path("/proc/self/cgroup")
#: cgroup v1 reports a number near 2^63 when there is no limit.
_NO_LIMIT: Final = 2**60
#: For cgroup v2 and v1: the file with the limit, the file with the memory in use, and the key of
#: the inactive file cache in memory.stat. The kernel reclaims that cache before the limit applies.
_MEMORY_FILES: Final = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process in bytes, 0 if the process has ended."""
    try:
        resident: int = psutil.Process(pid).memory_info().rss
    except psutil.Error:
        return 0
    return resident


def has_no_room(error: Exception) -> bool:
    """Return whether a write failed because its disk or the user's quota is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def return_large_blocks() -> None:
    """Make glibc return the memory of freed large blocks to the system at once.

    By default glibc returns the first large block that is freed, but then raises its threshold to
    the size of that block (at most 32 MiB). It allocates smaller blocks from its heaps, and a heap
    does not shrink while a block near its end is in use. After 36 uploads of images of up to
    4096x4096, 980 MB stayed allocated; with a fixed threshold it was 8 MB.

    Without glibc this function does nothing: musl and macOS return such blocks anyway.
    """
    try:
        taken = ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)
    except (AttributeError, OSError):
        return
    if not taken:
        logger.debug("mallopt did not take the threshold")


def total_memory() -> int:
    """Return the memory of this machine in bytes, or a lower limit of a control group."""
    total: int = psutil.virtual_memory().total
    return min([total, *(limit for limit, _ in _memory_limits())])


def free_memory() -> int:
    """Return how many bytes a new process can use without swapping or reaching a limit."""
    available: int = psutil.virtual_memory().available
    return min([available, *(max(0, limit - used) for limit, used in _memory_limits())])


def _memory_limits() -> Iterator[tuple[int, int]]:
    """Yield each memory limit of this process's control groups, and the memory in use, in bytes."""
    for folder in _control_groups("memory"):
        for limit_file, usage_file, cache in _MEMORY_FILES:
            limit = _number(folder / limit_file)
            if limit is not None and 0 < limit < _NO_LIMIT:
                used = _number(folder / usage_file) or 0
                yield limit, max(0, used - _statistic(folder / "memory.stat", cache))


def _control_groups(controller: str) -> list[Path]:
    """Return the folders of this process's control groups and of all their ancestors.

    The limits of the ancestors apply too. cgroup v2 has one hierarchy. cgroup v1 has one for each
    controller or pair of controllers ("cpu,cpuacct"). In a container the path of the group is often
    the path on the host, which does not exist in the container. The top folder is then the
    container's own group.
    """
    folders = [_CGROUPS, _CGROUPS / controller]
    try:
        lines = _OWN_CGROUPS.read_text().splitlines()
    except OSError:
        return folders
    for line in lines:
        _, controllers, path = line.split(":", 2)
        parts = PurePosixPath(path).parts[1:]
        if ".." in parts or (controllers and controller not in controllers.split(",")):
            continue
        names = {controller, controllers} if controllers else {""}
        folders += [
            _CGROUPS.joinpath(name, *parts[:depth])
            for name in names
            for depth in range(len(parts) + 1)
        ]
    return [*dict.fromkeys(folders)]


def available_cores() -> int:
    """Return the number of cores that this process may use.

    This is the size of its CPU affinity, or the limit of a control group if it is lower.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS has no CPU affinity
        cores = os.cpu_count() or 1
    return min([cores, *(max(1, round(quota)) for quota in _cpu_quotas())])


def _cpu_quotas() -> Iterator[float]:
    """Yield the number of cores that each control group of this process allows."""
    for folder in _control_groups("cpu"):
        with suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = (folder / "cpu.max").read_text().split()  # v2
            yield int(quota) / int(period)
        quota_us = _number(folder / "cpu.cfs_quota_us")  # v1, -1 without a limit
        period_us = _number(folder / "cpu.cfs_period_us")
        if quota_us and period_us and quota_us > 0:
            yield quota_us / period_us


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _statistic(path: Path, name: str) -> int:
    """Return a number from a file with a name and a number on each line; 0 if it is not found."""
    with suppress(OSError, ValueError):
        pairs = (line.split() for line in path.read_text().splitlines())
        return next((int(value) for found, value in pairs if found == name), 0)
    return 0


def end_with_parent(parent: int) -> None:
    """End this process when its parent ends; exit at once if the parent is gone.

    On systems other than Linux, the process ends only when it notices that its socket is closed.
    This takes longer while the runtime computes.

    Args:
        parent: Process id of the parent.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def prefer_for_oom_kill() -> None:
    """Make the kernel kill this process first when memory runs out; Linux only."""
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")
    except OSError:
        logger.debug("oom_score_adj could not be set")
