"""The directories of a TIFF, which EXIF is too, read before Pillow and libtiff see them.

Pillow makes a number, or a fraction of some hundred bytes, of every value of a tag, and a step of
its decoder of every strip; libtiff takes memory for a whole tile, however small the image is.
Where a tag comes twice the two do not agree which one counts.
"""

from __future__ import annotations

import re
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from sdstream.imaging.parts import MOST_PARTS, TooManyParts, UnreadableFile

#: Values of tags that are no bytes: offsets of strips, a palette.
_MOST_VALUES: Final = 200_000
_MOST_DIRECTORIES: Final = 8
_MOST_SAMPLES: Final = 8
#: Pixels of a tile, which may be larger than its image.
_LARGE_TILE: Final = 2**20

_WIDTH, _HEIGHT, _COMPRESSION = 256, 257, 259
_STRIP_OFFSETS, _SAMPLES, _ROWS_PER_STRIP, _PLANES = 273, 277, 278, 284
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS = 322, 323, 324
_EXIF, _GPS, _INTEROP = 34665, 34853, 40965

#: The version of a BigTIFF, 43, where another has 42.
_BIG: Final = b"+"
_EXIF_MARK: Final = re.compile(rb"^(Exif\0\0){1,2}")

#: BYTE, ASCII, SBYTE, UNDEFINED: bytes stay bytes.
_BYTES: Final = (1, 2, 6, 7)
#: Types of whole numbers: struct's letters.
_WHOLE: Final = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}
_NOT_SQUEEZED: Final = 1
#: CCITT's three, LZW, JPEG, deflate under both numbers, PackBits: what editors write.
_COMPRESSIONS: Final = frozenset({_NOT_SQUEEZED, 2, 3, 4, 5, 7, 8, 32773, 32946})


@dataclass(frozen=True, slots=True)
class _Tag:
    count: int
    value: int | None


@dataclass(frozen=True, slots=True)
class _Form:
    """How numbers are written: struct's byte order, and the widths that BigTIFF doubles."""

    order: str
    big: bool

    @property
    def first(self) -> int:
        """Where the offset of the first directory stands."""
        return 8 if self.big else 4

    @property
    def offset(self) -> str:
        """An offset, as a format of struct."""
        return f"{self.order}{'Q' if self.big else 'I'}"

    @property
    def count(self) -> str:
        """The number of tags of a directory."""
        return f"{self.order}{'Q' if self.big else 'H'}"

    @property
    def entry(self) -> str:
        """A tag: its name, its type, the number of its values; those or their offset are passed."""
        return f"{self.order}{'HHQ8x' if self.big else 'HHI4x'}"

    @property
    def value(self) -> int:
        """Where the value stands in an entry."""
        return 12 if self.big else 8


def size_of_tiff(data: bytes) -> tuple[int, int]:
    """Width and height of the first image of a TIFF, as they are stored.

    Raises:
        TooManyParts: Decoding it would take time and memory out of all proportion.
        UnreadableFile: It is compressed in a way that is not read.
        ValueError, KeyError, struct.error: It is damaged.
    """
    tags = _first_directory(data, strict=True)
    width, height = _number(tags, _WIDTH), _number(tags, _HEIGHT)
    squeezed = _number(tags, _COMPRESSION, _NOT_SQUEEZED)
    if squeezed not in _COMPRESSIONS:
        raise UnreadableFile(f"the TIFF compression {squeezed} is not supported")
    samples = _number(tags, _SAMPLES, 1)
    if not (width and height and 0 < samples <= _MOST_SAMPLES):
        raise ValueError("no size")
    if _TILE_WIDTH in tags:
        wide, high = _number(tags, _TILE_WIDTH), _number(tags, _TILE_HEIGHT)
        if wide * high > max(width * height, _LARGE_TILE):
            raise TooManyParts
        offsets = tags.get(_TILE_OFFSETS)
    else:
        wide, high = width, min(_number(tags, _ROWS_PER_STRIP, height), height)
        offsets = tags.get(_STRIP_OFFSETS)
    both = _STRIP_OFFSETS in tags and _TILE_OFFSETS in tags
    if both or not (offsets and wide and high):
        raise ValueError("no pixels")
    planes = samples if _number(tags, _PLANES, 1) == 2 else 1
    if offsets.count > -(-width // wide) * -(-height // high) * planes:
        raise TooManyParts
    return width, height


def check_exif(data: bytes) -> None:
    """Look whether the values of EXIF can be made numbers of.

    Args:
        data: With or without what stands before it in a JPEG, which some programs write twice.

    Raises:
        TooManyParts: There are more than any camera writes.
    """
    with suppress(struct.error, KeyError):  # what is damaged is of no use to Pillow either
        _first_directory(_EXIF_MARK.sub(b"", data), strict=False)


def _first_directory(data: bytes, *, strict: bool) -> dict[int, _Tag]:
    """Return the tags of the first directory; the others are checked too.

    Args:
        data: The file.
        strict: The first directory must be whole, and have each tag once.
    """
    order = {b"II": "<", b"MM": ">"}[data[:2]]
    form = _Form(order, data[2:3] == _BIG)  # as Pillow distinguishes them
    (at,) = struct.unpack_from(form.offset, data, form.first)
    first, values = _directory(data, at, form, strict=strict)
    waiting, seen = [first], 1
    while waiting:
        tags = waiting.pop()
        for name in (_EXIF, _GPS, _INTEROP):
            at = tags[name].value if name in tags else None
            if at is None:
                continue
            inner, more = _directory(data, at, form, strict=False)
            waiting.append(inner)
            values, seen = values + more, seen + 1
            if seen > _MOST_DIRECTORIES or values > _MOST_VALUES:
                raise TooManyParts
    return first


def _directory(data: bytes, at: int, form: _Form, *, strict: bool) -> tuple[dict[int, _Tag], int]:
    """The tags of a directory, and how many values they have that are no bytes."""
    try:
        (count,) = struct.unpack_from(form.count, data, at)
    except struct.error:
        if strict:
            raise
        return {}, 0
    if count > MOST_PARTS:
        raise TooManyParts
    at += struct.calcsize(form.count)
    entry = struct.Struct(form.entry)
    tags: dict[int, _Tag] = {}
    values = 0
    for _ in range(count):
        if at + entry.size > len(data) and not strict:
            break
        name, kind, length = entry.unpack_from(data, at)
        if name in tags and strict:
            raise ValueError("a tag comes twice")
        value = None
        if kind in _WHOLE and length == 1:
            (value,) = struct.unpack_from(f"{form.order}{_WHOLE[kind]}", data, at + form.value)
        tags.setdefault(name, _Tag(length, value))
        values += 0 if kind in _BYTES else length
        at += entry.size
    if values > _MOST_VALUES:
        raise TooManyParts
    return tags, values


def _number(tags: dict[int, _Tag], name: int, usual: int = 0) -> int:
    if name not in tags:
        return usual
    value = tags[name].value
    if value is None:
        raise ValueError("no whole number")
    return value
