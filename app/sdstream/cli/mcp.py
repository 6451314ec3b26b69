"""The command ``sdstream mcp``: tools for agents over stdin and stdout."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final

import click

from sdstream.cli.console import plain_errors, server_options
from sdstream.cli.flags import read_settings
from sdstream.cli.models import pull_default
from sdstream.client.answers import address
from sdstream.client.http import AsyncClient
from sdstream.core.ask import Hints
from sdstream.runner import AsyncRunner
from sdstream.tools import extra
from sdstream.tools.toolbox import Toolbox
from sdstream.web.application import configure_logging

#: Silence of a job after which its last progress is repeated.
_KEEPALIVE_SECONDS: Final = 10.0

_FOLDER: Final = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command("mcp")
@click.option(
    "--root",
    type=_FOLDER,
    help="Folder of image files that the tool edit_image may read; none by default.",
)
@click.option("-m", "--model", help="Default model without --server: an id or a weight file.")
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for jobs and images without --server [default: a temporary folder].",
)
@server_options
def mcp_command(
    root: Path | None,
    model: str | None,
    data_dir: Path | None,
    server: str | None,
    api_key: str | None,
) -> None:
    """Serve MCP tools over stdin and stdout.

    MCP clients start this command. The tools use the server at --server. Without it, they run in
    this process, with the settings in the SDSTREAM_ variables. A running server provides the same
    tools at /mcp.
    """
    if server and (model or data_dir):
        raise click.UsageError("--model and --data-dir cannot be combined with --server.")
    configure_logging("error")
    with plain_errors():
        stdio = extra.load("stdio")
        folder = root.resolve() if root else None
        if server:
            asyncio.run(_remote(stdio, server, api_key, folder))
        else:
            asyncio.run(_embedded(stdio, model, data_dir, folder))


async def _remote(stdio: Any, server: str, api_key: str | None, root: Path | None) -> None:
    # Creating a client checks the address and the key before the first tool call.
    async with AsyncClient(server, api_key):
        backend = extra.load("remote").RemoteBackend(str(address(server)), api_key)
        received = await _until_signal(stdio.serve(backend, root))
    _end_by(received)


async def _embedded(
    stdio: Any, model: str | None, data_dir: Path | None, root: Path | None
) -> None:
    settings = read_settings(model=model)
    await asyncio.to_thread(pull_default, settings)
    async with AsyncRunner(model or "default", data_dir=data_dir) as runner:
        parts = runner.assembly
        hints = Hints(options_in_prompt=settings.options_in_prompt)
        toolbox = Toolbox(parts.service, parts.store, _KEEPALIVE_SECONDS, hints)
        received = await _until_signal(stdio.serve(stdio.embedded(toolbox), root))
    _end_by(received)


async def _until_signal(work: Coroutine[Any, Any, None]) -> int | None:
    """Wait for ``work`` or a signal; return the signal's number, None if ``work`` ended first."""
    loop = asyncio.get_running_loop()
    received: asyncio.Future[int] = loop.create_future()

    def end(number: int) -> None:
        if not received.done():
            received.set_result(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, end, number)
    working = asyncio.ensure_future(work)
    await asyncio.wait((working, received), return_when=asyncio.FIRST_COMPLETED)
    if not working.done():
        return received.result()
    working.result()
    return None


def _end_by(number: int | None) -> None:
    """End the process with the signal of this number; do nothing without a signal.

    This runs inside the event loop, after everything is closed. Ending the loop first would wait
    for the thread that reads stdin.
    """
    if number is not None:
        asyncio.get_running_loop().remove_signal_handler(number)
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
