"""The command ``sdstream generate``."""

from __future__ import annotations

import asyncio
import importlib
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import click

from sdstream.cli.console import (
    Saver,
    format_of,
    plain_errors,
    progress_bar,
    server_options,
    show_option,
)
from sdstream.client.http import AsyncClient, understanding
from sdstream.client.results import Progress
from sdstream.core.samplers import SAMPLERS, SCHEDULES


def _finite(_context: click.Context, _option: click.Parameter, value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):  # which JSON cannot say
        raise click.BadParameter(f"{value} is not a finite number.")
    return value


@click.command()
@click.argument("prompt", required=False)
@click.option(
    "-o",
    "--output",
    default="image.png",
    show_default=True,
    help="File; its end chooses PNG, JPEG or WebP. - is stdout.",
)
@click.option("-N", "--negative-prompt", help="What to keep out (needs a cfg scale above 1).")
@click.option(
    "-m", "--model", help="A model of the catalogue; without --server also a weight file."
)
@click.option("-n", "count", default=1, show_default=True, help="Images; files are numbered.")
@click.option("-s", "--size", metavar="WxH", help="Pixels.")
@click.option("--steps", "sample_steps", type=int, help="Sampling steps.")
@click.option("--sampler", type=click.Choice([*SAMPLERS]), metavar="NAME", help=", ".join(SAMPLERS))
@click.option(
    "--schedule", type=click.Choice([*SCHEDULES]), metavar="NAME", help=", ".join(SCHEDULES)
)
@click.option("--cfg-scale", type=float, callback=_finite, help="Classifier-free guidance.")
@click.option(
    "--like",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="IMAGE",
    help="Take prompt and options from the parameters inside this file; other flags override them.",
)
@click.option("--seed", type=int, help="For the same image again; random when not given.")
@click.option(
    "--async",
    "only_begin",
    is_flag=True,
    help="Have --server begin, print the job's id and leave; of -o only the end counts, which "
    "chooses the format. sdstream watch ID -o FILE fetches the images.",
)
@show_option
@server_options
def generate(
    output: str,
    count: int,
    only_begin: bool,
    like: Path | None,
    show: bool | None,
    server: str | None,
    api_key: str | None,
    **options: Any,
) -> None:
    """Generate an image from PROMPT and save it.

    Without --server the engine is started for this one command, with the settings of the
    SDSTREAM_ variables. The progress goes to stderr, so that -o - can be piped.
    """
    given = {name: value for name, value in options.items() if value is not None}
    options = {**(_options_inside(like) if like else {}), **given}
    if "prompt" not in options:
        raise click.UsageError("PROMPT is missing; give one, or --like with an image file.")
    if only_begin:
        if server is None:
            raise click.UsageError("--async needs --server, which continues the job.")
        if output == "-" or show:
            raise click.UsageError(
                "--async cannot be combined with -o - or --show; use sdstream watch."
            )
        options |= {"n": count, "output_format": format_of(output)}
        with plain_errors():
            click.echo(asyncio.run(_begin(options, server, api_key)))
        return
    saver = Saver(output, show)
    saver.expect(count, saver.format)
    options |= {"n": count, "output_format": saver.format}
    with plain_errors():
        asyncio.run(_generate(options, saver, server, api_key))


def _options_inside(image: Path) -> dict[str, Any]:
    # It reads image files and the table of all options, which few calls need.
    found: dict[str, Any] = importlib.import_module("sdstream.cli.like").options_inside(image)
    return found


async def _begin(options: dict[str, Any], server: str, api_key: str | None) -> str:
    async with AsyncClient(server, api_key) as client:
        job = await client.jobs.create(**options)
        with understanding():
            return str(job["id"])


async def _generate(
    options: dict[str, Any], saver: Saver, server: str | None, api_key: str | None
) -> None:
    async with _connected(options, server, api_key) as client:
        with progress_bar() as bar:
            rows = [bar.add_task("", total=100.0, what="waiting") for _ in range(options["n"])]
            async for event in client.stream(**options):
                if isinstance(event, Progress):
                    what = event.status
                    if event.step:
                        what = f"step {event.step}/{event.steps}"
                    bar.update(rows[event.index], completed=event.percent, what=what)
                else:
                    what = f"seed {event.seed}{saver.save(event.index, event.content)}"
                    bar.update(rows[event.index], completed=100.0, what=what)
    saver.show()


@asynccontextmanager
async def _connected(
    options: dict[str, Any], server: str | None, api_key: str | None
) -> AsyncIterator[AsyncClient]:
    if server:
        async with AsyncClient(server, api_key) as client:
            yield client
        return
    # A second to import, which commands that use a server do without.
    private = importlib.import_module("sdstream.cli.private")
    async with private.serving(options.pop("model", None)) as client:
        yield client
