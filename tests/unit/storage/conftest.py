"""The places that job stores are tested on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.stores import PLACES, Clock, Place


@pytest.fixture
def clock() -> Clock:
    """A clock of this test."""
    return Clock()


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty place of every kind, one after the other."""
    return PLACES[request.param](tmp_path, request.getfixturevalue)
