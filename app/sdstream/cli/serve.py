"""The command ``sdstream serve``."""

from __future__ import annotations

import sys
from typing import Any

import click

from sdstream.cli.console import EXIT_FAULT, plain_errors
from sdstream.cli.flags import read_settings, setting_flags
from sdstream.cli.models import pull_default
from sdstream.system import return_large_blocks
from sdstream.web.application import configure_logging
from sdstream.web.server import Server


@click.command()
@setting_flags()
def serve(**flags: Any) -> None:
    """Serve the image APIs over HTTP.

    Every flag has an environment variable, named in brackets; the flag wins. /readyz answers 200
    once the default model is loaded.
    """
    settings = read_settings(**flags)
    configure_logging(settings.log_level, settings.log_format)
    return_large_blocks()
    with plain_errors():
        pull_default(settings)
        server = Server(settings)
        server.run()
    sys.exit(EXIT_FAULT if server.died else 0)
