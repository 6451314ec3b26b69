"""The MCP server, with the official package ``mcp``: it lists tools, calls them and reads images.

Needs the extra ``mcp``; import this module with ``tools/extra.load``.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from mcp import MCPError
from mcp import types as mcp
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server

from sdstream import __version__
from sdstream.core.errors import ImageServiceError, Reason
from sdstream.dialects.mcp.answers import Answer, error_answer
from sdstream.dialects.mcp.tools import INSTRUCTIONS, Tool
from sdstream.dialects.rendering import JsonObject, error_fields
from sdstream.tools.toolbox import Caller, Toolbox

logger = logging.getLogger(__name__)

#: The context that the package passes to a handler.
Context = ServerRequestContext[Any, Any]


class Backend(Protocol):
    """The receiver of calls: the service in this process, or a running server.

    Every method raises ImageServiceError and MCPError.
    """

    async def tools(self) -> list[mcp.Tool]:
        """Return the tools."""

    async def call(self, name: str, arguments: JsonObject, context: Context) -> mcp.CallToolResult:
        """Call a tool."""

    async def read(self, uri: str) -> mcp.ReadResourceResult:
        """Return the image of a link."""


@dataclass(frozen=True, slots=True)
class LocalBackend:
    """A backend that runs calls on the service in this process.

    Attributes:
        toolbox: The tools.
        caller_of: Returns the client of a call.
    """

    toolbox: Toolbox
    caller_of: Callable[[Context], Caller]

    async def tools(self) -> list[mcp.Tool]:
        """Return the tools."""
        return [_tool(tool) for tool in await self.toolbox.tools()]

    async def call(self, name: str, arguments: JsonObject, context: Context) -> mcp.CallToolResult:
        """Call a tool."""
        answer = await self.toolbox.call(name, arguments, self.caller_of(context))
        if answer is None:
            raise MCPError(mcp.INVALID_PARAMS, f"Unknown tool '{name[:64]}'.")
        return _result(answer)

    async def read(self, uri: str) -> mcp.ReadResourceResult:
        """Return the image of a link."""
        data, media_type = await self.toolbox.image(uri)
        blob = base64.b64encode(data).decode()
        contents = mcp.BlobResourceContents(uri=uri, mime_type=media_type, blob=blob)
        return mcp.ReadResourceResult(contents=[contents])


def mcp_server(backend: Backend) -> Server[Any]:
    """Return a server for any transport of the package."""

    async def list_tools(
        _context: Context, _params: mcp.PaginatedRequestParams | None
    ) -> mcp.ListToolsResult:
        try:
            return mcp.ListToolsResult(tools=await backend.tools())
        except ImageServiceError as error:
            raise _protocol_error(error) from None

    async def call_tool(context: Context, params: mcp.CallToolRequestParams) -> mcp.CallToolResult:
        try:
            return await backend.call(params.name, params.arguments or {}, context)
        except ImageServiceError as error:
            return _result(error_answer(error))
        except MCPError:
            raise
        except Exception:
            # The package would send the exception's own text to some clients.
            logger.exception("the tool %s failed", params.name[:64])
            fault = ImageServiceError("Internal server error.", reason=Reason.INTERNAL_ERROR)
            return _result(error_answer(fault))

    async def read_resource(
        _context: Context, params: mcp.ReadResourceRequestParams
    ) -> mcp.ReadResourceResult:
        try:
            return await backend.read(str(params.uri))
        except ImageServiceError as error:
            raise _protocol_error(error) from None

    async def list_resources(
        _context: Context, _params: mcp.PaginatedRequestParams | None
    ) -> mcp.ListResourcesResult:
        # Results contain the links of images; a list of all images would be too long to use.
        return mcp.ListResourcesResult(resources=[])

    return Server(
        "sdstream",
        version=__version__,
        title="sdstream",
        instructions=INSTRUCTIONS,
        # No argument is sent as a header. Without this option, each call would list the tools.
        get_tool_input_schema=lambda _name: None,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_list_resources=list_resources,
        on_read_resource=read_resource,
    )


def _protocol_error(error: ImageServiceError) -> MCPError:
    """Convert an error of the service, for a method whose result cannot report an error."""
    code = mcp.INVALID_PARAMS if error.status < 500 else mcp.INTERNAL_ERROR
    return MCPError(code, error.message, error_fields(error))


def _tool(tool: Tool) -> mcp.Tool:
    return mcp.Tool(
        name=tool.name,
        title=tool.title,
        description=tool.description,
        input_schema=tool.input_schema,
        annotations=mcp.ToolAnnotations(
            read_only_hint=tool.read_only,
            destructive_hint=tool.destructive,
            open_world_hint=False,
        ),
    )


def _result(answer: Answer) -> mcp.CallToolResult:
    fields = {"content": answer.content, "isError": answer.is_error}
    if answer.structured is not None:
        fields["structuredContent"] = answer.structured
    return mcp.CallToolResult.model_validate(fields, by_name=False)
