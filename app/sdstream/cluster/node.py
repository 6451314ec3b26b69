"""Ray's processes on one machine, for ``sdstream cluster head`` and ``sdstream cluster join``.

``python -m sdstream.cluster.node PARENT ARGUMENT...`` is ``ray start`` that ends with its parent.
It blocks; at SIGTERM Ray takes no more workers, waits until those that run are gone, and leaves.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Final

from sdstream.system import end_with_parent

#: Ray's resource of machines without GPUs: workers that they take.
SLOTS: Final = "sdstream_slots"
#: Ray's label of a machine: memory of its smallest GPU in MiB.
GPU_LABEL: Final = "sdstream-gpu-mib"


def gpu_mib() -> list[int]:
    """Return the memory of each NVIDIA GPU in MiB; empty without the driver's program."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    words = done.stdout.split() if done.returncode == 0 else []
    return [int(word) for word in words if word.isdigit()]


def command(parent: int, arguments: Sequence[str]) -> list[str]:
    """Return the command that starts Ray's processes and ends with them.

    Args:
        parent: Process id of the caller, with which they end too.
        arguments: Of ``ray start``.
    """
    return [sys.executable, "-m", "sdstream.cluster.node", str(parent), *arguments]


def main() -> None:
    """Run ``ray start`` in this process."""
    # Ray is imported by the process that runs it, and not by the one that watches it.
    from ray.scripts.scripts import cli  # noqa: PLC0415

    end_with_parent(int(sys.argv[1]))
    cli(["start", "--block", "--disable-usage-stats", *sys.argv[2:]])


if __name__ == "__main__":
    main()
