"""Webhooks: POST requests that report the end of a job, signed as standardwebhooks.com defines.

The server calls only hosts that the operator named. It rejects private addresses unless the
operator allows them: a webhook must not reach services that only this machine can reach. The
address is checked when the connection is made, so that a name cannot resolve to one address for
the check and to another for the request. Redirects are not followed, for the same reason.

A delivery is a row of the store, written in one transaction with the end of its job. The server
retries it until the receiver accepts it or rejects it permanently, or the last attempt has failed.
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
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import httpcore2

from sdstream.core.delivery import Delivery
from sdstream.core.errors import ConfigurationError, ImageServiceError, InvalidRequest, Reason
from sdstream.core.hosts import HostPattern
from sdstream.core.job import Job
from sdstream.dialects.jobs import ending_message

logger = logging.getLogger(__name__)

#: Seconds before the second attempt, the third and so on; after the last, a delivery is dropped.
_PAUSES: Final = (5, 30, 120, 600, 3600, 14_400)
_JITTER: Final = 0.2
_LONGEST_RETRY_AFTER: Final = 86_400
#: Most digits of a Retry-After that is parsed; int() raises ValueError for thousands of digits.
_MAX_DIGITS: Final = 20
_TIMEOUT_SECONDS: Final = 10.0
#: Most attempts at the same time, and most of them to one host: a receiver that does not answer
#: must not delay the messages to others.
_AT_ONCE: Final = 16
_AT_ONCE_PER_HOST: Final = 2
#: Number of waiting deliveries that are searched for one whose host has a free place.
_SEARCHED: Final = 200
#: Host names resolved at once; more than deliveries, because a look-up outlives its attempt.
_LOOKUPS: Final = 32
#: Seconds until the outbox is checked without a notification, in case a clock was set.
_IDLE_SECONDS: Final = 300.0
#: Seconds between attempts while the store cannot be read or written.
_STORE_SECONDS: Final = 1.0
#: Pause after any other error.
_FAULT_SECONDS: Final = 60.0

_SECRET_PREFIX: Final = "whsec_"  # noqa: S105  a prefix, not a secret
#: Status codes below 500 that are retried: request timeout, too early, too many requests.
_TRY_AGAIN: Final = frozenset({408, 425, 429})


class WebhookSettingsError(ConfigurationError):
    """The webhook settings cannot be used; the message contains the reason."""


def delivery_of(job: Job) -> Delivery | None:
    """Return the message of a job's end, due at once; None for a job without a webhook."""
    if job.terms.webhook_url is None:
        return None
    return Delivery(f"msg_{job.id}", job.terms.webhook_url, ending_message(job), 0, 0.0)


class Outbox(Protocol):
    """The waiting deliveries; implemented by storage.job_store.JobStore."""

    async def deliveries(self, limit: int) -> list[Delivery]:
        """Return the next deliveries, the earliest first."""

    async def put_off(self, delivery: Delivery, next_at: float) -> None:
        """Defer a delivery after a failed attempt."""

    async def settle(self, delivery: Delivery) -> None:
        """Delete a delivery that was accepted or given up."""


