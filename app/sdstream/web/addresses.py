"""Normalises the paths of requests before routing, and finds the base URL of links."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final
from urllib.parse import unquote

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from sdstream.core.hosts import HOST

_SLASHES: Final = re.compile(rb"/{2,}")

#: A path of characters that need no quotes in HTML or shells. A comma would end the header's value.
_PREFIX: Final = re.compile(r"(/[\w.~!$&()*+;=:@%-]+)+", re.ASCII)
_MOST_PREFIX: Final = 256
_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f]")

#: One parameter of Forwarded (RFC 7239): a name, and a token or a quoted string.
_PARAMETER: Final = re.compile(r'\s*([A-Za-z-]+)=(?:"([^"\\]*)"|([^\s";,]*))\s*')


class PlainSlashes:
    """Middleware that merges repeated slashes in a path and removes a trailing slash.

    Some clients join a base URL that ends with a slash and a path that begins with one. They are
    not redirected: a redirect would lose the prefix and the scheme of a proxy, and some clients
    repeat a redirected POST as a GET.

    This is the outermost middleware, so all other layers and the routes see the normalised path.
    It does not treat ``%2F`` as a slash and does not resolve ``..``.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http":
            raw: bytes = scope["raw_path"]
            plain = _SLASHES.sub(b"/", raw)
            if plain != b"/":
                plain = plain.removesuffix(b"/")
            if plain != raw:
                # Changed in place: exception handlers outside of the middleware use this scope too.
                scope["raw_path"] = plain
                scope["path"] = unquote(plain.decode("ascii"))
        await self._app(scope, receive, send)


@dataclass(frozen=True)
class Links:
    """The base URL of links to this server.

    Attributes:
        public_url: Base URL that the operator set, without a trailing slash; None means the
            address that the client used.
        trusted: Proxies whose headers report the address that the client used. The headers do not
            grant access to anything: a web page can send them to a server on its user's machine.
    """

    public_url: str | None = None
    trusted: Sequence[IPv4Network | IPv6Network] = ()

    def base(self, request: Request) -> str:
        """Return the base URL of links in the answer to a request, without a trailing slash."""
        if self.public_url is not None:
            return self.public_url
        own = request.base_url
        if not _is_from(self.trusted, request):
            return str(own).rstrip("/")
        proto = _told(request, "x-forwarded-proto", "proto").lower()
        host = _told(request, "x-forwarded-host", "host")
        prefix = _told(request, "x-forwarded-prefix")
        scheme = proto if proto in ("http", "https") else own.scheme
        place = host if HOST.fullmatch(host) else own.netloc
        return f"{scheme}://{place}{_plain_prefix(prefix)}"


def forwarded_host(request: Request, trusted: Sequence[IPv4Network | IPv6Network]) -> str | None:
    """Return the host that a trusted proxy received from the client; None if no proxy reports it.

    Args:
        request: The request of the client or of the proxy.
        trusted: Proxies whose headers are read.
    """
    return (
        (_told(request, "x-forwarded-host", "host") or None) if _is_from(trusted, request) else None
    )


def _is_from(trusted: Sequence[IPv4Network | IPv6Network], request: Request) -> bool:
    """Return whether a trusted proxy sent the request."""
    if not trusted or request.client is None:
        return False
    try:
        peer = ip_address(request.client.host)
    except ValueError:
        return False
    if isinstance(peer, IPv6Address) and peer.ipv4_mapped:  # a socket for IPv4 and IPv6
        peer = peer.ipv4_mapped
    return any(peer in network for network in trusted)


def _told(request: Request, header: str, parameter: str = "") -> str:
    """Return the value that the nearest proxy set in a header or in a parameter of Forwarded.

    This is the last value; a client may have sent the values before it.
    """
    values = [value for line in request.headers.getlist(header) for value in line.split(",")]
    if values or not parameter:
        return values[-1].strip() if values else ""
    lines = request.headers.getlist("forwarded")
    nearest = lines[-1].rpartition(",")[2] if lines else ""
    for part in nearest.split(";"):
        match = _PARAMETER.fullmatch(part)
        if match and match[1].lower() == parameter:
            return match[2] if match[2] is not None else match[3]
    return ""


def _plain_prefix(prefix: str) -> str:
    """Return the path prefix that a proxy reports, or an empty string if it is not a plain path."""
    prefix = prefix.removesuffix("/")
    if len(prefix) > _MOST_PREFIX or not _PREFIX.fullmatch(prefix):
        return ""
    # Browsers resolve ".." in a URL even if it is percent-encoded.
    plain = unquote(prefix)
    if ".." in plain or "//" in plain or "\\" in plain or _CONTROLS.search(plain):
        return ""
    return prefix
