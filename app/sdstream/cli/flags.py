"""Command-line flags for the settings."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, get_origin

import click
from pydantic import ValidationError

from sdstream.core.validation import requirement
from sdstream.settings import Settings, UnknownVariable, variable_warnings

EXIT_CONFIG: Final = 78

#: Settings that also have a short flag.
_SHORT: Final = {"runtime_options": ("-O",)}


class ForeignFlags(click.Command):
    """A command that names the right flag if it gets one of another program.

    Args:
        foreign: Flag of another program, without dashes and with underscores -> what to do instead.
    """

    def __init__(self, *args: Any, foreign: Mapping[str, str], **options: Any) -> None:
        super().__init__(*args, **options)
        self._foreign = foreign

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            name = error.option_name.lstrip("-").replace("-", "_")
            if name not in self._foreign:
                raise
            text = f"No such option '{error.option_name}': {self._foreign[name]}."
            raise click.UsageError(text, ctx) from None


def setting_flags(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that adds a flag for each of these fields of Settings, or for all."""

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
        *_SHORT.get(name, ()),
        f"--{flag}/--no-{flag}" if switch else f"--{flag}",
        name,
        multiple=many,
        default=None,
        metavar=None if switch else _metavar(field.annotation),
        help=f"{field.description}{shown} ({_variable(name)})",
    )


def singular(name: str) -> str:
    """Return the singular of a name: ``alias`` for ``aliases``."""
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
    """Return the settings from flags and environment; an invalid setting ends the program."""
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
            what = requirement(problem)
            click.echo(f"Error: {field} ({_variable(field)}): {what}.", err=True)
        sys.exit(EXIT_CONFIG)
