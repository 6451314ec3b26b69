"""The CPU kernels against ggml's own, each variant in a separate process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sdstream.core.runtime_options import KERNELS_OFF
from sdstream.engine.kernels.build import library_name, runtime_folder, supported
from sdstream.engine.kernels.choice import Choice, choose, processor
from sdstream.settings import worker_environment
from tests.support.kernel_check import NEEDS, NO_AMX

ROOT = Path(__file__).parents[2]
FEATURES, _ = processor()


def _python(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT,
        env=worker_environment(), capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


@pytest.mark.skipif(not supported(), reason="there are no kernels for this machine")
@pytest.mark.parametrize("choice", NEEDS, ids=lambda choice: choice.name)
def test_every_operation_agrees_with_ggml(choice: Choice) -> None:
    """Results agree for all shapes and types, NaN and infinities, and any number of threads."""
    missing = NEEDS[choice] - FEATURES
    if missing:
        pytest.skip(f"this processor has no {', '.join(sorted(missing))}")
    said = _python("-m", "tests.support.kernel_check", str(runtime_folder()), choice.name)
    if said.endswith(NO_AMX):
        pytest.skip(NO_AMX)
    assert said == f"{choice.name}: all cases agree"


INSTALL = """
from concurrent.futures import ThreadPoolExecutor
from sdstream.engine.native import kernels
{change}
in_use = ThreadPoolExecutor().submit(kernels.install, {wanted!r}, 0).result()
print(in_use.name, in_use.problem)
"""


@pytest.mark.parametrize(
    ("wanted", "change", "problem"),
    [
        ("off", "", ""),
        ("auto", "kernels.processor = lambda: (frozenset({'sse2'}), '')", "for this processor"),
        ("auto", "kernels.library_name = lambda isa: 'gone.so'", "was not found in"),
        ("auto", "kernels.has_gpu = lambda _: True", ""),
        (
            "auto",
            "kernels.identity = lambda: '9.9'",
            "not 9.9; 'sdstream setup' builds them",
        ),
        ("auto", "kernels.check = lambda library: ['product: wrong']", "failed their check"),
    ],
    ids=["off", "other processor", "not built", "gpu", "other release", "failed check"],
)
def test_without_kernels_the_runtime_goes_on(wanted: str, change: str, problem: str) -> None:
    """The runtime continues without kernels, reports the reason, and raises nothing."""
    name, _, said = _python("-c", INSTALL.format(wanted=wanted, change=change)).partition(" ")
    assert name == KERNELS_OFF
    assert problem in said
    assert bool(problem) == bool(said)


@pytest.mark.skipif(not supported(), reason="there are no kernels for this machine")
def test_they_are_built_beside_the_runtime() -> None:
    """scripts/install compiles one library for each instruction set."""
    found = {path.name for path in Path(runtime_folder()).glob("libsdstream-kernels-*.so")}
    assert found == {library_name("avx512"), library_name("avx2")}


#: Installs a signal stack that is too small for the registers of AMX, so that Linux denies them.
SMALL_STACK = """
import ctypes
class Stack(ctypes.Structure):
    _fields_ = [("at", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]
space = ctypes.create_string_buffer(4096)
stack = Stack(ctypes.addressof(space), 0, len(space))
assert ctypes.CDLL(None).sigaltstack(ctypes.byref(stack), None) == 0
"""


@pytest.mark.skipif(choose(*processor(), "auto", lambda: False) is None, reason="no kernels")
def test_without_amx_a_worker_has_the_other_kernels() -> None:
    """A worker uses other kernels if Linux denies AMX, whatever the processor's flags are."""
    fallback = choose(*processor(), "auto", lambda: False)
    assert fallback is not None
    assert _python("-c", INSTALL.format(wanted="auto", change=SMALL_STACK)) == fallback.name
