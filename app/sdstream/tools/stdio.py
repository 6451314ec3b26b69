"""MCP over stdin and stdout.

Needs the extra ``mcp``; import this module with ``tools/extra.load``.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mcp import types as mcp
from mcp.server.stdio import stdio_server

from sdstream.core.job import ImageResult, Job
from sdstream.dialects.mcp.arguments import PICTURES
from sdstream.dialects.rendering import JsonObject
from sdstream.tools.files import with_files
from sdstream.tools.server import Backend, Context, LocalBackend, mcp_server
from sdstream.tools.toolbox import Caller, Toolbox

_PATHS: Final = " Or the path of an image file in the folder {root}."


@dataclass(frozen=True, slots=True)
class FilesBackend:
    """A backend that accepts the paths of image files in one folder.

    Attributes:
        backend: Receives the calls, with base64 in place of paths.
        root: The resolved folder.
    """

    backend: Backend
    root: Path

    async def tools(self) -> list[mcp.Tool]:
        """Return the tools; the descriptions of image arguments name the folder."""
        return [self._described(tool) for tool in await self.backend.tools()]

    async def call(self, name: str, arguments: JsonObject, context: Context) -> mcp.CallToolResult:
        """Call a tool."""
        arguments = await asyncio.to_thread(with_files, name, arguments, self.root)
        return await self.backend.call(name, arguments, context)

    async def read(self, uri: str) -> mcp.ReadResourceResult:
        """Return the image that a link names."""
        return await self.backend.read(uri)

    def _described(self, tool: mcp.Tool) -> mcp.Tool:
        properties = dict(tool.input_schema.get("properties", {}))
        for name in PICTURES:
            if name in properties:
                text = properties[name].get("description", "") + _PATHS.format(root=self.root)
                properties[name] = {**properties[name], "description": text}
        return tool.model_copy(
            update={"input_schema": {**tool.input_schema, "properties": properties}}
        )


def embedded(toolbox: Toolbox) -> LocalBackend:
    """Return a backend for the service in this process; its links are ``file:`` URLs of images."""

    def link(job: Job, image: ImageResult) -> str | None:
        if image.id is None:
            return None
        return Path(toolbox.store.location(image, job.request.output_format)).as_uri()

    def caller_of(context: Context) -> Caller:
        async def report(percent: float, message: str) -> None:
            await context.session.report_progress(percent, 100.0, message)

        return Caller(owner="", link=link, report=report)

    return LocalBackend(toolbox, caller_of)


async def serve(backend: Backend, root: Path | None) -> None:
    """Serve the client at stdin and stdout until it closes stdin.

    Args:
        backend: Receives the calls.
        root: Resolved folder of the image files that the client may name; None for no files.
    """
    server = mcp_server(FilesBackend(backend, root) if root else backend)
    async with stdio_server() as (reader, writer):
        await server.run(reader, writer, server.create_initialization_options())
