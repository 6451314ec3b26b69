"""Webhooks: allowed URLs, signatures and retries."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from email.utils import formatdate
from itertools import pairwise
from typing import Any

import pytest

from sdstream.core.delivery import Delivery
from sdstream.core.errors import InvalidRequest, Reason
from sdstream.service import webhooks as webhooks_module
from sdstream.service.webhooks import Webhooks, WebhookSettingsError, signature

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()


class Clock:
    """Unix seconds that change only when a test sets them."""

    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class MemoryOutbox:
    """An outbox in memory."""

    def __init__(self, *deliveries: Delivery) -> None:
        self.waiting = {delivery.id: delivery for delivery in deliveries}
        self.settled: list[str] = []
        self.put_offs: list[float] = []

    async def deliveries(self, limit: int) -> list[Delivery]:
        """Return up to ``limit`` deliveries in order of their next attempt."""
        return sorted(self.waiting.values(), key=lambda d: d.next_at)[:limit]

    async def put_off(self, delivery: Delivery, next_at: float) -> None:
        """Record a failed attempt and its next time."""
        self.put_offs.append(next_at)
        attempts = delivery.attempts + 1
        self.waiting[delivery.id] = Delivery(
            delivery.id, delivery.url, delivery.payload, attempts, next_at
        )

    async def settle(self, delivery: Delivery) -> None:
        """Remove a delivery."""
        del self.waiting[delivery.id]
        self.settled.append(delivery.id)


class Receiver:
    """A server that sends the given responses and records its requests."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.port = 0

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Accept requests on a free port."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        async with server:
            yield

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {n.lower(): v for n, _, v in (line.partition(": ") for line in head[1:-2])}
        body = await reader.readexactly(int(headers["content-length"]))
        self.requests.append((headers, body))
        answer = self.answers.pop(0) if self.answers else "200 OK"
        writer.write(f"HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n".encode())
        await writer.drain()
        writer.close()


def webhooks_of(outbox: MemoryOutbox, clock: Clock, **changes: Any) -> Webhooks:
    """Create webhooks that may use the loopback interface."""
    settings = {"hosts": ["127.0.0.1:*"], "secret": SECRET, "private": True, **changes}
    return Webhooks(outbox, clock=clock, steady=clock, **settings)


@asynccontextmanager
async def running(webhooks: Webhooks) -> AsyncIterator[None]:
    """Run webhooks for at most 20 seconds, and cancel them at the end."""
    task = asyncio.create_task(webhooks.run())
    try:
        async with asyncio.timeout(20):
            yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def deliver(
    receiver: Receiver,
    until: Callable[[MemoryOutbox], bool],
    *,
    url: str = "http://127.0.0.1:{port}/hook?a=b",
    **changes: Any,
) -> tuple[MemoryOutbox, Clock]:
    """Run webhooks with one delivery until the condition holds, moving the clock to each retry."""
    clock, outbox = Clock(), MemoryOutbox()

    async def run() -> None:
        async with receiver.listening():
            host = f"127.0.0.1:{receiver.port}"
            webhooks = webhooks_of(outbox, clock, **{"hosts": [host], **changes})
            message = Delivery("msg_1", url.format(port=receiver.port), b'{"a":1}', 0, clock())
            outbox.waiting["msg_1"] = message
            async with running(webhooks):
                while not until(outbox):
                    await asyncio.sleep(0.01)
                    pending = [d.next_at for d in outbox.waiting.values()]
                    if pending and min(pending) > clock.now:
                        clock.now = min(pending)
                        webhooks.notify()

    asyncio.run(run())
    return outbox, clock


def test_the_signature_is_the_standards() -> None:
    """The signature equals the example in the tests of the specification's libraries."""
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signed = signature(
        key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
    )  # fmt: skip
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_delivery_that_is_taken() -> None:
    """An accepted delivery is one POST with the standard's headers and is not repeated."""
    receiver = Receiver("204 No Content")
    outbox, clock = deliver(receiver, lambda outbox: outbox.settled == ["msg_1"])
    ((headers, body),) = receiver.requests
    assert json.loads(body) == {"a": 1}
    assert headers["content-type"] == "application/json"
    assert headers["host"] == f"127.0.0.1:{receiver.port}"
    assert (headers["webhook-id"], headers["webhook-timestamp"]) == ("msg_1", str(int(clock.now)))
    assert headers["webhook-signature"] == signature(b"k" * 32, "msg_1", int(clock.now), body)
    assert outbox.put_offs == []


