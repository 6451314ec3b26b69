"""Runs the code blocks of the documentation, and reads the images that they write."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.support.servers import ServerProcess

#: The server that the documentation's commands use.
ADDRESS = "http://localhost:8000"
#: The command that runs a shell block.
BASH = ("bash", "-euo", "pipefail", "-c")


def run(code: str, server: ServerProcess, folder: Path, *command: str) -> str:
    """Run a block in a folder, with this server; return what it printed."""
    for tool in ("curl", "jq"):
        if re.search(rf"\b{tool}\b", code) and shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "SDSTREAM_CACHE_DIR": str(folder / "cache"),
        "SDSTREAM_DATA_DIR": str(folder / "data"),
    }
    done = subprocess.run(
        [*command, code.replace(ADDRESS, server.url)],
        cwd=folder,
        env=environment,
        capture_output=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, f"{code}\n{done.stderr.decode()}"
    return done.stdout.decode(errors="replace")


def picture(path: Path) -> tuple[str | None, tuple[int, int]]:
    """Format and size of an image file, after decoding it."""
    with Image.open(path) as image:
        image.load()
        return image.format, image.size
