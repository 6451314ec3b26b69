"""MCP calls that are forwarded to a running server by the client of the official package ``mcp``.

Needs the extra ``mcp``; import this module with ``tools/extra.load``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import httpx2
from mcp import Client, MCPError
from mcp import types as mcp
from mcp.client.streamable_http import streamable_http_client

from sdstream.client.answers import why_lost
from sdstream.client.connections import open_client
from sdstream.dialects.rendering import JsonObject
from sdstream.tools.server import Context

#: The read timeout is long enough: the server sends data at least every 15 seconds.
_TIMEOUT: Final = httpx2.Timeout(10.0, read=120.0, write=60.0)


@dataclass(frozen=True, slots=True)
class RemoteBackend:
    """A backend that forwards calls to a running server.

    Each call has a separate connection, so that the server may be restarted between two calls.
    Cancelling a call closes its connection, which cancels its job.

    Attributes:
        address: Address of the server, without /mcp.
        api_key: API key to send as a bearer token, None without one.
    """

    address: str
    api_key: str | None = field(repr=False)

    async def tools(self) -> list[mcp.Tool]:
        """Return the tools."""
        async with self._connected() as client:
            return (await client.list_tools()).tools

    async def call(self, name: str, arguments: JsonObject, context: Context) -> mcp.CallToolResult:
        """Call a tool."""
        try:
            async with self._connected() as client:
                return await client.call_tool(
                    name, arguments, progress_callback=context.session.report_progress
                )
        except MCPError as error:
            if error.code == mcp.INVALID_PARAMS:
                raise
            # Return the message as a result: a user or model can act on it, but clients hide errors
            # of the protocol.
            text = mcp.TextContent(text=error.message)
            return mcp.CallToolResult(content=[text], is_error=True)

    async def read(self, uri: str) -> mcp.ReadResourceResult:
        """Return the image that a link names."""
        async with self._connected() as client:
            return await client.read_resource(uri)

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Client]:
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        try:
            url = httpx2.URL(self.address)
            async with open_client(url, headers=headers, timeout=_TIMEOUT) as http:
                transport = streamable_http_client(
                    f"{self.address.rstrip('/')}/mcp", http_client=http, max_sse_event_size=None
                )
                async with Client(transport, cache=None) as client:
                    yield client
        except (MCPError, httpx2.HTTPError, ExceptionGroup) as error:
            raise _plain(error) from error


def _plain(error: Exception) -> Exception:
    """Return the first cause of a group of errors; an HTTP error becomes an MCPError."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, httpx2.HTTPError):
        return MCPError(mcp.INTERNAL_ERROR, why_lost(error))
    return error
