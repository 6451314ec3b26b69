"""The nearest known name of a misspelled one, for every "did you mean"."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from rapidfuzz import process
from rapidfuzz.distance import OSA

#: Shorter names differ from each other by a letter anyway.
_SHORTEST: Final = 4
#: From this length on, two typing errors still leave a name recognisable.
_LONG: Final = 8
#: Share of the letters that two different names of one thing have in common, as a rule.
_ALIKE: Final = 0.6


def near_miss(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that a misspelled one was meant to be; None if none is near.

    A near miss is one insertion, deletion, substitution or swap of neighbours away, or two from
    eight letters on. Case and hyphens do not count: ``negativePrompt`` is one away from
    ``negative_prompt``.

    Args:
        name: As the client sent it.
        known: Candidates; their order decides between equally near ones.
    """
    allowed = 2 if len(name) >= _LONG else 1
    if len(name) < _SHORTEST - 1:
        return None
    candidates = [candidate for candidate in known if len(candidate) >= _SHORTEST]
    found = process.extractOne(
        _plain(name), map(_plain, candidates), scorer=OSA.distance, score_cutoff=allowed
    )
    return None if found is None else candidates[found[2]]


def most_similar(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most like another one; None when none is alike.

    This is for suggestions in errors about names that do not exist, where a wrong guess costs
    nothing.

    Args:
        name: As the client sent it.
        known: Candidates; their order decides between equally similar ones.
    """
    found = process.extractOne(
        _plain(name),
        list(known),
        scorer=OSA.normalized_similarity,
        processor=_plain,
        score_cutoff=_ALIKE,
    )
    return None if found is None else str(found[0])


def did_you_mean(name: str | None) -> str:
    """Return the end of an error message that suggests a name; empty for None."""
    return f" Did you mean '{name}'?" if name else ""


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")
