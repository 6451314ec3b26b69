"""The floors of app/ARCHITECTURE.md, kept by reading the imports."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

APP = Path(__file__).parents[2] / "app"

#: Module prefix -> its floor; the longest prefix that fits counts. Imports go down or stay level.
FLOORS = {
    "app": 0,
    "app.core": 0,
    "app.dialects": 1,
    "app.images": 1,
    "app.image_headers": 1,
    "app.embedded": 2,
    "app.engine": 2,
    "app.store": 2,
    "app.ocr": 2,
    "app.safety": 2,
    "app.hub": 2,
    "app.metrics": 2,
    "app.models": 2,
    "app.settings": 2,
    "app.wakeup": 2,
    "app.studio": 2,
    "app.webhooks": 2,
    "app.service": 3,
    "app.web": 4,
    "app.client": 5,
    "app.main": 5,
    "app.server": 5,
    "app.cli": 5,
    "app.cli_files": 5,
    "app.cli_jobs": 5,
    "app.cli_models": 5,
    "app.console": 5,
    "app.__main__": 5,
}

#: Parts of a floor that a module above must not touch, and vice versa.
FORBIDDEN = {
    ("app.service", "app.engine.native"),
    ("app.service", "app.engine.child"),
    ("app.service", "app.engine.fake"),
    ("app.main", "app.engine.native"),
    ("app.dialects", "app.images"),
}

#: What a pure module has no business with.
IMPURE = {"asyncio", "socket", "os", "pathlib", "time", "random", "secrets", "threading"}


def _modules() -> dict[str, Path]:
    found = {}
    for path in APP.rglob("*.py"):
        parts = ("app", *path.relative_to(APP).with_suffix("").parts)
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = path
    return found


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names.add(str(node.module))
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _floor(module: str) -> int:
    fitting = [p for p in FLOORS if module == p or module.startswith(p + ".")]
    return FLOORS[max(fitting, key=len)]


MODULES = _modules()
GRAPH = {name: _imports(path) & set(MODULES) - {"app"} for name, path in MODULES.items()}


def test_imports_only_go_down() -> None:
    """No module imports from a floor above its own."""
    upward = [
        (name, target)
        for name, targets in GRAPH.items()
        for target in targets
        if _floor(target) > _floor(name)
    ]
    assert upward == []


def test_no_circles() -> None:
    """The modules can be put into an order in which each needs only earlier ones."""
    edges = {name: targets - {name} for name, targets in GRAPH.items()}
    assert len(list(TopologicalSorter(edges).static_order())) >= len(MODULES) - 1


def test_forbidden_neighbours() -> None:
    """The service never touches an engine, and the dialects never touch pixels."""
    found = {
        (a, b)
        for a, b in FORBIDDEN
        for name, targets in GRAPH.items()
        if name.startswith(a) and any(target.startswith(b) for target in targets)
    }
    assert found == set()


def test_core_and_dialects_are_pure() -> None:
    """Values in, values out: no clock, disk, network, randomness or environment below floor 2."""
    impure = {
        (name, target)
        for name, path in MODULES.items()
        if name.startswith(("app.core", "app.dialects", "app.images", "app.image_headers"))
        for target in _imports(path)
        if target.partition(".")[0] in IMPURE
    }
    assert impure == set()


def test_only_the_child_imports_inside_a_function() -> None:
    """One place chooses between engines at run time; everywhere else imports are on top."""
    late = set()
    for name, path in MODULES.items():
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                inner = ast.walk(function)
                if any(isinstance(node, ast.Import | ast.ImportFrom) for node in inner):
                    late.add(name)
    assert late == {"app.engine.child"}
