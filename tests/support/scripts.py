"""Imports programs of scripts/ as modules."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any


def script(name: str) -> Any:
    """Import scripts/NAME.py; return the module."""
    spec = spec_from_file_location(name, Path(__file__).parents[2] / f"scripts/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
