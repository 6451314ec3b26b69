"""The choice of CPU kernels for a processor."""

from __future__ import annotations

import pytest

from sdstream.core.model_spec import ModelSpec
from sdstream.core.runtime_options import Kernels
from sdstream.engine.kernels.choice import choose, processor
from sdstream.service.assembly import load_command
from sdstream.settings import Settings

AVX2 = "avx2 fma f16c"
AVX512 = f"{AVX2} avx512f avx512bw avx512dq avx512vl"

AMX = f"{AVX512} avx512_vnni avx512_bf16 amx_tile amx_bf16"


@pytest.mark.parametrize(
    ("features", "vendor", "wanted", "name"),
    [
        ("sse4_2 avx", "GenuineIntel", "auto", None),
        ("avx2 f16c", "GenuineIntel", "auto", None),
        (AVX2, "GenuineIntel", "auto", "avx2 f32 int4"),
        (AVX2, "GenuineIntel", "exact", "avx2 f32"),
        (f"{AVX2} avx_vnni", "GenuineIntel", "auto", "avx2 f32 int8"),
        (f"{AVX2} avx_vnni", "GenuineIntel", "exact", "avx2 f32"),
        (f"{AVX2} avx512f", "GenuineIntel", "auto", "avx2 f32 int4"),
        (AVX512, "GenuineIntel", "auto", "avx512 f32 int4"),
        (f"{AVX512} avx512_vnni", "GenuineIntel", "auto", "avx512 f32 int8"),
        (f"{AVX512} avx512_vnni avx512_bf16", "GenuineIntel", "auto", "avx512 f32 int8"),
        (f"{AVX512} avx512_vnni avx512_bf16", "AuthenticAMD", "auto", "avx512 bf16 int8"),
        (f"{AVX512} avx512_vnni avx512_bf16", "AuthenticAMD", "exact", "avx512 f32"),
    ],
)
def test_a_processor_is_given_what_it_has(
    features: str, vendor: str, wanted: Kernels, name: str | None
) -> None:
    """The widest vectors are used, bf16 only where it is fast, and only f32 in exact mode."""
    choice = choose(frozenset(features.split()), vendor, wanted, lambda: pytest.fail("no flags"))
    assert (choice.name if choice else None) == name


@pytest.mark.parametrize(
    ("features", "vendor", "works", "name"),
    [
        (AMX, "GenuineIntel", True, "avx512 amx int8"),
        (AMX, "GenuineIntel", False, "avx512 f32 int8"),
        (AMX, "AuthenticAMD", False, "avx512 bf16 int8"),
        (f"{AVX2} avx_vnni amx_tile amx_bf16", "GenuineIntel", True, "avx2 f32 int8"),
    ],
)
def test_amx_is_used_where_it_works(features: str, vendor: str, works: bool, name: str) -> None:
    """AMX is used only if the flags list it and the probe confirms it."""
    choice = choose(frozenset(features.split()), vendor, "auto", lambda: works)
    assert choice is not None
    assert choice.name == name


def test_exact_does_not_ask_for_amx() -> None:
    """Exact mode uses f32, so the probe for AMX does not run."""
    choice = choose(frozenset(AMX.split()), "GenuineIntel", "exact", lambda: pytest.fail("asked"))
    assert choice is not None
    assert choice.name == "avx512 f32"


def test_this_processor_is_read() -> None:
    """Flags and vendor are both read from /proc/cpuinfo, or both missing."""
    features, vendor = processor()
    assert bool(features) == bool(vendor)


@pytest.mark.parametrize(
    ("model", "server", "used"),
    [
        (None, "auto", "auto"),
        (None, "off", "off"),
        ("exact", "off", "exact"),
        ("off", "auto", "off"),
    ],
)
def test_a_models_word_wins(model: str | None, server: Kernels, used: str) -> None:
    """The model's setting in models.yaml takes precedence over the server's."""
    spec = ModelSpec.model_validate(
        {"id": "a", "family": "sd1", "files": {"model": "a.gguf"}, "runtime": {"kernels": model}}
    )
    settings = Settings(kernels=server)
    assert load_command(settings, spec).runtime["kernels"] == used
