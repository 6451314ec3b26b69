"""Webhooks: each posts a job's end to a server, signed as in https://www.standardwebhooks.com.

Only hosts that the operator named are called, and unless the operator allows it none whose address
is private: a webhook must not reach what only this machine can reach. The address is checked when
the connection is made, so that a name cannot be resolved to one thing for the check and to another
for the call; redirects are not followed, for the same reason.

A delivery is a row of the store, written together with the end of its job, and tried until the
other side accepts it, rejects it for good, or was tried often enough.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import ipaddress
import logging
import random
import socket
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import httpcore2

from sdstream.core.delivery import Delivery
from sdstream.core.errors import ConfigurationError, ImageServiceError, InvalidRequest, Reason
from sdstream.core.job import Job
from sdstream.dialects.jobs import ending_message
from sdstream.notifier import Notifier

logger = logging.getLogger(__name__)

#: Seconds before the second try, the third …; after the last one a delivery is given up.
_PAUSES: Final = (5, 30, 120, 600, 3600, 14_400)
_JITTER: Final = 0.2
_LONGEST_RETRY_AFTER: Final = 86_400
#: Of Retry-After; int() raises for thousands.
_MAX_DIGITS: Final = 20
_TIMEOUT_SECONDS: Final = 10.0
_AT_ONCE: Final = 4
#: Names that are looked up at once: more than are tried, since a look-up outlives its try.
_LOOKUPS: Final = 16
#: A look at the outbox although nothing was said, in case a clock was set.
_IDLE_SECONDS: Final = 300.0
#: While the store cannot be written: the ends of jobs wait there too.
_STORE_SECONDS: Final = 1.0
#: After any other fault.
_FAULT_SECONDS: Final = 60.0

_SECRET_PREFIX: Final = "whsec_"  # noqa: S105  of secrets, and none itself
#: What may be better in a while: a wait, too early, too many.
_TRY_AGAIN: Final = frozenset({408, 425, 429})


class WebhookSettingsError(ConfigurationError):
    """The webhook settings cannot be used; the message contains the reason."""


def delivery_of(job: Job) -> Delivery | None:
    """The message of a job's end, due at once; None for a job without a webhook."""
    if job.terms.webhook_url is None:
        return None
    return Delivery(f"msg_{job.id}", job.terms.webhook_url, ending_message(job), 0, 0.0)


class Outbox(Protocol):
    """Where deliveries wait (storage.job_store.JobStore)."""

    async def deliveries(self, limit: int) -> list[Delivery]:
        """The next deliveries, the most urgent first."""

    async def put_off(self, delivery: Delivery, next_at: float) -> None:
        """Note a try that failed."""

    async def settle(self, delivery: Delivery) -> None:
        """Note that nothing more is to be done."""


