"""Warnings about a server that other machines can reach."""

from __future__ import annotations

from typing import Any

import pytest

from sdstream.settings import Settings
from sdstream.web.hosts import exposure_warnings


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"host": "0.0.0.0"}, ["--api-key", "--allowed-host"]),
        ({"host": "::"}, ["--api-key", "--allowed-host"]),
        ({"host": "images.example"}, ["--api-key", "--allowed-host"]),
        ({"host": "192.168.1.5", "allowed_hosts": ("a.example",)}, ["--api-key"]),
        ({"host": "0.0.0.0", "api_keys": ("key",)}, []),
        ({"host": "127.0.0.1"}, []),
        ({"host": "::1"}, []),
        ({"host": "localhost"}, []),
    ],
)
def test_open_servers_are_told(settings: dict[str, Any], named: list[str]) -> None:
    """One warning is about missing keys and one about other sites' pages, each with the remedy."""
    warnings = exposure_warnings(Settings(**settings))
    assert [next(flag for flag in named if flag in text) for text in warnings] == named
    assert all(str(settings["host"]) in text for text in warnings[:1])
