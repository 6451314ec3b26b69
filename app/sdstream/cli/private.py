"""A private server that runs for the duration of one command."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sdstream.cli.flags import read_settings
from sdstream.cli.models import pull_default
from sdstream.client.http import AsyncClient
from sdstream.web.application import configure_logging
from sdstream.web.server import serving_privately


@asynccontextmanager
async def serving(model: str | None) -> AsyncIterator[AsyncClient]:
    """Run a server with one model in this process, and yield a client of the server.

    The settings come from the environment.

    Args:
        model: A model's id in the catalogue, or a weight file; None for the default model.
    """
    configure_logging("error")
    # A private server needs only the model of the request.
    settings = read_settings(grace_seconds=0.0, model=model)
    pull_default(settings)
    # These settings restrict a server for others; this one listens on a private socket.
    open_to_all = {"api_keys": (), "high_priority_keys": (), "allowed_hosts": ()}
    settings = settings.model_copy(update=open_to_all)
    async with (
        serving_privately(settings) as socket,
        AsyncClient("http://localhost", uds=socket) as client,
    ):
        yield client
