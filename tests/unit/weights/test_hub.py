"""Downloads from the hub in one process, for faults that need a controlled server."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
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
    """A watcher that records its calls."""

    def __init__(self) -> None:
        self.octets: list[int] = []
        self.words: list[str] = []

    def has(self, octets: int) -> None:
        """Record the number of bytes."""
        self.octets.append(octets)

    def says(self, words: str) -> None:
        """Record the text."""
        self.words.append(words)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with one file, set as the library's endpoint."""
    with fake_hub({NAME: DATA}) as running:
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", running.url)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield running
        huggingface_hub.close_session()


def fetched(hub: Hub, heard: Heard, file: HubFile = FILE) -> Path:
    """Look up and download the file."""
    return hub.fetch(hub.look_up(file, None, heard), heard)


def test_a_file_comes(server: FakeHub, tmp_path: Path) -> None:
    """The file is found afterwards, and the watcher received its growing size."""
    hub, heard = Hub(tmp_path), Heard()
    assert hub.find(FILE) is None
    path = fetched(hub, heard)
    assert path.read_bytes() == DATA
    assert hub.find(FILE) == path
    assert heard.octets == sorted(heard.octets)
    assert heard.octets[-1] == len(DATA)
    assert not hub.is_damaged(FILE)


def test_a_file_of_a_pull_request_comes(server: FakeHub, tmp_path: Path) -> None:
    """The revision's slashes are quoted in addresses, and the file is found afterwards."""
    hub, file = Hub(tmp_path), FILE._replace(revision="refs/pr/7")
    path = fetched(hub, Heard(), file)
    assert path.read_bytes() == DATA
    assert "/resolve/refs%2Fpr%2F7/" in server.asked[0].path
    assert hub.find(file) == path
    assert hub.find(FILE) is None
    assert hub.remove(file) == len(DATA)
    assert not hub.has_any(file)


def test_a_dead_connection_is_given_up(server: FakeHub, tmp_path: Path) -> None:
    """After four attempts without data the download fails, and the partial file is kept."""
    server.cuts = [100_000, 0, 0, 0, 0, 0]
    pauses: list[float] = []
    hub, heard = Hub(tmp_path, pauses.append), Heard()
    with pytest.raises(HubError, match=r"cannot be downloaded now .*Pull again later") as caught:
        fetched(hub, heard)
    assert "the downloaded part is kept" in str(caught.value)
    assert pauses == [1, 1, 2, 4, 8] or pauses == [1, 2, 4, 8]  # how many bytes arrived first
    assert len(heard.words) == len(pauses)
    assert fetched(hub, heard).read_bytes() == DATA
    assert server.downloads()[-1].headers["range"].startswith("bytes=")


@pytest.mark.parametrize(
    ("status", "words"),
    [(500, "the hub answers 500"), (429, "too many requests"), (404, "has no file them/it/deep")],
)
def test_a_hub_that_stays_ill(server: FakeHub, tmp_path: Path, status: int, words: str) -> None:
    """Transient errors are tried five times, others once."""
    server.statuses["HEAD", NAME] = [(status, {})] * 5
    pauses: list[float] = []
    with pytest.raises(HubError, match=words):
        fetched(Hub(tmp_path, pauses.append), Heard())
    assert pauses == ([] if status == 404 else [1, 2, 4, 8])


