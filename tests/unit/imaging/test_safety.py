"""Loading of a safety checker by its import path."""

from __future__ import annotations

import pytest

from sdstream.core.pixels import Pixels
from sdstream.imaging.safety import SafetyCheckerError, Verdict, load_checker


class Strict:
    """Flags every image."""

    def check(self, _picture: Pixels) -> Verdict:
        """Flag the image."""
        return Verdict(True, "strict")


class RedChecker:
    """Flags images whose first pixel is more red than blue; the service's tests use it."""

    def check(self, picture: Pixels) -> Verdict:
        """Judge the image by its first pixel."""
        return Verdict(picture.data[0] > picture.data[2], "red")


class Broken:
    """A checker that fails."""

    def check(self, _picture: Pixels) -> Verdict:
        """Fail."""
        raise RuntimeError("no weights")


strict = Strict()


@pytest.mark.parametrize("name", ["Strict", "strict"])
def test_by_import_path(name: str) -> None:
    """A class is instantiated, and an object is used as it is."""
    checker = load_checker(f"{__name__}:{name}")
    assert checker.check(Pixels(1, 1, b"\0\0\0")).flagged


@pytest.mark.parametrize(
    "name",
    ["nobody", "nobody:Checker", f"{__name__}:nothing", f"{__name__}:pytest", ":x", "json:loads"],
)
def test_what_is_no_checker(name: str) -> None:
    """A path that leads to no checker ends the start with an error."""
    with pytest.raises(SafetyCheckerError, match="safety checker"):
        load_checker(name)
