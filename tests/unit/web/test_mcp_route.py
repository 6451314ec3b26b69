"""The route /mcp, whose session manager starts at the first request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from sdstream.tools import extra
from sdstream.web.routes.mcp import McpRoute


def test_a_start_that_failed_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the session manager cannot start, the request fails and the next one tries again."""
    faults = [ImportError("not now")]

    class Sessions:
        def __init__(self, *_: object) -> None:
            pass

        @asynccontextmanager
        async def running(self) -> AsyncIterator[None]:
            """Run without a task group."""
            yield

    def load(_module: str) -> Any:
        if faults:
            raise faults.pop()
        return SimpleNamespace(HttpSessions=Sessions)

    monkeypatch.setattr(extra, "load", load)
    nothing: Any = SimpleNamespace(max_form_bytes=1)
    route = McpRoute(nothing, nothing)

    async def live() -> None:
        async with route.running(), asyncio.timeout(20):
            with pytest.raises(ImportError):
                await route.end(nothing)
            assert await route.end(nothing)
            assert await route.end(nothing)

    asyncio.run(live())
