"""A base class for enumerations whose members have a value and a line that explains it."""

from __future__ import annotations

from enum import StrEnum
from typing import Self


class DescribedEnum(StrEnum):
    """An enumeration whose members are written as ``NAME = "word", "explanation"``."""

    meaning: str

    def __new__(cls, value: str, meaning: str = "") -> Self:
        """Create the member; ``meaning`` has a default so that ``DescribedEnum("word")`` works."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member