class Webhooks:
    """Checks the URLs of requests and delivers what is in the outbox.

    Args:
        outbox: Where deliveries wait.
        hosts: Which may be called: ``host``, ``host:port``, ``host:*`` or ``*.host``; none is off.
        secret: ``whsec_`` and base64, of which receivers know.
        private: Loopback and private addresses are no obstacle.
        clock: Unix seconds, by which receivers judge how old a message is.
        steady: Unix seconds by which tries are deferred; setting the clock does not change it.

    Raises:
        WebhookSettingsError: Hosts without a secret, or a secret of another form.
    """

    def __init__(
        self,
        outbox: Outbox,
        *,
        hosts: Sequence[str],
        secret: str | None,
        private: bool,
        clock: Callable[[], float],
        steady: Callable[[], float],
    ) -> None:
        self._outbox = outbox
        self._hosts = tuple(host.lower() for host in hosts)
        self._key = _key_of(secret) if hosts else b""
        self._private = private
        self._clock = clock
        self._steady = steady
        self._changed = Notifier()

    def check(self, url: str) -> None:
        """Raise InvalidRequest for a ``webhook_url`` that will never be posted to."""
        if not self._hosts:
            raise _refused("This server posts to no webhooks.", Reason.WEBHOOK_NOT_ALLOWED)
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
            if host and url.isascii():
                host.encode("idna")  # as the look-up does, which raises for "a..b"
        except ValueError:
            host, port = None, None
            parts = urlsplit("")
        if not host or parts.scheme not in ("http", "https") or not url.isascii():
            raise _refused("'webhook_url' must be an http or https URL.", Reason.INVALID_VALUE)
        if parts.username is not None or any(character <= " " for character in url):
            raise _refused("'webhook_url' must hold no password or space.", Reason.INVALID_VALUE)
        usual = 443 if parts.scheme == "https" else 80
        if not any(_names(pattern, host, port or usual, usual) for pattern in self._hosts):
            raise _refused("This server posts to no such host.", Reason.WEBHOOK_NOT_ALLOWED)

    def notify(self) -> None:
        """There may be something in the outbox."""
        self._changed.notify()

    async def run(self) -> None:
        """Deliver until cancelled."""
        if not self._hosts:
            return
        # Not the loop's own threads, which all else needs: a look-up may take half a minute.
        lookups = ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="lookup")
        backend = _CheckedBackend(lookups, allow_private=self._private)
        try:
            async with httpcore2.AsyncConnectionPool(network_backend=backend) as pool:
                await self._deliver_on(pool)
        finally:
            lookups.shutdown(wait=False, cancel_futures=True)

    async def _deliver_on(self, pool: httpcore2.AsyncConnectionPool) -> None:
        """Deliver what is due, and again whenever something is."""
        while True:
            changed = asyncio.ensure_future(self._changed.wait())
            try:
                try:
                    seconds = await self._deliver(pool)
                except ImageServiceError:
                    seconds = _STORE_SECONDS
                except Exception:
                    logger.exception("webhooks wait after a fault")
                    seconds = _FAULT_SECONDS
                with suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        await changed
            finally:
                changed.cancel()

    async def _deliver(self, pool: httpcore2.AsyncConnectionPool) -> float:
        """Try what is due; returns the seconds until something else is."""
        while True:
            waiting = await self._outbox.deliveries(_AT_ONCE)
            now = self._steady()
            # One that waits longer than any does was deferred by a clock that was ahead.
            due = [one for one in waiting if not now < one.next_at <= now + _LONGEST_RETRY_AFTER]
            if not due:
                first = min((delivery.next_at for delivery in waiting), default=None)
                wait = _IDLE_SECONDS if first is None else first - now
                return min(_IDLE_SECONDS, max(0.0, wait))
            tries = (self._try(pool, delivery) for delivery in due)
            # All are waited for: one that went on alone would be begun a second time.
            for fault in await asyncio.gather(*tries, return_exceptions=True):
                if fault is not None:
                    raise fault

    async def _try(self, pool: httpcore2.AsyncConnectionPool, delivery: Delivery) -> None:
        try:
            self.check(delivery.url)  # the settings may be others than when it was accepted
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                status, retry_after = await self._post(pool, delivery)
        except InvalidRequest as error:
            logger.warning("webhook %s is given up: %s", delivery.id, error.message)
            await self._outbox.settle(delivery)
            return
        except (OSError, TimeoutError, httpcore2.NetworkError, httpcore2.TimeoutException,
                httpcore2.ProtocolError) as error:  # fmt: skip
            status, retry_after = 0, None
            logger.info("webhook %s: %s", delivery.id, error or type(error).__name__)
        except Exception:
            status, retry_after = 0, None
            logger.exception("webhook %s: the try failed by a fault", delivery.id)
        if 200 <= status < 300:
            await self._outbox.settle(delivery)
        elif status and status < 500 and status not in _TRY_AGAIN:
            logger.warning("webhook %s is given up: it was answered %d", delivery.id, status)
            await self._outbox.settle(delivery)
        elif delivery.attempts >= len(_PAUSES):
            logger.warning("webhook %s is given up after %d tries", delivery.id, len(_PAUSES) + 1)
            await self._outbox.settle(delivery)
        else:
            pause = _PAUSES[delivery.attempts] * random.uniform(1, 1 + _JITTER)  # noqa: S311
            pause = max(pause, retry_after or 0)
            await self._outbox.put_off(delivery, self._steady() + pause)

    async def _post(
        self, pool: httpcore2.AsyncConnectionPool, delivery: Delivery
    ) -> tuple[int, int | None]:
        """Status and Retry-After of one try; the answer's body is left unread."""
        second = int(self._clock())
        headers: dict[bytes | str, bytes | str] = {
            "Host": urlsplit(delivery.url).netloc,
            "Content-Type": "application/json",
            "User-Agent": "sdstream",
            "webhook-id": delivery.id,
            "webhook-timestamp": str(second),
            "webhook-signature": signature(self._key, delivery.id, second, delivery.payload),
            "Connection": "close",
        }
        async with pool.stream(
            "POST", delivery.url, headers=headers, content=delivery.payload
        ) as answer:
            return answer.status, _retry_after(answer.headers)


