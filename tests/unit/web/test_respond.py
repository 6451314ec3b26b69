"""Headers of responses."""

from __future__ import annotations

from urllib.parse import unquote

from sdstream.web.respond import warning_headers


def test_long_warnings_are_shortened() -> None:
    """The header stays below the limits of proxies, and each part can be decoded."""
    assert warning_headers([]) == {}
    many = [f"{number}: " + "ö€😀," * 100 for number in range(30)]
    header = warning_headers(["One, two.", *many])["X-Warnings"]
    assert len(header) <= 2048
    assert header.isascii()
    parts = [unquote(part, errors="strict") for part in header.split(",")]
    assert parts[0] == "One, two."
    assert len(parts) > 1
    assert all(warning.startswith(part) for warning, part in zip(many, parts[1:], strict=False))


def test_a_warning_cannot_add_a_header() -> None:
    """Line breaks and surrogates are encoded."""
    header = warning_headers(["a\r\nSet-Cookie: b\ud800"])["X-Warnings"]
    assert header == "a%0D%0ASet-Cookie: b?"
