"""Programs of the system that some tests need, and people may do without."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest


def needed(program: str, package: str, *folders: str) -> Path:
    """Return the path of a program. Without it the test is skipped, and fails where CI is set.

    Args:
        program: Its name.
        package: The package of Debian that has it.
        folders: Where it may be beside PATH, as patterns; the last one in order wins.
    """
    found = shutil.which(program)
    if found is None:
        matches = [path for folder in folders for path in Path("/").glob(f"{folder}/{program}")]
        found = str(max(matches)) if matches else None
    return Path(found) if found else missing(f"{program} is not installed", package)


def missing(what: str, package: str) -> NoReturn:
    """Skip the test, or fail it where CI is set."""
    why = f"{what} (Debian: apt install {package})"
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)
