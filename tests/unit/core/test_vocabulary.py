"""Words of prompts that a small model was never shown."""

from __future__ import annotations

import pytest

from sdstream.core.vocabulary import Vocabulary

SMALL = Vocabulary(frozenset({"red", "blue", "cat", "cats", "k"}), ("cat", "landscapes"))


@pytest.mark.parametrize(
    ("prompt", "unknown"),
    [
        ("An astronaut riding a Horse, a horse", ["astronaut", "riding", "horse"]),
        ("a red cat and some blue cats, 4k", []),
        ("the cat's red-and-blue (cat:1.3)", []),
        ("sun-red", ["sun-red"]),
        ("一只猫", ["一只猫"]),
        ("", []),
    ],
)
def test_unknown_words(prompt: str, unknown: list[str]) -> None:
    """Each once, in their order; numbers, weights and words of grammar are none."""
    assert SMALL.unknown(prompt) == unknown


def test_the_sentence() -> None:
    """It names some of many words, and what to do."""
    assert SMALL.warning("tiny", "a red cat") is None
    assert SMALL.warning("tiny", "a horse") == (
        "The model 'tiny' does not know 'horse'. It knows: cat, landscapes. For anything else, use "
        "a larger model: 'sdstream models --all' lists them, and 'sdstream pull MODEL' downloads "
        "one."
    )
    letters = " ".join(f"{letter}{letter}" for letter in "abcdefghijk")
    assert "'hh' and 3 more." in str(SMALL.warning("tiny", letters))
