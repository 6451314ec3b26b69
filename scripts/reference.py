"""Tables of the documents, generated from the code.

``scripts/lint`` writes them into the documents with cog; ``scripts/check`` fails when one is stale.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdstream.core.options import OPTIONS, ImageParams

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


def option_table() -> str:
    """The options of a request: names, types and bounds, models, and the text in image files."""
    schemas = ImageParams.model_json_schema()["properties"]
    rows = ["| option | type | aliases | meaning | in image files |", "|-|-|-|-|-|"]
    for name, option in OPTIONS.items():
        schema = schemas[name]
        aliases = ", ".join(f"`{alias}`" for alias in option.aliases)
        needs = f" Needs `{option.needs}`." if option.needs else ""
        meaning = schema["description"] + needs
        rows.append(
            f"| `{name}` | {_type(schema)} | {aliases} | {meaning} | {option.infotext or ''} |"
        )
    return "\n".join(rows)


def _type(schema: Mapping[str, Any]) -> str:
    """A JSON Schema in a few words: "number 0 to 30"."""
    (kind,) = [part for part in schema.get("anyOf", [schema]) if part.get("type") != "null"]
    if "enum" in kind:
        return ", ".join(f"`{value}`" for value in kind["enum"])
    low = kind.get("minimum", kind.get("exclusiveMinimum"))
    high = kind.get("maximum")
    bounds = (
        "" if low is None else f" {low:g} to {high:g}" if high is not None else f" from {low:g}"
    )
    return f"{kind.get('type', 'object')}{bounds}"