class Webhooks:
    """Checks the URLs of requests and posts the deliveries in the outbox.

    Args:
        outbox: The waiting deliveries.
        hosts: Allowed hosts: ``host``, ``host:port``, ``host:*`` or ``*.host``; if empty, webhooks
            are off.
        secret: ``whsec_`` and base64; shared with the receivers.
        private: Whether loopback and private addresses are allowed.
        clock: Returns Unix seconds, by which receivers judge how old a message is.
        steady: Returns Unix seconds for retries; setting the system's clock does not affect it.

    Raises:
        WebhookSettingsError: Hosts have no secret, or a host or the secret is malformed.
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
        self._hosts = tuple(map(_AllowedHost.parse, hosts))
        self._key = _key_of(secret) if hosts else b""
        self._private = private
        self._clock = clock
        self._steady = steady
        #: Set when the outbox may contain a new delivery, and when an attempt has ended.
        self._changed = asyncio.Event()
        #: Id of each delivery that is being posted -> scheme, host and port of its URL.
        self._in_progress: dict[str, str] = {}

    def check(self, url: str) -> None:
        """Raise InvalidRequest for a ``webhook_url`` that this server never posts to."""
        if not self._hosts:
            raise _refused("Webhooks are disabled on this server.", Reason.WEBHOOK_NOT_ALLOWED)
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
            if host and url.isascii():
                host.encode("idna")  # as the look-up does; raises UnicodeError for "a..b"
        except ValueError:
            host, port = None, None
            parts = urlsplit("")
        if not host or parts.scheme not in ("http", "https") or not url.isascii():
            raise _refused("'webhook_url' must be an http or https URL.", Reason.INVALID_VALUE)
        if parts.username is not None or any(character <= " " for character in url):
            raise _refused(
                "'webhook_url' must not contain a password or a space.", Reason.INVALID_VALUE
            )
        usual = 443 if parts.scheme == "https" else 80
        if not any(allowed.allows(host, port or usual, usual) for allowed in self._hosts):
            raise _refused(
                "This server does not post webhooks to this host.", Reason.WEBHOOK_NOT_ALLOWED
            )

    def notify(self) -> None:
        """Wake ``run``: the outbox may contain a new delivery."""
        self._changed.set()

    async def run(self) -> None:
        """Deliver until cancelled."""
        if not self._hosts:
            return
        # Not the loop's default threads, which other work needs: a look-up may take 30 seconds.
        lookups = ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="lookup")
        backend = _CheckedBackend(lookups, allow_private=self._private)
        try:
            async with httpcore2.AsyncConnectionPool(network_backend=backend) as pool:
                await self._deliver_on(pool)
        finally:
            lookups.shutdown(wait=False, cancel_futures=True)

    async def _deliver_on(self, pool: httpcore2.AsyncConnectionPool) -> None:
        """Post deliveries whenever they are due, until cancelled."""
        async with asyncio.TaskGroup() as attempts:
            while True:
                self._changed.clear()  # before the read, so that a later change is not missed
                try:
                    seconds = await self._begin_due(pool, attempts)
                except ImageServiceError:
                    seconds = _STORE_SECONDS
                except Exception:
                    logger.exception("webhooks wait after an internal error")
                    seconds = _FAULT_SECONDS
                with suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        await self._changed.wait()

    async def _begin_due(
        self, pool: httpcore2.AsyncConnectionPool, attempts: asyncio.TaskGroup
    ) -> float:
        """Begin to post the due deliveries; return the seconds until the next one is due."""
        # The outcome of an attempt that ends during the read may be missing from the rows.
        attempted = frozenset(self._in_progress)
        waiting = await self._outbox.deliveries(_SEARCHED)
        now = self._steady()
        wait = _IDLE_SECONDS
        for delivery in waiting:
            # A delivery deferred beyond the longest pause is due: the clock was ahead at that time.
            if now < delivery.next_at <= now + _LONGEST_RETRY_AFTER:
                wait = min(wait, delivery.next_at - now)
                continue
            host = "/".join(delivery.url.split("/", 3)[:3])
            hosts = self._in_progress.values()
            if (
                delivery.id not in attempted
                and len(hosts) < _AT_ONCE
                and list(hosts).count(host) < _AT_ONCE_PER_HOST
            ):
                self._in_progress[delivery.id] = host
                attempts.create_task(self._attempt(pool, delivery))
        return wait

    async def _attempt(self, pool: httpcore2.AsyncConnectionPool, delivery: Delivery) -> None:
        """Post a delivery once and record the outcome."""
        try:
            await self._try(pool, delivery)
        except ImageServiceError:
            # The outcome was not recorded, so the delivery is posted again after a pause.
            await asyncio.sleep(_STORE_SECONDS)
        except Exception:
            logger.exception("webhook %s waits after an internal error", delivery.id)
            await asyncio.sleep(_FAULT_SECONDS)
        finally:
            del self._in_progress[delivery.id]
            self._changed.set()

    async def _try(self, pool: httpcore2.AsyncConnectionPool, delivery: Delivery) -> None:
        try:
            self.check(delivery.url)  # the settings may have changed since the request
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
            logger.exception("webhook %s: the attempt failed with an internal error", delivery.id)
        if 200 <= status < 300:
            await self._outbox.settle(delivery)
        elif status and status < 500 and status not in _TRY_AGAIN:
            logger.warning(
                "webhook %s is given up: its receiver returned status %d", delivery.id, status
            )
            await self._outbox.settle(delivery)
        elif delivery.attempts >= len(_PAUSES):
            logger.warning(
                "webhook %s is given up after %d attempts", delivery.id, len(_PAUSES) + 1
            )
            await self._outbox.settle(delivery)
        else:
            pause = _PAUSES[delivery.attempts] * random.uniform(1, 1 + _JITTER)  # noqa: S311
            pause = max(pause, retry_after or 0)
            await self._outbox.put_off(delivery, self._steady() + pause)

    async def _post(
        self, pool: httpcore2.AsyncConnectionPool, delivery: Delivery
    ) -> tuple[int, int | None]:
        """Make one attempt; return the status and Retry-After. The response body is not read."""
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
            return answer.status, _retry_after(answer.headers, second)


class _CheckedBackend(httpcore2.AnyIOBackend):
    """Connects only to public addresses, unless private ones are allowed.

    Names are resolved in the threads of ``lookups``.
    """

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
        # Connect to the checked addresses; the name is not resolved again. TLS still checks the
        # name. A receiver may listen on one of its addresses only, such as localhost's.
        for address in addresses[:-1]:
            with suppress(httpcore2.ConnectError):
                return await super().connect_tcp(address, port, *args, **options)
        return await super().connect_tcp(addresses[-1], port, *args, **options)


def signature(key: bytes, message_id: str, second: int, payload: bytes) -> str:
    """Return the value of the header webhook-signature.

    Args:
        key: The decoded secret.
        message_id: Value of webhook-id.
        second: Value of webhook-timestamp.
        payload: The body of the request.
    """
    signed = f"{message_id}.{second}.".encode() + payload
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def _key_of(secret: str | None) -> bytes:
    if not secret:
        raise WebhookSettingsError("webhook_hosts requires a webhook_secret")
    try:
        if not secret.startswith(_SECRET_PREFIX):
            raise WebhookSettingsError(f"webhook_secret must begin with {_SECRET_PREFIX}")
        key = base64.b64decode(secret.removeprefix(_SECRET_PREFIX), validate=True)
    except binascii.Error:
        raise WebhookSettingsError(
            f"webhook_secret must be {_SECRET_PREFIX} followed by base64"
        ) from None
    if not 24 <= len(key) <= 64:
        raise WebhookSettingsError("webhook_secret must have 24 to 64 bytes")
    return key


@dataclass(frozen=True, slots=True)
class _AllowedHost:
    """A host that webhooks may go to: on its usual port, on one port, or on any port (``:*``)."""

    pattern: HostPattern
    any_port: bool

    @classmethod
    def parse(cls, text: str) -> _AllowedHost:
        """Read an item of ``webhook_hosts``; raise WebhookSettingsError if it is not a host."""
        try:
            return cls(HostPattern.parse(text.removesuffix(":*")), text.endswith(":*"))
        except ValueError as error:
            raise WebhookSettingsError(f"webhook_hosts: {error}") from None

    def allows(self, host: str, port: int, usual: int) -> bool:
        """Return whether webhooks may go to a host; ``usual`` is the port of the URL's scheme."""
        if not self.any_port and port != (self.pattern.port or usual):
            return False
        return HostPattern(self.pattern.name).matches(host, port)


#: IPv6 addresses that end in an IPv4 address, to which a translator or a tunnel forwards packets.
_WITH_IPV4: Final = tuple(map(ipaddress.IPv6Network, ("::/96", "64:ff9b::/96")))


def _is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.is_site_local:
            return False
        forwarded = ip.ipv4_mapped or ip.sixtofour
        if any(ip in network for network in _WITH_IPV4):
            forwarded = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
        ip = forwarded or ip
    return ip.is_global and not ip.is_multicast


def _retry_after(headers: Iterable[tuple[bytes, bytes]], second: int) -> int | None:
    """Return the seconds that a receiver asks to wait, by a number or a date; None without any."""
    value = {name.lower(): value for name, value in headers}.get(b"retry-after", b"")
    if value.isdigit():
        seconds = int(value) if len(value) <= _MAX_DIGITS else None
    else:
        try:
            seconds = int(parsedate_to_datetime(value.decode("ascii")).timestamp()) - second
        except ValueError:
            seconds = None
    return None if seconds is None else max(0, min(seconds, _LONGEST_RETRY_AFTER))


def _refused(message: str, reason: Reason) -> InvalidRequest:
    return InvalidRequest(message, reason=reason, param="webhook_url")
