"""What commands share: settings, a server's flags, progress, files, pictures, errors."""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, get_origin

import click
from PIL import Image
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from sdstream.client.http import APIError, ConnectionFailed
from sdstream.client.results import FORMATS
from sdstream.core.catalog_yaml import CatalogError
from sdstream.core.errors import NotInstalled
from sdstream.core.options import MAX_IMAGES
from sdstream.imaging.safety import SafetyCheckerError
from sdstream.service.webhooks import WebhookSettingsError
from sdstream.settings import Settings, UnknownVariable, variable_warnings
from sdstream.storage.schema import StoreError
from sdstream.web.server import ServerError
from sdstream.weights.discovery import ModelError
from sdstream.weights.headers import printable
from sdstream.weights.hub import HubError

EXIT_FAILED: Final = 1
EXIT_FAULT: Final = 70
EXIT_CONFIG: Final = 78
EXIT_INTERRUPTED: Final = 130

#: Widest picture in the terminal.
_COLUMNS: Final = 48
#: Of a table that no terminal shows.
_WIDE: Final = 1000


def setting_flags(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """One flag for each of these fields of Settings, or for all."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        for name in reversed(names or tuple(Settings.model_fields)):
            command = _flag(name)(command)
        return command

    return decorate


def _flag(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    field = Settings.model_fields[name]
    many = get_origin(field.annotation) is tuple
    flag = (singular(name) if many else name).replace("_", "-")
    switch = field.annotation is bool
    default = None if field.default_factory or field.default in (None, ()) else field.default
    shown = f" [default: {default}]" if default is not None else ""
    return click.option(
        f"--{flag}/--no-{flag}" if switch else f"--{flag}",
        name,
        multiple=many,
        default=None,
        metavar=None if switch else _metavar(field.annotation),
        help=f"{field.description}{shown} ({_variable(name)})",
    )


def singular(name: str) -> str:
    """Return the name of one of several: ``aliases`` are each an alias."""
    for plural, singular in (("ies", "y"), ("ses", "s"), ("s", "")):
        if name.endswith(plural):
            return name.removesuffix(plural) + singular
    return name


def _variable(field: str) -> str:
    return f"SDSTREAM_{field.upper()}"


def _metavar(annotation: Any) -> str:
    names = {int: "N", float: "SECONDS", Path: "PATH", Path | None: "PATH"}
    return names.get(annotation, "VALUE")


def read_settings(**given: Any) -> Settings:
    """Settings from flags and environment; a wrong one ends the program."""
    flags = {name: value for name, value in given.items() if value not in (None, ())}
    try:
        for warning in variable_warnings():
            click.echo(f"Warning: {warning}", err=True)
    except UnknownVariable as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(EXIT_CONFIG)
    try:
        return Settings(**flags)
    except ValidationError as error:
        for problem in error.errors():
            field = str(problem["loc"][0]) if problem["loc"] else "settings"
            message = problem["msg"].removeprefix("Value error, ")
            click.echo(f"Error: {field} ({_variable(field)}): {message}.", err=True)
        sys.exit(EXIT_CONFIG)


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
    """The format of images that the end of a file's name says.

    Raises:
        click.UsageError: It says none.
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
        # More are refused by the server.
        for path in (self._place(self._path, index) for index in range(min(count, MAX_IMAGES))):
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
        """Draw what was saved into the terminal: by its graphics, else in half blocks."""
        if not self._shown:
            return
        # Importing it asks the terminal what it can, which only a command that shows should do.
        terminal = importlib.import_module("textual_image.renderable")
        console = Console()
        for data in self._shown:
            with Image.open(io.BytesIO(data)) as image:
                console.print(terminal.Image(image, width=min(_COLUMNS, console.width)))


def _is_terminal() -> bool:
    """True when somebody sees the output and the terminal can be asked what it can."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    return os.get_terminal_size(sys.stdout.fileno()).columns > 0  # a bare pseudo-terminal has none


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn expected failures into one line and an exit code."""
    try:
        yield
    except (
        *(CatalogError, ModelError, SafetyCheckerError),
        *(ServerError, StoreError, WebhookSettingsError),
    ) as error:
        _end(str(error), EXIT_CONFIG)
    except (HubError, ConnectionFailed, APIError, NotInstalled, OSError) as error:
        _end(str(error), EXIT_FAILED)


def _end(message: str, code: int) -> Any:
    click.echo(f"Error: {one_line(message)}", err=True)
    sys.exit(code)
