"""The command ``sdstream grid``: the same prompt with different settings, on one sheet."""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

import click

from sdstream.cli.console import EXIT_FAILED, LateBars, one_line, plain_errors
from sdstream.cli.generate import chosen_options, common_options, connected
from sdstream.cli.inputs import SAMPLER, SCHEDULE, ImageInput, check_finite, prompt_text
from sdstream.cli.saver import Saver, force_option, show_option
from sdstream.client.answers import APIError
from sdstream.client.calls import Call
from sdstream.client.http import AsyncClient
from sdstream.client.results import ImageFile
from sdstream.core.infotext import extended
from sdstream.core.similar import did_you_mean, most_similar
from sdstream.imaging.codecs import texts
from sdstream.imaging.sheet import draw_sheet

USUAL_SHEET: Final = "grid.png"

#: Concurrent requests. More would not be faster and would fill the queue for other clients.
_AT_ONCE: Final = 4
#: Status of a full queue, and the pause before the next attempt, as on the page.
_TOO_MANY: Final = 429
_FULL_SECONDS: Final = 1.0
_MOST_CELLS: Final = 144
_LARGEST_SEED: Final = 2**31
_MAX_PIXELS: Final = 2**31 - 1

#: Axis -> the option that it sets, and the type of its values.
_AXES: Final[Mapping[str, tuple[str, click.ParamType[Any]]]] = {
    "sampler": ("sampler", SAMPLER),
    "schedule": ("schedule", SCHEDULE),
    "steps": ("sample_steps", click.INT),
    "cfg": ("cfg_scale", click.FLOAT),
    "strength": ("strength", click.FLOAT),
    "seed": ("seed", click.INT),
    "model": ("model", click.STRING),
}


@dataclass(frozen=True, slots=True)
class Axis:
    """The setting that varies between the columns or between the rows.

    Attributes:
        name: A key of ``_AXES``, or text in the prompt that each value replaces.
        values: The value for each column or row.
    """

    name: str
    values: tuple[Any, ...]

    @classmethod
    def parse(cls, text: str | None, prompt: str, flag: str) -> Self | None:
        """Return the axis that ``NAME=VALUE,VALUE`` describes; raises click.UsageError."""
        if text is None:
            return None
        name, equals, listed = text.partition("=")
        parts = [part.strip() for part in listed.split(",") if part.strip()]
        if not equals or not parts:
            raise click.UsageError(f"{flag} must be NAME=VALUE,VALUE, as in sampler=euler,heun.")
        if name in _AXES:
            kind = _AXES[name][1]
            try:
                return cls(name, tuple(_value(kind, part) for part in parts))
            except click.BadParameter as error:
                raise click.UsageError(f"{flag} {name}: {error.message}") from None
        if name not in prompt:
            meant = did_you_mean(most_similar(name, [*_AXES, *prompt.split()]))
            raise click.UsageError(
                f"{flag} {name}: this is neither a word of the prompt nor one of "
                f"{', '.join(_AXES)}.{meant}"
            )
        return cls(name, tuple(parts))

    @property
    def option(self) -> str:
        """Name of the option that the axis sets."""
        return _AXES[self.name][0] if self.name in _AXES else "prompt"

    @property
    def labels(self) -> list[str]:
        """A label for each value."""
        if self.name not in _AXES:
            return [str(value) for value in self.values]
        return [f"{self.name} {value}" for value in self.values]

    def set(self, options: dict[str, Any], value: Any) -> None:
        """Put a value of the axis into the options of a request."""
        if self.name in _AXES:
            options[self.option] = value
        elif self.name:
            options["prompt"] = options["prompt"].replace(self.name, value)


def _value(kind: click.ParamType[Any], text: str) -> Any:
    """Return a value of an axis; raises click.BadParameter."""
    value = kind.convert(text, None, None)
    if isinstance(value, float):
        check_finite(value)
    return value


#: The rows' axis of a sheet with one row. Its empty value changes nothing.
_NO_AXIS: Final = Axis("", ("",))


def _once(_context: click.Context, flag: click.Parameter, texts: tuple[str, ...]) -> str | None:
    """Return the text of an axis; raises click.UsageError if the flag is repeated."""
    if len(texts) > 1:
        raise click.UsageError(
            f"{flag.opts[0]} is given {len(texts)} times; a sheet has one axis -x and one axis -y."
        )
    return texts[0] if texts else None