class _CheckedBackend(httpcore2.AnyIOBackend):
    """Connects to public addresses only, unless told otherwise; looks names up in ``lookups``."""

    def __init__(self, lookups: Executor, *, allow_private: bool) -> None:
        self._lookups = lookups
        self._allow_private = allow_private

    async def connect_tcp(self, host: str, port: int, *args: Any, **options: Any) -> Any:
        loop = asyncio.get_running_loop()
        look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found = await loop.run_in_executor(self._lookups, look_up)
        addresses = [str(address[4][0]) for address in found]
        if not self._allow_private and not all(_is_public(address) for address in addresses):
            raise OSError(f"{host} has an address that is not public")
        # The address that was looked at, and not the name again; TLS still checks the name.
        return await super().connect_tcp(addresses[0], port, *args, **options)


def signature(key: bytes, message_id: str, second: int, payload: bytes) -> str:
    """The value of webhook-signature.

    Args:
        key: The secret, decoded.
        message_id: webhook-id.
        second: webhook-timestamp.
        payload: The body.
    """
    signed = f"{message_id}.{second}.".encode() + payload
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def _key_of(secret: str | None) -> bytes:
    if not secret:
        raise WebhookSettingsError("webhook_hosts needs a webhook_secret")
    try:
        if not secret.startswith(_SECRET_PREFIX):
            raise WebhookSettingsError(f"webhook_secret begins with {_SECRET_PREFIX}")
        key = base64.b64decode(secret.removeprefix(_SECRET_PREFIX), validate=True)
    except binascii.Error:
        raise WebhookSettingsError(
            f"webhook_secret is {_SECRET_PREFIX} followed by base64"
        ) from None
    if not 24 <= len(key) <= 64:
        raise WebhookSettingsError("webhook_secret must have 24 to 64 bytes")
    return key


def _names(pattern: str, host: str, port: int, usual: int) -> bool:
    """True when an entry of the list of hosts means this one, on the usual port or the named."""
    name, _, wanted = pattern.partition(":")
    if wanted != "*" and port != (int(wanted) if wanted.isdecimal() else usual):
        return False
    return host.endswith(name[1:]) if name.startswith("*.") else host == name


def _is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(ip, "ipv4_mapped", None)
    ip = mapped or ip
    return ip.is_global and not ip.is_multicast


def _retry_after(headers: Iterable[tuple[bytes, bytes]]) -> int | None:
    value = {name.lower(): value for name, value in headers}.get(b"retry-after", b"")
    if not value.isdigit() or len(value) > _MAX_DIGITS:
        return None
    return min(int(value), _LONGEST_RETRY_AFTER)


def _refused(message: str, reason: Reason) -> InvalidRequest:
    return InvalidRequest(message, reason=reason, param="webhook_url")
