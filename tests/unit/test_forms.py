"""Strict JSON, Accept and keys."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from app.core.errors import InvalidRequest, NotAcceptable, Reason
from app.web.forms import accepted_image, has_valid_key, parse_json


def request_with(**headers: str) -> Request:
    """A request with these headers, underscores for hyphens."""
    raw = [(k.replace("_", "-").encode(), v.encode("latin-1")) for k, v in headers.items()]
    return Request({"type": "http", "headers": raw})


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"7", b'"x"', b"null", b'{"a": NaN}', b'{"a": Infinity}',
        b'{"a": -Infinity}', b'{"a": 1, "a": 2}', b"\xff\xfe{}", b'{"a": \xff}', b"{'a': 1}",
        b'{"a": 1,}', b'{"a": ' + b"9" * 5000 + b"}", b'{"a": ' + b"[" * 100_000, b"{}{}",
    ],
)  # fmt: skip
def test_what_is_not_one_json_object(body: bytes) -> None:
    """Each is a 400 of its own reason, whatever the parser would have raised."""
    with pytest.raises(InvalidRequest) as caught:
        parse_json(body)
    assert caught.value.reason is Reason.INVALID_JSON


@given(st.binary(max_size=60))
def test_no_bytes_are_a_fault_of_the_server(body: bytes) -> None:
    """Random bytes are an object or an InvalidRequest."""
    with contextlib.suppress(InvalidRequest):
        assert isinstance(parse_json(body), dict)


def test_objects_pass() -> None:
    """A byte order mark is what some editors put before one."""
    assert parse_json(b'\xef\xbb\xbf{"a": [1, {"b": "\\u732b"}]}') == {"a": [1, {"b": "猫"}]}


@pytest.mark.parametrize(
    ("accept", "found"),
    [
        (None, None),
        ("", None),
        ("*/*", None),
        ("application/json", None),
        ("text/event-stream", None),
        ("image/png", "png"),
        ("image/*", "png"),
        ("IMAGE/JPEG", "jpeg"),
        ("image/webp, */*;q=0.1", "webp"),
        ("image/png;q=0.1, application/json", None),
        ("text/html, image/webp;q=0.9", "webp"),
    ],
)
def test_accept(accept: str | None, found: str | None) -> None:
    """The best of what is named and can be answered decides."""
    request = request_with(accept=accept) if accept is not None else request_with()
    assert accepted_image(request, 1) == found


@pytest.mark.parametrize(
    ("accept", "images"), [("text/html", 1), ("image/gif", 1), ("image/png", 2)]
)
def test_what_cannot_be_answered(accept: str, images: int) -> None:
    """Another type, or several images as one file."""
    with pytest.raises(NotAcceptable):
        accepted_image(request_with(accept=accept), images)


@pytest.mark.parametrize(
    ("headers", "valid"),
    [
        ({"authorization": "Bearer right"}, True),
        ({"authorization": "bearer  right "}, True),
        ({"x_api_key": "right"}, True),
        ({"authorization": "Bearer wrong"}, False),
        ({"authorization": "Basic right"}, False),
        ({"authorization": "right"}, False),
        ({"authorization": "Bearer r\u00efght"}, False),
        ({}, False),
    ],
)
def test_keys(headers: dict[str, Any], valid: bool) -> None:
    """One of the keys as a bearer token or in X-API-Key; anything else is none."""
    assert has_valid_key(request_with(**headers), ["other", "right"]) is valid
