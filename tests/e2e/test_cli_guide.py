"""Run every command of docs/guide/cli.md as it is written there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.blocks import BASH, picture, run
from tests.support.servers import ServerProcess

GUIDE = (Path(__file__).parents[2] / "docs/guide/cli.md").read_text()
SHELL = re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL)


def block(word: str) -> str:
    """Return the block of the guide that contains a word."""
    found: list[str] = [text for text in SHELL if word in text]
    assert len(found) == 1
    return found[0]


def test_the_blocks_are_known() -> None:
    """A block added to the guide needs a test here."""
    assert len(SHELL) == 9


def test_generate_edit_and_pipes(native_server: ServerProcess, tmp_path: Path) -> None:
    """The first blocks write images of the expected sizes."""
    run(block("pair.png"), native_server, tmp_path, *BASH)
    for name in ("circle.png", "other.png"):
        assert picture(tmp_path / name) == ("PNG", (128, 128))
    for name in ("pair-1.png", "pair-2.png"):
        assert picture(tmp_path / name) == ("PNG", (64, 64))
    run(block("mask.png"), native_server, tmp_path, *BASH)
    assert picture(tmp_path / "half.png") == picture(tmp_path / "blue.png") == ("PNG", (128, 128))
    assert picture(tmp_path / "larger.png") == ("PNG", (192, 128))
    run(block("piped.png"), native_server, tmp_path, *BASH)
    assert picture(tmp_path / "green.png") == ("PNG", (128, 128))


def test_options_without_a_flag(native_server: ServerProcess, tmp_path: Path) -> None:
    """-O sets the aspect ratio, and the file has the default name."""
    run(block("aspect_ratio"), native_server, tmp_path, *BASH)
    form, (width, height) = picture(tmp_path / "image.png")
    assert form == "PNG"
    assert width > 1.5 * height


def test_grids(native_server: ServerProcess, tmp_path: Path) -> None:
    """Both blocks write their sheets."""
    run(block("shapes.png"), native_server, tmp_path, *BASH)
    assert picture(tmp_path / "samplers.png")[1][1] > 2 * 128
    assert picture(tmp_path / "shapes.png")[1][0] > 3 * 128


def test_a_server(native_server: ServerProcess, tmp_path: Path) -> None:
    """A job is started, watched, listed and deleted."""
    output = run(block("--async"), native_server, tmp_path, *BASH)
    assert picture(tmp_path / "watched.png") == ("PNG", (128, 128))
    assert "completed" in output
    server = f"export SDSTREAM_SERVER={native_server.url}\n"
    assert "deleted" in run(server + block("--ids"), native_server, tmp_path, *BASH)


def test_runtime_options(native_server: ServerProcess, tmp_path: Path) -> None:
    """A load sets runtime options, and the next load restores those of models.yaml."""
    first, second = run(block("/load"), native_server, tmp_path, *BASH).split("}{")
    assert '"threads":1,' in first
    assert '"threads":0,' in second


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(native_server: ServerProcess, tmp_path: Path, shell: str) -> None:
    """The command for each shell prints a script, and each installed shell can load it."""
    (line,) = re.findall(rf"^.*{shell}_source.*$", GUIDE, re.MULTILINE)
    if shutil.which(shell):
        run(line, native_server, tmp_path, shell, "-c")
    command = re.search(r"(_SDSTREAM_COMPLETE=\w+ sdstream)", line)
    assert command is not None
    assert "_SDSTREAM_COMPLETE=" in run(command[1], native_server, tmp_path, "bash", "-c")


def test_the_table_has_every_command() -> None:
    """The first table of the guide lists the same commands as --help."""
    shown = subprocess.run(
        [sys.executable, "-m", "sdstream", "--help"], check=True, capture_output=True, text=True
    ).stdout
    commands = set(re.findall(r"^  ([a-z]+)  +\S", shown, re.MULTILINE))
    table = GUIDE.partition("\n## ")[0]
    assert {
        word for word in re.findall(r"`([a-z]+)`", table) if word not in ("sdstream", "pip")
    } == commands