def _sheet_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options -o, --force and --show."""
    command = force_option(show_option(command))
    return click.option(
        "-o",
        "--output",
        metavar="FILE",
        help="File of the sheet, a .png [default: grid.png, or the next free name].",
    )(command)


@click.command()
@click.argument("prompt", callback=prompt_text)
@click.option(
    *("-x", "across"),
    required=True,
    multiple=True,
    callback=_once,
    metavar="NAME=A,B",
    help="Option and values of the columns.",
)
@click.option(
    *("-y", "down"),
    multiple=True,
    callback=_once,
    metavar="NAME=A,B",
    help="Option and values of the rows.",
)
@click.option("-i", "--image", type=ImageInput(), metavar="FILE", help="Input image to edit.")
@click.option(
    "--mask", type=ImageInput(), metavar="FILE", help="Mask: the part of --image to generate."
)
@partial(common_options, output=_sheet_options)
def grid(
    prompt: str,
    across: str,
    down: str | None,
    image: ImageFile | None,
    mask: ImageFile | None,
    pairs: tuple[tuple[str, str], ...],
    output: str | None,
    show: bool | None,
    server: str | None,
    api_key: str | None,
    control: ImageFile | None,
    loras: tuple[dict[str, Any], ...],
    *,
    force: bool,
    **flags: Any,
) -> None:
    """Compare settings on one labelled sheet.

    The command generates PROMPT with each combination of values of -x and -y. NAME is sampler,
    schedule, steps, cfg, strength, seed, model, or a word of PROMPT that the values replace. Unless
    NAME is seed, all images have the same seed. The sheet's PNG metadata contains the settings.

    \b
    sdstream grid "a red circle" -x sampler=euler,heun -y steps=4,8
    sdstream grid "a red circle" -x circle=circle,star -o shapes.png
    """
    options = {name: value for name, value in flags.items() if value is not None}
    options |= {"lora": list(loras)} if loras else {}
    options |= chosen_options(pairs, options, None, absent=("n", "output_format"))
    options["prompt"] = prompt
    axes = _axes(prompt, across, down, options)
    if (mask is not None or "strength" in (axis.name for axis in axes)) and image is None:
        raise click.UsageError("--mask and the axis strength need --image.")
    options.setdefault("group", f"grid-{secrets.token_hex(4)}")
    options.setdefault("seed", secrets.randbelow(_LARGEST_SEED))
    saver = Saver(output or USUAL_SHEET, show, force=force, numbered=output is None)
    if Path(output or USUAL_SHEET).suffix.lower() != ".png":
        raise click.UsageError("-o must end in .png.")
    saver.expect(1, "png")
    images = () if image is None else (image,)

    def call(values: Sequence[Any]) -> Call:
        mine = dict(options)
        for axis, value in zip(axes, values, strict=True):
            axis.set(mine, value)
        return Call.generation(mine, images=images, mask=mask, control=control)

    with plain_errors():
        cells = asyncio.run(_generate(options, axes, call, server, api_key))
        done = sum(isinstance(cell, bytes) for cell in cells.values())
        if done:
            count = f"{done} of {len(cells)}" if done < len(cells) else str(done)
            click.echo(f"{count} images{saver.save(0, _sheet(cells, axes))}", err=True)
            saver.show()
    failed = dict.fromkeys(cell for cell in cells.values() if isinstance(cell, str))
    for message in failed:
        click.echo(f"Error: {one_line(message)}", err=True)
    if failed:
        sys.exit(EXIT_FAILED)


def _axes(prompt: str, across: str, down: str | None, options: dict[str, Any]) -> tuple[Axis, Axis]:
    first, second = Axis.parse(across, prompt, "-x"), Axis.parse(down, prompt, "-y")
    axes = (first or _NO_AXIS, second or _NO_AXIS)
    if axes[0].name == axes[1].name:
        raise click.UsageError("-x and -y must differ.")
    for axis in axes:
        if axis.name in _AXES and axis.option in options:
            raise click.UsageError(f"'{axis.name}' is given both as an axis and as an option.")
    count = len(axes[0].values) * len(axes[1].values)
    if count > _MOST_CELLS:
        raise click.UsageError(f"the sheet would have {count} images; the limit is {_MOST_CELLS}.")
    return axes


async def _generate(
    options: dict[str, Any],
    axes: tuple[Axis, Axis],
    call: Callable[[Sequence[Any]], Call],
    server: str | None,
    api_key: str | None,
) -> dict[tuple[int, int], bytes | str]:
    """Return (column, row) -> an image file, or the message of an error."""
    across, down = axes
    places = [(x, y) for x in range(len(across.values)) for y in range(len(down.values))]
    if down.name == "model":  # group the images of each model, so that it is loaded once
        places.sort(key=lambda place: place[::-1])
    turns = asyncio.Semaphore(_AT_ONCE)
    bars = LateBars()
    found: dict[tuple[int, int], bytes | str] = {}
    async with connected(options, server, api_key) as client:
        bar = bars.add()

        async def one(x: int, y: int) -> None:
            async with turns:
                found[x, y] = await _image(client, call((across.values[x], down.values[y])))
            share = 100 * len(found) / len(places)
            bars.update(bar, share, f"{len(found)} of {len(places)} cells")

        try:
            await asyncio.gather(*(one(*place) for place in places))
        finally:
            bars.stop()
    return found


async def _image(client: AsyncClient, call: Call) -> bytes | str:
    while True:
        try:
            return (await client.run(call)).data[0].content
        except APIError as error:
            if error.status != _TOO_MANY:
                return error.message
        await asyncio.sleep(_FULL_SECONDS)  # the queue is full


def _sheet(cells: Mapping[tuple[int, int], bytes | str], axes: tuple[Axis, Axis]) -> bytes:
    across, down = axes
    table = [[cells[x, y] for x in range(len(across.values))] for y in range(len(down.values))]
    first = next((cell for row in table for cell in row if isinstance(cell, bytes)), None)
    text = "" if first is None else texts(first, "image", _MAX_PIXELS).get("parameters", "")
    facts = {"Script": "X/Y/Z plot"}
    for letter, axis in zip("XY", axes, strict=True):
        if axis.name:
            facts[f"{letter} Type"] = axis.name
            facts[f"{letter} Values"] = ", ".join(map(str, axis.values))
    return draw_sheet(table, across.labels, down.labels, extended(text, facts))
