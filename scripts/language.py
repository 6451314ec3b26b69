"""Find words and constructions that the project avoids; needs no network.

Comments, docstrings and messages of the package, its documentation, the texts of the page, the
catalogue and the recipes are plain technical English with standard terms. Each pattern has its
replacement beside it. Code blocks, text in backticks and names are ignored. scripts/check runs
this.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]

#: Pattern -> what to write instead.
PATTERNS: Final = {
    r"draw(?:s|n|ing)?|drew": "generate",
    r"pictures?": "image",
    r"refus(?:e|es|ed|ing)(?! (?:the|a) connection)": "reject",
    r"pass(?:es|ed)? over": "ignore",
    r"anew": "again",
    r"laid aside|put off": "deferred",
    r"(?:is|are|be|was|were|been|can|cannot) had": "available, found",
    r"hears? of": "is notified of",
    r"whoever|somebody|nobody|everybody": "name the client, worker, caller or key",
    r"is none|are none|(?<!there )is no (?!longer|more|less|such)\w+": "is not a …",
    r"(?:is|are|was|were) (?:here|there)(?= ?[.,;:)]|$)": "exists, found, downloaded",
    r"tells|(?<!as it )says(?! so)": "returns, reports, contains",
    r"(?:is|are|be|was|were) told(?! (?:to|otherwise)\b)": "receives, is notified, is sent",
    r"(?:with|in) a sentence": "with an error, with a message",
    r"is said again": "is resent",
    r"of its own(?= process)|in a process of its own": "in a separate process",
    r"goes on": "continues",
    r"by hand": "manually",
    r"earlier life|next life": "earlier run, next run",
}  # fmt: skip
_FOUND: Final = re.compile("|".join(rf"(\b(?:{text})\b)" for text in PATTERNS), re.IGNORECASE)
_REMEDIES: Final = tuple(PATTERNS.values())

#: Names of code and addresses: ``x``, `x`, <x>, https://x, and "x:" in a list of arguments.
_NAMES: Final = re.compile(
    r"^\s+\w+: |``.*?``|`[^`]*`|<[^>]*>|https?://\S+|[\w/.-]+\.(?:md|py|js|yaml)\b"
)


def texts_of_python(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line number and text of each comment and of each string that contains a space."""
    source = path.read_text(encoding="utf-8")
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not token.string.startswith("# noqa"):
            yield token.start[0], token.string.lstrip("#: ")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            for number, line in enumerate(node.value.splitlines()):
                yield node.lineno + number, line


def texts_of_markdown(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line number and text of each line outside of code blocks."""
    fenced = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced:
            yield number, line


def texts_of_page(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the comments and quoted texts of a script, or the lines of HTML without tags."""
    quoted = re.compile(r"//.*|^\s*/?\*.*|\"[^\"]* [^\"]*\"|`[^`]* [^`]*`")
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if path.suffix == ".html":
            yield number, re.sub(r"<[^>]*>?|^[^<]*>", " ", line)
        else:
            yield number, " ".join(quoted.findall(line)).replace("`", " ")


def texts_of_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line number and text of each line."""
    yield from enumerate(path.read_text(encoding="utf-8").splitlines(), 1)


_READERS: Final = {".py": texts_of_python, ".md": texts_of_markdown, ".yaml": texts_of_lines}


def faults(path: Path) -> Iterator[str]:
    """Yield a message for each word to replace in a file."""
    reader = _READERS.get(path.suffix, texts_of_page)
    for number, text in sorted(set(reader(path))):
        for match in _FOUND.finditer(_NAMES.sub(" ", text)):
            remedy = _REMEDIES[(match.lastindex or 1) - 1]
            yield f"{path.relative_to(ROOT)}:{number}: '{match[0]}': write {remedy}"


def files() -> list[Path]:
    """Return every file to check."""
    package = ROOT / "app/sdstream"
    found = [path for end in ("py", "js", "html") for path in package.rglob(f"*.{end}")]
    found = [path for path in found if "vendor" not in path.parts]
    found += [ROOT / "README.md", *(ROOT / ".github").glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    found += [ROOT / "models.yaml", ROOT / "compose.yaml", *(ROOT / "deploy").glob("*.yaml")]
    return sorted(found)


def main() -> int:
    """Print the faults of every file; return the exit code."""
    found = [fault for path in files() for fault in faults(path)]
    for fault in found:
        print(fault, file=sys.stderr)
    if not found:
        print(f"the language of {len(files())} files has no fault")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
