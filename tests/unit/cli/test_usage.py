"""Wrong usage, which commands report before anything starts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from sdstream.cli.main import main
from tests.support.documents import ROOT
from tests.support.pictures import png

LONG = "a" * 300


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "caf\udce9"], "The argument 'caf?' is not UTF-8 text."),
        (["generate", "x", "-O", "group=\udce9"], "The argument 'group=?' is not UTF-8 text."),
        (["watch", "caf\udce9"], "The argument 'caf?' is not UTF-8 text."),
        (["generate", "x", "-o", "-", "--show"], "--show cannot be combined with -o -"),
        (["watch", "x", "-o", "-", "--show"], "--show cannot be combined with -o -"),
        (["upscale", "m.png", "-o", "-", "--show"], "--show cannot be combined with -o -"),
        (["edit", LONG, "m.png"], f"the file {LONG[:77]}... cannot be read: File name too long."),
        (["edit", ".", "x"], "the file . is not a file."),
        (["generate", "x", "-o", f"{LONG}.png"], "cannot be written: File name too long."),
        (["generate", "x", "-o", f"{LONG}/x.png"], "cannot be written: File name too long."),
        (["grid", "x", "-x", "steps=1,2", "-o", f"{LONG}.png"], "File name too long."),
        (["grid", "x", "-x", "cfg=1,nan"], "-x cfg: nan is not a finite number."),
        (["grid", "x", "-x", "cfg=1,inf"], "-x cfg: inf is not a finite number."),
        (["grid", "x", "-x", "steps=1,2", "-O", "n=2"], "this command does not have the option"),
        (["upscale", "m.png", "-O", "n=2"], "-O n: this command does not have the option 'n'."),
        (["upscale", "m.png", "-O", "prompt=a"], "this command does not have the option 'prompt'."),
        (["cluster", "join", "x:1", "--grace-seconds", "inf"], "inf is not a finite number."),
        (["cluster", "join", "x:1", "--grace-seconds", "nan"], "nan is not a finite number."),
    ],
)
def test_mistakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    """Wrong usage ends a command with exit code 2 and an error that names it."""
    (tmp_path / "m.png").write_bytes(png(64, 64))
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert words in " ".join(result.output.split())


def test_ids_on_stdin_that_are_no_text() -> None:
    """``delete -`` rejects input that is not UTF-8 text."""
    result = CliRunner().invoke(main, ["delete", "-"], input=b"\xff")
    assert result.exit_code == 2
    assert "stdin is not UTF-8 text." in result.output


def test_the_file_of_a_sheet() -> None:
    """``grid`` describes the file that it writes."""
    text = " ".join(CliRunner().invoke(main, ["grid", "--help"]).output.split())
    assert "-o, --output FILE File of the sheet, a .png [default: grid.png" in text


def test_a_model_without_files_is_not_deleted() -> None:
    """``rm`` does not speak of a download."""
    result = CliRunner().invoke(main, ["rm", "embedded"])
    assert "The model 'embedded' has no files on a hub; nothing to delete." in result.output


def paths(group: click.Group, above: str) -> Iterator[str]:
    """Yield the commands of a group and of the groups in it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield f"{above} {name}"
        if isinstance(command, click.Group):
            yield from paths(command, f"{above} {name}")


def test_every_command_is_in_the_reference() -> None:
    """The reference has the help of each command except ``serve``, whose flags are settings."""
    text = (ROOT / "docs/reference/cli.md").read_text(encoding="utf-8")
    headings = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert [name for name in paths(main, "sdstream") if name != "sdstream serve"] == headings
