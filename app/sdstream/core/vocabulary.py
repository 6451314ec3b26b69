"""The words that a small model was trained on, and the words of a prompt that it does not know."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
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
#: Maximum number of words that one warning names.
_MOST_NAMED: Final = 8


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The words and subjects that a small model was trained on.

    Attributes:
        words: All words and whole numbers of the training captions, in lower case.
        subjects: Descriptions of what the model can generate, for messages.
    """

    words: Collection[str]
    subjects: Sequence[str]

    def unknown(self, prompt: str) -> list[str]:
        """Return the words of a prompt that the model was not trained on, each once."""
        found = (match[0].lower() for match in _WORD.finditer(prompt))
        return [*dict.fromkeys(word for word in found if not self._knows(word))]

    def warning(self, model: str, prompt: str) -> str | None:
        """Return a warning about the unknown words of a prompt; None if it has none."""
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

    def _knows(self, word: str) -> bool:
        if word in self.words or word in _FUNCTION_WORDS:
            return True
        # "red-and-blue", "cat's"
        parts = re.split(r"['’-]", word)
        return len(parts) > 1 and all(len(part) < 2 or self._knows(part) for part in parts)
