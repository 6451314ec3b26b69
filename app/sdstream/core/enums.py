"""Enumerations whose values are words on the wire, each with one line of meaning."""

from __future__ import annotations

from enum import StrEnum
from typing import Self


class DescribedEnum(StrEnum):
    """Members are written ``NAME = "word", "what it means"``."""

    meaning: str

    def __new__(cls, value: str, meaning: str = "") -> Self:
        """Make the member; the default lets ``DescribedEnum("word")`` look one up."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member
