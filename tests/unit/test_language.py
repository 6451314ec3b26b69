"""The words that scripts/language.py reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.scripts import script


@pytest.fixture(scope="module")
def language() -> Any:
    """Load the script as a module."""
    return script("language")


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("a.py", '"""Draw a picture."""\n', ["Draw", "picture"]),
        ("a.py", 'message = "The job was refused."\n', ["refused"]),
        ("a.py", "x = 1  # whoever reads this\n", ["whoever"]),
        ("a.py", 'draw = picture["draw"]\n', []),
        ("a.py", '"""Call ``draw`` of the routes.\n\nArgs:\n    draw: The routes.\n"""\n', []),
        ("a.py", '"""There is no job."""\n', []),
        ("a.py", '"""It is no job."""\n', ["is no job"]),
        ("a.py", '"""The proxy refused the connection."""\n', []),
        ("a.py", '"""The client is told of it. It was told to stop."""\n', ["is told"]),
        ("a.py", '"""The start ends with a sentence."""\n', ["with a sentence"]),
        ("a.md", "It draws.\n\n```sh\ndraw a picture\n```\n`draw`\n", ["draws"]),
        ("a.js", 'draw();  // nobody waits\ntell("A picture is here.");\n', ["nobody", "picture"]),
        ("a.yaml", "description: a picture  # whoever\n", ["picture", "whoever"]),
        ("a.html", '<p class="picture">No picture</p>\n', ["picture"]),
    ],
)
def test_what_is_found(
    language: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str,
    found: list[str],
) -> None:  # fmt: skip
    """Words are found in comments, docstrings, messages and documents, but not in code or names."""
    monkeypatch.setattr(language, "ROOT", tmp_path)
    (tmp_path / name).write_text(text)
    faults = [*language.faults(tmp_path / name)]
    words = [fault.split("'")[1] for fault in faults]
    assert [word for word in words if word in found] == found
    assert found or not faults
    assert all("write " in fault for fault in faults)
