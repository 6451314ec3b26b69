"""Finding a safety checker by its name."""

from __future__ import annotations

import pytest

from sdstream.core.pixels import Pixels
from sdstream.imaging.safety import SafetyCheckerError, Verdict, load_checker


class Strict:
    """Flags every picture."""

    def check(self, _picture: Pixels) -> Verdict:
        """Always flagged."""
        return Verdict(True, "strict")


class RedChecker:
    """Flags pictures whose first pixel is more red than blue; used by the tests of the service."""

    def check(self, picture: Pixels) -> Verdict:
        """Judge by one pixel."""
        return Verdict(picture.data[0] > picture.data[2], "red")


class Broken:
    """Cannot judge."""

    def check(self, _picture: Pixels) -> Verdict:
        """Fails."""
        raise RuntimeError("no weights")


strict = Strict()


@pytest.mark.parametrize("name", ["Strict", "strict"])
def test_by_import_path(name: str) -> None:
    """A class is made, an object is taken as it is."""
    checker = load_checker(f"{__name__}:{name}")
    assert checker.check(Pixels(1, 1, b"\0\0\0")).flagged


@pytest.mark.parametrize(
    "name",
    ["nobody", "nobody:Checker", f"{__name__}:nothing", f"{__name__}:pytest", ":x", "json:loads"],
)
def test_what_is_no_checker(name: str) -> None:
    """The start stops with a sentence instead of checking nothing."""
    with pytest.raises(SafetyCheckerError, match="safety checker"):
        load_checker(name)
