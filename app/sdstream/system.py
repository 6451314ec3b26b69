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
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Final

import psutil

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG: Final = 1
_M_MMAP_THRESHOLD: Final = -3
#: Blocks from this size on go back to the system when they are freed.
_LARGE_BLOCK: Final = 2**20
_CGROUPS: Final = Path("/sys/fs/cgroup")
_OWN_CGROUPS: Final = Path("/proc/self/cgroup")
#: cgroup v1 has no word for "no limit": it has a number near 2^63.
_NO_LIMIT: Final = 2**60
#: Of v2 and v1: the limit, what is in use, and how memory.stat calls the part of that which the
#: kernel takes back before the limit counts, the cache of files.
_MEMORY_FILES: Final = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process in bytes, 0 when it is gone."""
    try:
        resident: int = psutil.Process(pid).memory_info().rss
    except psutil.Error:
        return 0
    return resident


def return_large_blocks() -> None:
    """Have the memory of a freed large block go back to the system at once.

    glibc takes a large block from the system and returns it, but after the first such block is
    freed, it cuts blocks up to that size, 32 MiB at most, from its heaps, which do not shrink while
    anything lives above. The images of 36 uploads of up to 4096x4096 left 980 MB behind; with a
    fixed threshold they left 8 MB. Without glibc nothing happens: musl and macOS return such blocks
    anyway.
    """
    try:
        taken = ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)
    except (AttributeError, OSError):
        return
    if not taken:
        logger.debug("mallopt did not take the threshold")


def total_memory() -> int:
    """Return the memory of this machine, or less by a limit of its control groups, in bytes."""
    total: int = psutil.virtual_memory().total
    return min([total, *(limit for limit, _ in _memory_limits())])


def free_memory() -> int:
    """Return the bytes that a new process can use without swapping or reaching a limit."""
    available: int = psutil.virtual_memory().available
    return min([available, *(max(0, limit - used) for limit, used in _memory_limits())])


def _memory_limits() -> Iterator[tuple[int, int]]:
    """Limits of this process's control groups, each with what is in use, in bytes."""
    for folder in _control_groups("memory"):
        for limit_file, usage_file, cache in _MEMORY_FILES:
            limit = _number(folder / limit_file)
            if limit is not None and 0 < limit < _NO_LIMIT:
                used = _number(folder / usage_file) or 0
                yield limit, max(0, used - _statistic(folder / "memory.stat", cache))


def _control_groups(controller: str) -> list[Path]:
    """Folders of this process's control groups and of all above them, whose limits count too.

    v2 has one hierarchy and v1 one for each controller, or for two: "cpu,cpuacct". In a container
    the path is often the host's: it does not exist, and the top folder is the container's own.
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
    """Return the cores that this process may use: its affinity, or less by a container's limit."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS has no affinity
        cores = os.cpu_count() or 1
    return min([cores, *(max(1, round(quota)) for quota in _cpu_quotas())])


def _cpu_quotas() -> Iterator[float]:
    """The cores that control groups of this process allow."""
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
    """A number of a file with a name and a number on each line, 0 without it."""
    with suppress(OSError, ValueError):
        pairs = (line.split() for line in path.read_text().splitlines())
        return next((int(value) for found, value in pairs if found == name), 0)
    return 0


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
    """Have the kernel kill this process first when memory runs out; Linux only."""
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")
    except OSError:
        logger.debug("oom_score_adj could not be set")
