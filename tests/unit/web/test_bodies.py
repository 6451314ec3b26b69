"""JSON bodies, forms, the Accept header and API keys."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import threading
import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.types import Message

from sdstream.core.errors import (
    InvalidRequest,
    NotAcceptable,
    PayloadTooLarge,
    Reason,
    UnsupportedMediaType,
)
from sdstream.web import bodies
from sdstream.web.bodies import Form, parse_json, read_form, read_json
from sdstream.web.credentials import offered_key
from sdstream.web.negotiation import accepted_image


def request_with(**headers: str) -> Request:
    """A request with these headers; underscores stand for hyphens."""
    raw = [(k.replace("_", "-").encode(), v.encode("latin-1")) for k, v in headers.items()]
    return Request({"type": "http", "headers": raw})


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"7", b'"x"', b"null", b'{"a": NaN}', b'{"a": Infinity}',
        b'{"a": -Infinity}', b'{"a": 1, "a": 2}', b"\xff\xfe{}", b'{"a": \xff}', b"{'a': 1}",
        b'{"a": 1,}', b'{"a": ' + b"9" * 5000 + b"}", b'{"a": ' + b"[" * 100_000, b"{}{}",
        b'{"a": 1e999}', b'{"a": [-1e999]}', b'{"a": 0.' + b"9" * 5000 + b"}",
    ],
)  # fmt: skip
def test_what_is_not_one_json_object(body: bytes) -> None:
    """Each body is rejected as invalid JSON, whatever the parser raises."""
    with pytest.raises(InvalidRequest) as caught:
        parse_json(body)
    assert caught.value.reason is Reason.INVALID_JSON


@pytest.mark.parametrize(("before", "after"), [("[", "]"), ('{"a":', "}")])
def test_levels_of_a_body(before: str, after: str) -> None:
    """A body may have 64 levels of objects and arrays; the error names the limit."""
    for levels, fine in ((63, True), (64, False), (980, False)):
        body = f'{{"foo": {before * levels}1{after * levels}}}'.encode()
        if fine:
            assert "foo" in parse_json(body)
            continue
        with pytest.raises(InvalidRequest, match="more than 64 levels") as caught:
            parse_json(body)
        assert caught.value.reason is Reason.INVALID_JSON


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('{"a": 1,\n}', r"the comma before '}' at character \d+; remove it"),
        ('{"a": [1, ]}', r"the comma before ']' at character \d+; remove it"),
        ('{"a": 1, // one\n"b": 2}', "// at character 9; JSON does not allow comments; remove it"),
        ('{"a": 1 # one\n}', "# at character 8; JSON does not allow comments; remove it"),
        ("{'a': 1}", "' at character 1; JSON allows double quotes only"),
        ('{"a": None}', "None at character 6; write null instead"),
        ('{"a": True}', "True at character 6; write true instead"),
        ('{"a" 1}', "Expecting ':' delimiter at character 5"),
        ("", "Expecting value at character 0"),
    ],
)
def test_what_to_do_about_it(body: str, words: str) -> None:
    """The message names a usual mistake with its remedy."""
    with pytest.raises(InvalidRequest, match=f"not valid JSON: {words}"):
        parse_json(body.encode())


@given(st.binary(max_size=60))
def test_no_bytes_are_a_fault_of_the_server(body: bytes) -> None:
    """Random bytes give an object or an InvalidRequest."""
    with contextlib.suppress(InvalidRequest):
        assert isinstance(parse_json(body), dict)


def test_a_repeated_name_is_found_at_once() -> None:
    """A duplicate key among tens of thousands is found in linear time."""
    names = ",".join(f'"{number}": 0' for number in range(40_000))
    began = time.monotonic()
    with pytest.raises(InvalidRequest, match="duplicate key '39999'"):
        parse_json(f'{{{names}, "39999": 1}}'.encode())
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("piece", [b"[],", b"{},", b"0,", b'"",', b"[" * 900 + b"]" * 900 + b","])
def test_bodies_of_structure_alone(piece: bytes) -> None:
    """A body of millions of small values is rejected before it is parsed."""
    body = b'{"x": [' + piece * (3_000_000 // len(piece)) + b"0]}"
    with pytest.raises(InvalidRequest, match="commas and brackets"):
        parse_json(body)


def test_prompts_of_commas_beside_a_picture() -> None:
    """The two longest prompts and megabytes of base64 are accepted."""
    body = {"prompt": "," * 32_000, "negative_prompt": "[" * 32_000, "image": "A" * 5_000_000}
    assert parse_json(json.dumps(body).encode()) == body


@pytest.mark.parametrize(("size", "beside"), [(1000, False), (3_000_000, True)])
def test_large_bodies_are_parsed_beside_the_loop(
    monkeypatch: pytest.MonkeyPatch, size: int, beside: bool
) -> None:
    """A large body is parsed on another thread, a small one on the event loop."""
    threads = []

    def noted(body: bytes) -> dict[str, Any]:
        threads.append(threading.current_thread())
        return parse_json(body)

    monkeypatch.setattr(bodies, "parse_json", noted)
    body = json.dumps({"image": "A" * size}).encode()

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    request = Request({"type": "http", "headers": []}, receive)
    assert len(asyncio.run(read_json(request, 2**26))["image"]) == size
    assert [thread is not threading.main_thread() for thread in threads] == [beside]


def test_objects_pass() -> None:
    """An object is parsed, even after a byte order mark."""
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
        ("image/*, image/png;q=0", "jpeg"),
        ("image/*;q=0, image/webp", "webp"),
        ("image/png;q=nan, image/webp", "webp"),
    ],
)
def test_accept(accept: str | None, found: str | None) -> None:
    """The supported type with the highest weight is chosen."""
    request = request_with(accept=accept) if accept is not None else request_with()
    assert accepted_image(request, 1) == found


@pytest.mark.parametrize(
    ("accept", "images", "found"),
    [(None, 1, "png"), ("*/*", 1, "png"), ("*/*", 2, None), ("application/json, */*", 1, None)],
)
def test_what_anything_means(accept: str | None, images: int, found: str | None) -> None:
    """A route may send a single image as a file to a client that accepts any type."""
    request = request_with(accept=accept) if accept is not None else request_with()
    assert accepted_image(request, images, anything="png") == found


@pytest.mark.parametrize(
    ("accept", "found"),
    [
        (None, None),
        ("image/*", "jpeg"),
        ("image/png, image/jpeg;q=0.1", "jpeg"),
        ("image/png, application/json;q=0.1", None),
        ("image/png, */*;q=0.1", None),
    ],
)
def test_accept_beside_an_output_format(accept: str | None, found: str | None) -> None:
    """The type must match both the Accept header and the output format."""
    request = request_with(accept=accept) if accept is not None else request_with()
    assert accepted_image(request, 1, output_format="jpeg") == found


@pytest.mark.parametrize("accept", ["image/png", "image/png, image/jpeg;q=0", "image/webp, a/b"])
def test_accept_against_an_output_format(accept: str) -> None:
    """A conflict between both is an error that names output_format."""
    with pytest.raises(NotAcceptable, match="'output_format' is jpeg") as caught:
        accepted_image(request_with(accept=accept), 1, output_format="jpeg")
    assert caught.value.param == "output_format"


def test_headers_on_several_lines() -> None:
    """Several header lines are read as one list."""
    lines = (b"text/html", b"image/webp")
    request = Request({"type": "http", "headers": [(b"accept", line) for line in lines]})
    assert accepted_image(request, 1) == "webp"


@pytest.mark.parametrize(
    ("accept", "images"),
    [("text/html", 1), ("image/gif", 1), ("image/png", 2)],
)
def test_what_cannot_be_answered(accept: str, images: int) -> None:
    """An unsupported type, or several images as one file, is not acceptable."""
    with pytest.raises(NotAcceptable):
        accepted_image(request_with(accept=accept), images)


def read_packed(data: bytes, coding: str = "gzip", limit: int = 1_000_000) -> dict[str, Any]:
    """Read an encoded body as JSON, in pieces."""
    pieces = [data[at : at + 1000] for at in range(0, len(data), 1000)] or [b""]

    async def receive() -> Message:
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    headers = [(b"content-encoding", line.encode()) for line in coding.split(";")]
    return asyncio.run(read_json(Request({"type": "http", "headers": headers}, receive), limit))


CAT = gzip.compress(b'{"prompt": "a cat"}', mtime=0)


@pytest.mark.parametrize("coding", ["gzip", "GZIP", "x-gzip", "identity, gzip", "gzip;identity"])
def test_packed_bodies(coding: str) -> None:
    """One gzip member is accepted in any spelling of the coding and any pieces."""
    assert read_packed(CAT, coding) == {"prompt": "a cat"}
    long = {"prompt": "".join(map(str, range(100_000)))}
    assert read_packed(gzip.compress(json.dumps(long).encode()), coding) == long


@pytest.mark.parametrize("coding", ["", "identity", "Identity, identity"])
def test_bodies_that_are_as_they_are(coding: str) -> None:
    """A body with the coding identity is read as it is."""
    assert read_packed(b'{"prompt": "a cat"}', coding) == {"prompt": "a cat"}


@pytest.mark.parametrize(
    ("coding", "named"),
    [("br", "br"), ("zstd", "zstd"), ("deflate", "deflate"), ("gzip, gzip", "gzip, gzip"),
     ("gzip;br", "gzip, br"), ("compress", "compress")],
)  # fmt: skip
def test_other_codings(coding: str, named: str) -> None:
    """The error names the unsupported codings."""
    with pytest.raises(UnsupportedMediaType, match=f"content encoding: {named};") as caught:
        read_packed(CAT, coding)
    assert caught.value.param == "Content-Encoding"


@pytest.mark.parametrize(
    "data",
    [
        b"", b'{"prompt": "a cat"}', CAT[:-1], CAT[:12], CAT + b"x", CAT + CAT, CAT + bytes(1),
        CAT[:-5] + b"\0" + CAT[-4:], CAT[:15] + b"\xff" + CAT[16:],
        CAT + bytes(1000 - len(CAT)) + b"x",
    ],
)  # fmt: skip
def test_damaged_gzip(data: bytes) -> None:
    """A truncated, changed or continued gzip body is rejected as a whole."""
    with pytest.raises(InvalidRequest) as caught:
        read_packed(data)
    assert caught.value.reason is Reason.INVALID_CODING


def test_bodies_that_inflate_to_more_than_the_limit() -> None:
    """A gzip bomb is rejected as soon as it exceeds the limit."""
    bomb = gzip.compress(bytes(2**28))
    tracemalloc.start()
    try:
        with pytest.raises(PayloadTooLarge, match="larger than 100000 bytes"):
            read_packed(bomb, limit=100_000)
        assert tracemalloc.get_traced_memory()[1] < 3 * len(bomb) + 2**21
    finally:
        tracemalloc.stop()
    blocks = gzip.compress(b"", mtime=0)[:10] + b"\0\0\0\xff\xff" * 40_000  # empty blocks
    with pytest.raises(PayloadTooLarge):
        read_packed(blocks, limit=100_000)


def test_packed_bodies_up_to_the_limit() -> None:
    """The limit applies to the decompressed bytes."""
    body = json.dumps({"prompt": "a" * 5_000}).encode()
    assert read_packed(gzip.compress(body, mtime=0), limit=len(body))["prompt"] == "a" * 5_000
    with pytest.raises(PayloadTooLarge):
        read_packed(gzip.compress(body, mtime=0), limit=len(body) - 1)


END = "--xyz--\r\n"


def part(name: str, value: str, filename: str | None = None) -> str:
    """Build one part of a form."""
    more = f'; filename="{filename}"' if filename is not None else ""
    return f'--xyz\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n{value}\r\n'


def read(body: str, content_type: str = "multipart/form-data; boundary=xyz") -> Form:
    """Read a body as a form, in pieces, with a limit of a million bytes."""
    data = body.encode()
    step = 7 if len(data) < 10_000 else 65_536
    pieces = [data[at : at + step] for at in range(0, len(data), step)] or [b""]

    async def receive() -> Message:
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    scope = {"type": "http", "headers": [(b"content-type", content_type.encode())]}
    return asyncio.run(read_form(Request(scope, receive), 1_000_000))


def test_a_whole_form() -> None:
    """Fields are read by name and files in order; a repeated field needs the same value."""
    form = read(
        part("prompt", "a cat")
        + part("image[]", "one", "a.png")
        + part("image[]", "two", "upload")
        + part("n", "2")
        + part("n", "2")
        + END
    )
    assert form.fields == {"prompt": "a cat", "n": "2"}
    assert [(file.param, file.data) for file in form.files] == [
        ("image[]", b"one"),
        ("image[]", b"two"),
    ]


def test_file_fields_that_were_left_empty() -> None:
    """A file field without filename and data, as browsers send it, is ignored."""
    form = read(
        part("mask", "", "") + part("image", "", "a.png") + part("control", "data", "") + END
    )
    assert [(file.param, file.data) for file in form.files] == [
        ("image", b""),
        ("control", b"data"),
    ]


@pytest.mark.parametrize(
    "body",
    [
        "",
        "garbage",
        part("prompt", "a cat"),
        part("image", "data", "a.png").removesuffix("\r\n"),
        "--xyz\r\nContent-Disposition: form-data\r\n\r\nx\r\n" + END,
        part("prompt", "x" * 200_000) + END,
        "".join(part(f"f{i}", "x") for i in range(129)) + END,
        "".join(part(f"f{i}", "x", "a.png") for i in range(18)) + END,
    ],
)
def test_broken_forms(body: str) -> None:
    """A truncated, unnamed, too long or too large form is rejected as a whole."""
    with pytest.raises(InvalidRequest) as caught:
        read(body)
    assert caught.value.reason is Reason.INVALID_FORM


def test_a_field_with_two_values() -> None:
    """A field with two different values is rejected."""
    with pytest.raises(InvalidRequest) as caught:
        read(part("n", "1") + part("n", "2") + END)
    assert caught.value.param == "n"


def test_forms_that_are_none() -> None:
    """Another content type, a missing boundary and a body over the limit are rejected."""
    with pytest.raises(UnsupportedMediaType):
        read("{}", "application/json")
    with pytest.raises(InvalidRequest):
        read("--xyz--", "multipart/form-data")
    with pytest.raises(PayloadTooLarge):
        read(part("image", "x" * 1_000_001, "a") + END)


@pytest.mark.parametrize(
    ("headers", "valid"),
    [
        ({"authorization": "Bearer right"}, True),
        ({"authorization": "bearer  right "}, True),
        ({"x_api_key": "right"}, True),
        ({"api_key": "right"}, True),
        ({"x_api_key": "", "api_key": "right"}, True),
        ({"api_key": "wrong"}, False),
        ({"authorization": "Bearer wrong"}, False),
        ({"authorization": "Basic right"}, False),
        ({"authorization": "right"}, False),
        ({"authorization": "Bearer r\u00efght"}, False),
        ({}, False),
    ],
)
def test_keys(headers: dict[str, Any], valid: bool) -> None:
    """A key is read from a bearer token, X-API-Key or Azure's api-key header."""
    assert (offered_key(request_with(**headers)) == "right") is valid
