"""The actor on a machine, without Ray: it starts, loads, relays and ends one child process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import huggingface_hub
import pytest

from sdstream import __version__
from sdstream.cluster.host import Host
from sdstream.core.messages import (
    Done,
    Event,
    Failed,
    Generate,
    Load,
    Loaded,
    Phase,
    Progress,
    encode,
    unframe,
)
from sdstream.core.runtime_options import RuntimeOptions
from tests.support.hub_server import COMMIT, FakeHub, fake_hub
from tests.support.processes import a_request, driven

NOTHING: Final[dict[str, Any]] = {"files": {"model": "x"}, "sizes": {}, "folders": {}}


def a_load(**files: str) -> bytes:
    """Encode a front's load command as a frame."""
    return encode(Load("m", "sd1", files, "/front/cache", RuntimeOptions().model_dump()))


@contextmanager
def hub_of_ours(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """Serve a hub with one file, and direct huggingface_hub to it."""
    with fake_hub({"some/model/m.gguf": b"x" * 5000}) as hub:
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield hub
        huggingface_hub.close_session()


async def events(host: Host) -> AsyncIterator[Event | int]:
    """Yield a machine's events and, at the end, its child's exit code."""
    async for frame, number in host.frames():
        if not frame:
            yield number
            return
        event = unframe(frame)
        assert isinstance(event, Event)
        yield event


@driven
async def test_a_machine_relays_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine relays events up to the child's exit code; the child gets no variable of Ray."""
    monkeypatch.setenv("SDSTREAM_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    host = Host()
    pid, problems = await host.start(__version__, "fake", NOTHING, {"SEEN": "1"})
    assert problems == []
    variables = Path(f"/proc/{pid}/environ").read_bytes()
    assert b"SEEN=1" in variables
    assert b"RAY_" not in variables
    assert b"OMP_NUM_" not in variables
    await host.send(a_load(model="x"))
    seen = events(host)
    while not isinstance(await anext(seen), Loaded):
        pass
    await host.send(encode(Generate("job", a_request(steps=2))))
    while not isinstance(await anext(seen), Done):
        pass
    await host.stop()
    assert [event async for event in seen] in ([0], [-15])


@driven
async def test_a_machine_says_what_it_lacks(tmp_path: Path) -> None:
    """A machine reports another version or a missing file, and starts no child."""
    host = Host()
    _, problems = await host.start("0.0.0", "fake", NOTHING, {})
    assert problems == [f"it has sdstream {__version__}, and the front has 0.0.0"]
    path = str(tmp_path / "m.gguf")
    needs = {"files": {"model": path}, "sizes": {"model": 4}, "folders": {}}
    assert await host.start(__version__, "fake", needs, {}) == (
        0,
        [f"{path} does not exist, or this user cannot reach it"],
    )
    await host.stop()


@driven
async def test_a_machine_downloads_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine downloads a missing file at the front's commit, and reports progress meanwhile."""
    monkeypatch.setenv("SDSTREAM_MODEL_DIR", str(tmp_path / "hub"))
    location = f"hf:some/model@{COMMIT}/m.gguf"
    needs = {"files": {"model": location}, "sizes": {}, "folders": {}}
    with hub_of_ours(monkeypatch) as hub:
        host = Host()
        assert (await host.start(__version__, "fake", needs, {}))[1] == []
        await host.send(a_load(model=location))
        seen = [event async for event in _until(events(host), Loaded)]
        await host.stop()
        assert len(hub.downloads()) == 1
    assert any(isinstance(e, Progress) and e.phase is Phase.LOADING for e in seen)
    (pointer,) = (tmp_path / "hub").rglob(f"snapshots/{COMMIT}/m.gguf")
    assert pointer.read_bytes() == b"x" * 5000


@driven
async def test_a_download_that_fails_fails_the_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed download fails the load with the hub's message, which names the file."""
    monkeypatch.setenv("SDSTREAM_MODEL_DIR", str(tmp_path / "hub"))
    location = f"hf:some/model@{COMMIT}/absent.gguf"
    needs = {"files": {"model": location}, "sizes": {}, "folders": {}}
    with hub_of_ours(monkeypatch) as hub:
        host = Host()
        await host.start(__version__, "fake", needs, {})
        await host.send(a_load(model=location))
        seen = [event async for event in _until(events(host), Failed)]
        await host.stop()
        assert hub.downloads() == []
    assert isinstance(seen[-1], Failed)
    assert "absent.gguf" in seen[-1].message


@driven
async def test_an_unexpected_fault_of_a_download_fails_the_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is notified at once; it would otherwise wait until the load times out."""

    def fault(*_: object) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setenv("SDSTREAM_MODEL_DIR", str(tmp_path / "hub"))
    monkeypatch.setattr("sdstream.cluster.files.missing", fault)
    host = Host()
    await host.start(__version__, "fake", NOTHING, {})
    await host.send(a_load(model="x"))
    seen = [event async for event in _until(events(host), Failed)]
    await host.stop()
    assert isinstance(seen[-1], Failed)
    assert "cannot be downloaded" in seen[-1].message


async def _until(seen: AsyncIterator[Event | int], kind: type) -> AsyncIterator[Event | int]:
    async with asyncio.timeout(50):
        async for event in seen:
            yield event
            if isinstance(event, kind):
                return
