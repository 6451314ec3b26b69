"""The commands ``sdstream generate``, ``sdstream edit`` and ``sdstream upscale``."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import click
from rich.progress import TaskID

from sdstream.cli.console import (
    LateBars,
    plain_errors,
    report_warnings,
    server_options,
)
from sdstream.cli.inputs import (
    SAMPLER,
    SCHEDULE,
    ImageInput,
    LoraInput,
    Pair,
    finite,
    prompt_text,
)
from sdstream.cli.saver import USUAL_NAME, Saver, force_option, format_of, show_option
from sdstream.client.answers import understanding
from sdstream.client.calls import Call
from sdstream.client.http import AsyncClient
from sdstream.client.results import Image, ImageFile, Progress

_UPSCALER_HELP = "Enlarge the finished image with one of the server's upscalers."


def output_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options -o, --force and --show."""
    command = force_option(show_option(command))
    return click.option(
        "-o",
        "--output",
        metavar="FILE",
        help="Output file; .png, .jpg or .webp sets the format, - is stdout [default: image.png, "
        "or the next free name].",
    )(command)


def model_option(command: Callable[..., None]) -> Callable[..., None]:
    """Add the option --model."""
    return click.option(
        "-m", "--model", help="Model of the catalogue; without --server also a weight file."
    )(command)


def pairs_option(command: Callable[..., None]) -> Callable[..., None]:
    """Add the option -O."""
    return click.option(
        "-O",
        "--option",
        "pairs",
        type=Pair(),
        multiple=True,
        metavar="KEY=VALUE",
        help="Any other option of the API; may be repeated.",
    )(command)


def common_options(
    command: Callable[..., None], output: Callable[[Callable[..., None]], Callable[..., None]]
) -> Callable[..., None]:
    """Add the options for the image, those for the ``output``, and those for the server."""
    options = (
        click.option("-N", "--negative-prompt", help="What to avoid; needs a cfg scale above 1."),
        model_option,
        click.option("-s", "--size", metavar="WxH", help="Width and height in pixels."),
        click.option("--steps", "sample_steps", type=int, help="Sampling steps."),
        click.option("--sampler", type=SAMPLER, metavar="NAME", help=SAMPLER.choices()),
        click.option("--schedule", type=SCHEDULE, metavar="NAME", help=SCHEDULE.choices()),
        click.option("--cfg-scale", type=float, callback=finite, help="Classifier-free guidance."),
        click.option("--seed", type=int, help="Seed of the first image; random by default."),
        click.option(
            "--strength",
            type=float,
            callback=finite,
            help="How much the input image changes: 0 keeps it, 1 ignores it.",
        ),
        click.option(
            "--control", type=ImageInput(), metavar="FILE", help="Image for the model's ControlNet."
        ),
        click.option(
            "--lora",
            "loras",
            type=LoraInput(),
            multiple=True,
            metavar="NAME[:SCALE]",
            help="LoRA of the server; may be repeated.",
        ),
        click.option("--upscaler", metavar="NAME", help=_UPSCALER_HELP),
        pairs_option,
        output,
        server_options,
    )
    for option in reversed(options):
        command = option(command)
    return command


