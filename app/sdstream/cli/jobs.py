"""The commands for jobs of a running server: jobs, watch, cancel."""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import datetime
from typing import Final

import click
from rich.progress import Progress, TaskID
from rich.table import Table

from sdstream.cli.console import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    USUAL_SERVER,
    Saver,
    one_line,
    plain_errors,
    progress_bar,
    server_options,
    show_option,
    table_console,
)
from sdstream.client.http import ENDINGS, AsyncClient, understanding
from sdstream.client.results import JsonObject

_STATUSES: Final = ("queued", "loading", "running", *ENDINGS)
_PROMPT_COLUMNS: Final = 40


@click.command()
@click.option(
    "--status",
    multiple=True,
    type=click.Choice(_STATUSES),
    help="Only these; may be repeated.",
)
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 100))
@click.option("--json", "as_json", is_flag=True, help="Print them as the server returns them.")
@server_options
def jobs(
    status: tuple[str, ...], limit: int, as_json: bool, server: str | None, api_key: str | None
) -> None:
    """List jobs of --server (default http://localhost:8000), newest first."""
    with plain_errors():
        found = asyncio.run(_jobs(server, api_key, ",".join(status), limit))
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    with plain_errors(), understanding():
        table = _table(found)
    table_console().print(table)


@click.command()
@click.argument("job")
@click.option(
    "-o",
    "--output",
    help="Write the images into this file, numbered if several; it must end as their format does. "
    "- is stdout.",
)
@show_option
@server_options
def watch(
    job: str, output: str | None, show: bool | None, server: str | None, api_key: str | None
) -> None:
    """Follow JOB to its end, over lost connections and restarts of the server.

    Of a job that fails or is cancelled the images that it finished are fetched as well. Ctrl-C
    leaves the job running. Exit codes: 0 it completed, 1 it failed or was cancelled.
    """
    saver = Saver(output, show)
    with plain_errors():
        try:
            ended = asyncio.run(_watch(job, saver, server, api_key))
        except KeyboardInterrupt:
            click.echo(f"The job continues; sdstream watch {job} finds it again.", err=True)
            sys.exit(EXIT_INTERRUPTED)
    if ended["status"] != "completed":
        click.echo(f"Error: {one_line(ended['error']['message'])}", err=True)
        sys.exit(EXIT_FAILED)


@click.command()
@click.argument("job")
@server_options
def cancel(job: str, server: str | None, api_key: str | None) -> None:
    """Stop JOB: at once while it waits, within a step while it runs."""
    with plain_errors():
        found = asyncio.run(_cancel(job, server, api_key))
        with understanding():
            words = {
                "done": "The job is cancelled.",
                "stopping": "The job stops after its present step.",
                "already_ended": f"The job had ended already: {found['status']}.",
            }[found["cancel"]]
    click.echo(words)


async def _jobs(
    server: str | None, api_key: str | None, status: str, limit: int
) -> list[JsonObject]:
    async with AsyncClient(server or USUAL_SERVER, api_key) as client:
        return await client.jobs.list(status=status, limit=limit)


async def _cancel(job: str, server: str | None, api_key: str | None) -> JsonObject:
    async with AsyncClient(server or USUAL_SERVER, api_key) as client:
        return await client.jobs.cancel(job)


async def _watch(job: str, saver: Saver, server: str | None, api_key: str | None) -> JsonObject:
    async with AsyncClient(server or USUAL_SERVER, api_key) as client:
        known: JsonObject = {}
        with progress_bar() as bar:
            row = bar.add_task("", total=100.0, what="waiting")
            async for known in client.jobs.follow(job):
                # The first event has all of them: what -o cannot take is told before the end.
                saver.expect(known["parameters"]["n"], known["output_format"])
                _update(bar, row, known)
        if saver.wants_images:
            await _fetch(client, known["images"], saver)
        return known


async def _fetch(client: AsyncClient, images: list[JsonObject], saver: Saver) -> None:
    for image in images:
        said = ", which the server had no room to keep"
        if image["url"] is not None:
            said = saver.save(image["index"], await client.image(image["url"]))
        click.echo(f"seed {image['seed']}{said}", err=True)
    saver.show()


def _update(bar: Progress, row: TaskID, job: JsonObject) -> None:
    what = job["status"]
    if what == "queued":
        what = f"queued, {job['queue_position']} before it"
    elif what == "running" and job["step"]:
        what = f"step {job['step']}/{job['steps']}"
        if job["parameters"]["n"] > 1:
            what = f"image {job['index'] + 1}, {what}"
        if job["eta_seconds"] is not None:
            what += f", {job['eta_seconds']:.0f} s left"
    bar.update(row, completed=job["progress"], what=what)


def _table(jobs: list[JsonObject]) -> Table:
    table = Table(box=None)
    for heading in ("job", "status", "progress", "begun"):
        table.add_column(heading, no_wrap=True)
    table.add_column("prompt")
    for job in jobs:
        table.add_row(job["id"], job["status"], _standing(job), _time(job), _prompt(job))
    return table


def _standing(job: JsonObject) -> str:
    if job["status"] == "queued":
        return f"{job['queue_position']} before it"
    return f"{job['progress']:.0f} %"


def _time(job: JsonObject) -> str:
    return datetime.fromtimestamp(job["created"]).astimezone().strftime("%d %b %H:%M:%S")


def _prompt(job: JsonObject) -> str:
    prompt = one_line(job["parameters"]["prompt"])
    return prompt if len(prompt) <= _PROMPT_COLUMNS else prompt[: _PROMPT_COLUMNS - 1] + "…"
