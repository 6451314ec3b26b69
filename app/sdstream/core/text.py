"""Text from files and clients, made safe for a terminal or a message."""

from __future__ import annotations


def shown(name: str) -> str:
    """Return a name from a file in a form for messages: printable, at most 80 characters."""
    clean = printable(name)
    return clean if len(clean) <= 80 else f"{clean[:77]}..."


def printable(words: str) -> str:
    """Return text that is safe for a terminal: control characters become "?"."""
    return "".join(c if c.isprintable() else "?" for c in words)
