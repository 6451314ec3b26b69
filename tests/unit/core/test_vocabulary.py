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
        ("all cats, both cats, most cats and many cats", ["all", "both", "most", "many"]),
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
        "The model 'tiny' does not know 'horse'. It knows: cat, landscapes; numbers up to 2. For "
        "anything else, use a larger model: 'sdstream models --all' lists them, and 'sdstream pull "
        "MODEL' downloads one.",
    )
    taught = Vocabulary({"red", "2", "3"}, ("cat", "landscapes"), ("red", "blue"))
    known = "It knows: cat, landscapes; the colours red, blue; numbers up to 3. For anything else"
    assert known in taught.warnings("tiny", "magenta")[0]
    letters = " ".join(f"{letter}{letter}" for letter in "abcdefghijk")
    assert "'hh' and 3 more." in SMALL.warnings("tiny", letters)[0]


NAMED = Vocabulary(
    {"two", "3", "many", "fish", "stars", "lake"},
    ("star",),
    names={"star": "star", "stars": "star", "house": "house", "cross": "cross", "crosses": "cross",
           "cats": "cat", "kittens": "cat", "moon": "moon", "crescent": "moon", "fish": "fish"},
    scenery={"many": {"lake"}, "stars": {"lake"}},
)  # fmt: skip


def warning(prompt: str, part: str) -> str:
    """Return the warning that contains a text; empty without one."""
    found = [text for text in NAMED.warnings("tiny", prompt) if part in text]
    assert len(found) < 2
    return "".join(found)


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
        (
            "two red stars next to a blue star",
            "'two' together with several things ('star', 'star')",
        ),
        ("two cats and kittens", "('cat', 'cat')"),
        ("two " + "stars and a house and " * 9, "'star', 'house', 'star', 'house')"),
        ("two blue stars", None),
        ("two crescent moon", None),
        ("one star above one house", None),
        ("a star above a house", None),
        ("a (star:2) above a house", None),
        ("four cats on a beach at night", None),
    ],
)
def test_numbers_of_several_things(prompt: str, named: str | None) -> None:
    """A number above one is warned of if the prompt names several things, of whatever kind."""
    text = warning(prompt, "together")
    assert (named in text) if named else (text == "")


def test_numbers_of_several_things_that_are_known() -> None:
    """A model that knows groups gets no warning about them."""
    known = Vocabulary({"two", "star"}, ("star",), names={"star": "star"}, knows_groups=True)
    assert not known.warnings("tiny", "two star and a star")


@pytest.mark.parametrize(
    ("prompt", "plural"),
    [
        ("many blue stars", "stars"),
        ("red crosses and a cross", "crosses"),
        ("seven stars", "stars"),
        ("a cross", None),
        ("two stars", None),
        ("a pair of stars", None),
        ("fish", None),
        ("many stars over a lake", None),
    ],
)
def test_plurals_without_a_number(prompt: str, plural: str | None) -> None:
    """A plural that needs a number is warned of, with a number that the model knows."""
    text = warning(prompt, "without a number")
    assert text == (
        f"The model 'tiny' does not know '{plural}' without a number from 2 to 3: the image is "
        f"usually wrong or empty. Write for example '3 {plural}', or use a larger model."
        if plural
        else ""
    )


def test_many_is_known_of_landscapes() -> None:
    """A word that the model knows from landscapes is unknown in other prompts."""
    assert NAMED.unknown("many fish") == ["many"]
    assert NAMED.unknown("many stars by the lake") == []


@pytest.mark.parametrize(
    ("prompt", "word"),
    [
        ("no cats, a house", "no"),
        ("a star, not a cat", "not"),
        ("Don’t include a cat", "don’t"),
        ("a house without crosses", "without"),
        ("a knot", None),
    ],
)
def test_negations(prompt: str, word: str | None) -> None:
    """A negation has a warning of its own, which replaces the advice to number what it excludes."""
    text = warning(prompt, "exclude")
    assert text.startswith(
        f"The model 'tiny' does not know words such as '{word}':" if word else ""
    )
    assert bool(text) == bool(word)
    assert not warning(prompt, "without a number")
    assert word not in NAMED.unknown(prompt)


def test_things() -> None:
    """A prompt such as "plain blue" names no thing, so a plain image is right."""
    assert NAMED.names_thing("a red Star")
    assert not NAMED.names_thing("a plain blue background")


def test_a_negation_that_is_known() -> None:
    """A negation in the captions of the model is not warned of."""
    assert not Vocabulary({"no", "cat"}, ("cat",)).warnings("tiny", "no cat")