def test_a_receiver_that_is_busy_is_tried_again() -> None:
    """Retries have the same id, growing pauses, and at least the pause of Retry-After."""
    receiver = Receiver(
        "500 Oops", "429 Later\r\nRetry-After: 900", "408 Slow", "503 Down", "200 OK"
    )
    outbox, _ = deliver(receiver, lambda outbox: bool(outbox.settled))
    assert len(receiver.requests) == 5
    assert {headers["webhook-id"] for headers, _ in receiver.requests} == {"msg_1"}
    starts = [1_000_000.0, *outbox.put_offs]
    pauses = [later - earlier for earlier, later in pairwise(starts)]
    for pause, least in zip(pauses, (5, 900, 120, 600), strict=True):
        assert least <= pause <= least * 1.2 + 1


@pytest.mark.parametrize("answer", ["400 No", "401 No", "404 No", "410 Gone", "302 Found"])
def test_a_receiver_that_refuses_is_left_alone(answer: str) -> None:
    """A redirect or a client error ends the delivery without a retry."""
    receiver = Receiver(f"{answer}\r\nLocation: /elsewhere")
    outbox, _ = deliver(receiver, lambda outbox: bool(outbox.settled))
    assert len(receiver.requests) == 1
    assert outbox.put_offs == []


def test_a_receiver_that_never_takes_it_is_given_up() -> None:
    """A delivery is given up after seven attempts over five hours."""
    receiver = Receiver(*["500 Oops"] * 20)
    outbox, clock = deliver(receiver, lambda outbox: bool(outbox.settled))
    assert len(receiver.requests) == 7
    assert 18_000 < clock.now - 1_000_000 < 25_000
    assert len(outbox.put_offs) == 6


@pytest.mark.parametrize("digits", ["9" * 5000, "0" * 5000])
def test_a_time_to_come_back_that_is_none(digits: str) -> None:
    """A Retry-After of thousands of digits is ignored, and the usual pause applies."""
    receiver = Receiver(f"503 Down\r\nRetry-After: {digits}", "200 OK")
    outbox, _ = deliver(receiver, lambda outbox: bool(outbox.settled))
    assert len(receiver.requests) == 2
    assert outbox.put_offs[0] - 1_000_000 < 10


def test_a_time_to_come_back_that_is_a_date() -> None:
    """A Retry-After with a date defers the next attempt until then."""
    date = formatdate(1_000_000 + 900, usegmt=True)
    receiver = Receiver(f"503 Down\r\nRetry-After: {date}", "200 OK")
    outbox, _ = deliver(receiver, lambda outbox: bool(outbox.settled))
    assert outbox.put_offs == [1_000_900.0]


def test_a_receiver_that_does_not_answer_delays_no_other() -> None:
    """While many deliveries wait for one receiver, those to another receiver are posted."""

    async def run() -> list[str]:
        open_ended: list[asyncio.StreamWriter] = []
        silent = await asyncio.start_server(lambda _, w: open_ended.append(w), "127.0.0.1", 0)
        port = silent.sockets[0].getsockname()[1]
        receiver, clock = Receiver(), Clock()
        async with receiver.listening():
            outbox = MemoryOutbox(
                *(
                    Delivery(f"msg_{k}", f"http://127.0.0.1:{port}/", b"{}", 0, clock() - 1)
                    for k in range(40)
                ),
                Delivery("msg_good", f"http://127.0.0.1:{receiver.port}/", b"{}", 0, clock()),
            )
            async with running(webhooks_of(outbox, clock)):
                while not outbox.settled or not open_ended:
                    await asyncio.sleep(0.01)
                assert len(open_ended) <= 2
        for writer in open_ended:
            writer.close()
        silent.close()
        return outbox.settled

    assert asyncio.run(run()) == ["msg_good"]


