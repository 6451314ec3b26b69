"""The commands for jobs of a running server: jobs, watch, cancel, delete."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import click

from sdstream.cli.console import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    USUAL_SERVER,
    LateBars,
    one_line,
    plain_errors,
    print_table,
    server_options,
)
from sdstream.cli.inputs import Moment, words
from sdstream.cli.saver import Saver, force_option, show_option
from sdstream.client.answers import APIError, ConnectionFailed, understanding
from sdstream.client.http import AWAY, ENDINGS, RECONNECT_SECONDS, RECONNECTS, AsyncClient
from sdstream.client.results import JsonObject

_STATUSES: Final = ("queued", "loading", "running", *ENDINGS)
_HEADINGS: Final = ("job", "status", "progress", "begun", "prompt")
_NOT_FOUND: Final = 404


@click.command()
@click.option(
    "--status",
    multiple=True,
    type=click.Choice(_STATUSES),
    help="Only jobs with this status; may be repeated.",
)
@click.option("-q", "--query", metavar="WORDS", help="Only jobs whose prompt contains all words.")
@click.option("-m", "--model", help="Only jobs of this model.")
@click.option("--group", help="Only jobs of this group.")
@click.option("--favorite/--no-favorite", default=None, help="Only favorites, or only other jobs.")
@click.option(
    "--since",
    type=Moment(),
    metavar="TIME",
    help="Only jobs from this time on: 2026-01-31, 2026-01-31T12:00, or an age such as 7d or 30m.",
)
@click.option("--until", type=Moment(), metavar="TIME", help="Only jobs before this time.")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 100))
@click.option("--json", "as_json", is_flag=True, help="Print the JSON of the server.")
@click.option("--ids", "only_ids", is_flag=True, help="Print only the ids, one per line.")
@server_options
def jobs(
    status: tuple[str, ...],
    limit: int,
    server: str | None,
    api_key: str | None,
    *,
    as_json: bool,
    only_ids: bool,
    **given: Any,
) -> None:
    """List jobs of a server, newest first.

    The server is --server, or http://localhost:8000.
    """
    given["q"] = given.pop("query")
    filters = {name: _text(value) for name, value in given.items() if value is not None}
    with plain_errors():
        found = asyncio.run(_jobs(server, api_key, ",".join(status), limit, filters))
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    if only_ids:
        with plain_errors(), understanding():
            ids = [job["id"] for job in found]
        click.echo("".join(f"{one_line(job)}\n" for job in ids), nl=False)
        return
    with plain_errors(), understanding():
        rows = [_row(job) for job in found]
    print_table(_HEADINGS, rows, spare=("progress",))


@click.command()
@click.argument("job")
@click.option(
    "-o",
    "--output",
    help="Output file, numbered for several images; its extension must fit their format. - is "
    "stdout.",
)
@force_option
@show_option
@server_options
def watch(
    job: str,
    output: str | None,
    show: bool | None,
    server: str | None,
    api_key: str | None,
    *,
    force: bool,
) -> None:
    """Follow JOB to its end and download its images.

    The command continues after lost connections and restarts of the server. It also downloads
    images that a failed or cancelled job had finished. Ctrl-C leaves the job running. The exit
    code is 0 if the job completed, and 1 if it failed or was cancelled.
    """
    saver = Saver(output, show, force=force)
    with plain_errors():
        try:
            ended = asyncio.run(_watch(job, saver, server, api_key))
        except KeyboardInterrupt:
            click.echo(f"The job continues; sdstream watch {job} finds it again.", err=True)
            sys.exit(EXIT_INTERRUPTED)
        with understanding():
            failure = None if ended["status"] == "completed" else ended["error"]["message"]
    if failure is not None:
        click.echo(f"Error: {one_line(failure)}", err=True)
        sys.exit(EXIT_FAILED)


@click.command()
@click.argument("job")
@server_options
def cancel(job: str, server: str | None, api_key: str | None) -> None:
    """Stop JOB.

    A waiting job ends at once, and a running one within a step.
    """
    with plain_errors():
        found = asyncio.run(_cancel(job, server, api_key))
        with understanding():
            words = {
                "done": "The job is cancelled.",
                "stopping": "The job stops after its current step.",
                "already_ended": f"The job had ended already: {found['status']}.",
            }[found["cancel"]]
    click.echo(words)


@click.command()
@click.argument("jobs", nargs=-1, required=True, metavar="JOB...", callback=words)
@server_options
def delete(jobs: tuple[str, ...], server: str | None, api_key: str | None) -> None:
    """Delete jobs with their images.

    The command does not ask for confirmation, and cancels unfinished jobs first. If JOB is -, the
    command reads ids from stdin, as 'sdstream jobs --ids' prints them. If a job does not exist,
    the others are deleted and the exit code is 1.
    """
    with plain_errors():
        missing = asyncio.run(_delete(jobs, server, api_key))
    click.echo(f"{len(jobs) - len(missing)} deleted.")
    for job in missing:
        click.echo(f"Error: the job {one_line(job)} does not exist.", err=True)
    if missing:
        sys.exit(EXIT_FAILED)


async def _jobs(
    server: str | None,
    api_key: str | None,
    status: str,
    limit: int,
    filters: dict[str, str],
) -> list[JsonObject]:
    async with AsyncClient(server or USUAL_SERVER, api_key) as client:
        return await client.jobs.list(status=status, limit=limit, **filters)


def _text(value: object) -> str:
    """Return a value as the text of a query parameter."""
    return str(value).lower() if isinstance(value, bool) else str(value)


async def _cancel(job: str, server: str | None, api_key: str | None) -> JsonObject:
    async with AsyncClient(server or USUAL_SERVER, api_key) as client:
        return await client.jobs.cancel(job)


async def _delete(jobs: Sequence[str], server: str | None, api_key: str | None) -> list[str]:
    """Delete jobs; return the ids of those that do not exist."""
    missing = []
    async with AsyncClient(server or USUAL_SERVER, api_key) as client:
        for job in jobs:
            try:
                await client.jobs.delete(job)
            except APIError as error:
                if error.status != _NOT_FOUND:
                    raise
                missing.append(job)
    return missing


async def _watch(job: str, saver: Saver, server: str | None, api_key: str | None) -> JsonObject:
    async with AsyncClient(server or USUAL_SERVER, api_key) as client:
        known: JsonObject = {}
        bars, bar = LateBars(), None
        try:
            async for known in client.jobs.follow(job):
                with understanding():
                    expected = known["parameters"]["n"], known["output_format"]
                    percent, news = float(known["progress"]), _news(known)
                # The first event has these fields, so an unsuitable -o is reported before the end.
                saver.expect(*expected)
                bar = bars.add() if bar is None else bar
                bars.update(bar, percent, news)
        finally:
            bars.stop()
        if saver.wants_images:
            with understanding():
                images = [(one["index"], one["seed"], one["url"]) for one in known["images"]]
            await _fetch(client, images, saver)
        return known


async def _fetch(
    client: AsyncClient, images: Sequence[tuple[int, int, str | None]], saver: Saver
) -> None:
    for index, seed, url in images:
        said = ", which the server did not store for lack of space"
        if url is not None:
            said = saver.save(index, await _downloaded(client, url))
        click.echo(f"seed {seed}{said}", err=True)
    saver.show()


async def _downloaded(client: AsyncClient, url: str) -> bytes:
    """Download an image, over lost connections and restarts of the server."""
    for _ in range(RECONNECTS):
        try:
            return await client.image(url)
        except ConnectionFailed:
            pass
        except APIError as error:
            if error.status not in AWAY:
                raise
        await asyncio.sleep(RECONNECT_SECONDS)
    return await client.image(url)


def _news(job: JsonObject) -> str:
    what = str(job["status"])
    if what == "queued":
        what = f"queued, {job['queue_position']} before it"
    elif what == "running" and job["step"]:
        what = f"step {job['step']}/{job['steps']}"
        if job["parameters"]["n"] > 1:
            what = f"image {job['index'] + 1}, {what}"
        if job["eta_seconds"] is not None:
            what += f", {job['eta_seconds']:.0f} s left"
    return what


def _row(job: JsonObject) -> tuple[str, ...]:
    prompt = job["parameters"]["prompt"]
    return (job["id"], job["status"], _standing(job), _time(job), prompt)


def _standing(job: JsonObject) -> str:
    if job["status"] == "queued":
        return f"{job['queue_position']} before it"
    return f"{job['progress']:.0f} %"


def _time(job: JsonObject) -> str:
    return datetime.fromtimestamp(job["created"]).astimezone().strftime("%d %b %H:%M")
