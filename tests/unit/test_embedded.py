"""The built-in model file."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from app.embedded import materialise, tiny_ovis


def test_the_same_bytes_every_time(tmp_path: Path) -> None:
    """Seeded weights: two machines have one model."""
    tiny_ovis.write(tmp_path / "a.gguf")
    tiny_ovis.write(tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_it_is_written_once_even_by_rivals(tmp_path: Path) -> None:
    """Several processes may start at once; nobody ever sees half a file."""
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(materialise("builtin:tiny-ovis", tmp_path)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert list(tmp_path.iterdir()) == [found[0]]
    before = found[0].stat().st_mtime_ns
    assert materialise("builtin:tiny-ovis", tmp_path).stat().st_mtime_ns == before


def test_paths_pass_through(tmp_path: Path) -> None:
    """Anything else in models.yaml is a file of the user's."""
    assert materialise("/models/x.gguf", tmp_path) == Path("/models/x.gguf")
    with pytest.raises(KeyError):
        materialise("builtin:nothing", tmp_path)
