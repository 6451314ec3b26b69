"""The built-in model files."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path

import pytest

from sdstream.weights import embedded
from sdstream.weights.embedded import MODELS, materialise

FOLDER = Path(embedded.__file__).parent


@pytest.mark.parametrize("name", MODELS)
def test_the_card_fits_the_file(tmp_path: Path, name: str) -> None:
    """The card has the files' checksums and sizes, and the compressed file is at most 16 MB."""
    files = json.loads((FOLDER / f"{name}.json").read_text())["files"]
    packed = (FOLDER / f"{name}.gguf.xz").read_bytes()
    unpacked = materialise(f"builtin:{name}", tmp_path).read_bytes()
    for data, said in ((packed, files["model.gguf.xz"]), (unpacked, files["model.gguf"])):
        assert (len(data), hashlib.sha256(data).hexdigest()) == (said["bytes"], said["sha256"])
    assert len(packed) <= 16_000_000


def test_it_is_unpacked_once_even_by_rivals(tmp_path: Path) -> None:
    """Several threads that unpack at once all get the one complete file."""
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(materialise("builtin:drawings", tmp_path)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert list(tmp_path.iterdir()) == [found[0]]
    before = found[0].stat().st_mtime_ns
    assert materialise("builtin:drawings", tmp_path).stat().st_mtime_ns == before


def test_a_damaged_file_is_unpacked_again(tmp_path: Path) -> None:
    """A truncated file in the cache is unpacked again."""
    path = materialise("builtin:drawings", tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    assert materialise("builtin:drawings", tmp_path).read_bytes() == whole


def test_paths_pass_through(tmp_path: Path) -> None:
    """Any other location in models.yaml is returned as a path."""
    assert materialise("/models/x.gguf", tmp_path) == Path("/models/x.gguf")
    with pytest.raises(KeyError):
        materialise("builtin:nothing", tmp_path)
