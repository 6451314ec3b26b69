"""The ``sdstream`` command.

Exit codes: 0 done; 1 the server or the job failed; 2 wrong usage; 70 the service stopped by a
fault of its own; 78 models.yaml, a setting or the address to serve at cannot be used; 130 Ctrl-C,
and 143 SIGTERM, as in shells.
"""

from __future__ import annotations

import importlib
from typing import Any, Final

import click

from sdstream import __version__
from sdstream.cli.console import EXIT_INTERRUPTED

#: Name of a command -> its module and its name there. A command is imported when it is used.
_COMMANDS: Final = {
    "cancel": ("sdstream.cli.jobs", "cancel"),
    "cluster": ("sdstream.cli.cluster", "cluster"),
    "convert": ("sdstream.cli.files", "convert_command"),
    "generate": ("sdstream.cli.generate", "generate"),
    "inspect": ("sdstream.cli.files", "inspect_command"),
    "jobs": ("sdstream.cli.jobs", "jobs"),
    "mcp": ("sdstream.cli.mcp", "mcp_command"),
    "models": ("sdstream.cli.models", "models"),
    "pull": ("sdstream.cli.models", "pull_command"),
    "rm": ("sdstream.cli.models", "rm_command"),
    "serve": ("sdstream.cli.serve", "serve"),
    "watch": ("sdstream.cli.jobs", "watch"),
}


class _Commands(click.Group):
    """Commands that Ctrl-C ends with the code that shells give it, and no word."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return [*_COMMANDS]

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, name = _COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(EXIT_INTERRUPTED)


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="sdstream")
def main() -> None:
    """Images from diffusion models on your own machine, streamed step by step.

    \b
    Start a server and open a stream:
        sdstream serve
        curl -N localhost:8000/v1/images/generations -d '{"prompt": "a red circle", "stream": true}'
    \b
    Or generate one image without a server:
        sdstream generate "a red circle" -o circle.png
    """
