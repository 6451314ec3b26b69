"""The ``sdstream`` command.

Exit codes:

- 0: the command succeeded
- 1: the server or the job failed, or a service that the server needs does not answer
- 2: wrong usage
- 70: an internal fault stopped the service
- 78: models.yaml, a setting or the server's own address cannot be used
- 130 and 143: Ctrl-C or SIGTERM ended the command, as in shells
"""

from __future__ import annotations

import importlib
import io
import re
import signal
import sys
from typing import Any, Final, NamedTuple

import click
from click.shell_completion import CompletionItem

from sdstream import __version__
from sdstream.cli.console import EXIT_INTERRUPTED
from sdstream.core.similar import did_you_mean, most_similar
from sdstream.core.text import shown

#: What Python makes of a byte of an argument that is not UTF-8.
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


class _Command(NamedTuple):
    """A command whose module is imported when the command is used.

    Attributes:
        module: Module under sdstream.cli.
        name: Name of the command in the module.
        help: First sentence of the command's help, for the list of commands and for completion.
    """

    module: str
    name: str
    help: str


_GROUPS: Final = {
    "Images": {
        "generate": _Command("generate", "generate", "Generate an image from PROMPT and save it."),
        "edit": _Command("generate", "edit", "Edit IMAGE as PROMPT describes."),
        "upscale": _Command("generate", "upscale", "Enlarge IMAGE with an upscaler."),
        "grid": _Command("grid", "grid", "Compare settings on one labelled sheet."),
    },
    "Jobs of a server": {
        "jobs": _Command("jobs", "jobs", "List jobs of a server, newest first."),
        "watch": _Command("jobs", "watch", "Follow JOB to its end and download its images."),
        "cancel": _Command("jobs", "cancel", "Stop JOB."),
        "delete": _Command("jobs", "delete", "Delete jobs with their images."),
    },
    "Models": {
        "models": _Command("models", "models", "List the models."),
        "pull": _Command("models", "pull_command", "Download a model."),
        "rm": _Command("models", "rm_command", "Delete the files of a downloaded model."),
        "inspect": _Command("files", "inspect_command", "Report what a model file contains."),
        "convert": _Command("files", "convert_command", "Convert a model file to another type."),
    },
    "Servers": {
        "serve": _Command("serve", "serve", "Serve the image APIs over HTTP."),
        "cluster": _Command("cluster", "cluster", "Generate on several machines with Ray."),
        "setup": _Command("setup", "setup", "Install the fast runtime for this Python."),
        "mcp": _Command("mcp", "mcp_command", "Serve MCP tools over stdin and stdout."),
    },
}
COMMANDS: Final = {name: command for group in _GROUPS.values() for name, command in group.items()}


class _Commands(click.Group):
    """The group of all commands.

    Ctrl-C ends a command without a message, with the exit code that shells use. Listing commands
    and completing their names imports no command.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if isinstance(sys.stdout, io.TextIOWrapper):
            # Its encoding may lack characters of prompts; stderr writes them as escapes by default.
            sys.stdout.reconfigure(errors="replace")
        for arg in args:
            if _SURROGATE.search(arg) and not ctx.resilient_parsing:
                ctx.fail(f"The argument '{shown(arg)}' is not UTF-8 text.")
        return super().parse_args(ctx, args)

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return [*COMMANDS]

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, name, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(f"sdstream.cli.{module}"), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            ctx.fail(f"No such command '{name}'.{did_you_mean(most_similar(name, COMMANDS))}")
        return super().resolve_command(ctx, args)

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in _GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name, command.help) for name, command in commands.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        found = [
            CompletionItem(name, help=command.help)
            for name, command in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]

    def invoke(self, ctx: click.Context) -> Any:
        # Only a running server handles these signals. `systemctl kill` sends them to all processes
        # of a unit, and their default action would end other commands and a starting server.
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
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
