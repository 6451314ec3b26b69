"""Connections that are slow, endless or unread are closed, and no others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from sdstream.web.protocol import TimeoutProtocol
from tests.support.servers import free_port

BIG = 8 * 2**20
Reader: TypeAlias = asyncio.StreamReader
Writer: TypeAlias = asyncio.StreamWriter


class Impatient(TimeoutProtocol):
    """The protocol with time limits that are short enough for a test."""

    head_seconds = 0.4
    max_head_bytes = 4096
    body_seconds = 0.4
    body_rate = 100_000
    max_unread_bytes = 2 * 2**20
    stall_seconds = 0.4


async def read_all_then_answer(scope: Scope, receive: Receive, send: Send) -> None:
    """Read the whole body and answer with its length, or with 8 MiB at /big.

    /refuse reads no body, and /slow takes longer than any of the time limits.
    """
    assert scope["type"] == "http"
    size, more = 0, scope["path"] != "/refuse"
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    if scope["path"] == "/slow":
        await asyncio.sleep(1.5)
    body = b"x" * BIG if scope["path"] == "/big" else str(size).encode()
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def guarded() -> AsyncIterator[int]:
    """Run a server with the impatient protocol; yield its port."""
    port = free_port()
    config = uvicorn.Config(
        read_all_then_answer, port=port, http=Impatient, lifespan="off", log_config=None
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    yield port
    server.should_exit = True
    await task


def with_connection(talk: Callable[[Reader, Writer], Awaitable[None]]) -> None:
    """Run a conversation with the guarded server."""

    async def run() -> None:
        async with guarded() as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                await asyncio.wait_for(talk(reader, writer), 10)
            finally:
                writer.close()

    asyncio.run(run())


async def until_cut(reader: Reader) -> bytes:
    """Return what the server sends until it closes the connection."""
    received = b""
    try:
        while part := await reader.read(65536):
            received += part
    except ConnectionError:
        pass
    return received


def test_a_silent_connection_is_closed() -> None:
    """A client that connects and sends nothing is disconnected without an answer."""

    async def talk(reader: Reader, _writer: Writer) -> None:
        assert await until_cut(reader) == b""

    with_connection(talk)


def test_a_trickled_head_is_cut() -> None:
    """A head that arrives byte by byte does not keep a connection open."""

    async def talk(reader: Reader, writer: Writer) -> None:
        async def trickle() -> None:
            for byte in b"POST / HTTP/1.1\r\nhost: x\r\n" + b"x: y\r\n" * 100:
                writer.write(bytes((byte,)))
                await asyncio.sleep(0.05)

        sending = asyncio.create_task(trickle())
        assert await until_cut(reader) == b""
        sending.cancel()

    with_connection(talk)


def test_a_head_that_is_too_long_is_cut() -> None:
    """A head with too many bytes closes the connection."""

    async def talk(reader: Reader, writer: Writer) -> None:
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 10_000)
        assert await until_cut(reader) == b""

    with_connection(talk)


def test_a_body_that_does_not_come_is_cut() -> None:
    """A connection is closed when the declared body does not arrive."""

    async def talk(reader: Reader, writer: Writer) -> None:
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\nabc")
        assert await until_cut(reader) == b""

    with_connection(talk)


def test_a_slow_but_steady_body_is_taken() -> None:
    """A body at the required rate may take longer than ``body_seconds``."""

    async def talk(reader: Reader, writer: Writer) -> None:
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 200000\r\n\r\n")
        for _ in range(20):
            writer.write(b"x" * 10_000)
            await asyncio.sleep(0.06)
        assert (await reader.readuntil(b"200000")).startswith(b"HTTP/1.1 200")

    with_connection(talk)


def test_a_reader_that_stalls_is_cut() -> None:
    """A client that stops reading its answer is disconnected."""

    async def talk(reader: Reader, writer: Writer) -> None:
        writer.write(b"GET /big HTTP/1.1\r\nhost: x\r\n\r\n")
        await asyncio.sleep(1.5)
        assert len(await until_cut(reader)) < BIG

    with_connection(talk)


def test_a_slow_reader_gets_every_byte() -> None:
    """A client that reads slowly gets the whole answer."""

    async def talk(reader: Reader, writer: Writer) -> None:
        writer.write(b"GET /big HTTP/1.1\r\nhost: x\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        left = BIG
        while left:
            part = await reader.read(min(left, 512 * 1024))
            assert part
            left -= len(part)
            await asyncio.sleep(0.05)

    with_connection(talk)


def test_one_connection_serves_many_requests() -> None:
    """The time limits begin again with each request, and end with its answer."""

    async def talk(reader: Reader, writer: Writer) -> None:
        for _ in range(3):
            writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc")
            assert (await reader.readuntil(b"\r\n\r\n3")).startswith(b"HTTP/1.1 200")
            await asyncio.sleep(0.6)

    with_connection(talk)


def test_requests_that_do_not_wait_for_answers() -> None:
    """Pipelined requests each get their answer, in whatever pieces they arrive."""

    async def talk(reader: Reader, writer: Writer) -> None:
        first = b"POST /slow HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc"
        head = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n"
        for piece in (first, head, b"ab", b"cde" + head[:20], head[20:] + b"abcd"):
            writer.write(piece)
            await asyncio.sleep(0.1)
        assert (await reader.readuntil(b"\r\n\r\n3")).startswith(b"HTTP/1.1 200")
        assert (await reader.readuntil(b"\r\n\r\n5")).startswith(b"HTTP/1.1 200")
        writer.write(b"e")
        assert (await reader.readuntil(b"\r\n\r\n5")).startswith(b"HTTP/1.1 200")

    with_connection(talk)


def test_a_later_body_that_does_not_come_is_cut() -> None:
    """The time for a pipelined body begins with the answer to the request before it."""

    async def talk(reader: Reader, writer: Writer) -> None:
        writer.write(b"POST /slow HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc")
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nab")
        assert (await until_cut(reader)).endswith(b"\r\n\r\n3")

    with_connection(talk)


async def send_a_million(writer: Writer) -> None:
    """Send a body of a million bytes in pieces that the server reads one by one."""
    for _ in range(10):
        writer.write(b"x" * 100_000)
        await writer.drain()
        await asyncio.sleep(0.01)


def test_a_body_that_nobody_reads_may_be_sent() -> None:
    """A client may send the rest of a rejected body; the connection stays usable."""

    async def talk(reader: Reader, writer: Writer) -> None:
        for _ in range(3):
            writer.write(b"POST /refuse HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n")
            await send_a_million(writer)
            assert (await reader.readuntil(b"\r\n\r\n0")).startswith(b"HTTP/1.1 200")

    with_connection(talk)


def test_a_refused_client_that_wants_one_answer_gets_it() -> None:
    """``Connection: close`` takes effect after the client has sent a rejected body."""

    async def talk(reader: Reader, writer: Writer) -> None:
        writer.write(b"POST /refuse HTTP/1.1\r\nhost: x\r\nconnection: close\r\n")
        writer.write(b"content-length: 1000000\r\n\r\n")
        await send_a_million(writer)
        answer = await until_cut(reader)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"\r\nconnection: close\r\n" in answer
        assert answer.endswith(b"\r\n\r\n0")

    with_connection(talk)


@pytest.mark.parametrize("sent", [1000, 8 * 2**20])
def test_a_body_that_nobody_reads_is_bounded(sent: int) -> None:
    """An unread body is limited in time and in bytes."""

    async def talk(reader: Reader, writer: Writer) -> None:
        writer.write(b"POST /refuse HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n0")).startswith(b"HTTP/1.1 200")
        writer.write(b"x" * sent)
        assert await until_cut(reader) == b""

    with_connection(talk)


def test_after_an_unread_body_the_next_head_must_come() -> None:
    """A connection is closed if no head follows an unread body in time."""

    async def talk(reader: Reader, writer: Writer) -> None:
        writer.write(b"POST /refuse HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n0")).startswith(b"HTTP/1.1 200")
        writer.write(b"x" * 9)
        assert await until_cut(reader) == b""

    with_connection(talk)
