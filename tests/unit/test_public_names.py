"""The names that ``import sdstream`` offers."""

from __future__ import annotations

import subprocess
import sys

import pytest

import sdstream


@pytest.mark.parametrize("name", sdstream.__all__)
def test_every_public_name_is_found(name: str) -> None:
    """Each name is imported on first use and listed by dir()."""
    assert getattr(sdstream, name).__name__ == name
    assert name in dir(sdstream)


def test_other_names_are_not_found() -> None:
    """Any other name raises an AttributeError."""
    with pytest.raises(AttributeError, match="no attribute 'ImageProcessor'"):
        _ = sdstream.ImageProcessor


def test_importing_the_package_imports_nothing_else() -> None:
    """Importing the package imports no submodule, so that the worker process starts quickly."""
    program = "import sys, sdstream; print([m for m in sys.modules if m.startswith('sdstream.')])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.strip() == b"[]"
