"""Checks the Host header of requests, and warns about servers that are open to a network."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Final

from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from sdstream.core.errors import Forbidden, Reason
from sdstream.core.hosts import HostPattern, split_host
from sdstream.settings import Settings
from sdstream.web.addresses import forwarded_host
from sdstream.web.middleware import refusal
from sdstream.web.route import is_probe

#: Maximum number of characters of a host name in an error message.
_LONGEST_NAME: Final = 128


class AllowedHosts:
    """Rejects requests whose ``Host`` is not a name of this server.

    After a browser has loaded a page, its author can make the page's host name resolve to this
    server's address (DNS rebinding). The browser then treats the page and the server as one origin.
    Probes of orchestrators may use any name.

    Args:
        allowed: The names of this server.
        local: The server is for programs on its own machine. ``localhost`` and IP addresses are
            allowed too, because DNS cannot make them resolve to anything else.
        trusted: Proxies that report the client's host in a header. Both that host and the proxy's
            own ``Host`` must be allowed, because a page on the proxy's machine could send the
            header too.
    """

    def __init__(
        self,
        app: ASGIApp,
        allowed: Sequence[HostPattern],
        *,
        local: bool = False,
        trusted: Sequence[IPv4Network | IPv6Network] = (),
    ) -> None:
        self._app = app
        self._allowed = allowed
        self._local = local
        self._trusted = trusted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or reject it."""
        message = self._fault(Request(scope)) if scope["type"] == "http" else ""
        if message:
            error = Forbidden(message, reason=Reason.HOST_NOT_ALLOWED)
            await refusal(error, scope)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _fault(self, request: Request) -> str:
        """Return why a request is rejected, or an empty string if it is not."""
        if is_probe(request.scope):
            return ""
        host = request.headers.get("host")
        if self._local:
            # Every browser sends Host, but HTTP/1.0 does not require it.
            if host is None or _is_local(host) or self._allows(host):
                return ""
            return (
                "This server accepts only requests whose Host is localhost or an IP address; "
                "--allowed-host or --public-url allows another name, --api-key any name."
            )
        for name in (host or "", forwarded_host(request, self._trusted)):
            if name is not None and not self._allows(name):
                shown = name[:_LONGEST_NAME]
                return f"Host '{shown}' is not a name of this server; --allowed-host allows it."
        return ""

    def _allows(self, host: str) -> bool:
        found = split_host(host)
        return found is not None and any(pattern.matches(*found) for pattern in self._allowed)


def _is_local(host: str) -> bool:
    """Return whether a host is an IP address, ``localhost`` or a subdomain of ``localhost``.

    Clients do not look these up in the DNS.
    """
    found = split_host(host)
    return found is not None and (f".{found[0]}".endswith(".localhost") or _is_address(found[0]))


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Return whether only local clients can reach a server that listens on this host."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return _is_local(host)


def host_layers(settings: Settings) -> list[Middleware]:
    """Return the middleware that checks Host; an empty list if every host is allowed."""
    allowed = list(settings.allowed_hosts)
    local = not (allowed or settings.api_keys) and is_loopback(settings.host)
    if not (allowed or local):
        return []
    if settings.public_url and settings.public_url.host:
        allowed.append(HostPattern.parse(settings.public_url.host))
    trusted = settings.trusted_proxies
    return [Middleware(AllowedHosts, allowed=allowed, local=local, trusted=trusted)]


def exposure_warnings(settings: Settings) -> list[str]:
    """Return warnings for a server that clients of a network can use without a key.

    Args:
        settings: The server's settings.
    """
    if settings.api_keys or is_loopback(settings.host):
        return []
    warnings = [
        f"No API key is set, and the server listens on {settings.host}: every machine that reaches "
        f"port {settings.port} can generate images, and read and delete those of others. Set "
        "--api-key (SDSTREAM_API_KEYS), or --host 127.0.0.1 for this machine alone."
    ]
    if not settings.allowed_hosts:
        warnings.append(
            "Any page in a browser on this network can do the same, by DNS rebinding. Set "
            "--allowed-host (SDSTREAM_ALLOWED_HOSTS) to the names and addresses of this server."
        )
    return warnings
