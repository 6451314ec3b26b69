"""A private server, which runs as long as one command."""

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
    """Serve one model in this process, with the settings of the environment.

    Args:
        model: An id of the catalogue or a weight file; None for the default model.
    """
    configure_logging("error")
    # The one model that is asked for is all that a private server has to load.
    settings = read_settings(grace_seconds=0.0, model=model)
    pull_default(settings)
    # It runs for one image, and asks no client for a key.
    settings = settings.model_copy(update={"api_keys": ()})
    async with (
        serving_privately(settings) as socket,
        AsyncClient("http://localhost", uds=socket) as client,
    ):
        yield client
