"""Heads of requests that servers interpret differently, and clients of HTTP/1.0."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.integration.test_guard import Reader, Writer, until_cut, with_connection
from tests.support.servers import ServerProcess

OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
NEXT = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
CHUNKS = b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"


def said(*pieces: bytes, to: tuple[str, int] | None = None) -> bytes:
    """Send pieces, each as a separate segment, and return everything that the server answers.

    Args:
        pieces: The pieces to send.
        to: The server's address; None is a server that answers with the length of the body.
    """
    answers: list[bytes] = []

    async def talk(reader: Reader, writer: Writer) -> None:
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0.1)
        answers.append(await until_cut(reader))

    async def directly(address: tuple[str, int]) -> None:
        reader, writer = await asyncio.open_connection(*address)
        try:
            await asyncio.wait_for(talk(reader, writer), 20)
        finally:
            writer.close()

    if to is None:
        with_connection(talk)
    else:
        asyncio.run(directly(to))
    return answers[0]


def statuses(answer: bytes) -> list[int]:
    """Return the status of each answer on a connection."""
    return [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]


@pytest.mark.parametrize(
    ("head", "body"),
    [(b"content-length: 5\r\n", b"hello"), (b"transfer-encoding: chunked\r\n", CHUNKS)],
)
def test_an_upgrade_that_is_offered_is_ignored(head: bytes, body: bytes) -> None:
    """An offered upgrade is ignored: the body and the next request are read as usual."""
    first = b"POST / HTTP/1.1\r\nhost: x\r\n" + OFFER + head + b"\r\n"
    for pieces in (
        (first + body + NEXT,),
        (first, body, NEXT),
        (first + body[:1], body[1:] + NEXT),
        (first[:60], first[60:] + body[:3], body[3:] + NEXT),
    ):
        answer = said(*pieces)
        assert statuses(answer) == [200, 200]
        assert b"\r\n\r\n5HTTP" in answer


def test_a_body_is_never_a_request() -> None:
    """The body of a request is never served as another request."""
    hidden = b"DELETE / HTTP/1.1\r\nhost: x\r\n\r\n"
    length = b"content-length: %d\r\n\r\n" % len(hidden)
    head = b"POST / HTTP/1.1\r\nhost: x\r\n" + OFFER + length
    answer = said(head, hidden, NEXT)
    assert statuses(answer) == [200, 200]
    assert b"\r\n\r\n%dHTTP" % len(hidden) in answer


def test_an_upgrade_without_a_body() -> None:
    """An upgrade without a body is ignored, pipelined or with ``Connection: close``."""
    offer = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
    assert statuses(said(offer + offer + NEXT)) == [200, 200, 200]
    last = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close, upgrade\r\nupgrade: h2c\r\n\r\n"
    assert statuses(said(last + NEXT)) == [200]


def test_connect_is_for_proxies() -> None:
    """CONNECT gets a 400, and nothing that follows it is served."""
    assert statuses(said(b"CONNECT x:1 HTTP/1.1\r\nhost: x:1\r\n\r\n" + NEXT)) == [400]


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"POST / HTTP/1.1\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: x\r\nHost: x\r\n", 400),
        (b"POST / HTTP/1.0\r\nhost: x\r\nHost: y\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: x/y\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost:\r\n", 200),
        (b"POST / HTTP/1.1\r\nhost: [::1]:80\r\n", 200),
        (b"POST / HTTP/1.0\r\n", 200),
    ],
)
def test_hosts(head: bytes, status: int) -> None:
    """An invalid Host gets a 400 and ends the connection; HTTP/1.0 may omit it."""
    answer = said(head + b"content-length: 5\r\n\r\n", b"hello", NEXT)
    assert statuses(answer) == ([status] if status == 400 or b"1.0" in head else [200, 200])
    if status == 400:
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["reason"] == "invalid_http"


@pytest.mark.parametrize(
    ("version", "coding", "status"),
    [
        (b"1.1", b"gzip, chunked", 501),
        (b"1.1", b"identity, chunked", 501),
        (b"1.1", b"chunked", 200),
        (b"1.1", b"Chunked", 200),
        (b"1.0", b"chunked", 400),
    ],
)
def test_transfer_codings(version: bytes, coding: bytes, status: int) -> None:
    """The only accepted transfer coding is ``chunked``, in HTTP/1.1."""
    head = b"POST / HTTP/%b\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: %b\r\n\r\n"
    assert statuses(said(head % (version, coding) + CHUNKS + NEXT)) == [status]


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_stream_for_a_client_that_wants_the_end(fake_server: ServerProcess, version: str) -> None:
    """A stream is chunked only in HTTP/1.1.

    ``Connection: close`` is answered with one such header.
    """
    body = json.dumps({"prompt": "x", "size": "64x64", "sample_steps": 2, "stream": True}).encode()
    head = (
        f"POST /v1/images/generations HTTP/{version}\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    answer = said(head.encode() + body, to=fake_server.address)
    headers, _, rest = answer.partition(b"\r\n\r\n")
    lines = headers.lower().split(b"\r\n")
    assert [line for line in lines if line.startswith(b"connection")] == [b"connection: close"]
    assert (b"transfer-encoding: chunked" in lines) == (version == "1.1")
    assert rest.startswith(b"data: ") == (version == "1.0")
    assert rest.endswith(b"data: [DONE]\n\n" if version == "1.0" else b"0\r\n\r\n")


def test_plain_answers_of_http_1_0(fake_server: ServerProcess) -> None:
    """An answer to HTTP/1.0 has no chunks; HEAD has no body."""
    answer = said(b"GET /livez HTTP/1.0\r\n\r\n", to=fake_server.address)
    assert answer.endswith(b'\r\n\r\n{"status":"ok"}')
    assert said(b"HEAD /livez HTTP/1.0\r\n\r\n", to=fake_server.address).endswith(b"\r\n\r\n")
