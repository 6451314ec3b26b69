"""The official client of the Model Context Protocol, for servers under test."""

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
        session: The calls of the client.
        url: Address of the server.
        mode: "auto" for the newest protocol, "legacy" for the one with sessions.
        headers: Headers of each request.
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
        # The client keeps its default limit of a mebibyte, into which results must fit.
        transport = streamable_http_client(f"{url}/mcp", http_client=http)
        async with Client(transport, mode=mode) as client:
            yield client


def run_stdio(session: Session, *arguments: str, environment: dict[str, str]) -> None:
    """Run a session with ``sdstream mcp``, over stdio.

    Args:
        session: The calls of the client.
        arguments: Arguments of the command.
        environment: Variables to add to those of this process, which lose the SDSTREAM_ ones.
    """

    async def run() -> None:
        async with Client(stdio_server(*arguments, environment=environment)) as client:
            await session(client)

    asyncio.run(run())


def stdio_server(*arguments: str, environment: dict[str, str]) -> StdioServerParameters:
    """Return the parameters that start ``sdstream mcp``."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("SDSTREAM_")}
    return StdioServerParameters(
        command=sys.executable,
        args=["-m", "sdstream", "mcp", *arguments],
        env={**inherited, **environment},
    )


def fake_environment(folder: Path) -> dict[str, str]:
    """Return variables for ``sdstream mcp`` with the fake engine."""
    return {
        "SDSTREAM_ENGINE": "fake",
        "SDSTREAM_CACHE_DIR": str(folder / "cache"),
        "SDSTREAM_MODEL_DIR": str(folder / "hub"),
    }


def fields(result: mcp.CallToolResult) -> dict[str, Any]:
    """Return the JSON of a result; fail if the result is an error."""
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
    """Return the error message of a call that fails."""
    result = await client.call_tool(tool, arguments)
    assert result.is_error
    return sentence(result)


async def until_status(client: Client, job: str, *statuses: str) -> dict[str, Any]:
    """Poll a job until it has one of these statuses."""
    async with asyncio.timeout(20):
        while True:
            found = fields(await client.call_tool("job_status", {"job": job}))
            if found["status"] in statuses:
                return found
            await asyncio.sleep(0.05)


def without_mcp(folder: Path) -> dict[str, str]:
    """Return this process's variables, changed so that programs cannot import ``mcp``."""
    (folder / "sitecustomize.py").write_text("import sys\nsys.modules['mcp'] = None\n")
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path}
