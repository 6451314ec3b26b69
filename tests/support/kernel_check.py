"""Compares every operation of the CPU kernels with ggml's own. Arguments: ``FOLDER [CHOICE ...]``.

FOLDER contains the libraries. Without a choice, all choices that this processor supports are
checked. Each one runs in a separate process, since a process can install kernels only once.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

from sdstream.engine.kernels.choice import Choice, processor
from sdstream.settings import worker_environment

NO_AMX = "the processor's flags include AMX, which does not work on this system"

#: Multiply-adds per second, far below those of any processor that has vectors.
LEAST_PEAK = 1e8

#: Choice of kernels -> the processor flags that it needs.
NEEDS = {
    Choice("avx512", "f32"): {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
    Choice("avx512", "f32", int8=True): {"avx512f", "avx512bw", "avx512vl", "avx512_vnni"},
    Choice("avx512", "bf16", int8=True): {"avx512f", "avx512_vnni", "avx512_bf16"},
    Choice("avx512", "amx", int8=True): {"avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16"},
    Choice("avx512", "f32", int4=True): {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
    Choice("avx2", "f32"): {"avx2", "fma", "f16c"},
    Choice("avx2", "f32", int4=True): {"avx2", "fma", "f16c"},
    Choice("avx2", "f32", int8=True): {"avx2", "fma", "f16c", "avx_vnni"},
}


def _check(folder: Path, choice: Choice) -> int:
    # This import loads the runtime; only the process that checks needs it, not pytest's.
    from sdstream.engine.native import kernels

    library = kernels.load(choice.isa, folder)
    if choice.products == "amx" and not library.sdk_has_amx():
        print(f"{choice.name}: {NO_AMX}")
        return 0
    assert library.sdk_install(choice.products_number, choice.whole_numbers, None) == 0
    failures = kernels.check(library, thorough=True)
    library.sdk_peak.restype = ctypes.c_double
    library.sdk_multiply_adds.restype = ctypes.c_int64
    assert library.sdk_multiply_adds() > 0
    assert library.sdk_peak() > LEAST_PEAK
    print(f"{choice.name}: {chr(10).join(failures) or 'all cases agree'}")
    return bool(failures)


def best_name() -> str:
    """The kernels that a worker chooses automatically, read in a process that loads the runtime."""
    code = "from sdstream.engine.native.kernels import best; print(best('auto').name)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=worker_environment(), capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return done.stdout.strip()


def main(folder: str, *names: str) -> int:
    """Check the kernels; return the exit status."""
    if len(names) == 1:
        (choice,) = (choice for choice in NEEDS if choice.name == names[0])
        return _check(Path(folder), choice)
    features, _ = processor()
    command = [sys.executable, "-m", "tests.support.kernel_check", folder]
    able = [choice.name for choice, flags in NEEDS.items() if flags <= features]
    return max([subprocess.call([*command, name]) for name in names or able], default=0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
