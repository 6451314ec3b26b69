"""Use every configuration and program of the guide to MCP as it is written there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from mcp import Client

from tests.e2e.conftest import KEY
from tests.support.mcp import fake_environment, images, run_session, run_stdio
from tests.support.pictures import opened, png
from tests.support.servers import ServerProcess

GUIDE = (Path(__file__).parents[2] / "docs/guide/mcp.md").read_text()
CONFIGURATIONS = [
    json.loads(block)["mcpServers"]["sdstream"]
    for block in re.findall(r"```json\n(.*?)```", GUIDE, re.DOTALL)
]
PROGRAMS = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)


def test_the_blocks_are_known() -> None:
    """A block added to the guide needs a test here."""
    assert (len(CONFIGURATIONS), len(PROGRAMS)) == (3, 1)


async def generate(client: Client) -> None:
    """Generate a small image."""
    arguments = {"prompt": "a red circle", "size": "64x64", "steps": 2}
    result = await client.call_tool("generate_image", arguments)
    assert opened(images(result)[0]).size == (64, 64)


async def edit(client: Client) -> None:
    """Edit an image file of the folder."""
    arguments = {"prompt": "a red circle", "image": "cat.png", "steps": 2, "strength": 1}
    result = await client.call_tool("edit_image", arguments)
    assert opened(images(result)[0]).size == (64, 64)


def test_a_url(keyed_server: ServerProcess) -> None:
    """The configuration with a URL works with its header."""
    given = CONFIGURATIONS[0]
    assert (given["type"], given["headers"]) == ("http", {"Authorization": f"Bearer {KEY}"})
    url = given["url"].replace("http://localhost:8000", keyed_server.url)
    run_session(generate, url.removesuffix("/mcp"), headers=given["headers"])


def start(given: dict[str, Any], folder: Path, url: str) -> None:
    """Run a command of the guide with a folder as its home, and edit an image there."""
    assert given["command"] == "sdstream"
    command, *arguments = given["args"]
    assert command == "mcp"
    home = folder / "me"
    (home / "Pictures").mkdir(parents=True)
    (home / "Pictures/cat.png").write_bytes(png(64, 64, "red"))
    arguments = [
        one.replace("/home/me", str(home)).replace("http://localhost:8000", url)
        for one in arguments
    ]
    run_stdio(edit, *arguments, environment={**fake_environment(folder), **given["env"]})


def test_a_command(tmp_path: Path) -> None:
    """The configuration of a command works; the images are stored in its data folder."""
    start(CONFIGURATIONS[1], tmp_path, "")
    assert len([*(tmp_path / "me/sdstream/images").iterdir()]) == 1


def test_a_command_with_a_server(tmp_path: Path, keyed_server: ServerProcess) -> None:
    """The configuration of a command with a server works with the server's key."""
    start(CONFIGURATIONS[2], tmp_path, keyed_server.url)


def test_python(native_server: ServerProcess, tmp_path: Path) -> None:
    """The program writes the image that the server generated."""
    program = PROGRAMS[0].replace("http://localhost:8000", native_server.url)
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, timeout=100, check=True)
    assert opened((tmp_path / "circle.png").read_bytes()).size == (64, 64)
