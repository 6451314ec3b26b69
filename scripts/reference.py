"""Tables of the documents, generated from the code.

``scripts/lint`` writes them into the documents with cog; ``scripts/check`` fails when one is stale.
"""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "app" / "sdstream"


def module_table(room: str) -> str:
    """The modules of one folder of the package, each with the first sentence of its docstring."""
    rows = ["| module | purpose |", "|-|-|"]
    for path in sorted((PACKAGE / room).rglob("*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        if docstring is None:
            if path.stem != "__init__":
                raise ValueError(f"{path} has no docstring")
            continue
        name = path.relative_to(PACKAGE / room).as_posix()
        summary = " ".join(docstring.partition("\n\n")[0].split())
        rows.append(f"| {name} | {summary} |")
    return "\n".join(rows)
