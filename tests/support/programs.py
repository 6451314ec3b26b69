"""System programs that some tests need and that developers may not have installed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest


def needed(program: str, package: str, *folders: str) -> Path:
    """Return the path of a program. Without it, skip the test, or fail it if CI is set.

    Args:
        program: Name of the program.
        package: The Debian package that contains it.
        folders: Patterns of folders to search if it is not on PATH; the last match in order wins.
    """
    found = shutil.which(program)
    if found is None:
        matches = [path for folder in folders for path in Path("/").glob(f"{folder}/{program}")]
        found = str(max(matches)) if matches else None
    return Path(found) if found else missing(f"{program} is not installed", package)


def missing(what: str, package: str) -> NoReturn:
    """Skip the test, or fail it if the variable CI is set."""
    why = f"{what} (Debian: apt install {package})"
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)
