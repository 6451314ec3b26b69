"""Addresses: the path of a request before it is routed, and what links to the server begin with."""

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

#: Characters of a path that need no quotes in HTML or shells; a comma would end the header's value.
_PREFIX: Final = re.compile(r"(/[\w.~!$&()*+;=:@%-]+)+", re.ASCII)
_MOST_PREFIX: Final = 256
_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f]")

#: One parameter of Forwarded (RFC 7239): a name, and a token or a quoted string.
_PARAMETER: Final = re.compile(r'\s*([A-Za-z-]+)=(?:"([^"\\]*)"|([^\s";,]*))\s*')


class PlainSlashes:
    """Treats doubled slashes as one and leaves a slash at the end out, for all that is inside.

    Clients join a base that ends in a slash and a path that begins with one. A redirect would lose
    the prefix and the scheme of a proxy, and some clients repeat a POST as a GET.

    It is the outermost middleware: keys, origins and routes see one path. ``%2F`` is a character
    of a name, and ``..`` is not resolved.
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
                # In place: handlers outside of the middleware look at the same request.
                scope["raw_path"] = plain
                scope["path"] = unquote(plain.decode("ascii"))
        await self._app(scope, receive, send)


@dataclass(frozen=True)
class Links:
    """What links to this server begin with.

    Attributes:
        public_url: Fixed by the operator, without a slash at the end; None means as the client
            addressed the server.
        trusted: Proxies whose headers say how the client addressed the server. They open
            nothing: any page can send these headers to a server on its own machine.
    """

    public_url: str | None = None
    trusted: Sequence[IPv4Network | IPv6Network] = ()

    def base(self, request: Request) -> str:
        """Return the beginning of links in the answer to a request, without a slash at the end."""
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
    """Return the host that a client named to a trusted proxy; None when no such proxy reports it.

    Args:
        request: Of the client, or of the proxy.
        trusted: Proxies whose headers are read.
    """
    return (
        (_told(request, "x-forwarded-host", "host") or None) if _is_from(trusted, request) else None
    )


def _is_from(trusted: Sequence[IPv4Network | IPv6Network], request: Request) -> bool:
    """True for a request whose other end is one of these."""
    if not trusted or request.client is None:
        return False
    try:
        peer = ip_address(request.client.host)
    except ValueError:
        return False
    if isinstance(peer, IPv6Address) and peer.ipv4_mapped:  # on a socket for both
        peer = peer.ipv4_mapped
    return any(peer in network for network in trusted)


def _told(request: Request, header: str, parameter: str = "") -> str:
    """Return what the nearest proxy reports: the last value; the client wrote those before it."""
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
    """The path that a proxy serves this server under; empty for anything else."""
    prefix = prefix.removesuffix("/")
    if len(prefix) > _MOST_PREFIX or not _PREFIX.fullmatch(prefix):
        return ""
    # Browsers resolve the dots of an address also where they are escaped.
    plain = unquote(prefix)
    if ".." in plain or "//" in plain or "\\" in plain or _CONTROLS.search(plain):
        return ""
    return prefix
