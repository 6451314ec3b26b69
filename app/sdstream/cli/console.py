"""Shared parts of the commands: options for a server, progress bars, tables and errors.

Commands that use a running server import this module and the client, but not the service and the
runtime's tables, whose import takes a second.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TextIO

import click
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from sdstream.client.answers import APIError, ConnectionFailed
from sdstream.client.results import ImagesResponse
from sdstream.core.errors import NotInstalled, OperatorError
from sdstream.core.text import printable

#: Default address of the server.
USUAL_SERVER: Final = "http://localhost:8000"

_UNAUTHORIZED: Final = 401

EXIT_FAILED: Final = 1
EXIT_FAULT: Final = 70
EXIT_INTERRUPTED: Final = 130

#: Width of a table that goes to a file or a pipe, in characters.
_WIDE: Final = 100_000
#: Width of the last column, in characters, below which spare columns are left out.
_LEAST_COLUMNS: Final = 24


def server_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options --server and --api-key."""
    command = click.option(
        "--api-key",
        envvar="SDSTREAM_CLIENT_KEY",
        help="API key for --server (SDSTREAM_CLIENT_KEY).",
    )(command)
    return click.option(
        "--server",
        metavar="ADDRESS",
        envvar="SDSTREAM_SERVER",
        help="Address of a running server: http://localhost:8000 or host:port (SDSTREAM_SERVER).",
    )(command)


def print_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], *, spare: Sequence[str] = ()
) -> None:
    """Print each row on one line, without the columns that are empty in all rows.

    If the terminal is too narrow, spare columns are left out and the last column is cut. A file or
    a pipe receives everything.

    Args:
        headings: Names of the columns.
        rows: Cells of each row, in the order of the columns.
        spare: Columns that may be left out, the first one first.
    """
    columns = [*zip(*rows, strict=True)]
    if not columns:
        click.echo("Nothing to list.", err=True)
        return
    cells = {name: [*map(one_line, column)] for name, column in zip(headings, columns, strict=True)}
    cells = {heading: column for heading, column in cells.items() if any(column)}
    widths = {heading: max(map(cell_len, (heading, *cells[heading]))) + 2 for heading in cells}
    width = Console().width if is_terminal(sys.stdout) else _WIDE
    *others, last = widths
    least = min(_LEAST_COLUMNS, widths[last])
    for heading in spare:
        if heading in others and sum(widths.values()) - widths[last] + least > width:
            widths.pop(heading)
    room = width - sum(widths.values()) + widths[last]
    click.echo(click.style(_line({name: name for name in widths}, widths, room), bold=True))
    for row in range(len(columns[0])):
        click.echo(_line({name: cells[name][row] for name in widths}, widths, room))


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether a standard stream is a terminal; None stands for a closed one."""
    return stream is not None and stream.isatty()


def _line(cells: dict[str, str], widths: dict[str, int], room: int) -> str:
    *fixed, last = cells
    text = "".join(set_cell_size(cells[name], widths[name]) for name in fixed)
    end = cells[last]
    if cell_len(end) > room:
        end = set_cell_size(end, max(1, room - 1)).rstrip() + "…"
    return text + end


def one_line(words: str) -> str:
    """Return a client's, server's or file's text on one line, without control characters."""
    return printable(" ".join(words.split()))


def report_warnings(response: ImagesResponse) -> None:
    """Print the server's warnings, for example about options without an effect."""
    for warning in response.warnings:
        click.echo(f"Warning: {one_line(warning)}", err=True)


class LateBars:
    """Progress bars on stderr, each with a short text; nothing is written before the first bar."""

    def __init__(self) -> None:
        self._progress = Progress(
            BarColumn(),
            TextColumn("{task.fields[what]}", markup=False),
            TimeElapsedColumn(),
            console=Console(stderr=True),
        )

    def add(self) -> TaskID:
        """Add a bar."""
        self._progress.start()
        return self._progress.add_task("", total=100.0, what="waiting")

    def update(self, bar: TaskID, percent: float, what: str) -> None:
        """Set the percentage and the text of a bar."""
        self._progress.update(bar, completed=percent, what=what)

    def stop(self) -> None:
        """Stop updating the bars; they stay visible."""
        if self._progress.tasks:
            self._progress.stop()


@contextmanager
def plain_errors() -> Iterator[None]:
    """Print an expected error without a traceback, and exit with its exit code."""
    try:
        yield
    except OperatorError as error:
        _end(str(error), error.exit_code)
    except APIError as error:
        unknown_key = error.status == _UNAUTHORIZED
        remedy = " --api-key or SDSTREAM_CLIENT_KEY sets the key." if unknown_key else ""
        _end(f"{error}{remedy}", EXIT_FAILED)
    except (ConnectionFailed, NotInstalled, OSError) as error:
        _end(str(error), EXIT_FAILED)


def _end(message: str, code: int) -> Any:
    first, *rest = (one_line(line) for line in message.splitlines() or [""])
    click.echo(f"Error: {first}", err=True)
    for line in rest:
        click.echo(f"  {line}", err=True)
    sys.exit(code)
