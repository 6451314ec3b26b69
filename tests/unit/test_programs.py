"""Tests that need a program of the system: skipped without it, but never where CI is set."""

from __future__ import annotations

import pytest

from tests.support.programs import needed


def test_a_program_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is named either way."""
    words = "no-such-program is not installed .Debian: apt install a-package."
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match=words):
        needed("no-such-program", "a-package", "usr/sbin")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match=words):
        needed("no-such-program", "a-package", "usr/sbin")


def test_a_program_beside_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian has some where only root looks."""
    monkeypatch.setenv("PATH", "")
    assert needed("sh", "dash", "usr/sbin", "bin").name == "sh"
