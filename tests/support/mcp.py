"""The official client of the Model Context Protocol, on servers under test."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
from mcp import Client, StdioServerParameters
from mcp import types as mcp
from mcp.client.streamable_http import streamable_http_client

Session = Callable[[Client], Awaitable[None]]


def run_session(
    session: Session, url: str, *, mode: str = "auto", headers: dict[str, str] | None = None
) -> None:
    """Run a session with the server at a URL, over HTTP.

    Args:
        session: What the client does.
        url: Address of the server.
        mode: "auto" is the newest protocol, "legacy" the one with sessions.
        headers: Sent with each request.
    """

    async def run() -> None:
        async with connected(url, mode=mode, headers=headers) as client:
            await session(client)

    asyncio.run(run())


@asynccontextmanager
async def connected(
    url: str, *, mode: str = "auto", headers: dict[str, str] | None = None
) -> AsyncIterator[Client]:
    """Connect to the server at a URL, over HTTP."""
    async with httpx2.AsyncClient(headers=headers, timeout=60) as http:
        # The client's own limit, a mebibyte, is what results must fit into unless asked otherwise.
        transport = streamable_http_client(f"{url}/mcp", http_client=http)
        async with Client(transport, mode=mode) as client:
            yield client


def run_stdio(session: Session, *arguments: str, environment: dict[str, str]) -> None:
    """Run a session with ``sdstream mcp``, over stdio.

    Args:
        session: What the client does.
        arguments: Of the command.
        environment: Variables beside those of this process, without the SDSTREAM_ ones.
    """

    async def run() -> None:
        async with Client(stdio_server(*arguments, environment=environment)) as client:
            await session(client)

    asyncio.run(run())


def stdio_server(*arguments: str, environment: dict[str, str]) -> StdioServerParameters:
    """Return how ``sdstream mcp`` is started."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("SDSTREAM_")}
    return StdioServerParameters(
        command=sys.executable,
        args=["-m", "sdstream", "mcp", *arguments],
        env={**inherited, **environment},
    )


def fake_environment(folder: Path) -> dict[str, str]:
    """Return variables for ``sdstream mcp`` on the fake engine."""
    return {
        "SDSTREAM_ENGINE": "fake",
        "SDSTREAM_CACHE_DIR": str(folder / "cache"),
        "SDSTREAM_MODEL_DIR": str(folder / "hub"),
    }


def fields(result: mcp.CallToolResult) -> dict[str, Any]:
    """Return the JSON of a result that is no error."""
    text = sentence(result)
    assert not result.is_error, text
    return dict(json.loads(text))


def sentence(result: mcp.CallToolResult) -> str:
    """Return the text of a result."""
    block = result.content[0]
    assert isinstance(block, mcp.TextContent)
    return block.text


def images(result: mcp.CallToolResult) -> list[bytes]:
    """Return the image files of a result."""
    blocks = [block for block in result.content if isinstance(block, mcp.ImageContent)]
    return [base64.b64decode(block.data, validate=True) for block in blocks]


def links(result: mcp.CallToolResult) -> list[str]:
    """Return the addresses of the images of a result."""
    return [str(block.uri) for block in result.content if isinstance(block, mcp.ResourceLink)]


async def error_of(client: Client, tool: str, **arguments: object) -> str:
    """Return the sentence of a call that fails."""
    result = await client.call_tool(tool, arguments)
    assert result.is_error
    return sentence(result)


async def until_status(client: Client, job: str, *statuses: str) -> dict[str, Any]:
    """Ask for a job until it has one of these statuses."""
    async with asyncio.timeout(20):
        while True:
            found = fields(await client.call_tool("job_status", {"job": job}))
            if found["status"] in statuses:
                return found
            await asyncio.sleep(0.05)


def without_mcp(folder: Path) -> dict[str, str]:
    """Return this process's variables for programs that do not find the package ``mcp``."""
    (folder / "sitecustomize.py").write_text("import sys\nsys.modules['mcp'] = None\n")
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path}
