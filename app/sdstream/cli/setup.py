"""The command ``sdstream setup``."""

from __future__ import annotations

import sys

import click

from sdstream.cli.console import EXIT_FAILED
from sdstream.engine import runtime


@click.command()
@click.option(
    "--cmake-args",
    default="",
    metavar="ARGS",
    envvar="CMAKE_ARGS",
    help="Further options of CMake: -DSD_CUDA=ON for NVIDIA, -DSD_VULKAN=ON for any GPU with "
    "Vulkan, -DSD_METAL=ON for Apple (CMAKE_ARGS).",
)
def setup(cmake_args: str) -> None:
    """Install the fast runtime for this Python.

    A plain 'pip install' compiles stable-diffusion.cpp without this project's flags, patches and
    CPU kernels, which makes generation several times slower. This command compiles and installs it
    with them. It needs a C++ compiler and takes a few minutes. The compiled wheel stays in
    the user's cache. Restart running servers afterwards.
    """
    try:
        folder = runtime.install(lambda sentence: click.echo(sentence, err=True), cmake_args)
    except runtime.SetupError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(EXIT_FAILED)
    click.echo(f"The runtime {runtime.release()} is installed in {folder}.")
