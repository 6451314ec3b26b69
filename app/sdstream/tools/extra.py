"""The optional extra ``mcp``: the official package of MCP, which is imported when it is needed."""

from __future__ import annotations

from importlib import import_module, util
from types import ModuleType
from typing import Final

from sdstream.core.errors import NotInstalled, Reason

_INSTALL: Final = "pip install 'sdstream[mcp]'"


def installed() -> bool:
    """Return whether the extra is installed."""
    return util.find_spec("mcp") is not None


def check() -> None:
    """Raise NotInstalled if the extra is missing."""
    if not installed():
        raise NotInstalled(f"MCP needs an extra: {_INSTALL}", reason=Reason.NOT_INSTALLED)


def load(module: str) -> ModuleType:
    """Import a module of this folder that needs the extra, which takes about a second.

    Args:
        module: Name of the module.

    Raises:
        NotInstalled: The extra is missing.
    """
    check()
    return import_module(f"sdstream.tools.{module}")
