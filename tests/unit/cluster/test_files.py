"""Weight files across machines: locations, files that must be the same, and messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sdstream.cluster.files import located, missing, needs_of, problems
from sdstream.core.messages import Load
from sdstream.settings import Settings

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def a_load(**files: str) -> Load:
    """A command that loads these files."""
    return Load("m", "sd1", files, "/front/cache", {})


def machine(folder: Path, **settings: Any) -> Settings:
    """Settings of a machine whose folders are below ``folder``."""
    return Settings(model_dir=folder / "hub", **settings)


def in_cache(folder: Path, path: str = "a/model.gguf") -> Path:
    """Create a file of the hub in a machine's cache."""
    repository = folder / "hub/models--some--model-v2"
    found = repository / "snapshots" / COMMIT / path
    found.parent.mkdir(parents=True)
    found.write_bytes(b"weights")
    (repository / "refs").mkdir(exist_ok=True)
    return found


def test_a_file_of_the_hub_travels_by_its_commit(tmp_path: Path) -> None:
    """The front sends the file's hub location, and the machine uses the file in its own cache."""
    front, there = machine(tmp_path / "front"), machine(tmp_path / "there")
    needs = needs_of(front, a_load(model=str(in_cache(tmp_path / "front"))))
    location = f"hf:some/model-v2@{COMMIT}/a/model.gguf"
    assert needs == {"files": {"model": location}, "sizes": {}, "folders": {}}
    assert problems(there, needs) == []
    assert [file.location for file in missing(there, needs)] == [location]
    own = in_cache(tmp_path / "there")
    assert missing(there, needs) == []
    assert located(there, needs) == {"model": str(own)}


def test_a_file_of_modelscope_travels_by_its_revision(tmp_path: Path) -> None:
    """ModelScope's cache is a folder in that of the hub, and its revisions are not commits."""
    path = tmp_path / "hub/modelscope/models--some--model/snapshots/v1/a/model.gguf"
    needs = needs_of(machine(tmp_path), a_load(model=str(path)))
    assert needs["files"] == {"model": "ms:some/model@v1/a/model.gguf"}
    assert [file.location for file in missing(machine(tmp_path), needs)] == [
        *needs["files"].values()
    ]


def test_built_in_models_travel_by_their_names(tmp_path: Path) -> None:
    """Each machine writes the built-in models itself."""
    needs = needs_of(machine(tmp_path), a_load(model="builtin:drawings"))
    assert needs["files"] == {"model": "builtin:drawings"}
    assert problems(machine(tmp_path), needs) == []
    assert located(machine(tmp_path), needs) == {"model": "builtin:drawings"}


def test_other_files_must_be_the_same(tmp_path: Path) -> None:
    """Every other file must exist at the same path with the same size."""
    path = tmp_path / "m.gguf"
    path.write_bytes(b"1234")
    needs = needs_of(machine(tmp_path), a_load(model=str(path)))
    assert problems(machine(tmp_path), needs) == []
    path.write_bytes(b"123")
    assert problems(machine(tmp_path), needs) == [f"{path} has 3 bytes instead of 4"]
    path.unlink()
    assert problems(machine(tmp_path), needs) == [
        f"{path} does not exist, or this user cannot reach it"
    ]


@pytest.mark.parametrize("name", ["lora_dir", "embedding_dir", "upscaler_dir"])
def test_folders_must_hold_the_same_files(tmp_path: Path, name: str) -> None:
    """Missing, additional and different files are named; the folders may have different paths."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder in (ours, theirs):
        folder.mkdir()
        (folder / "a.safetensors").write_bytes(b"1")
    needs = needs_of(machine(tmp_path, **{name: ours}), a_load())
    assert problems(machine(tmp_path, **{name: theirs}), needs) == []
    flag = f"--{name.replace('_', '-')}"
    assert problems(machine(tmp_path), needs) == [f"{flag} is not set"]
    (theirs / "a.safetensors").write_bytes(b"12")
    (theirs / "more.safetensors").write_bytes(b"1")
    for number in range(5):
        (ours / f"n{number}.gguf").write_bytes(b"1")
    needs = needs_of(machine(tmp_path, **{name: ours}), a_load())
    assert problems(machine(tmp_path, **{name: theirs}), needs) == [
        f"{flag} lacks n0.gguf, n1.gguf, n2.gguf and 2 more",
        f"{flag} also contains more.safetensors",
        f"{flag} has different sizes of a.safetensors",
    ]
