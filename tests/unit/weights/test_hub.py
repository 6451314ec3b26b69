"""The hub's cache, where a process of its own would be slow or could not be made to fail."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from sdstream.core.locations import HubFile
from sdstream.weights.hub import Hub, Remote
from sdstream.weights.hub_errors import HubError
from tests.support.hub_server import COMMIT, FakeHub, fake_hub

FILE = HubFile("them/it", "deep/it.gguf", "main")
NAME = f"{FILE.repo}/{FILE.path}"
DATA = bytes(range(256)) * 1000


class Heard:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.octets: list[int] = []
        self.words: list[str] = []

    def has(self, octets: int) -> None:
        """Note it."""
        self.octets.append(octets)

    def says(self, words: str) -> None:
        """Note it."""
        self.words.append(words)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with one file, which the library is led to."""
    with fake_hub({NAME: DATA}) as running:
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", running.url)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield running
        huggingface_hub.close_session()


def fetched(hub: Hub, heard: Heard, file: HubFile = FILE) -> Path:
    """The file, looked up and fetched."""
    return hub.fetch(hub.look_up(file, None, heard), heard)


def test_a_file_comes(server: FakeHub, tmp_path: Path) -> None:
    """It is found afterwards, and the watcher saw it grow to its end."""
    hub, heard = Hub(tmp_path), Heard()
    assert hub.find(FILE) is None
    path = fetched(hub, heard)
    assert path.read_bytes() == DATA
    assert hub.find(FILE) == path
    assert heard.octets == sorted(heard.octets)
    assert heard.octets[-1] == len(DATA)
    assert not hub.is_damaged(FILE)


def test_a_dead_connection_is_given_up(server: FakeHub, tmp_path: Path) -> None:
    """After four tries without a byte; with growing pauses, and what came stays."""
    server.cuts = [100_000, 0, 0, 0, 0, 0]
    pauses: list[float] = []
    hub, heard = Hub(tmp_path, pauses.append), Heard()
    with pytest.raises(HubError, match=r"cannot be fetched now .*Pull again later") as caught:
        fetched(hub, heard)
    assert "what has been fetched is kept" in str(caught.value)
    assert pauses == [1, 1, 2, 4, 8] or pauses == [1, 2, 4, 8]  # how much of the first came
    assert len(heard.words) == len(pauses)
    assert fetched(hub, heard).read_bytes() == DATA
    assert server.downloads()[-1].headers["range"].startswith("bytes=")


@pytest.mark.parametrize(
    ("status", "words"),
    [(500, "the hub answers 500"), (429, "too many requests"), (404, "has no file them/it/deep")],
)
def test_a_hub_that_stays_ill(server: FakeHub, tmp_path: Path, status: int, words: str) -> None:
    """Faults that pass are tried five times, others once, then told."""
    server.statuses["HEAD", NAME] = [(status, {})] * 5
    pauses: list[float] = []
    with pytest.raises(HubError, match=words):
        fetched(Hub(tmp_path, pauses.append), Heard())
    assert pauses == ([] if status == 404 else [1, 2, 4, 8])


def test_nobody_there(tmp_path: Path, server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that nobody listens on is named."""
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    with pytest.raises(HubError, match=r"http://127\.0\.0\.1:9 \(HF_ENDPOINT\): .*refused"):
        fetched(Hub(tmp_path, lambda _: None), Heard())


def test_a_full_disk_is_told_first(
    server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is here of a file counts; the sentence says how much is missing."""
    hub, heard = Hub(tmp_path / "not" / "yet"), Heard()
    remote = hub.look_up(FILE, None, heard)
    usage = shutil.disk_usage(tmp_path)._replace(free=200_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(HubError, match=r"256\.0 kB are to be fetched .* 56\.0 kB are missing"):
        hub.check_room([remote])
    partial = hub._partial(remote)
    partial.parent.mkdir(parents=True)
    partial.write_bytes(DATA[:100_000])
    hub.check_room([remote])


def test_a_disk_that_fills_up(server: FakeHub, tmp_path: Path) -> None:
    """In the midst it is a sentence as well."""
    hub, heard = Hub(tmp_path), Heard()
    remote = hub.look_up(FILE, None, heard)
    hub._partial(remote).parent.mkdir(parents=True)
    hub._partial(remote).symlink_to("/dev/full")
    with pytest.raises(HubError, match=r"The disk is full\. What has been fetched is kept"):
        hub.fetch(remote, heard)


def test_a_part_that_is_too_long(server: FakeHub, tmp_path: Path) -> None:
    """It is no part of the file: everything is fetched anew."""
    hub, heard = Hub(tmp_path), Heard()
    remote = hub.look_up(FILE, None, heard)
    hub._partial(remote).parent.mkdir(parents=True)
    hub._partial(remote).write_bytes(DATA + b"more")
    assert hub.fetch(remote, heard).read_bytes() == DATA
    assert "range" not in server.downloads()[0].headers


def test_parts_of_older_versions_go(server: FakeHub, tmp_path: Path) -> None:
    """They would never be asked for again."""
    hub, heard = Hub(tmp_path), Heard()
    remote = hub.look_up(FILE, None, heard)
    old = hub._partial(Remote(FILE, "", "0" * 64, 1, COMMIT))
    old.parent.mkdir(parents=True)
    old.touch()
    hub.fetch(remote, heard)
    assert not old.exists()


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"X-Linked-Etag": '"W-17"'}, "sent '.*W-17.*' in place of a checksum"),
        ({"X-Linked-Etag": '"' + "0" * 64 + '"', "X-Linked-Size": str(10**11)}, "hf download them"),
        (
            {"X-Linked-Etag": '"' + "0" * 64 + '"', "X-Repo-Commit": "x" * 40},
            "sent the commit 'xxx",
        ),
    ],
)
def test_what_the_hub_must_tell(
    server: FakeHub, tmp_path: Path, headers: dict[str, str], words: str
) -> None:
    """Without a checksum nothing is fetched, and giants are left to the hub's own protocol."""
    known = {"X-Repo-Commit": COMMIT, "X-Linked-Size": "9", "Location": server.cdn}
    server.statuses["HEAD", NAME] = [(302, known | headers)]
    with pytest.raises(HubError, match=words):
        fetched(Hub(tmp_path), Heard())


def test_a_server_that_is_no_hub(server: FakeHub, tmp_path: Path) -> None:
    """A page of something else is told from a hub."""
    server.statuses["HEAD", NAME] = [(200, {})]
    with pytest.raises(HubError, match="is not a hub"):
        fetched(Hub(tmp_path), Heard())


def test_a_folder_that_cannot_be_written(server: FakeHub, tmp_path: Path) -> None:
    """The sentence has the system's word."""
    (tmp_path / "file").touch()
    with pytest.raises(HubError, match="Not a directory"):
        fetched(Hub(tmp_path / "file"), Heard())


def test_a_blob_of_two_snapshots(server: FakeHub, tmp_path: Path) -> None:
    """Removing one leaves the other what it links to."""
    hub, heard = Hub(tmp_path), Heard()
    path = fetched(hub, heard)
    other = path.parents[2] / "another-commit" / "same.gguf"
    other.parent.mkdir()
    other.symlink_to(os.path.relpath(path.resolve(), other.parent))
    assert hub.remove(FILE) == 0
    assert hub.find(FILE) is None
    assert other.read_bytes() == DATA
    assert not path.parent.exists()
