"""Types of arguments: images, prompts, names with suggestions, LoRAs and ``KEY=VALUE``."""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Callable, Collection
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import click
from click.shell_completion import CompletionItem

from sdstream.core.samplers import (
    SAMPLERS,
    SCHEDULES,
    find_sampler,
    find_schedule,
    nearest_sampler,
)
from sdstream.core.similar import did_you_mean, most_similar
from sdstream.core.text import shown

_STDIN: Final = "-"
_AGE: Final = re.compile(r"(\d{1,6})([mhdw])", re.ASCII)
_SECONDS: Final = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}
#: Key of a context's ``meta`` that is set after an argument has read stdin.
_READ: Final = "sdstream.stdin"


def _from_stdin(ctx: click.Context | None, param: click.Parameter | None) -> bytes:
    """Read stdin for an argument that is ``-``; raises click.BadParameter for a second one."""
    meta = ctx.meta if ctx is not None else {}
    if meta.get(_READ):
        raise click.BadParameter("only one argument can be - (stdin).", ctx, param)
    meta[_READ] = True
    data = _read_stdin(ctx, param)
    if not data:
        raise click.BadParameter("stdin is empty.", ctx, param)
    return data


def _read_stdin(ctx: click.Context | None, param: click.Parameter | None) -> bytes:
    if sys.stdin is None:  # the caller has closed it
        raise click.BadParameter("stdin is closed.", ctx, param)
    return sys.stdin.buffer.read()


def _decoded(data: bytes, ctx: click.Context | None, param: click.Parameter | None) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise click.BadParameter("stdin is not UTF-8 text.", ctx, param) from None


class ImageInput(click.ParamType[Path | bytes]):
    """An image file, or ``-`` for an image on stdin."""

    name = "file"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path | bytes:
        """Return the path, or the contents of stdin."""
        if isinstance(value, Path | bytes):
            return value
        if value == _STDIN:
            return _from_stdin(ctx, param)
        path = Path(value)
        try:
            why = "" if path.is_file() else "is not a file" if path.exists() else "does not exist"
        except OSError as error:
            why = f"cannot be read: {error.strerror}"
        if why:
            self.fail(f"the file {shown(str(value))} {why}.", param, ctx)
        return path

    def shell_complete(
        self, _ctx: click.Context, _param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Let the shell complete file names."""
        return [CompletionItem(incomplete, type="file")]


class Named(click.ParamType[str]):
    """A name from a list. Other spellings are accepted; the error for an unknown name suggests one.

    Args:
        name: Kind of the name, for errors: "sampler".
        names: The list.
        find: Returns the listed name for a spelling, None if the spelling is unknown.
        nearest: Returns the listed name that is most similar to an unknown spelling, or None.
    """

    def __init__(
        self,
        name: str,
        names: Collection[str],
        find: Callable[[str], str | None],
        nearest: Callable[[str], str | None],
    ) -> None:
        self.name = name
        self._names = names
        self._find = find
        self._nearest = nearest

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the listed name for a spelling."""
        found = self._find(str(value))
        if found is None:
            meant = did_you_mean(self._nearest(str(value)))
            self.fail(f"unknown {self.name} '{value}'.{meant or f' {self.choices()}'}", param, ctx)
        return found

    def choices(self) -> str:
        """Return a sentence that lists the names."""
        return f"Choose one of {', '.join(self._names)}."

    def shell_complete(
        self, _ctx: click.Context, _param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the listed names that begin with the typed text."""
        return [CompletionItem(name) for name in self._names if name.startswith(incomplete)]


def _sampler(name: str) -> str | None:
    found = find_sampler(name)
    return found[0] if found and found[1] is None else None


SAMPLER: Final = Named("sampler", SAMPLERS, _sampler, nearest_sampler)
SCHEDULE: Final = Named(
    "schedule", SCHEDULES, find_schedule, lambda name: most_similar(name, SCHEDULES)
)


class LoraInput(click.ParamType[dict[str, Any]]):
    """A LoRA: ``NAME`` or ``NAME:SCALE``."""

    name = "lora"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, Any]:
        """Return the LoRA in the form of the HTTP API."""
        if isinstance(value, dict):
            return value
        name, colon, scale = str(value).rpartition(":")
        if not colon:
            return {"id": value, "scale": 1.0}
        number = _number(scale)
        if number is None or not name:
            self.fail(f"'{value}' is not NAME or NAME:SCALE, as in ink:0.8.", param, ctx)
        return {"id": name, "scale": number}


class Pair(click.ParamType[tuple[str, str]]):
    """``KEY=VALUE``."""

    name = "key=value"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """Return the key and the value."""
        if isinstance(value, tuple):
            return value
        key, equals, text = str(value).partition("=")
        if not equals or not key:
            self.fail(f"'{value}' is not KEY=VALUE, as in clip_skip=2.", param, ctx)
        return key.strip().replace("-", "_"), text


class Moment(click.ParamType[float]):
    """A date, a date with a time, or an age: 2026-01-31, 2026-01-31T12:00, 7d, 12h, 30m."""

    name = "time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the time in Unix seconds; a time without a zone is local."""
        if isinstance(value, float):
            return value
        age = _AGE.fullmatch(str(value).strip())
        if age is not None:
            return time.time() - int(age[1]) * _SECONDS[age[2]]
        try:
            return datetime.fromisoformat(str(value)).astimezone().timestamp()
        except (ValueError, OverflowError, OSError):
            self.fail(f"'{value}' is not a time, as in 2026-01-31, 7d or 12h.", param, ctx)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def finite(_context: click.Context, _option: click.Parameter, value: float | None) -> float | None:
    """Return the number; raises click.BadParameter for infinity and NaN."""
    if value is not None:
        check_finite(value)
    return value


def check_finite(value: float) -> None:
    """Raise click.BadParameter for infinity and NaN, which JSON lacks."""
    if not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a finite number.")


def prompt_text(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Return the prompt; ``-`` reads the prompt from stdin."""
    if value != _STDIN:
        return value
    return _decoded(_from_stdin(ctx, param), ctx, param).rstrip("\n")


def words(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Return the arguments without duplicates; ``-`` becomes the words on stdin, if any."""
    given: list[str] = []
    for value in values:
        from_stdin = value == _STDIN
        given += _decoded(_read_stdin(ctx, param), ctx, param).split() if from_stdin else [value]
    return tuple(dict.fromkeys(given))
