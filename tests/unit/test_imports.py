"""The layers of docs/architecture/overview.md: which package may import which."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

APP = Path(__file__).parents[2] / "app/sdstream"

#: Module prefix -> its level; the longest prefix that matches applies. A module imports from its
#: own level or lower ones, and layers of one level do not import from each other.
LEVELS = {
    # The public names of the package, each imported on its first use.
    "sdstream": 8,
    "sdstream.atomic": 0,
    "sdstream.blocking": 0,
    "sdstream.clocks": 0,
    "sdstream.core": 0,
    "sdstream.notifier": 0,
    "sdstream.settings": 0,
    "sdstream.system": 0,
    "sdstream.client": 1,
    "sdstream.dialects": 1,
    "sdstream.imaging": 1,
    "sdstream.storage": 1,
    "sdstream.weights": 1,
    "sdstream.engine": 2,
    "sdstream.cluster": 3,
    "sdstream.service": 4,
    "sdstream.tools": 5,
    "sdstream.runner": 6,
    "sdstream.web": 6,
    "sdstream.cli": 7,
    "sdstream.__main__": 8,
}

#: Pairs of a package and a module of a lower level that the package must not import.
FORBIDDEN = {
    ("sdstream.service", "sdstream.engine.native"),
    ("sdstream.service", "sdstream.engine.child"),
    ("sdstream.service", "sdstream.engine.fake"),
    ("sdstream.web", "sdstream.engine.native"),
}

#: Modules without side effects: their results depend only on their arguments.
PURE = ("sdstream.core", "sdstream.dialects", "sdstream.imaging.codecs", "sdstream.imaging.headers")

#: Standard modules that a pure module must not import.
IMPURE = {"asyncio", "socket", "os", "pathlib", "time", "random", "secrets", "threading"}


def _modules() -> dict[str, Path]:
    found = {}
    for path in APP.rglob("*.py"):
        parts = ("sdstream", *path.relative_to(APP).with_suffix("").parts)
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


def _level_of(module: str) -> int:
    fitting = [p for p in LEVELS if module == p or module.startswith(p + ".")]
    return LEVELS[max(fitting, key=len)]


MODULES = _modules()
GRAPH = {name: _imports(path) & set(MODULES) - {"sdstream"} for name, path in MODULES.items()}


def test_imports_only_go_down() -> None:
    """No module imports from a level above its own."""
    upward = [
        (name, target)
        for name, targets in GRAPH.items()
        for target in targets
        if _level_of(target) > _level_of(name)
    ]
    assert upward == []


def _layer(module: str) -> str:
    return ".".join(module.split(".")[:2])


def test_layers_of_one_level_stay_apart() -> None:
    """A layer does not import from another layer of its level."""
    level = [
        (name, target)
        for name, targets in GRAPH.items()
        for target in targets
        if _level_of(target) == _level_of(name) > 0 and _layer(target) != _layer(name)
    ]
    assert level == []


def test_no_circles() -> None:
    """No modules import each other in a cycle."""
    edges = {name: targets - {name} for name, targets in GRAPH.items()}
    assert len(list(TopologicalSorter(edges).static_order())) >= len(MODULES) - 1


def test_forbidden_neighbours() -> None:
    """The service and the web server do not import the engines themselves."""
    found = {
        (a, b)
        for a, b in FORBIDDEN
        for name, targets in GRAPH.items()
        if name.startswith(a) and any(target.startswith(b) for target in targets)
    }
    assert found == set()


def test_core_and_dialects_are_pure() -> None:
    """Pure modules import nothing for clocks, disks, networks, randomness or the environment."""
    impure = {
        (name, target)
        for name, path in MODULES.items()
        if name.startswith(PURE)
        for target in _imports(path)
        if target.partition(".")[0] in IMPURE
    }
    assert impure == set()


def test_only_the_child_imports_inside_a_function() -> None:
    """Only the modules that load an engine or Ray import within a function."""
    late = set()
    for name, path in MODULES.items():
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                inner = ast.walk(function)
                if any(isinstance(node, ast.Import | ast.ImportFrom) for node in inner):
                    late.add(name)
    assert late == {"sdstream.engine.child", "sdstream.cluster.node"}
