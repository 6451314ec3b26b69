"""The commands for model files: ``sdstream inspect`` and ``sdstream convert``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from sdstream.cli.console import EXIT_FAILED, is_terminal, plain_errors
from sdstream.cli.flags import ForeignFlags, read_settings
from sdstream.core.errors import ConfigurationError
from sdstream.core.locations import BUILTIN, is_address
from sdstream.core.runtime_options import WTYPES
from sdstream.weights.convert import ConversionError, Order, convert
from sdstream.weights.discovery import ModelError, absolute, pulled, read_catalog
from sdstream.weights.embedded import materialise
from sdstream.weights.headers import BadFile
from sdstream.weights.hub import Hub
from sdstream.weights.inspection import Report, Share, inspect

#: Width of a table that goes to a file or a pipe, in characters.
_WIDE: Final = 1000


@click.command("inspect")
@click.argument("file", type=click.Path())
@click.option(
    "--json", "as_json", is_flag=True, help="Print JSON for programs; sizes are in bytes."
)
def inspect_command(file: str, *, as_json: bool) -> None:
    """Report what a model file contains.

    FILE is a GGUF or safetensors file, a downloaded file of a hub (hf:OWNER/REPO/PATH), or
    MODEL:QUANT for the diffusion model of a downloaded model of the catalogue. The report contains
    the kind of FILE, its components and the other files that it needs. The command reads only the
    header of FILE. If FILE cannot be used, the error contains the reason and the exit code is 1.
    """
    path = Path(file)
    try:
        path = _weights_of(file)
        report = inspect(path)
    except (BadFile, ConfigurationError, OSError) as error:
        sentence = f"{path.name} {error}." if isinstance(error, BadFile) else str(error)
        if as_json:
            click.echo(json.dumps({"file": path.name, "error": sentence}))
        else:
            click.echo(f"Error: {sentence}", err=True)
        sys.exit(EXIT_FAILED)
    if as_json:
        click.echo(json.dumps(report.as_json()))
    else:
        width = None if is_terminal(sys.stdout) else _WIDE
        _show(report, Console(width=width, markup=False, emoji=False, highlight=False))


def _show(report: Report, console: Console) -> None:
    console.print(Text.assemble((report.file, "bold"), f" {report.what}."), soft_wrap=True)
    console.print()
    facts = Table.grid(padding=(0, 2))
    for name, value in _facts(report).items():
        facts.add_row(name, value)
    console.print(facts)
    for title, shares in (("component", report.parts), ("type", report.types)):
        console.print()
        console.print(_table(title, shares))


def _facts(report: Report) -> dict[str, str]:
    facts = {"file": f"{report.format}, {decimal(report.size)}"}
    if report.families:
        facts["family"] = " or ".join(report.families)
    if report.needs:
        facts["needs"] = ", ".join(report.needs)
    if report.needs_patches:
        facts["runtime"] = "only with the patches that 'sdstream setup' applies"
    if report.memory:
        facts["memory"] = (
            f"{decimal(report.memory.weights)} for these weights, and about "
            f"{decimal(report.memory.drawing)} while generating {report.memory.size}"
        )
    return facts | {word: str(value) for word, value in report.metadata.items()}


def _table(title: str, shares: tuple[Share, ...]) -> Table:
    table = Table(title, box=None, pad_edge=False)
    for heading in ("tensors", "parameters", "size"):
        table.add_column(heading, justify="right")
    for share in shares:
        table.add_row(
            share.name, str(share.tensors), _thousands(share.parameters), decimal(share.size)
        )
    return table


def _thousands(count: int) -> str:
    """Return a count in short form, such as 11.9 B."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return str(count)


def _weights_of(source: str) -> Path:
    """Return the file that a command names: by its path, or as the file of a downloaded model.

    Raises:
        CatalogError: The catalogue is invalid.
        ModelError: The model is not downloaded.
    """
    path = Path(source)
    if path.exists():
        return path
    settings = read_settings()
    if is_address(source):
        return pulled(source, Hub(settings.model_dir))
    catalog = read_catalog(settings)
    spec = catalog.find(source)
    if spec is not None:
        checkpoint = spec.files.checkpoint
        if checkpoint.startswith(BUILTIN):
            return materialise(checkpoint, settings.cache_dir)
        return absolute(settings, checkpoint)
    if catalog.variant(source) is not None:
        raise ModelError(catalog.why_missing(source))
    return path


#: Flags of export_model.py of OpenVINO Model Server -> what to use instead.
_OF_EXPORT_MODEL: Final = {
    "weight_format": "use --type q8_0 for int8, q4_0 for int4, f16 for fp16",
    "overwrite_models": "use --force",
    "source_model": "write SOURCE and TARGET without flags",
    "model_repository_path": "write the path of the new file as TARGET",
    "config_file_path": "name TARGET in an entry of models.yaml",
    "model_name": "leave it out; 'id' of an entry in models.yaml is the model's name",
    "target_device": "leave it out",
    "extra_quantization_params": "use --tensor-type-rules",
}


@click.command("convert", cls=ForeignFlags, foreign=_OF_EXPORT_MODEL)
@click.argument("source")
@click.argument("target", type=click.Path(path_type=Path))
@click.option(
    "--type",
    "wtype",
    required=True,
    type=click.Choice(WTYPES),
    metavar="TYPE",
    help=", ".join(WTYPES),
)
@click.option(
    "--tensor-type-rules",
    "rules",
    default="",
    metavar="RULES",
    help="Other types for some tensors: PATTERN=TYPE,…; the first matching pattern counts.",
)
@click.option(
    "--vae", type=click.Path(path_type=Path), help="Add this VAE to a model that has none."
)
@click.option("--force", is_flag=True, help="Overwrite TARGET if it exists.")
def convert_command(source: str, **options: Any) -> None:
    """Convert a model file to another type.

    SOURCE is a GGUF or safetensors file, a downloaded file of a hub (hf:OWNER/REPO/PATH), or
    MODEL:QUANT for the diffusion model of a downloaded model of the catalogue. TARGET is
    GGUF, or safetensors with f32, f16 or bf16. One-dimensional weights such as norms become f32
    instead of a quantised TYPE, unless one of RULES matches. TARGET appears when it is complete.
    """
    with plain_errors():
        order = Order(source=_weights_of(source), **options)
    console = Console(stderr=True)
    try:
        with Progress(
            BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), console=console
        ) as bar:
            row = bar.add_task("", total=1.0)
            found = convert(order, lambda part: bar.update(row, completed=part))
    except ConversionError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(EXIT_FAILED)
    except OSError as error:
        click.echo(f"Error: {order.target.name}: {error.strerror}.", err=True)
        sys.exit(EXIT_FAILED)
    before = order.source.stat().st_size
    click.echo(
        f"{order.target.name}: {decimal(found.size)}; {order.source.name}: {decimal(before)}"
    )
