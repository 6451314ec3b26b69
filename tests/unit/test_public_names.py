"""The names that ``import sdstream`` offers."""

from __future__ import annotations

import subprocess
import sys

import pytest

import sdstream


@pytest.mark.parametrize("name", sdstream.__all__)
def test_every_public_name_is_found(name: str) -> None:
    """Each is imported from its module on its first use, and dir() lists it."""
    assert getattr(sdstream, name).__name__ == name
    assert name in dir(sdstream)


def test_other_names_are_not_found() -> None:
    """As of any module."""
    with pytest.raises(AttributeError, match="no attribute 'ImageProcessor'"):
        _ = sdstream.ImageProcessor


def test_importing_the_package_imports_nothing_else() -> None:
    """The worker process and ``--help`` do not pay for the client and the service."""
    program = "import sys, sdstream; print([m for m in sys.modules if m.startswith('sdstream.')])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.strip() == b"[]"
