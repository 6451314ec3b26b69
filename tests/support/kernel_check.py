"""Every operation of the CPU kernels against ggml's own: ``FOLDER [CHOICE ...]``.

FOLDER has the libraries; without a choice all that this processor can run are checked, each in a
process of its own, since kernels are installed once in a process.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from sdstream.engine.kernels.choice import Choice, processor

#: Choice -> the flags of a processor that it needs.
NEEDS = {
    Choice("avx512", bf16=False, int8=False): {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
    Choice("avx512", bf16=False, int8=True): {"avx512f", "avx512bw", "avx512vl", "avx512_vnni"},
    Choice("avx512", bf16=True, int8=True): {"avx512f", "avx512_vnni", "avx512_bf16"},
    Choice("avx512", bf16=False, int4=True): {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
    Choice("avx2", bf16=False): {"avx2", "fma", "f16c"},
    Choice("avx2", bf16=False, int4=True): {"avx2", "fma", "f16c"},
    Choice("avx2", bf16=False, int8=True): {"avx2", "fma", "f16c", "avx_vnni"},
}


def _check(folder: Path, choice: Choice) -> int:
    # The runtime is loaded in the process that checks, not in the one that collects the tests.
    from sdstream.engine.native import kernels

    library = kernels.load(choice, folder)
    assert library.sdk_install(choice.bf16, choice.whole_numbers, None) == 0
    failures = kernels.check(library, thorough=True)
    print(f"{choice.name}: {chr(10).join(failures) or 'all cases agree'}")
    return bool(failures)


def main(folder: str, *names: str) -> int:
    """Check, and return the exit status."""
    if len(names) == 1:
        (choice,) = (choice for choice in NEEDS if choice.name == names[0])
        return _check(Path(folder), choice)
    features, _ = processor()
    command = [sys.executable, "-m", "tests.support.kernel_check", folder]
    able = [choice.name for choice, flags in NEEDS.items() if flags <= features]
    return max([subprocess.call([*command, name]) for name in names or able], default=0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
