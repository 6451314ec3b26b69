"""The maximum number of parts (such as tags) in an image file, and errors for rejected files."""

from __future__ import annotations

from typing import Final

#: Maximum number of segments, chunks, blocks, tags or boxes besides the pixels. Most images have
#: tens of them, and images from some editors have hundreds.
MOST_PARTS: Final = 4_000


class UnreadableFile(ValueError):
    """An image file is rejected; the message is for the client."""


class TooManyParts(UnreadableFile):
    """The file has more parts than any real image; it may be an attack on the server."""

    def __init__(self) -> None:
        super().__init__("it has too many parts besides its pixels")
