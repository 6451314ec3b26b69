"""The check of licences by scripts/licences.py."""

from __future__ import annotations

from email.message import Message
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.scripts import script


@pytest.fixture(scope="module")
def licences() -> Any:
    """Load the script as a module."""
    return script("licences")


@pytest.mark.parametrize(
    ("headers", "licence", "allowed"),
    [
        ([("License-Expression", "MIT")], "MIT", True),
        ([("License-Expression", "BSD-3-Clause AND (MIT OR Zlib)")], None, True),
        ([("License-Expression", "GPL-3.0-only")], "GPL-3.0-only", False),
        ([("License-Expression", "GPL-2.0-only OR MIT")], None, True),
        ([("License-Expression", "MIT AND GPL-2.0-only")], None, False),
        ([("Classifier", "License :: OSI Approved :: MIT License")], "MIT", True),
        (
            [
                ("Classifier", "License :: DFSG approved"),
                ("Classifier", "License :: OSI Approved :: Apache Software License"),
            ],
            "Apache-2.0",
            True,
        ),
        (
            [("Classifier", "License :: OSI Approved :: GNU Affero General Public License v3")],
            "GNU Affero General Public License v3",
            False,
        ),
        ([("License", "3-Clause BSD License\nCopyright …")], "BSD-3-Clause", True),
        ([("License", "proprietary")], "proprietary", False),
        ([], "", False),
    ],
)
def test_licences(
    licences: Any, headers: list[tuple[str, str]], licence: str | None, allowed: bool
) -> None:
    """A licence is read from every form of metadata, and a missing one is not allowed."""
    metadata = Message()
    for name, value in [("Name", "a-package"), *headers]:
        metadata[name] = value.replace("\n", "\n ")
    found = licences.licence_of(SimpleNamespace(metadata=metadata))
    assert licence in (found, None)
    assert licences.is_allowed(found) == allowed


def test_this_environment(licences: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The environment of the tests has only allowed licences."""
    assert licences.main() == 0, capsys.readouterr().err
