"""Images by id: age, bytes, restarts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from app.store import ImageStore


class Clock:
    """Unix seconds that stand still until moved."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """A clock of this test."""
    return Clock()


def store_in(folder: Path, clock: Clock, max_bytes: int = 1000) -> ImageStore:
    """A store whose images live for 60 seconds."""
    store = ImageStore(folder, ttl_seconds=60, max_bytes=max_bytes, clock=clock)
    store.open()
    return store


def test_what_is_put_can_be_got(tmp_path: Path, clock: Clock) -> None:
    """Bytes and format come back under an id that is not guessable."""
    store = store_in(tmp_path / "new", clock)
    first, second = store.put(b"one", "png"), store.put(b"two", "jpeg")
    assert store.get(first) == (b"one", "png")
    assert store.get(second) == (b"two", "jpeg")
    assert len(first) >= 20
    assert store.get("nobody") is None
    assert store.get("../../etc/passwd") is None


def test_images_expire(tmp_path: Path, clock: Clock) -> None:
    """Too old is gone, from the disk as well."""
    store = store_in(tmp_path, clock)
    old = store.put(b"old", "png")
    clock.now += 50
    young = store.put(b"young", "png")
    clock.now += 20
    assert store.get(old) is None
    assert store.get(young) is not None
    assert len(list(tmp_path.iterdir())) == 1


def test_the_oldest_make_room(tmp_path: Path, clock: Clock) -> None:
    """The bytes on disk stay within the limit."""
    store = store_in(tmp_path, clock, max_bytes=1000)
    ids = [store.put(b"x" * 400, "png") for _ in range(5)]
    assert [store.get(i) is not None for i in ids] == [False, False, False, True, True]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 800


def test_a_restart_takes_up_what_is_there(tmp_path: Path, clock: Clock) -> None:
    """Images outlive the process; what a crash left half-written does not."""
    store = store_in(tmp_path, clock)
    kept = store.put(b"kept", "webp")
    os.utime(tmp_path / f"{kept}.webp", (clock.now, clock.now))
    (tmp_path / "half.part").write_bytes(b"ha")
    again = store_in(tmp_path, clock)
    assert again.get(kept) == (b"kept", "webp")
    assert not (tmp_path / "half.part").exists()


def test_a_file_deleted_by_somebody_else(tmp_path: Path, clock: Clock) -> None:
    """is not there, and no fault."""
    store = store_in(tmp_path, clock)
    image = store.put(b"x", "png")
    (tmp_path / f"{image}.png").unlink()
    assert store.get(image) is None


def test_a_disk_that_will_not(tmp_path: Path, clock: Clock) -> None:
    """An error to the caller, and nothing half-written stays."""
    (tmp_path / "file").write_text("")
    store = ImageStore(tmp_path / "file", ttl_seconds=60, max_bytes=10, clock=clock)
    with pytest.raises(OSError):  # noqa: PT011  whichever it is
        store.put(b"x", "png")
