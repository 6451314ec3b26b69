"""Options of a command from the parameters inside an image file (``--like``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sdstream.core import infotext
from sdstream.core.errors import InvalidRequest
from sdstream.core.options import OPTIONS
from sdstream.imaging import codecs

#: The file's pixels are not decoded, so that only its header has to be plausible.
_MAX_PIXELS = 2**31 - 1


def options_inside(path: Path) -> dict[str, Any]:
    """Return the options that an image file was generated with: canonical name -> value.

    Options that act on an input image are left out, since the file does not contain that image.
    Names without an option here are reported on stderr.

    Raises:
        click.UsageError: The file is not an image, or contains no parameters.
    """
    try:
        text = codecs.texts(path.read_bytes(), "--like", _MAX_PIXELS).get("parameters")
    except InvalidRequest as error:
        raise click.UsageError(f"{path}: {error.message}") from None
    found = infotext.read_options(text) if text is not None else None
    if found is None:
        raise click.UsageError(f"{path} contains no generation parameters.")
    kept = {name: value for name, value in found.options.items() if not OPTIONS[name].acts_on}
    ignored = [*found.unread, *(name for name in found.options if name not in kept)]
    if ignored:
        click.echo(f"Ignored from {path.name}: {', '.join(ignored)}", err=True)
    return kept
