"""Run every command of the README and the documents as it is written there."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import pytest
from PIL import Image

from sdstream.cli.main import main
from tests.support.blocks import ADDRESS, BASH, run
from tests.support.documents import Block, Page, pages
from tests.support.servers import ServerProcess, running_server

PAGES = pages()
#: Pages whose commands are run by another test module.
ELSEWHERE = {"docs/guide/cli.md": "test_cli_guide.py"}
RUN = [page for page in PAGES if page.blocks() and page.name not in ELSEWHERE]


def run_block(block: Block, server: ServerProcess, folder: Path) -> str:
    """Run a block in a folder with this server; return what it printed."""
    command = BASH if block.language == "sh" else (sys.executable, "-c")
    return run(block.code, server, folder, *command)


def check_images(block: Block, folder: Path) -> None:
    """Check that the image files that a block names exist, in the format of their extension."""
    for name in block.images:
        stem, _, ending = name.rpartition(".")
        path = folder / name
        if not path.exists():
            path = folder / f"{stem}-1.{ending}"  # the first of several
        with Image.open(path) as image:
            image.load()
            assert image.format == {"jpg": "JPEG"}.get(ending, ending.upper()), name


@contextmanager
def server_of(page: Page, usual: ServerProcess, folder: Path) -> Iterator[ServerProcess]:
    """Yield the server that a page needs."""
    if page.server_flags is None:
        yield usual
        return
    settings: dict[str, Any] = {}
    for flag, value in zip(page.server_flags[::2], page.server_flags[1::2], strict=True):
        option = next(one for one in SERVE.params if flag in one.opts)
        assert option.name is not None
        settings[option.name] = value
    with running_server(folder, **settings) as server:
        yield server


@pytest.mark.parametrize("page", RUN, ids=[page.name for page in RUN])
def test_a_page(page: Page, native_server: ServerProcess, tmp_path: Path) -> None:
    """The blocks of a page succeed, print what the page shows, and write the images that they
    name."""
    with server_of(page, native_server, tmp_path) as server:
        for block in page.blocks():
            printed = run_block(block, server, tmp_path).replace(server.url, ADDRESS)
            block.check_output(printed)
            check_images(block, tmp_path)


def subcommand(name: str) -> click.Command:
    """Return a command of ``sdstream``."""
    found = main.get_command(click.Context(main), name)
    assert found is not None, name
    return found


SERVE = subcommand("serve")


def sdstream_calls(line: str) -> Iterator[list[str]]:
    """Yield the arguments of each call of sdstream in a line of a shell."""
    words = shlex.split(line, comments=True)
    for number, word in enumerate(words):
        before = words[number - 1] if number else ""
        if word == "sdstream" and (before == "" or "=" in before):
            yield words[number + 1 :]


def test_commands_that_are_not_run_exist() -> None:
    """Commands in ``console`` blocks exist and have only known options."""
    count = 0
    for page in PAGES:
        for line in page.commands():
            for arguments in sdstream_calls(line):
                name, *rest = [one for one in arguments if one != "2>&1"]
                command = subcommand(name)
                if isinstance(command, click.Group):
                    name, *rest = rest
                    command = command.commands[name]
                with command.make_context(name, rest, resilient_parsing=True) as context:
                    assert context.args == [], (page.name, line)
                known = {one for option in command.params for one in option.opts}
                known |= {one for option in command.params for one in option.secondary_opts}
                flags = [one.partition("=")[0] for one in rest if one.startswith("-")]
                assert set(flags) <= known | {"--help"}, (page.name, line)
                count += 1
    assert count > 15


def test_console_blocks_mark_their_commands() -> None:
    """A ``console`` block has a line that begins with ``$``; the tests check only such lines."""
    for page in PAGES:
        for language, text in page.fences():
            if language == "console":
                assert re.search(r"^\$ ", text, re.MULTILINE), (page.name, text)


def test_no_block_has_a_language_that_nobody_runs() -> None:
    """Each block is run by a test, is a transcript, or has a language that is listed as data."""
    languages = {language for page in PAGES for language, _ in page.fences()}
    data = {
        *("bash", "bat", "fish", "haproxy", "zsh"),
        "dockerfile",
        "haproxy",
        "ini",
        "json",
        "mermaid",
        "nginx",
        "caddy",
        "powershell",
        "text",
        "yaml",
        "js",
        "py",
    }
    assert languages - data == {"sh", "python", "console"}
