"""What an image file says of itself, read before Pillow opens it: its format, size and parts.

Pillow keeps something for every part of a file that it passes on its way to the pixels, a hundred
bytes for the four of an empty segment: a file that is nothing but parts would take gigabytes, and
the seconds of a thread.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Final

#: Segments, chunks or blocks beside the pixels; pictures have tens, those of some editors hundreds.
MOST_PARTS: Final = 4_000

#: Bytes of a JPEG between its segments, which Pillow passes one by one.
_MOST_STRAY: Final = 2**16

_JPEG_MARKER: Final = re.compile(rb"\xff[^\x00\xff]")
#: Start of frame: it has the size. Pillow takes DHP (DE) for one too.
_JPEG_FRAMES: Final = frozenset({*range(0xC0, 0xD0), 0xDE} - {0xC4, 0xC8, 0xCC})
#: No length follows, or Pillow reads none.
_JPEG_BARE: Final = frozenset({0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)})
_JPEG_SCAN: Final = 0xDA

_GIF_EXTENSION, _GIF_IMAGE, _GIF_END = b"!,;"
#: Blocks that an extension of a kind has at least, comments none and a program's own two.
_GIF_BLOCKS: Final = {0xFE: 0, 0xFF: 2}

#: Chunks that a long picture or animation has many of, and of which nothing is kept.
_PNG_PIXELS: Final = (b"IDAT", b"fdAT", b"fcTL")


class TooManyParts(ValueError):
    """No picture has as many; a file that is made to keep its reader busy."""

    def __init__(self) -> None:
        super().__init__("it has too many parts beside its pixels")


def size_of(data: bytes) -> tuple[int, int]:
    """Width and height of a PNG, JPEG, WebP, GIF or BMP.

    Raises:
        TooManyParts: Opening it would take time and memory out of all proportion.
        ValueError: It is of no such format, or damaged.
    """
    read = next((read for magic, read in _READERS.items() if data.startswith(magic)), None)
    if read is None:
        raise ValueError("no format that is read here")
    try:
        return read(data)
    except (struct.error, IndexError):
        raise ValueError("it is cut short") from None


def _png_size(data: bytes) -> tuple[int, int]:
    at, others = 8, 0
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        others += kind not in _PNG_PIXELS
        if others > MOST_PARTS:
            raise TooManyParts
        at += 12 + length
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """Walk from marker to marker as Pillow does, up to the first scan."""
    at, stray = 2, 0
    size = None
    for _ in range(MOST_PARTS):
        found = _JPEG_MARKER.search(data, at, at + _MOST_STRAY)
        if found is None:
            raise ValueError("no marker")
        stray += found.start() - at
        if stray > _MOST_STRAY:
            break
        at = found.end()
        marker = data[at - 1]
        if marker == _JPEG_SCAN and size is not None:
            return size
        if marker in _JPEG_FRAMES:
            # Each may have 20,000 channels, and Pillow would keep a tuple for every one.
            if size is not None:
                raise ValueError("two frames")
            height, width = struct.unpack_from(">HH", data, at + 3)
            size = width, height
        if marker not in _JPEG_BARE:
            at += max(2, *struct.unpack_from(">H", data, at))
    raise TooManyParts


def _gif_size(data: bytes) -> tuple[int, int]:
    """Walk from block to block, up to the first image."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    blocks: int | None = None
    for _ in range(MOST_PARTS):
        byte = data[at]
        if blocks is not None:
            # Of an extension. Pillow loses its place in one that has fewer than it should.
            if not byte and blocks > 0:
                raise ValueError("an empty extension")
            blocks = blocks - 1 if byte else None
            at += 1 + byte
        elif byte == _GIF_EXTENSION:
            blocks = _GIF_BLOCKS.get(data[at + 1], 1)
            at += 2
        elif byte == _GIF_IMAGE:
            left, top, wide, high = struct.unpack_from("<4H", data, at + 1)
            return max(width, left + wide), max(height, top + high)
        elif byte == _GIF_END:
            raise ValueError("no image")
        else:
            at += 1
    raise TooManyParts


def _webp_size(data: bytes) -> tuple[int, int]:
    # Pillow reads the size from the decoder, which has taken memory for two frames by then.
    if data[8:12] != b"WEBP":
        raise ValueError("another RIFF file")
    match data[12:16]:
        case b"VP8X":
            width, height = (int.from_bytes(data[i : i + 3], "little") + 1 for i in (24, 27))
        case b"VP8L":
            (bits,) = struct.unpack_from("<I", data, 21)
            width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case _:
            width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    return width, height


def _bmp_size(data: bytes) -> tuple[int, int]:
    (header,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if header == 12 else "<ii", data, 18)
    return abs(width), abs(height)


_READERS: Final[dict[bytes, Callable[[bytes], tuple[int, int]]]] = {
    b"\x89PNG\r\n\x1a\n": _png_size,
    b"\xff\xd8\xff": _jpeg_size,
    b"RIFF": _webp_size,
    b"GIF87a": _gif_size,
    b"GIF89a": _gif_size,
    b"BM": _bmp_size,
}