class SlowOutbox(MemoryOutbox):
    """An outbox whose answers take a few turns of the event loop."""

    async def deliveries(self, limit: int) -> list[Delivery]:
        """Return what was waiting at the beginning of the call."""
        found = await super().deliveries(limit)
        for _ in range(3):
            await asyncio.sleep(0)
        return found


@pytest.mark.parametrize("turns", range(6))
def test_a_delivery_that_comes_while_the_outbox_is_read(turns: int) -> None:
    """Each notification is noticed, whatever the loop was doing when it came."""

    async def run() -> None:
        receiver, clock, outbox = Receiver(), Clock(), SlowOutbox()
        async with receiver.listening():
            url = f"http://127.0.0.1:{receiver.port}/"
            webhooks = webhooks_of(outbox, clock)
            task = asyncio.create_task(webhooks.run())
            await asyncio.sleep(0.05)
            webhooks.notify()
            for _ in range(turns):
                await asyncio.sleep(0)
            outbox.waiting["msg_1"] = Delivery("msg_1", url, b"{}", 0, clock())
            webhooks.notify()
            async with asyncio.timeout(20):
                while not outbox.settled:
                    await asyncio.sleep(0.01)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    asyncio.run(run())


class HeldOutbox(MemoryOutbox):
    """An outbox that can hold back a list of deliveries that it has read."""

    def __init__(self, *deliveries: Delivery) -> None:
        super().__init__(*deliveries)
        self.free = asyncio.Event()
        self.free.set()
        self.read = asyncio.Event()

    async def deliveries(self, limit: int) -> list[Delivery]:
        """Return what was waiting at the beginning of the call, when ``free`` is set."""
        found = await super().deliveries(limit)
        self.read.set()
        await self.free.wait()
        return found


def test_a_delivery_that_is_taken_while_the_outbox_is_read() -> None:
    """It is not posted again, although the list still contains it."""

    async def run() -> list[str]:
        receiver, clock, outbox = Receiver(), Clock(), HeldOutbox()
        async with receiver.listening():
            url = f"http://127.0.0.1:{receiver.port}/"
            outbox.waiting["msg_1"] = Delivery("msg_1", url, b"{}", 0, 0.0)
            webhooks = webhooks_of(outbox, clock)
            async with running(webhooks):
                await outbox.read.wait()
                outbox.read.clear()
                outbox.free.clear()
                webhooks.notify()  # another job ended, so the outbox is read during the attempt
                await outbox.read.wait()
                while not outbox.settled:
                    await asyncio.sleep(0.01)
                outbox.waiting["msg_2"] = Delivery("msg_2", url, b"{}", 0, 0.0)
                outbox.free.set()
                while "msg_2" not in outbox.settled:
                    await asyncio.sleep(0.01)
        return [headers["webhook-id"] for headers, _ in receiver.requests]

    assert asyncio.run(run()) == ["msg_1", "msg_2"]


def test_a_try_put_off_by_a_clock_that_was_ahead() -> None:
    """An attempt that is days away is made at once, as no pause is that long."""

    async def run() -> None:
        receiver, clock, outbox = Receiver("200 OK"), Clock(), MemoryOutbox()
        async with receiver.listening():
            url = f"http://127.0.0.1:{receiver.port}/"
            outbox.waiting["msg_1"] = Delivery("msg_1", url, b"{}", 1, clock() + 259_200)
            async with running(webhooks_of(outbox, clock)):
                while outbox.waiting:
                    await asyncio.sleep(0.01)

    asyncio.run(run())


class NoSuchLookup(Webhooks):
    """Webhooks that accept every URL, as an earlier version may have stored one."""

    def check(self, url: str) -> None:
        """Accept the URL."""


def test_a_fault_ends_one_try_and_nothing_else() -> None:
    """An exception in the lookup of a host fails that attempt only; other deliveries are sent."""
    clock = Clock()

    async def run() -> MemoryOutbox:
        receiver = Receiver()
        async with receiver.listening():
            fine = f"http://127.0.0.1:{receiver.port}/"
            outbox = MemoryOutbox(
                Delivery("msg_bad", "http://a..example.test/", b"{}", 0, clock()),
                Delivery("msg_fine", fine, b"{}", 0, clock()),
            )
            webhooks = NoSuchLookup(
                outbox, hosts=["*"], secret=SECRET, private=True, clock=clock, steady=clock
            )
            task = asyncio.create_task(webhooks.run())
            async with asyncio.timeout(20):
                while not (outbox.settled and outbox.put_offs):
                    await asyncio.sleep(0.01)
            assert not task.done()
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        return outbox

    outbox = asyncio.run(run())
    assert outbox.settled == ["msg_fine"]
    assert outbox.waiting["msg_bad"].attempts == 1


