"""The known name that is nearest to a misspelled one, for "Did you mean" suggestions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from rapidfuzz import process
from rapidfuzz.distance import OSA

#: Minimum length of a known name that is suggested; shorter names differ by a letter or two anyway.
_SHORTEST: Final = 4
#: Minimum length of a name in which two typing errors are allowed.
_LONG: Final = 8
#: Minimum similarity (0..1) of a suggested name.
_ALIKE: Final = 0.6


def near_miss(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that a client misspelled; None if no known name is near.

    A name is near if it differs by one insertion, deletion, substitution or swap of neighbouring
    letters, or by two if it has eight letters or more. Case does not matter, and a hyphen counts as
    an underscore. ``negativePrompt`` differs from ``negative_prompt`` by one insertion.

    Args:
        name: The name as the client sent it.
        known: Candidates; the first of equally near ones is returned.
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
    """Return the known name that is most similar to another one; None if no name is similar.

    Errors about unknown names use this for suggestions, where a wrong guess does no harm.

    Args:
        name: The name as the client sent it.
        known: Candidates; the first of equally similar ones is returned.
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
    """Return a sentence that suggests a name, for the end of an error message; empty for None."""
    return f" Did you mean '{name}'?" if name else ""


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")