def test_nobody_there(tmp_path: Path, server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names an endpoint that refuses the connection."""
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    with pytest.raises(HubError, match=r"http://127\.0\.0\.1:9 \(HF_ENDPOINT\): .*refused"):
        fetched(Hub(tmp_path, lambda _: None), Heard())


def test_a_full_disk_is_told_first(
    server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check counts a partial file, and the error contains the missing bytes."""
    hub, heard = Hub(tmp_path / "not" / "yet"), Heard()
    remote = hub.look_up(FILE, None, heard)
    usage = shutil.disk_usage(tmp_path)._replace(free=200_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(HubError, match=r"256\.0 kB must be downloaded, .* free 56\.0 kB more"):
        hub.check_room([remote])
    partial = hub._partial(remote)
    partial.parent.mkdir(parents=True)
    partial.write_bytes(DATA[:100_000])
    hub.check_room([remote])


def test_a_disk_that_fills_up(server: FakeHub, tmp_path: Path) -> None:
    """A disk that becomes full during the download is reported as such."""
    hub, heard = Hub(tmp_path), Heard()
    remote = hub.look_up(FILE, None, heard)
    hub._partial(remote).parent.mkdir(parents=True)
    hub._partial(remote).symlink_to("/dev/full")
    with pytest.raises(HubError, match=r"The disk is full\. The downloaded part is kept"):
        hub.fetch(remote, heard)


def test_a_part_that_is_too_long(server: FakeHub, tmp_path: Path) -> None:
    """A partial file longer than the whole is discarded, and the download starts again."""
    hub, heard = Hub(tmp_path), Heard()
    remote = hub.look_up(FILE, None, heard)
    hub._partial(remote).parent.mkdir(parents=True)
    hub._partial(remote).write_bytes(DATA + b"more")
    assert hub.fetch(remote, heard).read_bytes() == DATA
    assert "range" not in server.downloads()[0].headers


def test_parts_of_older_versions_go(server: FakeHub, tmp_path: Path) -> None:
    """A partial file of an older version is deleted after the download."""
    hub, heard = Hub(tmp_path), Heard()
    remote = hub.look_up(FILE, None, heard)
    old = hub._partial(Remote(FILE, "", "0" * 64, 1, COMMIT))
    old.parent.mkdir(parents=True)
    old.touch()
    hub.fetch(remote, heard)
    assert not old.exists()


def test_a_part_of_another_version_that_is_being_downloaded(
    server: FakeHub, tmp_path: Path
) -> None:
    """A partial file that another process downloads at the moment stays."""
    hub, heard = Hub(tmp_path), Heard()
    remote = hub.look_up(FILE, None, heard)
    other = Remote(FILE, "", "0" * 64, 1, COMMIT)
    part = hub._partial(other)
    part.parent.mkdir(parents=True)
    part.touch()
    with hub._lock(other, heard):
        assert hub.fetch(remote, heard).read_bytes() == DATA
    assert part.exists()


@pytest.mark.parametrize("sent", ["bytes 0-9/256000", "bytes 100001-255999/256000"])
def test_an_answer_with_another_range(server: FakeHub, tmp_path: Path, sent: str) -> None:
    """A part that is not the missing one is not appended, and the whole file is requested."""
    hub, heard = Hub(tmp_path, lambda _: None), Heard()
    remote = hub.look_up(FILE, None, heard)
    hub._partial(remote).parent.mkdir(parents=True)
    hub._partial(remote).write_bytes(DATA[:100_000])
    server.statuses["GET", f"cdn/{NAME}"] = [(206, {"Content-Range": sent})]
    assert hub.fetch(remote, heard).read_bytes() == DATA
    assert heard.words == ["the server sent another range of the file; again in 1 s"]
    assert "range" not in server.downloads()[-1].headers


@pytest.mark.parametrize(
    ("wish", "pauses"),
    [
        (lambda: formatdate(time.time() + 60, usegmt=True), range(55, 61)),
        (lambda: formatdate(time.time() - 60, usegmt=True), range(1, 2)),
        (lambda: "soon", range(1, 2)),
        (lambda: "7", range(7, 8)),
    ],
    ids=["date", "past", "words", "seconds"],
)
def test_the_pause_that_a_hub_asks_for(
    server: FakeHub, tmp_path: Path, wish: Callable[[], str], pauses: range
) -> None:
    """Retry-After contains seconds or a date."""
    server.statuses["HEAD", NAME] = [(429, {"Retry-After": wish()})]
    waited: list[float] = []
    assert fetched(Hub(tmp_path, waited.append), Heard()).read_bytes() == DATA
    assert len(waited) == 1
    assert waited[0] in pauses


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"X-Linked-Etag": '"W-17"'}, "sent '.*W-17.*' instead of a checksum"),
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
    """A missing checksum, an invalid commit or a file too large for plain HTTP is an error."""
    known = {"X-Repo-Commit": COMMIT, "X-Linked-Size": "9", "Location": server.cdn}
    server.statuses["HEAD", NAME] = [(302, known | headers)]
    with pytest.raises(HubError, match=words):
        fetched(Hub(tmp_path), Heard())


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Linked-Etag": '"../../../escape/x"'},
        {"X-Linked-Etag": '"' + "0" * 64 + '"'},
        {"X-Repo-Commit": "../../../escape"},
    ],
)
def test_a_hub_that_changes_its_mind(
    server: FakeHub, tmp_path: Path, headers: dict[str, str]
) -> None:
    """Headers that were not validated do not become paths, and the verified file is used."""
    known = {
        "X-Repo-Commit": COMMIT,
        "X-Linked-Etag": f'"{server.checksum(NAME)}"',
        "X-Linked-Size": str(len(DATA)),
        "Location": f"{server.cdn}/cdn/{NAME}",
    }
    server.statuses["HEAD", NAME] = [(302, known), *[(302, known | headers)] * 5]
    hub = Hub(tmp_path / "cache")
    path = fetched(hub, Heard())
    assert path == hub.find(FILE)
    assert path.resolve().name == server.checksum(NAME)
    assert path.read_bytes() == DATA
    assert not (tmp_path / "escape").exists()


def test_a_file_system_without_links(
    server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The snapshot then contains a copy of the blob."""

    def fail(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", fail)
    path = fetched(Hub(tmp_path), Heard())
    assert path.read_bytes() == DATA
    assert not path.is_symlink()


def test_a_server_that_is_no_hub(server: FakeHub, tmp_path: Path) -> None:
    """A server that does not answer like a hub is reported."""
    server.statuses["HEAD", NAME] = [(200, {})]
    with pytest.raises(HubError, match="is not a hub"):
        fetched(Hub(tmp_path), Heard())


def test_a_folder_that_cannot_be_written(server: FakeHub, tmp_path: Path) -> None:
    """The error contains the system's reason."""
    (tmp_path / "file").touch()
    with pytest.raises(HubError, match="Not a directory"):
        fetched(Hub(tmp_path / "file"), Heard())


def test_a_blob_of_two_snapshots(server: FakeHub, tmp_path: Path) -> None:
    """Removing a file keeps data to which another snapshot links."""
    hub, heard = Hub(tmp_path), Heard()
    path = fetched(hub, heard)
    other = path.parents[2] / "another-commit" / "same.gguf"
    other.parent.mkdir()
    other.symlink_to(os.path.relpath(path.resolve(), other.parent))
    assert hub.remove(FILE) == 0
    assert hub.find(FILE) is None
    assert other.read_bytes() == DATA
    assert not path.parent.exists()
