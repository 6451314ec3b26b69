"""Downloads of ``sdstream watch``."""

from __future__ import annotations

import asyncio

import pytest

from sdstream.cli import jobs
from sdstream.client.answers import APIError, ConnectionFailed
from sdstream.client.http import AsyncClient


class Restarting(AsyncClient):
    """A client whose downloads have these outcomes in order, and the last one from then on."""

    def __init__(self, *outcomes: Exception | bytes) -> None:
        super().__init__("http://localhost:1")
        self.outcomes = [*outcomes]

    async def image(self, url: str) -> bytes:
        """Return or raise the next outcome."""
        outcome = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def downloaded(*outcomes: Exception | bytes) -> bytes:
    """Download an image with these outcomes."""
    return asyncio.run(jobs._downloaded(Restarting(*outcomes), "/v1/images/x/content"))


def test_a_download_survives_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost connection, or the answer of a proxy without its server, is followed by a retry."""
    monkeypatch.setattr(jobs, "RECONNECT_SECONDS", 0.0)
    lost = ConnectionFailed("lost")
    assert downloaded(lost, *(APIError(status, "") for status in (502, 503, 504)), b"x") == b"x"
    with pytest.raises(APIError, match="gone"):
        downloaded(APIError(404, "gone"), b"x")
    monkeypatch.setattr(jobs, "RECONNECTS", 2)
    with pytest.raises(ConnectionFailed):
        downloaded(lost)
