"""Requests and results of ``sdstream grid``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner, Result

from sdstream.cli import grid
from sdstream.cli.main import main
from sdstream.client.answers import APIError
from sdstream.client.calls import Call
from sdstream.client.http import AsyncClient
from tests.support.pictures import png

Draw = Callable[[Call], bytes]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Result]:
    """Return a function that makes a grid of two columns with a function for each image."""
    monkeypatch.setattr(grid, "_FULL_SECONDS", 0.0)
    monkeypatch.chdir(tmp_path)

    def make(draw: Draw, *arguments: str) -> Result:
        async def answer(_client: AsyncClient, call: Call) -> SimpleNamespace:
            return SimpleNamespace(data=[SimpleNamespace(content=draw(call))])

        monkeypatch.setattr(AsyncClient, "run", answer)
        command = ("grid", "a", "-x", "steps=1,2", "--server", "localhost:1")
        return CliRunner().invoke(main, [*command, *arguments])

    return make


def told(result: Result) -> list[str]:
    """Return the lines of the output after the progress bar."""
    return result.output.splitlines()[1:]


def test_a_full_queue(run: Callable[..., Result]) -> None:
    """A cell that a full queue rejects is requested again."""
    asked = []

    def draw(call: Call) -> bytes:
        asked.append(json.dumps(dict(call.options)))
        if len(asked) < 4:
            raise APIError(429, "The queue is full.")
        return png(64, 64)

    result = run(draw)
    assert (result.exit_code, told(result)) == (0, ["2 images, grid.png"])


def test_cells_that_failed(run: Callable[..., Result], tmp_path: Path) -> None:
    """The number of images is that of the finished ones; without any, there is no sheet."""

    def draw(call: Call) -> bytes:
        if call.options["sample_steps"] in failing:
            raise APIError(400, "Too many steps.")
        return png(64, 64)

    failing = [1, 2]
    result = run(draw)
    assert (result.exit_code, told(result)) == (1, ["Error: Too many steps."])
    assert [*tmp_path.iterdir()] == []
    failing = [2]
    result = run(draw)
    expected = ["1 of 2 images, grid.png", "Error: Too many steps."]
    assert (result.exit_code, told(result)) == (1, expected)


def test_a_sheet_that_cannot_be_written(run: Callable[..., Result]) -> None:
    """The error of the operating system is shown without a traceback."""
    result = run(lambda _call: png(64, 64), "-o", "/proc/grid.png")
    assert result.exit_code == 1
    assert "Error: [Errno 2] No such file or directory: '/proc/grid.png'" in result.output
