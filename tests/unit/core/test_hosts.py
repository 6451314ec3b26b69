"""Patterns of hosts, matched against Host headers."""

from __future__ import annotations

import pytest

from sdstream.core.hosts import HostPattern, split_host


@pytest.mark.parametrize(
    ("pattern", "host"),
    [
        ("a.example", "a.example"),
        ("a.example", "A.EXAMPLE:8000"),
        ("A.Example.", "a.example."),
        ("a.example:8000", "a.example:8000"),
        ("a.example:80", "a.example"),
        ("a.example:443", "a.example"),
        ("*.example.org", "a.example.org"),
        ("*.example.org", "a.b.example.org:1"),
        ("*.example.org:8000", "a.example.org:8000"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("my_host", "my_host:1"),
        ("10.0.0.1", "10.0.0.1:8000"),
        ("10.0.0.1:8000", "10.0.0.1:8000"),
        ("::1", "[::1]:8000"),
        ("[::1]", "[0:0::1]"),
        ("[FD00::A]:8000", "[fd00:0::a]:8000"),
        ("*", "anything:1"),
    ],
)
def test_what_a_pattern_allows(pattern: str, host: str) -> None:
    """Case, a trailing dot and the spelling of an address are ignored; a port counts if given."""
    found = split_host(host)
    assert found is not None
    assert HostPattern.parse(pattern).matches(*found)


@pytest.mark.parametrize(
    ("pattern", "host"),
    [
        ("a.example", "b.a.example"),
        ("a.example", "a.example.evil.example"),
        ("a.example", "aa.example"),
        ("a.example:8000", "a.example:8001"),
        ("a.example:8000", "a.example"),
        ("a.example:80", "a.example:8080"),
        ("*.example.org", "example.org"),
        ("*.example.org", "evilexample.org"),
        ("*.example.org:8000", "a.example.org"),
        ("127.0.0.1", "localhost"),
        ("::1", "[::2]"),
        ("::1", "127.0.0.1"),
        ("[::1]:8000", "[::1]:8001"),
    ],
)
def test_what_a_pattern_does_not_allow(pattern: str, host: str) -> None:
    """A pattern matches neither a longer or shorter name nor another port."""
    found = split_host(host)
    assert found is not None
    assert not HostPattern.parse(pattern).matches(*found)


@pytest.mark.parametrize(
    "host", ["", ":80", "a b", "a/b", "evil@a", "a:b", "a:123456", "[::1", "::1", "[a]", ".", "a,b"]
)
def test_what_is_no_host(host: str) -> None:
    """Text that is not a host is not parsed."""
    assert split_host(host) is None
