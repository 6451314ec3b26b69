"""Checks of the directories of a TIFF file, or of EXIF data, before Pillow and libtiff read them.

EXIF data has the format of a TIFF. The checks protect the server from these costs:

- Pillow creates a number, or a fraction of some hundred bytes, for every value of a tag.
- Pillow runs a decoder for every strip.
- libtiff allocates memory for a whole tile, even if the image is smaller.

If a tag occurs twice, Pillow and libtiff use different values of it, so such a TIFF is rejected.
"""

from __future__ import annotations

import re
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from sdstream.imaging.parts import MOST_PARTS, TooManyParts, UnreadableFile

#: Maximum number of values that are not bytes, for example offsets of strips or a palette.
_MOST_VALUES: Final = 200_000
_MOST_DIRECTORIES: Final = 8
_MOST_SAMPLES: Final = 8
#: Maximum number of pixels of a tile that is larger than its image.
_LARGE_TILE: Final = 2**20

_WIDTH, _HEIGHT, _COMPRESSION = 256, 257, 259
_STRIP_OFFSETS, _SAMPLES, _ROWS_PER_STRIP, _PLANES = 273, 277, 278, 284
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS = 322, 323, 324
_EXIF, _GPS, _INTEROP = 34665, 34853, 40965

#: Third byte of a little-endian BigTIFF, whose version is 43; a TIFF has version 42.
_BIG: Final = b"+"
_EXIF_MARK: Final = re.compile(rb"^(Exif\0\0){1,2}")

#: BYTE, ASCII, SBYTE and UNDEFINED; Pillow keeps their values as bytes.
_BYTES: Final = (1, 2, 6, 7)
#: Type of whole numbers -> struct's format character.
_WHOLE: Final = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}
_NOT_SQUEEZED: Final = 1
#: Compressions that editors write: three of CCITT, LZW, JPEG, deflate (two numbers) and PackBits.
_COMPRESSIONS: Final = frozenset({_NOT_SQUEEZED, 2, 3, 4, 5, 7, 8, 32773, 32946})


@dataclass(frozen=True, slots=True)
class _Tag:
    count: int
    value: int | None


@dataclass(frozen=True, slots=True)
class _Form:
    """The byte order of a file, and whether its fields have the widths of BigTIFF."""

    order: str
    big: bool

    @property
    def first(self) -> int:
        """The position of the offset of the first directory."""
        return 8 if self.big else 4

    @property
    def offset(self) -> str:
        """The struct format of an offset."""
        return f"{self.order}{'Q' if self.big else 'I'}"

    @property
    def count(self) -> str:
        """The struct format of the number of tags in a directory."""
        return f"{self.order}{'Q' if self.big else 'H'}"

    @property
    def entry(self) -> str:
        """The struct format of a tag: its name, its type and the number of its values.

        The values, or the offset at which they are, are skipped.
        """
        return f"{self.order}{'HHQ8x' if self.big else 'HHI4x'}"

    @property
    def value(self) -> int:
        """The position of the value in the entry of a tag."""
        return 12 if self.big else 8


def size_of_tiff(data: bytes) -> tuple[int, int]:
    """Return the width and height of the first image of a TIFF, before any rotation.

    Raises:
        TooManyParts: Decoding the file would take too much time and memory.
        UnreadableFile: The compression is not supported.
        ValueError, KeyError, struct.error: The file is damaged.
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
    """Check that EXIF data does not have too many values.

    Args:
        data: The data, with or without the mark that precedes it in a JPEG; some programs write the
            mark twice.

    Raises:
        TooManyParts: The data has more tags, directories or values than a camera writes.
    """
    with suppress(struct.error, KeyError):  # Pillow cannot read damaged data either
        _first_directory(_EXIF_MARK.sub(b"", data), strict=False)


def _first_directory(data: bytes, *, strict: bool) -> dict[int, _Tag]:
    """Return the tags of the first directory, and check the directories of EXIF data too.

    Args:
        data: The file.
        strict: The first directory must be complete and must not contain a tag twice.
    """
    order = {b"II": "<", b"MM": ">"}[data[:2]]
    form = _Form(order, data[2:3] == _BIG)  # Pillow detects BigTIFF by the same byte
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
    """Return the tags of a directory, and the number of their values that are not bytes."""
    if at + struct.calcsize(form.count) > len(data):  # struct takes no offset of 64 bits
        if strict:
            raise ValueError("a directory outside the file")
        return {}, 0
    (count,) = struct.unpack_from(form.count, data, at)
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
            raise ValueError("a tag occurs twice")
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
