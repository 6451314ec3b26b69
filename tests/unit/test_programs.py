"""Tests that need a system program are skipped without it, but fail in CI."""

from __future__ import annotations

import pytest

from tests.support.programs import needed


def test_a_program_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the package in both cases."""
    words = "no-such-program is not installed .Debian: apt install a-package."
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match=words):
        needed("no-such-program", "a-package", "usr/sbin")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match=words):
        needed("no-such-program", "a-package", "usr/sbin")


def test_a_program_beside_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program outside PATH is found in the given folders, such as Debian's /usr/sbin."""
    monkeypatch.setenv("PATH", "")
    assert needed("sh", "dash", "usr/sbin", "bin").name == "sh"
