"""Selection, installation and check of the CPU kernels of engine/kernels.

The kernels replace operations of the runtime's CPU backend. The runtime keeps its own operations if
the processor is not supported, the library is missing or of another release, or the check fails.
"""

from __future__ import annotations

import ctypes
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sdstream.core.runtime_options import KERNELS_OFF, Kernels
from sdstream.engine.kernels.build import identity, library_name, supported
from sdstream.engine.kernels.choice import Choice, choose, processor
from sdstream.engine.native.bindings import lib
from sdstream.engine.native.devices import has_gpu

logger = logging.getLogger("sdstream.native")

_REPORT_BYTES: Final = 2000
_CHECK_THREADS: Final = 2

_BUILD_HINT: Final = "'sdstream setup' builds them"


@dataclass(frozen=True, slots=True)
class InUse:
    """The kernels that a worker uses.

    Attributes:
        name: Name of the kernels; "off" if none are in use.
        problem: Message that explains why the wanted kernels are not in use, or empty.
    """

    name: str = KERNELS_OFF
    problem: str = ""

    def __bool__(self) -> bool:
        return self.name != KERNELS_OFF


def install(wanted: Kernels, abort_flag: int, choice: Choice | None = None) -> InUse:
    """Replace the runtime's operations with the kernels if possible.

    Problems are reported in the result; the function raises no exception for them.

    Args:
        wanted: The mode of the kernels; "off" replaces nothing.
        abort_flag: Address of a byte that stops operations while it is not zero.
        choice: Kernels to use instead of the best ones for this processor.
    """
    if wanted == KERNELS_OFF or has_gpu(lib):
        return InUse()
    try:
        choice = choice or best(wanted)
        if choice is None:
            return InUse(problem="There are no CPU kernels for this processor.")
        library = load(choice.isa, Path(lib._name).parent)
    except (OSError, AttributeError) as error:
        return InUse(problem=f"The CPU kernels cannot be loaded ({error}); {_BUILD_HINT}.")
    built = library.sdk_identity().decode()
    if built != identity():
        return InUse(problem=f"The CPU kernels are {built}, not {identity()}; {_BUILD_HINT}.")
    if library.sdk_install(choice.products_number, choice.whole_numbers, abort_flag):
        return InUse(problem=f"The CPU kernels do not fit this runtime; {_BUILD_HINT}.")
    began = time.monotonic()
    failures = check(library)
    if failures:
        library.sdk_disable()
        logger.error("the CPU kernels failed their check: %s", "; ".join(failures))
        return InUse(problem=f"The CPU kernels failed their check ({failures[0]}).")
    logger.debug("kernels %s checked in %.3f s", choice.name, time.monotonic() - began)
    return InUse(choice.name)


def best(wanted: Kernels) -> Choice | None:
    """Return the best kernels for this processor; None if it is not supported.

    Raises:
        OSError: The library that contains the AMX test cannot be loaded.
        AttributeError: The file is not a library of kernels.
    """

    def has_amx() -> bool:
        works = bool(load("avx512", Path(lib._name).parent).sdk_has_amx())
        if not works:
            logger.info("the processor's flags include AMX, which does not work on this system")
        return works

    return choose(*processor(), wanted, has_amx) if supported() else None


def check(library: Any, *, thorough: bool = False) -> list[str]:
    """Compare the installed kernels with ggml's own; return one line for each failed case."""
    report = ctypes.create_string_buffer(_REPORT_BYTES)
    failed = library.sdk_check(thorough, _CHECK_THREADS, report, len(report))
    lines = report.value.decode("utf-8", "replace").splitlines()
    return (lines or ["the report names no case"]) if failed else []


def load(isa: str, folder: Path) -> Any:
    """Load the library for an instruction set from a folder.

    Raises:
        OSError: The library does not exist, or needs symbols that the runtime does not export.
        AttributeError: The file is not a library of kernels.
    """
    path = folder / library_name(isa)
    if not path.exists():
        raise OSError(f"{path.name} was not found in {folder}")
    library = ctypes.CDLL(str(path))
    library.sdk_identity.restype = ctypes.c_char_p
    library.sdk_install.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_void_p]
    library.sdk_check.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t]
    return library
