"""The documentation as tests run it: pages, their code blocks, and the expected output of a block.

- Tests run ``sh`` and ``python`` blocks in the order of the page, in one folder for each page, with
  a server on ``http://localhost:8000``.
- A ``text`` or ``json`` block right after such a block is its expected output. Lines of ``text``
  must appear in this order, ``…`` stands for anything, and ``"…"`` for any value of ``json``.
- ``console`` blocks show commands after ``$`` that tests cannot run, since they need a network,
  root or weights, or do not return. The command line only parses their ``sdstream`` lines.
- ``<!-- server: FLAGS -->`` on a page gives it a server with these flags.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]

_FENCE: Final = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SERVER: Final = re.compile(r"<!-- server: (.*?) -->")
_WRITTEN: Final = re.compile(r"[\w-]+\.(?:png|jpg|jpeg|webp)\b")


@dataclass(frozen=True, slots=True)
class Block:
    """A code block that tests run.

    Attributes:
        language: ``sh`` or ``python``.
        code: Text of the block.
        output: Language and text of the expected output; None without one.
    """

    language: str
    code: str
    output: tuple[str, str] | None

    @property
    def images(self) -> list[str]:
        """Names of image files in the block; all of them exist after it has run."""
        return sorted(set(_WRITTEN.findall(self.code)))

    def check_output(self, printed: str) -> None:
        """Compare the printed output with the output that the page shows."""
        if self.output is None:
            return
        language, expected = self.output
        if language == "json":
            assert _matches(json.loads(expected), json.loads(printed)), printed
            return
        printed = re.sub(r" +$", "", printed, flags=re.MULTILINE)
        lines = [re.escape(line).replace("…", ".*") for line in expected.splitlines()]
        pattern = r"^" + r"$(?:\n.*)*?\n".join(lines) + r"$"
        assert re.search(pattern, printed, re.MULTILINE), printed


def _matches(expected: Any, found: Any) -> bool:
    if expected == "…":
        return True
    if isinstance(expected, dict) and isinstance(found, dict):
        same = expected.keys() == found.keys()
        return same and all(_matches(value, found[key]) for key, value in expected.items())
    if isinstance(expected, list) and isinstance(found, list):
        return len(expected) == len(found) and all(map(_matches, expected, found))
    return bool(expected == found)


@dataclass(frozen=True, slots=True)
class Page:
    """A page of the documentation."""

    path: Path

    @property
    def text(self) -> str:
        """The Markdown text of the page."""
        return self.path.read_text()

    @property
    def name(self) -> str:
        """The page's path from the root of the repository."""
        return self.path.relative_to(ROOT).as_posix()

    def fences(self) -> list[tuple[str, str]]:
        """Language and text of every code block."""
        return _FENCE.findall(self.text)

    def blocks(self) -> list[Block]:
        """The blocks that tests run."""
        found = []
        matches = list(_FENCE.finditer(self.text))
        for number, match in enumerate(matches):
            if match[1] not in ("sh", "python"):
                continue
            after = matches[number + 1] if number + 1 < len(matches) else None
            follows = after is not None and self.text[match.end() : after.start()].strip() == ""
            shows = follows and after is not None and after[1] in ("text", "json")
            output = (after[1], after[2]) if shows and after is not None else None
            found.append(Block(match[1], match[2], output))
        return found

    def commands(self) -> list[str]:
        """The commands of ``console`` blocks, each on one line."""
        lines: list[str] = []
        for language, text in self.fences():
            if language == "console":
                joined = re.sub(r"\\\n\s*", "", text)
                lines += [line[2:] for line in joined.splitlines() if line.startswith("$ ")]
        return lines

    @property
    def server_flags(self) -> list[str] | None:
        """Flags of the server that the page needs; None for the default server."""
        match = _SERVER.search(self.text)
        return match[1].split() if match else None


def pages() -> list[Page]:
    """Return every page of the documentation."""
    return [Page(ROOT / "README.md"), *map(Page, sorted((ROOT / "docs").rglob("*.md")))]
