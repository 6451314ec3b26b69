"""Files in the operator's folders, and the names by which requests select them."""

from __future__ import annotations

import subprocess
import sys
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


def test_a_folder_whose_files_cannot_be_opened(tmp_path: Path) -> None:
    """Its files are not listed, and those of other folders are; root switches to another user."""
    files_of(tmp_path, "files/a.gguf", "files/locked/b.gguf")
    tmp_path.chmod(0o755)
    (tmp_path / "files" / "locked").chmod(0o444)
    program = (
        "import os, pathlib; from sdstream.weights.folders import size_of, weight_files\n"
        "if os.geteuid() == 0: os.seteuid(65534)\n"
        "print(*weight_files(pathlib.Path('files')), size_of(pathlib.Path('files/locked/b.gguf')))"
    )
    command = [sys.executable, "-c", program]
    tried = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    (tmp_path / "files" / "locked").chmod(0o700)
    assert (tried.stdout, tried.stderr) == ("a None\n", "")


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
