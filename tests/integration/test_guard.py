"""Connections that are slow, endless or never read: each is cut, and only they are."""

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
    """The guard with deadlines that a test can wait for."""

    head_seconds = 0.4
    max_head_bytes = 4096
    body_seconds = 0.4
    body_rate = 100_000
    max_unread_bytes = 2 * 2**20
    stall_seconds = 0.4


async def read_all_then_answer(scope: Scope, receive: Receive, send: Send) -> None:
    """Take the whole body, then answer with its length, or with 8 MiB at /big.

    /refuse takes nothing of it, and /slow longer than the guard waits for any client.
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
    """The port of a server behind the impatient guard."""
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
    """What came until the server ended the connection."""
    received = b""
    try:
        while part := await reader.read(65536):
            received += part
    except ConnectionError:
        pass
    return received


def test_a_silent_connection_is_closed() -> None:
    """Who connects and says nothing is cut without an answer."""

    async def talk(reader: Reader, _writer: Writer) -> None:
        assert await until_cut(reader) == b""

    with_connection(talk)


def test_a_trickled_head_is_cut() -> None:
    """A byte now and then does not keep a connection alive."""

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
    """Headers are bounded in bytes."""

    async def talk(reader: Reader, writer: Writer) -> None:
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 10_000)
        assert await until_cut(reader) == b""

    with_connection(talk)


def test_a_body_that_does_not_come_is_cut() -> None:
    """The promised length does not hold a connection."""

    async def talk(reader: Reader, writer: Writer) -> None:
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\nabc")
        assert await until_cut(reader) == b""

    with_connection(talk)


def test_a_slow_but_steady_body_is_taken() -> None:
    """Each byte earns time: what keeps the rate may take longer than the first allowance."""

    async def talk(reader: Reader, writer: Writer) -> None:
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 200000\r\n\r\n")
        for _ in range(20):
            writer.write(b"x" * 10_000)
            await asyncio.sleep(0.06)
        assert (await reader.readuntil(b"200000")).startswith(b"HTTP/1.1 200")

    with_connection(talk)


def test_a_reader_that_stalls_is_cut() -> None:
    """An answer that nobody reads does not stay in memory."""

    async def talk(reader: Reader, writer: Writer) -> None:
        writer.write(b"GET /big HTTP/1.1\r\nhost: x\r\n\r\n")
        await asyncio.sleep(1.5)
        assert len(await until_cut(reader)) < BIG

    with_connection(talk)


def test_a_slow_reader_gets_every_byte() -> None:
    """Slow is not stalled."""

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
    """The deadlines begin anew with each request, and an answered one leaves none behind."""

    async def talk(reader: Reader, writer: Writer) -> None:
        for _ in range(3):
            writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc")
            assert (await reader.readuntil(b"\r\n\r\n3")).startswith(b"HTTP/1.1 200")
            await asyncio.sleep(0.6)

    with_connection(talk)


def test_requests_that_do_not_wait_for_answers() -> None:
    """Each gets its own, however long an earlier one takes and in whatever pieces it came."""

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
    """Its time begins with the answer to the request before it."""

    async def talk(reader: Reader, writer: Writer) -> None:
        writer.write(b"POST /slow HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc")
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nab")
        assert (await until_cut(reader)).endswith(b"\r\n\r\n3")

    with_connection(talk)


async def send_a_million(writer: Writer) -> None:
    """A body of so many bytes, in pieces that the server takes one by one."""
    for _ in range(10):
        writer.write(b"x" * 100_000)
        await writer.drain()
        await asyncio.sleep(0.01)


def test_a_body_that_nobody_reads_may_be_sent() -> None:
    """Who is refused at once and sends on finds the answer, and the connection still serves."""

    async def talk(reader: Reader, writer: Writer) -> None:
        for _ in range(3):
            writer.write(b"POST /refuse HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n")
            await send_a_million(writer)
            assert (await reader.readuntil(b"\r\n\r\n0")).startswith(b"HTTP/1.1 200")

    with_connection(talk)


def test_a_refused_client_that_wants_one_answer_gets_it() -> None:
    """Connection: close ends the connection after what the client sends, not within it."""

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
    """In time and in bytes."""

    async def talk(reader: Reader, writer: Writer) -> None:
        writer.write(b"POST /refuse HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n0")).startswith(b"HTTP/1.1 200")
        writer.write(b"x" * sent)
        assert await until_cut(reader) == b""

    with_connection(talk)


def test_after_an_unread_body_the_next_head_must_come() -> None:
    """A byte now and then keeps no connection alive there either."""

    async def talk(reader: Reader, writer: Writer) -> None:
        writer.write(b"POST /refuse HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n0")).startswith(b"HTTP/1.1 200")
        writer.write(b"x" * 9)
        assert await until_cut(reader) == b""

    with_connection(talk)
