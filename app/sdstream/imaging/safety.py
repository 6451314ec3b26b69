"""Checking finished images, by a checker that the operator brings.

None is part of this program: no weights for it could be found that may be shipped under a free
licence. A checker is any object with a ``check`` method; ``safety_checker`` in the settings names
it, as ``module:attribute`` or as an entry point of the group ``sdstream.safety_checkers``.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Final, Protocol, cast

from sdstream.core.errors import ConfigurationError
from sdstream.core.pixels import Pixels

GROUP: Final = "sdstream.safety_checkers"


class SafetyCheckerError(ConfigurationError):
    """The checker that the settings name cannot be used."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a checker for one image.

    Attributes:
        flagged: The image must not be handed out.
        why: For the log; clients do not see it.
    """

    flagged: bool
    why: str = ""


class SafetyChecker(Protocol):
    """Looks at finished images. Called from threads, one image at a time or several."""

    def check(self, picture: Pixels) -> Verdict:
        """Check an RGB image; an exception fails the job, it never lets the image through."""


def load_checker(name: str) -> SafetyChecker:
    """The checker of that name, made when it is a class.

    Args:
        name: ``module:attribute``, or an entry point of GROUP.

    Raises:
        SafetyCheckerError: It does not exist, or cannot be made.
    """
    module, colon, attribute = name.partition(":")
    try:
        if colon:
            found = getattr(import_module(module), attribute)
        else:
            (entry,) = metadata.entry_points(group=GROUP, name=name)
            found = entry.load()
        checker = found() if isinstance(found, type) else found
    except Exception as error:
        raise SafetyCheckerError(f"the safety checker '{name}' cannot be used: {error}") from error
    if not callable(getattr(checker, "check", None)):
        raise SafetyCheckerError(f"the safety checker '{name}' has no method 'check'")
    return cast(SafetyChecker, checker)
