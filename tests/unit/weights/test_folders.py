"""Files in the operator's folders, and the names by which requests select them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdstream.weights.folders import candidate_files, hider, weight_files
from sdstream.weights.inspection import examine


def files_of(folder: Path, *names: str) -> None:
    """Create files of one byte."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_files_of_a_folder(tmp_path: Path) -> None:
    """Weights are found in any case of the ending; hidden files and folders are not."""
    files_of(
        tmp_path,
        "a.safetensors", "B.SAFETENSORS", "sub/c.GGUF", "d.txt", "e.PT", ".hidden.safetensors",
        ".trash/f.gguf", ".gguf",
    )  # fmt: skip
    assert {*weight_files(tmp_path)} == {"a", "B", "sub/c"}
    assert {*candidate_files(tmp_path)} == {"a.safetensors", "B.SAFETENSORS", "sub/c.GGUF", "e.PT"}


@pytest.mark.parametrize(
    ("first", "second"), [("x.gguf", "x.safetensors"), ("x.SAFETENSORS", "x.gguf")]
)
def test_two_files_of_one_name(tmp_path: Path, first: str, second: str) -> None:
    """One of the files is used, and the other has a problem that names it."""
    files_of(tmp_path, first, second)
    assert weight_files(tmp_path) == {"x": tmp_path / second}
    assert (hider(tmp_path / first), hider(tmp_path / second)) == (tmp_path / second, None)
    problem = examine(tmp_path / first, "lora").problem
    assert problem == f"has the same name as {second}, which is used: rename one of them"
    assert "same name" not in str(examine(tmp_path / second, "lora").problem)
