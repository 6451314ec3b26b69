"""Options of a request from ``-O KEY=VALUE`` and from the parameters inside an image file.

Importing the table of all options takes a third of a second, so commands import this module only
when the user gives ``-O`` or ``--like``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

import click

from sdstream.core import infotext
from sdstream.core.errors import InvalidRequest
from sdstream.core.options import ALIASES, OPTIONS
from sdstream.core.similar import did_you_mean, most_similar
from sdstream.imaging import codecs

#: Accept every image size, because the pixels are not decoded.
_MAX_PIXELS: Final = 2**31 - 1

#: Options of the job, which do not concern the image.
_OF_JOBS: Final = ("priority", "group", "webhook_url")
#: Options that have a flag with further effects -> the flag to use instead of ``-O``.
_BY_FLAG: Final = {"prompt": "the argument PROMPT", "n": "-n", "output_format": "-o"}
#: Options that set the size.
_SIZES: Final = frozenset({"size", "width", "height", "aspect_ratio"})


def chosen(
    pairs: Mapping[str, str],
    flags: Mapping[str, Any],
    *,
    free: Collection[str] = (),
    absent: Collection[str] = (),
) -> dict[str, Any]:
    """Return the options of ``-O``: canonical name -> text, which the server parses as in a form.

    Args:
        pairs: Key -> value of each ``-O``.
        flags: Options that flags of the command have set, by canonical name.
        free: Options in ``_BY_FLAG`` that ``-O`` may set nevertheless.
        absent: Options that the command does not have.

    Raises:
        click.UsageError: An option does not exist, is absent from the command, is given twice, or
            has a flag to use instead.
    """
    found: dict[str, Any] = {}
    for key, value in pairs.items():
        name = ALIASES.get(key, key)
        if name not in OPTIONS and name not in _OF_JOBS:
            known = [*OPTIONS, *ALIASES, *_OF_JOBS]
            meant = did_you_mean(most_similar(key, known))
            raise click.UsageError(f"-O {key}: there is no option '{key}'.{meant}")
        if name in absent:
            raise click.UsageError(f"-O {key}: this command does not have the option '{name}'.")
        if name in _BY_FLAG and name not in free:
            raise click.UsageError(f"-O {key}: use {_BY_FLAG[name]} instead.")
        if name in flags or name in found:
            raise click.UsageError(f"-O {key}: '{name}' is given twice.")
        found[name] = value
    return found


def inside(path: Path, given: Collection[str], inputs: Collection[str]) -> dict[str, Any]:
    """Return the options that an image file was generated with: canonical name -> value.

    An option that acts on an input image is left out if the command line has no such image. These
    options, and names that are not options, are reported on stderr.

    Args:
        path: The image file.
        given: Options on the command line. If one sets the size, the file's size is left out.
        inputs: Kinds of input images on the command line: image, mask, control.

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
    unused = {name for name in found.options if not _acts(name, inputs)}
    ignored = [*found.unread, *sorted(unused)]
    if ignored:
        click.echo(f"Ignored from {path.name}: {', '.join(ignored)}", err=True)
    if _SIZES & set(given):
        unused |= _SIZES
    return {name: value for name, value in found.options.items() if name not in unused}


def _acts(option: str, inputs: Collection[str]) -> bool:
    acts_on = OPTIONS[option].acts_on
    return acts_on is None or any(kind in inputs for kind in acts_on.split(" or "))
