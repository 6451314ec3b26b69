"""The upscaler's network in PyTorch, and the file that the runtime loads."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from safetensors.torch import load_file  # noqa: E402

from scripts.embedded.enlarger import FACTOR, Enlarger, export  # noqa: E402
from sdstream.weights.embedded import upscaler_file  # noqa: E402
from sdstream.weights.inspection import examine  # noqa: E402


def test_the_network_enlarges_each_side() -> None:
    """By the factor that the file's name has."""
    pixels = torch.rand(1, 3, 8, 12)
    assert Enlarger()(pixels).shape == (1, 3, 8 * FACTOR, 12 * FACTOR)


def test_the_file_is_one_that_the_runtime_reads(tmp_path: Path) -> None:
    """With the names and shapes of Real-ESRGAN, as 16-bit floats."""
    network = torch.nn.ModuleDict({"enlarger": Enlarger()})
    torch.save({"average": network.state_dict()}, tmp_path / "run.pt")
    export(tmp_path / "run.pt", tmp_path / "file.safetensors")
    assert examine(tmp_path / "file.safetensors", "upscaler").factor == FACTOR
    shipped = upscaler_file("drawings-4x")
    assert shipped is not None
    mine, theirs = load_file(tmp_path / "file.safetensors"), load_file(shipped)
    assert {k: v.shape for k, v in mine.items()} == {k: v.shape for k, v in theirs.items()}
    assert {v.dtype for v in theirs.values()} == {torch.float16}
