"""MCP over HTTP: the session manager of the official package ``mcp``.

Needs the extra ``mcp``; import this module with ``tools/extra.load``.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Final

from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from starlette.types import Receive, Scope, Send

from sdstream.tools.server import Context, LocalBackend, mcp_server
from sdstream.tools.toolbox import Caller, Toolbox

#: Most sessions at once, and the seconds after which an idle session ends. Versions of the protocol
#: from 2026-07-28 on have no sessions.
_MAX_SESSIONS: Final = 1000
_IDLE_SECONDS: Final = 1800.0


class HttpSessions:
    """Answers the requests to the MCP route.

    Args:
        toolbox: The tools.
        caller_of: Returns the client of a call.
        max_body_bytes: Largest request.
    """

    def __init__(
        self, toolbox: Toolbox, caller_of: Callable[[Context], Caller], max_body_bytes: int
    ) -> None:
        # The middleware of all routes has checked Host and Origin.
        self._manager = StreamableHTTPSessionManager(
            mcp_server(LocalBackend(toolbox, caller_of)),
            max_request_body_size=max_body_bytes,
            session_idle_timeout=_IDLE_SECONDS,
            max_sessions=_MAX_SESSIONS,
        )

    def running(self) -> AbstractAsyncContextManager[None]:
        """Run the sessions; requests are answered only within this context."""
        return self._manager.run()

    async def handle(self, scope: Scope, receive: Receive, send: Send, owner: str) -> None:
        """Answer a request.

        Args:
            scope, receive, send: The request.
            owner: Owner of its jobs; only the owner of a session can use the session.
        """
        if owner:
            token = AccessToken(token="", client_id=owner, scopes=[])
            scope = {**scope, "user": AuthenticatedUser(token)}
        await self._manager.handle_request(scope, receive, send)
