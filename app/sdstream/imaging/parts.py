"""What the readers of image files' headers share."""

from __future__ import annotations

from typing import Final

#: Segments, chunks, blocks, tags or boxes besides the pixels; images have tens, those of some
#: editors hundreds.
MOST_PARTS: Final = 4_000


class UnreadableFile(ValueError):
    """An image file that is rejected; the message is for the client."""


class TooManyParts(UnreadableFile):
    """The file has more parts than any image; it was made to keep its reader busy."""

    def __init__(self) -> None:
        super().__init__("it has too many parts besides its pixels")
