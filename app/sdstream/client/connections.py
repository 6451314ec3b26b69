"""Makes HTTP clients, with the proxies that the environment names for hosts other than this one."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Final
from urllib.request import getproxies, proxy_bypass

import httpx2

#: The caller decides how many requests are sent at the same time.
_LIMITS: Final = httpx2.Limits(max_connections=None)
_SCHEMES: Final = ("http", "https", "all")


class UnusableProxy(Exception):
    """A proxy variable of the environment cannot be used; the message names the variable."""


def open_client(
    base_url: httpx2.URL,
    *,
    headers: Mapping[str, str],
    timeout: httpx2.Timeout,
    uds: Path | None = None,
) -> httpx2.AsyncClient:
    """Return an HTTP client; it uses no proxy for this machine.

    Args:
        base_url: Address of the server.
        headers: Headers of every request.
        timeout: Time limits of every request.
        uds: Path of the server's Unix socket; None connects to the host and port of ``base_url``.

    Raises:
        UnusableProxy: The environment names a proxy that the HTTP library does not support.
    """
    direct = None
    if uds is not None or _is_local(base_url.host):
        direct = httpx2.AsyncHTTPTransport(uds=str(uds) if uds else None, limits=_LIMITS)
    try:
        return httpx2.AsyncClient(
            base_url=base_url, headers=headers, timeout=timeout, limits=_LIMITS, transport=direct
        )
    except (ImportError, ValueError, httpx2.InvalidURL) as error:
        proxies = getproxies()
        found = {_variable(one): proxies[one] for one in _SCHEMES if proxies.get(one)}
        # Without "://", it is an HTTP proxy.
        foreign = [name for name, proxy in found.items() if "://" in proxy and proxy[:4] != "http"]
        raise UnusableProxy(
            f"the client does not support the proxy of {' and '.join(foreign or found)}. "
            "Set the variable to an http:// address, or unset it."
        ) from error


def proxy_for(url: httpx2.URL) -> str | None:
    """Return the variable of the proxy that requests to a URL use, or None without a proxy."""
    if _is_local(url.host) or proxy_bypass(url.host):
        return None
    proxies = getproxies()
    return next((_variable(one) for one in (url.scheme, "all") if proxies.get(one)), None)


def _variable(scheme: str) -> str:
    return f"{scheme.upper()}_PROXY"


def _is_local(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