class FullDisk(MemoryOutbox):
    """An outbox whose first writes fail."""

    faults = 0

    async def deliveries(self, limit: int) -> list[Delivery]:
        """Fail on the first call."""
        self._fail_until(1)
        return await super().deliveries(limit)

    async def settle(self, delivery: Delivery) -> None:
        """Fail once."""
        self._fail_until(2)
        await super().settle(delivery)

    def _fail_until(self, faults: int) -> None:
        if self.faults < faults:
            self.faults += 1
            raise sqlite3.OperationalError("database or disk is full")


def test_a_disk_that_takes_no_notes_delays_deliveries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The delivery is sent again under the same id until it is recorded."""
    monkeypatch.setattr(webhooks_module, "_FAULT_SECONDS", 0.01)
    receiver, clock, outbox = Receiver(), Clock(), FullDisk()

    async def run() -> None:
        async with receiver.listening():
            url = f"http://127.0.0.1:{receiver.port}/"
            outbox.waiting["msg_1"] = Delivery("msg_1", url, b"{}", 0, clock())
            async with running(webhooks_of(outbox, clock)):
                while not outbox.settled:
                    await asyncio.sleep(0.01)

    asyncio.run(run())
    assert [headers["webhook-id"] for headers, _ in receiver.requests] == ["msg_1", "msg_1"]


def test_a_slow_look_up_holds_up_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lookup does not use the event loop's default threads, which other work needs."""
    began, go_on = threading.Event(), threading.Event()

    def slow(*_args: object, **_options: object) -> list[Any]:
        began.set()
        go_on.wait(60)
        raise socket.gaierror("no such host")

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    clock, outbox = Clock(), MemoryOutbox()
    outbox.waiting["msg_1"] = Delivery("msg_1", "http://slow.example/", b"{}", 0, clock())

    async def run() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        task = asyncio.create_task(webhooks_of(outbox, clock, hosts=["slow.example"]).run())
        try:
            async with asyncio.timeout(20):
                while not began.is_set():
                    await asyncio.sleep(0.01)
                await asyncio.to_thread(int)
        finally:
            go_on.set()
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    asyncio.run(run())


