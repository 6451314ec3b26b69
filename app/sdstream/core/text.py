"""Text from files and clients: whether it can be encoded, and in a form that is safe to show."""

from __future__ import annotations


def shown(name: str) -> str:
    """Return a name from a file in a form for messages: printable, at most 80 characters."""
    clean = printable(name)
    return clean if len(clean) <= 80 else f"{clean[:77]}..."


def printable(words: str) -> str:
    """Return text that is safe for a terminal: control characters become "?"."""
    return "".join(c if c.isprintable() else "?" for c in words)


def is_unicode(text: str) -> bool:
    """Return whether a text can be encoded: JSON may contain halves of surrogate pairs."""
    return text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)
