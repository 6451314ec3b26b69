"""The server's periodic work."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from typing import Any, cast

import pytest

from sdstream.settings import Settings
from sdstream.web.server import Server


@pytest.fixture
def collections(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The full collections that the server has started."""
    started: list[int] = []
    monkeypatch.setattr(gc, "collect", lambda: started.append(1))
    return started


def ticks(server: Server, seconds: int) -> None:
    """Let the server do the periodic work of an interval, then close it."""

    async def run() -> None:
        for counter in range(10 * seconds):
            await server.on_tick(counter)
        await cast(Any, server.config.app).state.store.close()

    asyncio.run(run())


@pytest.mark.parametrize(("connections", "expected"), [(0, 10), (99, 10), (100, 0), (5000, 0)])
def test_garbage_is_collected_while_few_connections_are_open(
    tmp_path: Path, collections: list[int], connections: int, expected: int
) -> None:
    """In ten minutes, an idle server collects ten times, and a server with a crowd never."""
    server = Server(Settings(engine="fake", data_dir=tmp_path))
    server.server_state.connections = {cast(Any, number) for number in range(connections)}
    ticks(server, 600)
    assert len(collections) == expected


def test_a_crowd_cannot_prevent_collections(tmp_path: Path, collections: list[int]) -> None:
    """With many connections, a server collects once an hour."""
    server = Server(Settings(engine="fake", data_dir=tmp_path))
    server.server_state.connections = {cast(Any, number) for number in range(5000)}
    ticks(server, 7200)
    assert len(collections) == 2


def test_a_private_server_leaves_the_collector_to_the_program(
    tmp_path: Path, collections: list[int]
) -> None:
    """A Runner does not change how the program around it collects garbage."""
    server = Server(Settings(engine="fake", data_dir=tmp_path), uds=tmp_path / "socket")
    ticks(server, 7200)
    assert collections == []
