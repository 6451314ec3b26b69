"""Ray's processes on one machine, for ``sdstream cluster head`` and ``sdstream cluster join``.

``python -m sdstream.cluster.node PARENT ARGUMENT...`` runs ``ray start``, blocks, and ends with the
process PARENT. At SIGTERM, Ray accepts no more workers, waits until the running ones have ended,
and leaves the cluster.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Final

from sdstream.system import end_with_parent

logger = logging.getLogger("sdstream.cluster")

#: Custom resource in Ray: the number of workers that a machine without GPUs accepts.
SLOTS: Final = "sdstream_slots"
#: Label of a machine in Ray: the memory of its smallest GPU in MiB.
GPU_LABEL: Final = "sdstream-gpu-mib"


def gpu_mib() -> list[int]:
    """Return the memory of each NVIDIA GPU in MiB; empty if ``nvidia-smi`` does not work."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        logger.warning("nvidia-smi does not list the GPUs; --gpus sets their number: %s", error)
        return []
    words = done.stdout.split() if done.returncode == 0 else []
    return [int(word) for word in words if word.isdigit()]


def command(parent: int, arguments: Sequence[str]) -> list[str]:
    """Return the command that starts Ray's processes and runs until they end.

    Args:
        parent: Process id of the caller; Ray's processes end with the caller.
        arguments: Arguments of ``ray start``.
    """
    return [sys.executable, "-m", "sdstream.cluster.node", str(parent), *arguments]


def main() -> None:
    """Run ``ray start`` in this process."""
    # Imported here, because the parent imports this module and must not import Ray.
    from ray.scripts.scripts import cli  # noqa: PLC0415

    end_with_parent(int(sys.argv[1]))
    cli(["start", "--block", "--disable-usage-stats", *sys.argv[2:]])


if __name__ == "__main__":
    main()
