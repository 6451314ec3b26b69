"""Apply this folder's patches to an unpacked source distribution of the runtime.

``python app/sdstream/engine/patches/apply.py FOLDER`` changes the files below FOLDER, and
``--identity`` prints a hash of the patches. The script imports only the standard library, so it
runs before anything is installed, and on machines without ``patch`` or ``git``.

A hunk must match exactly. If the lines differ, the sources are of another release of the runtime,
for which the change may be wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

PATCHES: Final = Path(__file__).parent

_HUNK: Final = re.compile(r"@@ -(?P<line>\d+)(,(?P<old>\d+))? \+\d+(,(?P<new>\d+))? @@")


class PatchError(Exception):
    """A patch does not match the sources; the message contains the file and the line."""


def patches() -> list[Path]:
    """Return the patches in the order in which they are applied."""
    return sorted(PATCHES.glob("*.patch"))


def identity() -> str:
    """Return a hash of the patches; a cached build is valid only for the same hash."""
    content = b"".join(path.read_bytes() for path in patches())
    return hashlib.sha256(content).hexdigest()[:16]


def apply(source: Path) -> None:
    """Apply all patches, or none if one does not match.

    Args:
        source: The unpacked source distribution.

    Raises:
        PatchError: The sources are of another release than the one that the patches are for.
    """
    changed: dict[Path, str] = {}
    for patch in patches():
        for name, hunks in _files(patch.read_text()).items():
            target = source / name
            before = changed.get(target) or (target.read_text() if target.exists() else "")
            changed[target] = _patched(before, hunks, f"{patch.name}: {name}")
    for target, text in changed.items():
        target.write_text(text)


@dataclass
class _Hunk:
    """One change of a file, as lists of lines with their line ends.

    Attributes:
        line: Index of the first expected line, from 0.
        expected: Lines that the file must contain there.
        written: Lines that replace them.
    """

    line: int
    expected: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)


def _files(patch: str) -> dict[str, list[_Hunk]]:
    """Return the hunks of a unified diff by file name, without the prefix "a/" or "b/"."""
    files: dict[str, list[_Hunk]] = {}
    lines = iter(patch.splitlines(keepends=True))
    for line in lines:
        if line.startswith("+++ "):
            hunks = files.setdefault(line[4:].strip().partition("/")[2], [])
        elif found := _HUNK.match(line):
            hunk = _Hunk(max(0, int(found["line"]) - 1))
            old, new = (int(found[name] or 1) for name in ("old", "new"))
            while len(hunk.expected) < old or len(hunk.written) < new:
                mark, text = (following := next(lines))[0], following[1:]
                hunk.expected += [text] if mark in " -" else []
                hunk.written += [text] if mark in " +" else []
            hunks.append(hunk)
    return files


def _patched(before: str, hunks: list[_Hunk], where: str) -> str:
    """Return a file's text after its hunks are applied.

    Raises:
        PatchError: A hunk does not match.
    """
    lines = before.splitlines(keepends=True)
    after: list[str] = []
    done = 0
    for hunk in hunks:
        end = hunk.line + len(hunk.expected)
        if hunk.line < done or lines[hunk.line : end] != hunk.expected:
            raise PatchError(f"{where}: line {hunk.line + 1} is not what the patch expects.")
        after += lines[done : hunk.line] + hunk.written
        done = end
    return "".join(after + lines[done:])


def main() -> None:
    """Apply the patches, or print their hash."""
    parser = argparse.ArgumentParser(description="Apply the patches of the runtime.")
    parser.add_argument("source", type=Path, nargs="?", help="the unpacked source distribution")
    parser.add_argument("--identity", action="store_true", help="print a hash of the patches")
    options = parser.parse_args()
    if options.identity:
        sys.stdout.write(f"{identity()}\n")
    elif options.source is None:
        parser.error("name the folder of the sources, or --identity")
    else:
        try:
            apply(options.source)
        except PatchError as error:
            raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
