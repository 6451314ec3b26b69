"""The words and numbers that a small model was trained on, and warnings about all others."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

_WITHOUT_PICTURE: Final = (
    "a an the this that these those some any each every all both no not and or but so as if then "
    "than of for from by with to it its is are was were be been being has have had do does did i "
    "me my we us our you your he him his she her they them their who which what there here very "
    "really just also too only more most much many don doesn isn aren wasn let"
)
#: Words that do not change an image; they are never reported as unknown.
_FUNCTION_WORDS: Final = frozenset(_WITHOUT_PICTURE.split())
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
        counted_alone: Name of a thing, singular or plural -> the thing, for the things whose number
            is usually wrong if the prompt names another thing as well.
    """

    words: Collection[str]
    subjects: Sequence[str]
    counted_alone: Mapping[str, str] = field(default_factory=dict)

    def warnings(self, model: str, prompt: str) -> tuple[str, ...]:
        """Return the warnings about what the model was not trained on."""
        found = (self._unknown_words(model, prompt), self._number(model, prompt))
        return tuple(warning for warning in found if warning)

    def unknown(self, prompt: str) -> list[str]:
        """Return the words of a prompt that the model was not trained on, each once."""
        return [*dict.fromkeys(word for word in _words(prompt) if not self._knows(word))]

    def _unknown_words(self, model: str, prompt: str) -> str | None:
        unknown = self.unknown(prompt)
        if not unknown:
            return None
        named = ", ".join(f"'{word[:32]}'" for word in unknown[:_MOST_NAMED])
        more = len(unknown) - _MOST_NAMED
        return (
            f"The model '{model}' does not know {named}{f' and {more} more' if more > 0 else ''}. "
            f"It knows: {', '.join(self.subjects)}. For anything else, use a larger model: "
            "'sdstream models --all' lists them, and 'sdstream pull MODEL' downloads one."
        )

    def _number(self, model: str, prompt: str) -> str | None:
        words = _words(prompt)
        things = [*dict.fromkeys(self.counted_alone[w] for w in words if w in self.counted_alone)]
        number = next((word for word in words if word in _NUMBERS), None)
        if number is None or len(things) < 2:
            return None
        named = ", ".join(f"'{thing}'" for thing in things)
        return (
            f"The model '{model}' does not know numbers such as '{number}' together with several "
            f"things ({named}): the image is usually wrong. Name only one of these things, omit "
            "the number, or use a larger model."
        )

    def _knows(self, word: str) -> bool:
        if word in self.words or word in _FUNCTION_WORDS:
            return True
        # "red-and-blue", "cat's"
        parts = re.split(r"['’-]", word)
        return len(parts) > 1 and all(len(part) < 2 or self._knows(part) for part in parts)


def _words(prompt: str) -> list[str]:
    return [match[0].lower() for match in _WORD.finditer(prompt)]
