"""The words and numbers that a small model was trained on, and warnings about all others."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

_WITHOUT_PICTURE: Final = (
    "a an the this that these those some any and or but so as if then than of for from by with to "
    "it its is are was were be been being has have had do does did i me my we us our you your he "
    "him his she her they them their who which what there here very really just also too only let"
)
#: Words that do not change an image; they are never reported as unknown.
_FUNCTION_WORDS: Final = frozenset(_WITHOUT_PICTURE.split())
#: Words that exclude what follows; so do contractions such as "don't".
_NEGATIONS: Final = frozenset(
    ["no", "not", "never", "none", "nothing", "neither", "nor", "without", "except", "excluding"]
)
_CONTRACTION: Final = re.compile(r"n['’]t$")
#: Words and whole numbers, without the numbers of weights, ratios and words such as "4k".
_WORD: Final = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*|(?<![\w.:])\d+(?!\w|[.:]\d)")
#: Numbers above one that a vocabulary may contain.
_NUMBERS: Final = frozenset(["2", "3", "4", "two", "three", "four", "pair", "couple"])
#: Maximum number of words that one warning names.
_MOST_NAMED: Final = 8


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The words and subjects that a small model was trained on.

    Attributes:
        words: All words and whole numbers of the training captions, in lower case.
        subjects: Descriptions of what the model can generate, for messages.
        colours: Names of the colours that the model can generate, for messages.
        names: Name of a thing, singular or plural -> the thing.
        scenery: Word -> the words of landscapes, one of which a prompt with it must contain: the
            model knows "many" from "many stars over a lake". Other plurals in ``names``, and these
            without such a word, need a number.
        knows_groups: Numbers are usually right if the prompt names several things.
    """

    words: Collection[str]
    subjects: Sequence[str]
    colours: Sequence[str] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    scenery: Mapping[str, Collection[str]] = field(default_factory=dict)
    knows_groups: bool = False

    def warnings(self, model: str, prompt: str) -> tuple[str, ...]:
        """Return the warnings about what the model was not trained on."""
        words = _words(prompt)
        negation = self._negation(model, words)
        found = (
            self._unknown_words(model, prompt),
            negation,
            self._groups(model, words),
            None if negation else self._plural(model, words),
        )
        return tuple(warning for warning in found if warning)

    def unknown(self, prompt: str) -> list[str]:
        """Return the words of a prompt that the model was not trained on, each once.

        Words of negation are not among them: they have a warning of their own.
        """
        words = _words(prompt)
        return [
            word
            for word in dict.fromkeys(words)
            if not _negates(word)
            and (not self._knows(word) or (word not in self.names and self._astray(word, words)))
        ]

    def names_thing(self, prompt: str) -> bool:
        """Return whether a prompt names a thing, so that the image should not be empty."""
        return any(word in self.names for word in _words(prompt))

    def _unknown_words(self, model: str, prompt: str) -> str | None:
        unknown = self.unknown(prompt)
        if not unknown:
            return None
        named = ", ".join(f"'{word[:32]}'" for word in unknown[:_MOST_NAMED])
        more = len(unknown) - _MOST_NAMED
        known = ", ".join(self.subjects)
        if self.colours:
            known += f"; the colours {', '.join(self.colours)}"
        if self._highest > 1:
            known += f"; numbers up to {self._highest}"
        return (
            f"The model '{model}' does not know {named}{f' and {more} more' if more > 0 else ''}. "
            f"It knows: {known}. For anything else, use a larger model: "
            "'sdstream models --all' lists them, and 'sdstream pull MODEL' downloads one."
        )

    def _negation(self, model: str, words: Sequence[str]) -> str | None:
        found = next((word for word in words if _negates(word) and word not in self.words), None)
        if found is None:
            return None
        return (
            f"The model '{model}' does not know words such as '{found}': the image often contains "
            "what they exclude. Name only what the image should contain."
        )

    def _groups(self, model: str, words: Sequence[str]) -> str | None:
        things = [self.names.get(word) for word in words]
        # "crescent moon" names one thing
        mentions = [thing for last, thing in pairwise([None, *things]) if thing and thing != last]
        number = next((word for word in words if word in _NUMBERS), None)
        if self.knows_groups or number is None or len(mentions) < 2:
            return None
        named = ", ".join(f"'{thing}'" for thing in mentions[:_MOST_NAMED])
        return (
            f"The model '{model}' is unreliable with numbers such as '{number}' together with "
            f"several things ({named}): the image is often wrong. Name only one of these things, "
            "ask for one of each, or use a larger model."
        )

    def _plural(self, model: str, words: Sequence[str]) -> str | None:
        if self._highest < 2 or any(word in _NUMBERS for word in words):
            return None
        plural = next((word for word in words if self._needs_number(word, words)), None)
        if plural is None:
            return None
        return (
            f"The model '{model}' does not know '{plural}' without a number from 2 to "
            f"{self._highest}: the image is usually wrong or empty. Write for example "
            f"'{self._highest} {plural}', or use a larger model."
        )

    def _needs_number(self, word: str, words: Sequence[str]) -> bool:
        """Return whether a word is the plural of a thing, in a prompt that is not a landscape's."""
        plural = word in self.names and word.endswith("s") and f"{word}es" not in self.names
        return plural and (word not in self.scenery or self._astray(word, words))

    def _astray(self, word: str, words: Sequence[str]) -> bool:
        """Return whether the model knows a word only from landscapes, and the prompt names none."""
        return word in self.scenery and not any(scene in words for scene in self.scenery[word])

    @property
    def _highest(self) -> int:
        """The highest number that the model knows; 0 if it knows none."""
        return max((int(word) for word in self.words if word.isdecimal()), default=0)

    def _knows(self, word: str) -> bool:
        if word in self.words or word in _FUNCTION_WORDS:
            return True
        # "red-and-blue", "cat's"
        parts = re.split(r"['’-]", word)
        return len(parts) > 1 and all(len(part) < 2 or self._knows(part) for part in parts)


def _words(prompt: str) -> list[str]:
    return [match[0].lower() for match in _WORD.finditer(prompt)]


def _negates(word: str) -> bool:
    return word in _NEGATIONS or _CONTRACTION.search(word) is not None
