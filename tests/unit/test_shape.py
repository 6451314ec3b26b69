"""Limits on the length of functions and modules."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "app" / "sdstream"

LONGEST_FUNCTION = 60
LONGEST_MODULE = 500

#: Module -> the reason why it is longer.
LONG_MODULES: dict[str, str] = {}


def _modules() -> dict[str, str]:
    paths = PACKAGE.rglob("*.py")
    return {path.relative_to(PACKAGE).as_posix(): path.read_text() for path in paths}


def test_functions_are_short() -> None:
    """No function has more than 60 lines, including its docstring."""
    long = {
        f"{name}:{node.name}"
        for name, text in _modules().items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > LONGEST_FUNCTION
    }
    assert long == set()


def test_modules_are_short_or_say_why() -> None:
    """Only the listed modules have more than 500 lines."""
    lengths = {name: text.count("\n") for name, text in _modules().items()}
    assert {name for name, n in lengths.items() if n > LONGEST_MODULE} == {*LONG_MODULES}
