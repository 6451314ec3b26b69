"""What commands share: a server's flags, progress, files, images, errors.

Commands that use a running server import this module and the client alone: the service and the
runtime's tables take a second to import.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from sdstream.client.http import APIError, ConnectionFailed
from sdstream.client.results import FORMATS
from sdstream.core.errors import NotInstalled, OperatorError
from sdstream.core.text import printable

#: The server of commands that name none.
USUAL_SERVER: Final = "http://localhost:8000"

EXIT_FAILED: Final = 1
EXIT_FAULT: Final = 70
EXIT_INTERRUPTED: Final = 130

#: Widest image in the terminal.
_COLUMNS: Final = 48
#: More than any server generates for one request.
_MOST_FILES: Final = 1000
#: Of a table that no terminal shows.
_WIDE: Final = 1000


def server_options(command: Callable[..., None]) -> Callable[..., None]:
    """--server and --api-key."""
    command = click.option(
        "--api-key", envvar="SDSTREAM_CLIENT_KEY", help="Key for --server (SDSTREAM_CLIENT_KEY)."
    )(command)
    return click.option(
        "--server",
        metavar="URL",
        envvar="SDSTREAM_SERVER",
        help="A running server, for example http://localhost:8000 (SDSTREAM_SERVER).",
    )(command)


def show_option(command: Callable[..., None]) -> Callable[..., None]:
    """--show and --no-show."""
    return click.option(
        "--show/--no-show",
        default=None,
        help="Show the images in the terminal [default: if it is one, and -o is given a file].",
    )(command)


def table_console() -> Console:
    """The console of tables: words stay what they are, and for a pipe a row is a line."""
    width = None if sys.stdout.isatty() else _WIDE
    return Console(width=width, markup=False, emoji=False, highlight=False)


def one_line(words: str) -> str:
    """Words of clients, servers or files on one line, without what would steer a terminal."""
    return printable(" ".join(words.split()))


def progress_bar() -> Progress:
    """A bar on stderr, with a word on what is going on."""
    return Progress(
        BarColumn(),
        TextColumn("{task.fields[what]}", markup=False),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )


def format_of(output: str) -> str:
    """Return the image format that the end of a file's name chooses.

    Raises:
        click.UsageError: It chooses none.
    """
    suffix = Path(output).suffix.lower()
    if suffix not in FORMATS:
        raise click.UsageError(f"-o must end in one of {', '.join(FORMATS)}.")
    return FORMATS[suffix]


class Saver:
    """Writes the images of one job, and shows them.

    Args:
        output: A file's name, numbered when there are several images; ``-`` is stdout, and None
            writes nothing.
        show: In the terminal as well; None is when that makes sense.

    Raises:
        click.UsageError: The output can take no images.
    """

    def __init__(self, output: str | None, show: bool | None) -> None:
        self._to_stdout = output == "-"
        self._path = None if output in (None, "-") else Path(str(output))
        self.format = "png" if self._path is None else format_of(self._path.name)
        if self._path is not None and not self._path.parent.is_dir():
            raise click.UsageError(f"the folder {self._path.parent} does not exist.")
        self._count = 1
        self._shows = (self._path is not None and _is_terminal()) if show is None else show
        self._shown: list[bytes] = []

    @property
    def wants_images(self) -> bool:
        """False when there is nothing to do with them."""
        return self._to_stdout or self._path is not None or self._shows

    def expect(self, count: int, kind: str) -> None:
        """So many images of this format will come.

        Raises:
            click.UsageError: The output cannot take these.
        """
        if self._to_stdout and count > 1:
            raise click.UsageError(f"-o - writes one image to stdout, not {count}.")
        if self._path is None:
            return
        if kind != self.format:
            ends = " or ".join(end for end, name in FORMATS.items() if name == kind)
            raise click.UsageError(f"the images are {kind.upper()}: -o must end in {ends}.")
        self._count = count
        for path in (self._place(self._path, index) for index in range(min(count, _MOST_FILES))):
            if path.is_dir():
                raise click.UsageError(f"{path} is a folder.")

    def save(self, index: int, data: bytes) -> str:
        """Write one image; returns what to say of it after its seed."""
        if self._shows:
            self._shown.append(data)
        if self._to_stdout:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        if self._path is None:
            return ""
        path = self._place(self._path, index)
        path.write_bytes(data)
        return f", {path}"

    def _place(self, path: Path, index: int) -> Path:
        return path if self._count == 1 else path.with_stem(f"{path.stem}-{index + 1}")

    def show(self) -> None:
        """Show what was saved in the terminal: by its graphics, else in half blocks."""
        if not self._shown:
            return
        # Importing it asks the terminal what it can, which only a command that shows should do.
        terminal = importlib.import_module("textual_image.renderable")
        console = Console()
        for data in self._shown:
            with Image.open(io.BytesIO(data)) as image:
                console.print(terminal.Image(image, width=min(_COLUMNS, console.width)))


def _is_terminal() -> bool:
    """True when the output is a terminal that can be asked for its abilities."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    return os.get_terminal_size(sys.stdout.fileno()).columns > 0  # a bare pseudo-terminal has none


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn expected failures into one line and an exit code."""
    try:
        yield
    except OperatorError as error:
        _end(str(error), error.exit_code)
    except (ConnectionFailed, APIError, NotInstalled, OSError) as error:
        _end(str(error), EXIT_FAILED)


def _end(message: str, code: int) -> Any:
    first, *rest = (one_line(line) for line in message.splitlines() or [""])
    click.echo(f"Error: {first}", err=True)
    for line in rest:
        click.echo(f"  {line}", err=True)
    sys.exit(code)
