"""Names of hosts, as headers carry them, and patterns that allow some of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

#: A name or an address, and perhaps a port.
HOST: Final = re.compile(r"([\w.-]+|\[[0-9a-f:.]+\])(:\d{1,5})?", re.ASCII | re.IGNORECASE)

#: Ports that clients leave out.
_USUAL_PORTS: Final = (80, 443)


def split_host(text: str) -> tuple[str, int | None] | None:
    """Return name and port of a Host header, in the form in which names are compared.

    Args:
        text: ``images.example``, ``images.example:8000``, ``10.0.0.1`` or ``[::1]:8000``.

    Returns:
        The name in small letters, or the address without brackets, and the port if there is one;
        None for what is not a host.
    """
    match = HOST.fullmatch(text)
    if match is None:
        return None
    name = match[1].strip("[]").lower().removesuffix(".")
    try:
        name = str(ip_address(name))
    except ValueError:
        if not name or match[1].startswith("["):
            return None
    return name, int(match[2][1:]) if match[2] else None


@dataclass(frozen=True, slots=True)
class HostPattern:
    """Which hosts are meant.

    Attributes:
        name: A name or an address; ``*.example.org`` for all names below one; ``*`` for all.
        port: The only port; None for any. A host without a port has 80 or 443.
    """

    name: str
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> HostPattern:
        """Read ``name``, ``name:port``, ``*.name``, an address, ``[::1]:port`` or ``*``.

        Raises:
            ValueError: It has another form.
        """
        text = text.strip()
        if text == "*":
            return cls("*")
        stars = "*." if text.startswith("*.") else ""
        plain = text.removeprefix(stars)
        try:
            ip_address(plain)
            plain = f"[{plain}]" if ":" in plain else plain
        except ValueError:
            name, colon, port = plain.partition(":")
            if not plain.isascii():
                plain = name.encode("idna").decode() + colon + port
        found = split_host(plain)
        if found is None:
            raise ValueError(
                f"'{text}' is not a host; write images.example, images.example:8000, "
                "*.example.org, 10.0.0.1 or [::1]:8000, without http://"
            )
        return cls(stars + found[0], found[1])

    def matches(self, name: str, port: int | None) -> bool:
        """Return whether a host, as ``split_host`` returns it, matches the pattern."""
        if self.port not in (None, port) and (port is not None or self.port not in _USUAL_PORTS):
            return False
        if self.name.startswith("*."):
            return name.endswith(self.name[1:])
        return self.name in ("*", name)
