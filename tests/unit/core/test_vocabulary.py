"""Words of a prompt that a small model does not know."""

from __future__ import annotations

import pytest

from sdstream.core.vocabulary import Vocabulary

SMALL = Vocabulary(frozenset({"red", "blue", "cat", "cats", "k", "2"}), ("cat", "landscapes"))


@pytest.mark.parametrize(
    ("prompt", "unknown"),
    [
        ("An astronaut riding a Horse, a horse", ["astronaut", "riding", "horse"]),
        ("a red cat and some blue cats, 4k", []),
        ("the cat's red-and-blue (cat:1.3)", []),
        ("sun-red", ["sun-red"]),
        ("2 cats, don't draw 7 red cats or 12.", ["draw", "7", "12"]),
        ("a (cat:1.3) and a (red cat:2), 16:9, 8k", []),
        ("一只猫", ["一只猫"]),
        ("", []),
    ],
)
def test_unknown_words(prompt: str, unknown: list[str]) -> None:
    """Each unknown word is listed once, in order; weights, ratios and function words are not."""
    assert SMALL.unknown(prompt) == unknown


def test_the_sentence() -> None:
    """The warning names the first unknown words and the remedy."""
    assert SMALL.warnings("tiny", "a red cat") == ()
    assert SMALL.warnings("tiny", "a horse") == (
        "The model 'tiny' does not know 'horse'. It knows: cat, landscapes. For anything else, use "
        "a larger model: 'sdstream models --all' lists them, and 'sdstream pull MODEL' downloads "
        "one.",
    )
    letters = " ".join(f"{letter}{letter}" for letter in "abcdefghijk")
    assert "'hh' and 3 more." in SMALL.warnings("tiny", letters)[0]


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        (
            "two blue stars above a red house",
            "'two' together with several things ('star', 'house')",
        ),
        (
            "A house, 3 cats and 2 stars",
            "'3' together with several things ('house', 'cat', 'star')",
        ),
        ("a pair of kittens next to the house", "'pair' together"),
        ("two blue stars", None),
        ("two cats and kittens", None),
        ("one star above one house", None),
        ("a star above a house", None),
        ("a (star:2) above a house", None),
        ("four cats on a beach at night", None),
    ],
)
def test_numbers_of_several_things(prompt: str, named: str | None) -> None:
    """A number above one is warned of if the prompt names different things."""
    words = {"star": "star", "stars": "star", "house": "house", "cats": "cat", "kittens": "cat"}
    small = Vocabulary({"two", "above"}, ("star",), words)
    (*_, text) = ("", *(text for text in small.warnings("tiny", prompt) if "together" in text))
    assert (named in text) if named else (text == "")
