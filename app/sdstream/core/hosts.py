"""Names of hosts in HTTP headers, and patterns that allow some hosts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

#: A name or an address, optionally with a port.
HOST: Final = re.compile(r"([\w.-]+|\[[0-9a-f:.]+\])(:\d{1,5})?", re.ASCII | re.IGNORECASE)

#: Default ports of HTTP and HTTPS, which clients leave out.
_USUAL_PORTS: Final = (80, 443)


def split_host(text: str) -> tuple[str, int | None] | None:
    """Return the name and the port of a Host header in normalised form.

    Args:
        text: ``images.example``, ``images.example:8000``, ``10.0.0.1`` or ``[::1]:8000``.

    Returns:
        The name in lower case or the address without brackets, and the port or None. The result is
        None if the text is not a host.
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
    """A pattern of hosts.

    Attributes:
        name: A name or an address; ``*.example.org`` for all subdomains; ``*`` for all hosts.
        port: The port, or None for any port. A host without a port matches the ports 80 and 443.
    """

    name: str
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> HostPattern:
        """Read ``name``, ``name:port``, ``*.name``, an address, ``[::1]:port`` or ``*``.

        Raises:
            ValueError: The text has none of these forms.
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
