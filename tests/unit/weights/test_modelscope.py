"""Files of ModelScope, with the same checks and cache as those of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from sdstream.core.locations import HubFile
from sdstream.weights.hub import Hub
from sdstream.weights.hub_errors import HubError
from tests.support.hub_server import TOKEN, FakeHub, fake_hub
from tests.support.servers import free_port
from tests.unit.weights.test_hub import DATA, Heard, fetched

FILE = HubFile("them/it", "deep/it.gguf", "master", "ms:")
NAME = f"{FILE.repo}/{FILE.path}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A ModelScope server with one file in a folder."""
    with fake_hub({NAME: DATA, f"{FILE.repo}/README.md": b"words"}) as running:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", running.url)
        monkeypatch.setenv("HF_TOKEN", "hf_of_another_hub")
        monkeypatch.delenv("MODELSCOPE_API_TOKEN", raising=False)
        yield running
        huggingface_hub.close_session()


def test_a_file_comes(server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is stored next to the hub's, and the token is sent only to ModelScope."""
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", TOKEN)
    server.gated.add(FILE.repo)
    hub, heard = Hub(tmp_path), Heard()
    path = fetched(hub, heard, FILE)
    assert path == tmp_path / "modelscope/models--them--it/snapshots/master/deep/it.gguf"
    assert path.read_bytes() == DATA
    assert hub.find(FILE) == path
    assert hub.find(HubFile(FILE.repo, FILE.path, "master")) is None
    assert not hub.is_damaged(FILE)
    assert heard.octets[-1] == len(DATA)
    sent = {
        (one.path.startswith("/cdn/"), one.headers.get("authorization")) for one in server.asked
    }
    assert sent == {(False, f"Bearer {TOKEN}"), (True, None)}
    cookies = {(one.path.startswith("/cdn/"), one.headers.get("cookie")) for one in server.asked}
    assert cookies == {(False, f"m_session_id={TOKEN}"), (True, None)}
    assert hub.remove(FILE) == len(DATA)
    assert not hub.has_any(FILE)
    assert not (tmp_path / "modelscope/models--them--it").exists()


def test_what_was_cut_is_resumed(server: FakeHub, tmp_path: Path) -> None:
    """A broken download is resumed with Range after a pause."""
    server.cuts = [100_000]
    pauses: list[float] = []
    path = fetched(Hub(tmp_path, pauses.append), Heard(), FILE)
    assert path.read_bytes() == DATA
    assert pauses == [1]
    assert server.downloads()[-1].headers["range"].startswith("bytes=")


def test_wrong_contents_are_deleted(server: FakeHub, tmp_path: Path) -> None:
    """A file with a wrong SHA-256 is deleted."""
    server.wrong[NAME] = bytes(len(DATA))
    hub = Hub(tmp_path)
    with pytest.raises(HubError, match="had a wrong checksum"):
        fetched(hub, Heard(), FILE)
    assert not hub.has_any(FILE)


def test_faults_that_pass_are_tried_again(server: FakeHub, tmp_path: Path) -> None:
    """Transient errors of the API and of the file server are retried."""
    server.statuses["GET", f"{FILE.repo}/files"] = [(502, {})]
    server.statuses["GET", f"cdn/{NAME}"] = [(503, {})]
    heard = Heard()
    assert fetched(Hub(tmp_path, lambda _: None), heard, FILE).read_bytes() == DATA
    assert [words.partition(";")[0] for words in heard.words] == [
        "the hub answers 502",
        "the hub answers 503",
    ]


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (FILE._replace(path="it.gguf"), "The repository them/it has no file it.gguf."),
        (FILE._replace(path="deep"), "The repository them/it has no file deep."),
        (FILE._replace(revision="v9"), "The repository them/it has no revision 'v9'."),
        (FILE._replace(repo="no/body"), "/models/no/body, and set MODELSCOPE_API_TOKEN to a token"),
        (FILE._replace(repo="them/closed"), "no repository them/closed, or it is private"),
    ],
)
def test_what_is_not_there(server: FakeHub, tmp_path: Path, file: HubFile, words: str) -> None:
    """ModelScope always answers 404, and the code in the answer determines the message."""
    server.files["them/closed/deep/it.gguf"] = DATA
    server.gated.add("them/closed")
    with pytest.raises(HubError) as caught:
        fetched(Hub(tmp_path), Heard(), file)
    assert words in str(caught.value)
    assert server.downloads() == []


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (200, "(MODELSCOPE_ENDPOINT) is not ModelScope: it sent no list of files for them/it/deep"),
        (403, "(MODELSCOPE_ENDPOINT) answers 403 to the request for them/it/deep/it.gguf"),
        (404, "(MODELSCOPE_ENDPOINT) has no file them/it/deep/it.gguf."),
    ],
)
def test_an_endpoint_of_another_kind(
    server: FakeHub, tmp_path: Path, status: int, words: str
) -> None:
    """The error names the endpoint's variable."""
    server.statuses["GET", f"{FILE.repo}/files"] = [(status, {})]
    with pytest.raises(HubError) as caught:
        fetched(Hub(tmp_path), Heard(), FILE)
    assert words in str(caught.value)


def test_a_mirror_that_sends_other_types(server: FakeHub, tmp_path: Path) -> None:
    """A response with wrong types is an error with the value."""
    for name, value in (("Size", "12"), ("Size", True), ("Sha256", 12)):
        server.listed = {name: value}
        with pytest.raises(HubError, match=rf"MODELSCOPE_ENDPOINT\) is not ModelScope.*'{value}'"):
            fetched(Hub(tmp_path), Heard(), FILE)


def test_an_endpoint_that_is_no_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint without a scheme and an unreachable endpoint are reported."""
    hub = Hub(tmp_path, lambda _: None)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "mirror.example")
    with pytest.raises(
        HubError, match=r"MODELSCOPE_ENDPOINT is 'mirror\.example', which is not an"
    ):
        fetched(hub, Heard(), FILE)
    place = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", place)
    with pytest.raises(HubError, match=rf"{place} \(MODELSCOPE_ENDPOINT\): "):
        fetched(hub, Heard(), FILE)
