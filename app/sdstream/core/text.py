"""Foreign text, made safe for a terminal or a message."""

from __future__ import annotations


def shown(name: str) -> str:
    """Return a name from a file as it may stand in a message: printable and not too long."""
    clean = printable(name)
    return clean if len(clean) <= 80 else f"{clean[:77]}..."


def printable(words: str) -> str:
    """Return foreign text made safe for a terminal: control characters become "?"."""
    return "".join(c if c.isprintable() else "?" for c in words)
