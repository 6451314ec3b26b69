"""The choice of CPU kernels for a processor."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from sdstream.core.runtime_options import Kernels

_AVX512: Final = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx2", "fma", "f16c"})
_AVX2: Final = frozenset({"avx2", "fma", "f16c"})

#: Ways to compute matrix products, in the order of the kernels' enumeration ``Products``.
Products = Literal["f32", "bf16", "amx"]

#: The AMX kernels need avx512_bf16 as well, because its instructions round values to bf16.
_AMX: Final = frozenset({"amx_tile", "amx_bf16", "avx512_bf16"})

#: Vendors whose CPUs multiply pairs of bf16 at the full rate with AVX-512. Intel's CPUs do so only
#: at half the rate of f32; they are fast with AMX.
_QUICK_BF16: Final = frozenset({"AuthenticAMD"})


@dataclass(frozen=True, slots=True)
class Choice:
    """The kernels that were chosen for a processor.

    Attributes:
        isa: Instruction set, which determines the library.
        products: Products of f32, of bf16 pairs, or of bf16 in AMX tiles.
        int8: Weights of the types q8_0 and q4_0 are multiplied as integers.
        int4: Only weights of the type q4_0 are multiplied as integers.
    """

    isa: str
    products: Products
    int8: bool = False
    int4: bool = False

    @property
    def products_number(self) -> int:
        """Value of the kernels' enumeration ``Products``."""
        return get_args(Products).index(self.products)

    @property
    def whole_numbers(self) -> int:
        """Value of the kernels' enumeration ``Int8``."""
        return 1 if self.int8 else 2 if self.int4 else 0

    @property
    def name(self) -> str:
        """Name of the choice, for example "avx512 bf16 int8"."""
        kind = "int8" if self.int8 else "int4" if self.int4 else ""
        return f"{self.isa} {self.products} {kind}".rstrip()


def choose(
    features: frozenset[str], vendor: str, wanted: Kernels, has_amx: Callable[[], bool]
) -> Choice | None:
    """Return the kernels for a processor; None if it is not supported.

    Args:
        features: Feature flags of the processor, as Linux spells them.
        vendor: The processor's vendor id, for example "AuthenticAMD".
        wanted: "auto" or "exact".
        has_amx: Returns whether AMX tiles work; called only if the feature flags include AMX.
    """
    auto = wanted == "auto"
    if features >= _AVX512:
        products: Products = "f32"
        if auto and features >= _AMX and has_amx():
            products = "amx"
        elif auto and "avx512_bf16" in features and vendor in _QUICK_BF16:
            products = "bf16"
        dot = "avx512_vnni" in features
        return Choice("avx512", products, int8=auto and dot, int4=auto and not dot)
    if features >= _AVX2:
        dot = "avx_vnni" in features
        return Choice("avx2", "f32", int8=auto and dot, int4=auto and not dot)
    return None


def processor() -> tuple[frozenset[str], str]:
    """Return the feature flags and the vendor id of this machine's processor."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return frozenset(), ""
    flags = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    vendor = re.search(r"^vendor_id\s*:\s*(\S+)", text, re.MULTILINE)
    return frozenset(flags[1].split() if flags else ()), vendor[1] if vendor else ""
