"""Safety checks of finished images, with a checker that the operator provides.

The package contains no checker, because no weights with a free licence were found. A checker is any
object with a ``check`` method. The setting ``safety_checker`` names it: as ``module:attribute``, or
as an entry point of the group ``sdstream.safety_checkers``.
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
        flagged: The server must not deliver the image.
        why: The reason for the log; clients do not see it.
    """

    flagged: bool
    why: str = ""


class SafetyChecker(Protocol):
    """A checker of finished images; several threads may call it at the same time."""

    def check(self, picture: Pixels) -> Verdict:
        """Check an RGB image; if this raises an exception, the job fails."""


def load_checker(name: str) -> SafetyChecker:
    """Return the checker with this name; a class is instantiated.

    Args:
        name: ``module:attribute``, or the name of an entry point of GROUP.

    Raises:
        SafetyCheckerError: The checker does not exist or cannot be loaded, or has no ``check``.
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
