"""The commands about model files: ``sdstream inspect``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from app.engine.inspection import Report, Share, inspect
from app.engine.weights import BadFile

EXIT_FAILED: Final = 1


@click.command("inspect")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="For programs; sizes are in bytes.")
def inspect_command(file: Path, *, as_json: bool) -> None:
    """Say what FILE is, which parts it holds and what it needs beside itself.

    Reads the header of a GGUF or safetensors file and no weights. The exit code is 1 for a file
    that cannot be used, with the reason.
    """
    try:
        report = inspect(file)
    except BadFile as error:
        sentence = f"{file.name} {error}."
        if as_json:
            click.echo(json.dumps({"file": file.name, "error": sentence}))
        else:
            click.echo(f"Error: {sentence}", err=True)
        sys.exit(EXIT_FAILED)
    if as_json:
        click.echo(json.dumps(report.as_json()))
    else:
        _show(report, Console(markup=False, highlight=False))


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
    if report.memory:
        facts["memory"] = (
            f"{decimal(report.memory.weights)} for these weights, and about "
            f"{decimal(report.memory.drawing)} while drawing {report.memory.size}"
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
    """A count as people say it: 11.9 B."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return str(count)
