"""Internals of uvicorn and httptools on which the protocol class relies."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Callable
from typing import Any, cast

import httptools
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from sdstream.web.protocol import TimeoutProtocol
from sdstream.web.turns import Turns

#: Overridden methods, which uvicorn or the parser calls.
CALLED = {
    "connection_made",
    "connection_lost",
    "data_received",
    "eof_received",
    "pause_writing",
    "resume_writing",
    "on_headers_complete",
    "on_message_complete",
    "on_response_complete",
}
#: Attributes that the class reads or sets.
OF_PROTOCOL = {"app", "cycle", "flow", "headers", "loop", "parser", "pipeline", "transport", "url"}
OF_CYCLE = {
    "chunked_encoding",
    "disconnected",
    "expected_content_length",
    "keep_alive",
    "response_complete",
    "transport",
}


def set_by(*functions: Callable[..., Any]) -> set[str]:
    """Return the attributes of self that these functions set."""
    source = "".join(map(inspect.getsource, functions))
    return set(re.findall(r"self\.(\w+)(?:: [^=\n]+)? = ", source))


def test_the_protocol_has_what_is_overridden_and_read() -> None:
    """A release of uvicorn that renames an overridden or used name fails this test."""
    assert {*dir(HttpToolsProtocol)} >= CALLED
    assert {*vars(TimeoutProtocol)} >= CALLED
    assert set_by(HttpToolsProtocol.__init__, HttpToolsProtocol.on_message_begin) >= OF_PROTOCOL
    assert "read_paused" in set_by(FlowControl.__init__)


def test_a_cycle_has_what_is_read_and_set() -> None:
    """The cycle calls ``self.send`` of its instance, and closes its own transport at the end."""
    assert set_by(RequestResponseCycle.__init__) >= OF_CYCLE
    assert "self.send" in inspect.getsource(RequestResponseCycle.run_asgi)
    assert "self.transport.close()" in inspect.getsource(RequestResponseCycle.send)
    source = inspect.getsource(HttpToolsProtocol.on_headers_complete)
    assert "app = self.app" in source
    assert "self.cycle = RequestResponseCycle(" in source


def test_the_parser_gives_back_what_follows_an_upgrade() -> None:
    """The parser stops after the head and reports where the rest begins."""
    parser = httptools.HttpRequestParser(object())
    head = b"POST / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"
    with pytest.raises(httptools.HttpParserUpgrade) as upgrade:
        parser.feed_data(head + b"rest")
    assert upgrade.value.args == (len(head),)
    assert parser.should_upgrade()


async def nothing(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that sends no response."""


class Closing:
    """A transport that records when it is closed."""

    def __init__(self, closed: list[int], ticks: list[int]) -> None:
        self._closed, self._ticks = closed, ticks

    def get_extra_info(self, _name: str) -> None:
        """Return nothing, as there is no socket."""

    def close(self) -> None:
        """Record the turn of the event loop."""
        self._closed.append(len(self._ticks))


def test_connections_whose_clients_leave_at_once_close_one_by_one() -> None:
    """At most two connections close per turn of the loop, so no other client is delayed."""
    closed: list[int] = []
    ticks: list[int] = []

    async def crowd() -> None:
        config = uvicorn.Config(nothing, log_config=None, lifespan="off")
        ends = Turns()
        for _ in range(20):
            protocol = TimeoutProtocol(
                config=config, server_state=ServerState(), app_state={}, ends=ends
            )
            protocol.connection_made(cast(asyncio.Transport, Closing(closed, ticks)))
            assert protocol.eof_received()
        while len(closed) < 20:
            await asyncio.sleep(0)
            ticks.append(0)

    asyncio.run(crowd())
    assert max(closed.count(tick) for tick in closed) <= 2