def test_every_address_of_a_host_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A receiver that listens on the second address of its name gets the delivery."""

    def found(_host: str, port: int, **_options: object) -> list[Any]:
        return [(2, 1, 6, "", (address, port)) for address in ("127.0.0.9", "127.0.0.1")]

    receiver = Receiver()
    monkeypatch.setattr(socket, "getaddrinfo", found)
    outbox, _ = deliver(
        receiver,
        lambda outbox: bool(outbox.settled),
        url="http://two.example:{port}/",
        hosts=["two.example:*"],
    )
    assert outbox.put_offs == []


def test_private_addresses_are_not_reached() -> None:
    """Nothing is sent to a private address, given as a number or by a name."""
    for host in ("127.0.0.1", "localhost"):
        receiver = Receiver()
        url = f"http://{host}:{{port}}/"
        deliver(
            receiver,
            lambda outbox: len(outbox.put_offs) >= 1,
            url=url,
            hosts=["127.0.0.1:*", "localhost:*"],
            private=False,
        )
        assert receiver.requests == []


@pytest.mark.parametrize(
    "address",
    ["::1", "::7f00:1", "64:ff9b::a00:1", "2002:a00:1::", "fec0::1", "::ffff:10.0.0.1", "fe80::1"],
)
def test_private_addresses_in_ipv6(address: str) -> None:
    """An IPv6 address that stands for a private IPv4 address is not public."""
    assert not webhooks_module._is_public(address)
    assert webhooks_module._is_public("2606:4700::1111")
    assert webhooks_module._is_public("64:ff9b::808:808")


def test_a_host_that_is_allowed_no_more() -> None:
    """A host that is no longer allowed receives nothing, even if the URL was accepted earlier."""
    receiver = Receiver()
    deliver(receiver, lambda outbox: bool(outbox.settled), hosts=["other.example"])
    assert receiver.requests == []


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("https://ok.example/hook?a=1", None),
        ("http://OK.example/", None),
        ("https://a.b.wild.example/", None),
        ("http://port.example:8080/", None),
        ("http://any.example:1234/", None),
        ("http://port.example/", Reason.WEBHOOK_NOT_ALLOWED),
        ("https://ok.example:8443/", Reason.WEBHOOK_NOT_ALLOWED),
        ("https://wild.example/", Reason.WEBHOOK_NOT_ALLOWED),
        ("https://evilwild.example/", Reason.WEBHOOK_NOT_ALLOWED),
        ("https://ok.example.evil.example/", Reason.WEBHOOK_NOT_ALLOWED),
        ("https://user:pass@ok.example/", Reason.INVALID_VALUE),
        ("ftp://ok.example/", Reason.INVALID_VALUE),
        ("file:///etc/passwd", Reason.INVALID_VALUE),
        ("ok.example", Reason.INVALID_VALUE),
        ("https://", Reason.INVALID_VALUE),
        ("https://ok.example/a b", Reason.INVALID_VALUE),
        ("https://ok.example/\r\nX: y", Reason.INVALID_VALUE),
        ("https://ök.example/", Reason.INVALID_VALUE),
        ("https://ok.example:99999/", Reason.INVALID_VALUE),
        ("https://[::1/", Reason.INVALID_VALUE),
        ("https://a..wild.example/", Reason.INVALID_VALUE),
        (f"https://{'a' * 64}.wild.example/", Reason.INVALID_VALUE),
    ],
)
def test_urls_are_checked_when_they_come(url: str, reason: Reason | None) -> None:
    """A URL is accepted only if its host and port match an allowed pattern."""
    hosts = ["ok.example", "*.wild.example", "port.example:8080", "any.example:*"]
    webhooks = webhooks_of(MemoryOutbox(), Clock(), hosts=hosts)
    if reason is None:
        webhooks.check(url)
        return
    with pytest.raises(InvalidRequest) as caught:
        webhooks.check(url)
    assert (caught.value.reason, caught.value.param) == (reason, "webhook_url")


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("[2001:DB8::1]", "https://[2001:db8::1]/"),
        ("[::1]:8080", "http://[::1]:8080/"),
        ("[::1]:*", "http://[::1]:9/"),
        ("::1", "http://[::1]/"),
        ("OK.example:*", "http://ok.example:9/"),
    ],
)
def test_addresses_and_letters_of_hosts(host: str, url: str) -> None:
    """An IPv6 address and a name match regardless of case."""
    webhooks = webhooks_of(MemoryOutbox(), Clock(), hosts=[host])
    webhooks.check(url)
    with pytest.raises(InvalidRequest):
        webhooks.check("http://[::2]:8080/")


@pytest.mark.parametrize("host", ["https://ok.example", "ok.example:http", "a b", "a/b", "[::1"])
def test_hosts_that_would_match_nothing(host: str) -> None:
    """A pattern that is not a host is rejected at the start."""
    with pytest.raises(WebhookSettingsError, match="is not a host; write"):
        webhooks_of(MemoryOutbox(), Clock(), hosts=["ok.example", host])


def test_without_hosts_they_are_off() -> None:
    """Every URL is rejected, and no secret is required."""
    webhooks = webhooks_of(MemoryOutbox(), Clock(), hosts=[], secret=None)
    with pytest.raises(InvalidRequest, match="Webhooks are disabled"):
        webhooks.check("https://ok.example/")


@pytest.mark.parametrize("secret", [None, "", "k" * 40, "whsec_!!!", "whsec_aGFsbG8="])
def test_secrets_that_are_none(secret: str | None) -> None:
    """A missing or invalid secret is reported at the start."""
    with pytest.raises(WebhookSettingsError, match="webhook_secret"):
        webhooks_of(MemoryOutbox(), Clock(), secret=secret)
