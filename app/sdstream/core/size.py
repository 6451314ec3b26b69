"""Width and height of an image in pixels."""

from __future__ import annotations

import re
from typing import NamedTuple, Self


class Size(NamedTuple):
    """A width and a height in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "WxH" or "W*H"; raise ValueError on anything else."""
        match = re.fullmatch(r"\s*(\d{1,5})\s*[xX*×]\s*(\d{1,5})\s*", text)
        if match is None:
            raise ValueError("write a size as WIDTHxHEIGHT, for example 512x512")
        return cls(int(match[1]), int(match[2]))
