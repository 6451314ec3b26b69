"""Fixtures for tests of job stores."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.stores import PLACES, Clock, Place


@pytest.fixture
def clock() -> Clock:
    """A clock for one test."""
    return Clock()


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty place of each kind in turn."""
    return PLACES[request.param](tmp_path, request.getfixturevalue)
