"""Checksums of weight files: computed in the background and stored."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from sdstream.weights.checksums import Checksums
from tests.support.servers import wait_until

SECONDS = 30


def known(checksums: Checksums, path: Path) -> str:
    """Wait for the checksum of a file and return it."""
    wait_until(lambda: checksums.of(path), SECONDS, f"no checksum of {path}")
    found = checksums.of(path)
    assert found is not None
    return found


def sha256(data: bytes) -> str:
    """Return the SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()


def test_a_file_is_read_once_and_again_when_it_changes(tmp_path: Path) -> None:
    """The first request starts reading, and the result is stored for the next start."""
    store, file = tmp_path / "cache" / "checksums.json", tmp_path / "a.safetensors"
    file.write_bytes(b"weights")
    checksums = Checksums(store)
    assert checksums.of(file) is None
    assert known(checksums, file) == sha256(b"weights")

    wait_until(store.exists, SECONDS, "the checksum was not stored")
    assert Checksums(store).of(file) == sha256(b"weights")

    file.write_bytes(b"others!")
    os.utime(file, ns=(1, 1))
    assert checksums.of(file) is None
    assert known(checksums, file) == sha256(b"others!")


def test_a_file_of_a_hubs_cache_is_named_by_its_checksum(tmp_path: Path) -> None:
    """The SHA-256 in a blob's name is used without reading; a name with a Git SHA-1 is not."""
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for name, expected in (("ab" * 32, "ab" * 32), ("ab" * 20, None)):
        (blobs / name).write_bytes(b"weights")
        link = tmp_path / f"{len(name)}.gguf"
        link.symlink_to(Path("blobs", name))
        assert Checksums(tmp_path / "checksums.json").of(link) == expected


def test_a_link_of_the_operators_is_followed(tmp_path: Path) -> None:
    """A link to a file outside a hub's cache is read, even if the name looks like a checksum."""
    file = tmp_path / ("cd" * 32)
    file.write_bytes(b"weights")
    link = tmp_path / "model.gguf"
    link.symlink_to(file)
    assert known(Checksums(tmp_path / "checksums.json"), link) == sha256(b"weights")


def test_a_missing_file_has_none_and_the_next_one_is_read(tmp_path: Path) -> None:
    """An unreadable file has no checksum and does not stop the thread."""
    checksums = Checksums(tmp_path / "checksums.json")
    file = tmp_path / "a.gguf"
    assert checksums.of(file) is None
    file.mkdir()
    assert checksums.of(file) is None  # the thread cannot read it
    other = tmp_path / "b.gguf"
    other.write_bytes(b"b")
    assert known(checksums, other) == sha256(b"b")


@pytest.mark.parametrize("text", ["", "[1]", '{"a": 1}', "{", json.dumps({"a": [1, 2]})])
def test_a_damaged_store_is_made_again(tmp_path: Path, text: str) -> None:
    """A damaged store is ignored, and the checksum is computed again."""
    store, file = tmp_path / "checksums.json", tmp_path / "a.gguf"
    store.write_text(text)
    file.write_bytes(b"a")
    assert known(Checksums(store), file) == sha256(b"a")
