"""What the protocol class relies on in uvicorn and httptools, whose inside may change."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import httptools
import pytest
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from sdstream.web.protocol import TimeoutProtocol

#: Overridden; uvicorn or the parser calls them.
CALLED = {
    "connection_made",
    "connection_lost",
    "data_received",
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
    "expected_content_length",
    "keep_alive",
    "response_complete",
    "transport",
}


def set_by(*functions: Callable[..., Any]) -> set[str]:
    """Attributes of self that these functions set."""
    source = "".join(map(inspect.getsource, functions))
    return set(re.findall(r"self\.(\w+)(?:: [^=\n]+)? = ", source))


def test_the_protocol_has_what_is_overridden_and_read() -> None:
    """A release that renames one of these must not be taken without a look."""
    assert {*dir(HttpToolsProtocol)} >= CALLED
    assert {*vars(TimeoutProtocol)} >= CALLED
    assert set_by(HttpToolsProtocol.__init__, HttpToolsProtocol.on_message_begin) >= OF_PROTOCOL
    assert "read_paused" in set_by(FlowControl.__init__)


def test_a_cycle_has_what_is_read_and_set() -> None:
    """Its ``send`` is looked up on the instance, and its end closes its own transport."""
    assert set_by(RequestResponseCycle.__init__) >= OF_CYCLE
    assert "self.send" in inspect.getsource(RequestResponseCycle.run_asgi)
    assert "self.transport.close()" in inspect.getsource(RequestResponseCycle.send)
    source = inspect.getsource(HttpToolsProtocol.on_headers_complete)
    assert "app = self.app" in source
    assert "self.cycle = RequestResponseCycle(" in source


def test_the_parser_gives_back_what_follows_an_upgrade() -> None:
    """It ends at the head, and says where the rest begins."""
    parser = httptools.HttpRequestParser(object())
    head = b"POST / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"
    with pytest.raises(httptools.HttpParserUpgrade) as upgrade:
        parser.feed_data(head + b"rest")
    assert upgrade.value.args == (len(head),)
    assert parser.should_upgrade()