def request_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of a command that sends one request."""
    options = (
        click.option(
            "-n",
            "count",
            default=1,
            show_default=True,
            help="Number of images; several files are numbered.",
        ),
        click.option(
            "--like",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            metavar="FILE",
            help="Take the prompt and options from this image file; other flags override them.",
        ),
        click.option(
            "--async",
            "only_begin",
            is_flag=True,
            help="Start a job on --server, print its id and exit. With --async, -o sets "
            "only the format, by its extension. 'sdstream watch ID -o FILE' downloads the images.",
        ),
        partial(common_options, output=output_options),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@click.argument("prompt", required=False, callback=prompt_text)
@click.option(
    "-i",
    "--image",
    "images",
    type=ImageInput(),
    multiple=True,
    metavar="FILE",
    help="Input image; may be repeated for models that accept references. - is stdin.",
)
@click.option(
    "--mask", type=ImageInput(), metavar="FILE", help="Mask: the part of --image to generate."
)
@request_options
def generate(**given: Any) -> None:
    """Generate an image from PROMPT and save it.

    If PROMPT is -, it is read from stdin. Without --server, the command loads the model itself,
    with the settings in the SDSTREAM_ variables. Progress is written to stderr, so that -o - can
    be piped.
    """
    _run(_Order.read(given))


@click.command()
@click.argument("image", type=ImageInput())
@click.argument("prompt", required=False, callback=prompt_text)
@click.option(
    "-i",
    "--image",
    "images",
    type=ImageInput(),
    multiple=True,
    metavar="FILE",
    help="Another input image, for models that accept references.",
)
@click.option(
    "--mask",
    type=ImageInput(),
    metavar="FILE",
    help="Generate only where this image is white, or transparent if it has alpha.",
)
@request_options
def edit(image: ImageFile, images: tuple[ImageFile, ...], **given: Any) -> None:
    """Edit IMAGE as PROMPT describes.

    IMAGE or PROMPT may be - for stdin. -O only_masked=true generates only the part around the
    mask. -O expand=64 adds a border of 64 pixels.
    """
    _run(_Order.read({**given, "images": (image, *images)}))


@click.command()
@click.argument("image", type=ImageInput())
@click.option("--upscaler", metavar="NAME", help="Upscaler of the server.")
@click.option(
    "--upscale", type=float, callback=finite, help="Factor [default: the upscaler's maximum]."
)
@model_option
@pairs_option
@output_options
@server_options
def upscale(
    image: ImageFile,
    output: str | None,
    show: bool | None,
    pairs: tuple[tuple[str, str], ...],
    server: str | None,
    api_key: str | None,
    *,
    force: bool,
    **flags: Any,
) -> None:
    """Enlarge IMAGE with an upscaler.

    IMAGE may be - for stdin. Upscalers are the built-in drawings-4x, and the ESRGAN files in the
    folder of the server's --upscaler-dir.
    """
    options = {name: value for name, value in flags.items() if value is not None}
    options |= chosen_options(pairs, options, output, absent=("prompt", "n"))
    saver = saver_of(output, show, options, force=force)
    with plain_errors():
        asyncio.run(_upscale(image, options, saver, server, api_key))


@dataclass(frozen=True)
class _Order:
    """The arguments of a command that generates images.

    Attributes:
        options: Options of the HTTP API.
        images, mask, control: Input images.
        output, show, force: Arguments of the Saver.
        server, api_key: The server and its API key; without a server, this process generates.
        only_begin: Exit after the server has accepted the job.
    """

    options: dict[str, Any]
    images: tuple[ImageFile, ...]
    mask: ImageFile | None
    control: ImageFile | None
    output: str | None
    show: bool | None
    force: bool
    server: str | None
    api_key: str | None
    only_begin: bool

    @classmethod
    def read(cls, given: dict[str, Any]) -> Self:
        """Return the order for the arguments of a command; raises click.UsageError."""
        own = {name: given.pop(name) for name in cls.__annotations__.keys() & given.keys()}
        pairs, like = given.pop("pairs"), given.pop("like")
        loras, count = given.pop("loras"), given.pop("count")
        flags = {name: value for name, value in given.items() if value is not None}
        if loras:
            flags["lora"] = list(loras)
        flags |= chosen_options(pairs, flags, own["output"])
        inputs = {"image": own["images"], "mask": own["mask"], "control": own["control"]}
        if like is not None:
            there = [name for name, files in inputs.items() if files]
            flags = {**_options_module().inside(like, flags.keys(), there), **flags}
        if "prompt" not in flags:
            raise click.UsageError("PROMPT is missing; give one, or --like with an image file.")
        if own["mask"] is not None and not own["images"]:
            raise click.UsageError("--mask needs --image, the image to paint on.")
        return cls(options={**flags, "n": count}, **own)

    def call(self) -> Call:
        """Return the request."""
        return Call.generation(
            self.options, images=self.images, mask=self.mask, control=self.control
        )


def chosen_options(
    pairs: tuple[tuple[str, str], ...],
    flags: dict[str, Any],
    output: str | None,
    *,
    absent: Collection[str] = (),
) -> dict[str, Any]:
    """Return the options of -O; raises click.UsageError, also for those in ``absent``."""
    if not pairs:
        return {}
    if len({*dict(pairs)}) < len(pairs):
        raise click.UsageError("-O sets the same option twice.")
    free = ("output_format",) if output == "-" else ()
    found: dict[str, Any] = _options_module().chosen(dict(pairs), flags, free=free, absent=absent)
    return found


def _options_module() -> Any:
    # The module imports the table of all options, which few commands need.
    return importlib.import_module("sdstream.cli.options")


def saver_of(
    output: str | None, show: bool | None, options: dict[str, Any], *, force: bool
) -> Saver:
    """Return the Saver of the images, and add the image format to the options."""
    saver = Saver(output or USUAL_NAME, show, force=force, numbered=output is None)
    saver.format = options.setdefault("output_format", saver.format)
    saver.expect(options.get("n", 1), saver.format)
    return saver


def _run(order: _Order) -> None:
    if order.only_begin:
        if order.server is None:
            raise click.UsageError("--async needs --server, which continues the job.")
        if order.output == "-" or order.show or order.force:
            raise click.UsageError(
                "--async cannot be combined with -o -, --show or --force; use sdstream watch."
            )
        order.options["output_format"] = format_of(order.output or USUAL_NAME)
        with plain_errors():
            click.echo(asyncio.run(_begin(order.call(), order.server, order.api_key)))
        return
    saver = saver_of(order.output, order.show, order.options, force=order.force)
    with plain_errors():
        asyncio.run(_generate(order, saver))


async def _begin(call: Call, server: str, api_key: str | None) -> str:
    async with AsyncClient(server, api_key) as client:
        job = await client.jobs.begin(call)
        with understanding():
            return str(job["id"])


async def _generate(order: _Order, saver: Saver) -> None:
    async with connected(order.options, order.server, order.api_key) as client:
        await _finish(client, order.call(), Rows(saver, order.options["n"]))
    saver.show()


async def _upscale(
    image: ImageFile,
    options: dict[str, Any],
    saver: Saver,
    server: str | None,
    api_key: str | None,
) -> None:
    async with connected(options, server, api_key) as client:
        await _finish(client, Call.upscale(options, image), Rows(saver, 1, seeds=False))
    saver.show()


async def _finish(client: AsyncClient, call: Call, rows: Rows) -> None:
    with rows:
        response = await client.run(call, on_progress=rows.update, on_image=rows.finish)
    report_warnings(response)


class Rows:
    """A progress bar for each image; a context manager.

    The bars appear with the first progress of the job, so an error before it is shown without bars.

    Args:
        saver: Writes finished images.
        count: Images of the job.
        seeds: Report the seed of each image.
    """

    def __init__(self, saver: Saver, count: int, *, seeds: bool = True) -> None:
        self._bars = LateBars()
        self._saver = saver
        self._count = count
        self._seeds = seeds
        self._rows: list[TaskID] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._bars.stop()

    def update(self, progress: Progress) -> None:
        """Show the progress of an image."""
        what = progress.status
        if progress.step:
            what = f"step {progress.step}/{progress.steps}"
        self._show(progress.index, progress.percent, what)

    def finish(self, image: Image) -> None:
        """Write an image, and show that it is finished."""
        seed = f"seed {image.seed}" if self._seeds else "done"
        self._show(image.index, 100.0, f"{seed}{self._saver.save(image.index, image.content)}")

    def _show(self, index: int, percent: float, what: str) -> None:
        if not self._rows:
            self._rows = [self._bars.add() for _ in range(self._count)]
        self._bars.update(self._rows[index], percent, what)


@asynccontextmanager
async def connected(
    options: dict[str, Any], server: str | None, api_key: str | None
) -> AsyncIterator[AsyncClient]:
    """Yield a client of the server, or of a private server for the model in the options."""
    if server:
        async with AsyncClient(server, api_key) as client:
            yield client
        return
    # The import takes a second, and commands that use a server do not need it.
    private = importlib.import_module("sdstream.cli.private")
    async with private.serving(options.pop("model", None)) as client:
        yield client
