"""Write the images of a command to files, and show them in the terminal."""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Final

import click
from PIL import Image
from rich.console import Console

from sdstream.cli.console import is_terminal
from sdstream.client.results import FORMATS

#: Default name of an image file.
USUAL_NAME: Final = "image.png"

#: Greatest width of an image in the terminal.
_COLUMNS: Final = 48
#: Limit on the file names to check; a server generates fewer images for one request.
_MOST_FILES: Final = 1000


def show_option(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options --show and --no-show."""
    return click.option(
        "--show/--no-show",
        default=None,
        help="Show the images in the terminal [default: on in a terminal, unless -o is -].",
    )(command)


def force_option(command: Callable[..., None]) -> Callable[..., None]:
    """Add the option --force."""
    return click.option("--force", is_flag=True, help="Overwrite existing files.")(command)


def format_of(output: str) -> str:
    """Return the image format for the suffix of a file name.

    Raises:
        click.UsageError: There is no format for the suffix.
    """
    suffix = Path(output).suffix.lower()
    if suffix not in FORMATS:
        raise click.UsageError(f"-o must end in one of {', '.join(FORMATS)}.")
    return FORMATS[suffix]


class Saver:
    """Writes the images of one job to files or stdout, and shows them in the terminal.

    Args:
        output: Name of the file, which gets a number if there are several images. ``-`` is stdout,
            and None writes no file.
        show: Show the images; None shows them if they go to a file and there is a terminal.
        force: Overwrite existing files.
        numbered: If the file exists, use the next free name instead of raising an error.

    Raises:
        click.UsageError: There is no format for the file's suffix, its folder does not exist, or
            stdout is closed or would contain both the image and what ``show`` prints.
    """

    def __init__(
        self, output: str | None, show: bool | None, *, force: bool = False, numbered: bool = False
    ) -> None:
        self._to_stdout = output == "-"
        self._path = None if output in (None, "-") else Path(str(output))
        self.format = "png" if self._path is None else format_of(self._path.name)
        if self._to_stdout and show:
            raise click.UsageError("--show cannot be combined with -o -; both write to stdout.")
        if self._to_stdout and sys.stdout is None:
            raise click.UsageError("-o - cannot be used: stdout is closed.")
        with _looking_at_files():
            if self._path is not None and not self._path.parent.is_dir():
                raise click.UsageError(f"the folder {self._path.parent} does not exist.")
        self._force = force
        self._numbered = numbered
        self._count = 1
        self._shows = (self._path is not None and _is_terminal()) if show is None else show
        self._shown: list[bytes] = []

    @property
    def wants_images(self) -> bool:
        """False if images are neither written nor shown."""
        return self._to_stdout or self._path is not None or self._shows

    def expect(self, images: int, kind: str) -> None:
        """Check that a number of images in a format can be written to the output.

        Raises:
            click.UsageError: They cannot be written.
        """
        if self._to_stdout and images > 1:
            raise click.UsageError(f"-o - writes one image to stdout, not {images}.")
        if self._path is None:
            return
        if kind != self.format:
            ends = " or ".join(end for end, name in FORMATS.items() if name == kind)
            raise click.UsageError(f"the images are {kind.upper()}: -o must end in {ends}.")
        self._count = images
        with _looking_at_files():
            if self._numbered and not self._force:
                self._path = next(p for p in _free_names(self._path) if not self._taken(p))
            for path in self._places(self._path):
                if path.is_dir():
                    raise click.UsageError(f"{path} is a folder.")
                if path.exists() and not self._force:
                    raise click.UsageError(f"{path} exists; --force replaces it.")

    def save(self, index: int, data: bytes) -> str:
        """Write one image; return the end of its progress line, which is the path of the file."""
        if self._shows:
            self._shown.append(data)
        if self._to_stdout:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        if self._path is None:
            return ""
        path = self._place(self._path, index)
        if self._force:
            path.write_bytes(data)
            return f", {path}"
        for free in _free_names(path):  # another process may take a name first
            try:
                with free.open("xb") as file:
                    file.write(data)
            except FileExistsError:
                continue
            path = free
            break
        return f", {path}"

    def show(self) -> None:
        """Show the saved images, as graphics if the terminal supports them, else as half blocks."""
        if not self._shown:
            return
        # The import queries the terminal, so only commands that show images import the module.
        terminal = importlib.import_module("textual_image.renderable")
        console = Console()
        for data in self._shown:
            with Image.open(io.BytesIO(data)) as image:
                console.print(terminal.Image(image, width=min(_COLUMNS, console.width)))

    def _place(self, path: Path, index: int) -> Path:
        return path if self._count == 1 else path.with_stem(f"{path.stem}-{index + 1}")

    def _places(self, path: Path) -> Iterator[Path]:
        return (self._place(path, index) for index in range(min(self._count, _MOST_FILES)))

    def _taken(self, path: Path) -> bool:
        return any(place.exists() for place in self._places(path))


@contextmanager
def _looking_at_files() -> Iterator[None]:
    """Convert OSError, such as that for a name that is too long, to click.UsageError."""
    try:
        yield
    except OSError as error:
        raise click.UsageError(f"the file after -o cannot be written: {error.strerror}.") from None


def _free_names(path: Path) -> Iterator[Path]:
    """Yield a name and then the same name with numbers: image.png, image-2.png, image-3.png."""
    yield path
    yield from (path.with_stem(f"{path.stem}-{number}") for number in count(2))


def _is_terminal() -> bool:
    """Return whether stdin and stdout are a terminal that can be queried."""
    if not (is_terminal(sys.stdin) and is_terminal(sys.stdout)):
        return False
    return os.get_terminal_size(sys.stdout.fileno()).columns > 0  # 0: a bare pseudo-terminal
