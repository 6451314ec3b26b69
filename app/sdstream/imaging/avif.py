"""The sizes that an AVIF has, read before libavif sees it.

The size of the container is a promise: the decoder takes memory for the frame as the AV1 stream
describes it, and scales it afterwards. So the frames of all items are looked at, as far as their
sizes stand.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from sdstream.imaging.parts import MOST_PARTS, TooManyParts
from sdstream.imaging.tiff import check_exif

#: A box, by its place in the file: what it is, where its contents begin and end.
_Box = tuple[bytes, int, int]

_STILL, _SEQUENCE = b"avif", b"avis"
#: Containers of several formats, which name theirs further behind.
_CONTAINERS: Final = (b"mif1", b"msf1")

_ONCE: Final = (b"meta", b"iprp", b"iinf", b"iloc", b"idat")

_SEQUENCE_HEADER: Final = 1
#: Frame header, frame, frame header again.
_FRAME_HEADERS: Final = (3, 6, 7)
_KEY_FRAME, _SWITCH_FRAME = 0, 3
#: The frame contains a value that the sequence header otherwise has for all frames.
_EACH_FRAME: Final = 2


def brands_of(data: bytes) -> list[bytes]:
    """Return the formats that a file of boxes (ISO 14496-12) names, its own first."""
    if data[4:8] != b"ftyp":
        return []
    (size,) = struct.unpack_from(">I", data)
    others = range(16, min(size, len(data), 256) - 3, 4)
    return [data[8:12], *(data[at : at + 4] for at in others)]


def is_avif(data: bytes) -> bool:
    """Return whether a file is an AVIF, of an image or of an animation."""
    own, *others = brands_of(data) or [b""]
    named = (own, *others) if own in _CONTAINERS else (own,)
    return _STILL in named or _SEQUENCE in named


def as_still(data: bytes) -> bytes:
    """Return the file as one whose image is decoded, not the frames of its animation."""
    return data if data[8:12] == _STILL else b"".join((data[:8], _STILL, data[12:]))


def size_of_avif(data: bytes) -> tuple[int, int]:
    """Width and height of the largest image or frame of an AVIF.

    Raises:
        TooManyParts: Decoding it would take time and memory out of all proportion.
        ValueError, KeyError, struct.error, IndexError: It is damaged, or contains frames and no
            image.
    """
    (start, end) = _named(data, 0, len(data))[b"meta"]
    boxes = _named(data, start + 4, end)
    sizes = list(_container_sizes(data, boxes[b"iprp"]))
    kinds = _kinds(data, boxes[b"iinf"])
    idat = boxes.get(b"idat", (0, 0))
    for item, payload in _payloads(data, boxes[b"iloc"], idat):
        match kinds.get(item):
            case b"av01":
                sizes += _frame_sizes(payload)
            case b"Exif":
                (skip,) = struct.unpack_from(">I", payload)
                check_exif(payload[4 + skip :])
    return max(sizes, key=lambda size: size[0] * size[1])


def _boxes(data: bytes, at: int, end: int) -> Iterator[_Box]:
    for _ in range(MOST_PARTS):
        if at + 8 > end:
            return
        size, kind = struct.unpack_from(">I4s", data, at)
        head = 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, at + 8)
            head = 16
        last = at + size if size else end
        if size and not head <= size <= end - at:
            raise ValueError("a box ends behind its own")
        yield kind, at + head, last
        at = last
    raise TooManyParts


def _named(data: bytes, at: int, end: int) -> dict[bytes, tuple[int, int]]:
    """Where the contents of boxes are, by what they are."""
    found: dict[bytes, tuple[int, int]] = {}
    for kind, start, last in _boxes(data, at, end):
        if kind in found and kind in _ONCE:
            raise ValueError("a box comes twice")
        found[kind] = start, last
    return found


def _container_sizes(data: bytes, iprp: tuple[int, int]) -> Iterator[tuple[int, int]]:
    for kind, start, end in _boxes(data, *iprp):
        if kind == b"ipco":
            for inner, at, _ in _boxes(data, start, end):
                if inner == b"ispe":
                    yield struct.unpack_from(">II", data, at + 4)


def _kinds(data: bytes, iinf: tuple[int, int]) -> dict[int, bytes]:
    """Items by their numbers: av01, Exif, grid …"""
    start, end = iinf
    kinds = {}
    for kind, at, _ in _boxes(data, start + (6 if data[start] == 0 else 8), end):
        version = data[at]
        if kind == b"infe" and version >= 2:
            layout = ">H2x4s" if version == 2 else ">I2x4s"
            number, what = struct.unpack_from(layout, data, at + 4)
            kinds[number] = what
    return kinds


def _payloads(
    data: bytes, iloc: tuple[int, int], idat: tuple[int, int]
) -> Iterator[tuple[int, bytes]]:
    """The contents of each item; no more of them together than the file has."""
    version = data[iloc[0]]
    (widths,) = struct.unpack_from(">H", data, iloc[0] + 4)
    offset_width, length_width, base_width, index_width = (widths >> s & 15 for s in (12, 8, 4, 0))
    fields = _Fields(data, iloc[0] + 6)
    number_width = 4 if version == 2 else 2
    count, parts, total = fields.take(number_width), 0, 0
    for _ in range(count):
        number = fields.take(number_width)
        inside = version > 0 and fields.take(2) & 15 == 1
        fields.take(2)
        base = fields.take(base_width) + (idat[0] if inside else 0)
        extents = fields.take(2)
        parts += 1 + extents
        if parts > MOST_PARTS:
            raise TooManyParts
        pieces = []
        for _ in range(extents):
            if version > 0:
                fields.take(index_width)
            start = base + fields.take(offset_width)
            length = fields.take(length_width) or len(data)
            pieces.append(data[start : start + length])
            total += len(pieces[-1])
            if total > len(data):
                raise TooManyParts
        yield number, b"".join(pieces)


@dataclass
class _Fields:
    """Numbers one after another, each of so many bytes."""

    data: bytes
    at: int

    def take(self, width: int) -> int:
        """The next number; 0 if it has no bytes."""
        if self.at + width > len(self.data):
            raise ValueError("cut short")
        self.at += width
        return int.from_bytes(self.data[self.at - width : self.at])


# --- AV1 (the bitstream's specification, 5.3 to 5.9) ----------------------------------------------


class _Bits:
    """Bits one after another, the highest first."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data)
        self._left = 8 * len(data)

    def take(self, count: int = 1) -> int:
        """The next bits as a number."""
        self._left -= count
        if self._left < 0:
            raise ValueError("cut short")
        return self._value >> self._left & (1 << count) - 1


@dataclass(frozen=True, slots=True)
class _Sequence:
    """The fields of a sequence header that decide the size of frames."""

    size: tuple[int, int]
    #: What a frame may say in place of it.
    most: tuple[int, int]
    #: Frames have no size of their own.
    is_reduced: bool
    time_bits: int = 0
    id_bits: int = 0
    screen_tools: int = _EACH_FRAME
    whole_motion: int = _EACH_FRAME


def _frame_sizes(data: bytes) -> Iterator[tuple[int, int]]:
    """The size of each frame of an item, and of each sequence header."""
    sequence: _Sequence | None = None
    for kind, content in _units(data):
        if kind == _SEQUENCE_HEADER:
            sequence = _sequence(_Bits(content[:256]))
            yield sequence.size
        elif kind in _FRAME_HEADERS and sequence and _has_own_size(_Bits(content[:64]), sequence):
            yield sequence.most


def _units(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The OBUs of an item."""
    at = 0
    for _ in range(MOST_PARTS):
        if at >= len(data):
            return
        head = data[at]
        at += 2 if head & 4 else 1
        length = len(data) - at
        if head & 2:
            length, at = _leb128(data, at)
        yield head >> 3 & 15, data[at : at + length]
        at += length
    raise TooManyParts


def _leb128(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 56, 7):
        value |= (data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128:
            return value, at
    raise ValueError("a number that does not end")


def _sequence(bits: _Bits) -> _Sequence:
    bits.take(4)  # profile, still_picture
    is_reduced = bits.take() == 1
    time_bits = 0
    if is_reduced:
        bits.take(5)
    else:
        time_bits = _operating_points(bits)
    wide, high = bits.take(4) + 1, bits.take(4) + 1
    size = bits.take(wide) + 1, bits.take(high) + 1
    most = 1 << wide, 1 << high
    if is_reduced:
        return _Sequence(size, most, is_reduced=True)
    id_bits = 0
    if bits.take():
        id_bits = bits.take(4) + 2
        id_bits += bits.take(3) + 1
    bits.take(7)  # tools
    if bits.take():  # order of frames
        bits.take(2)
    screen_tools = _EACH_FRAME if bits.take() else bits.take()
    whole_motion = _EACH_FRAME
    if screen_tools and not bits.take():
        whole_motion = bits.take()
    return _Sequence(size, most, False, time_bits, id_bits, screen_tools, whole_motion)


def _operating_points(bits: _Bits) -> int:
    """Pass the times and points over; returns the bits of a frame's time, if it has one."""
    delay_bits = time_bits = 0
    has_model = False
    if bits.take():  # timing
        bits.take(64)
        is_equal = bits.take() == 1
        if is_equal:
            _pass_uvlc(bits)
        has_model = bits.take() == 1
        if has_model:
            delay_bits = bits.take(5) + 1
            bits.take(37)
            time_bits = bits.take(5) + 1
            if is_equal:
                time_bits = 0
    has_delay = bits.take() == 1
    for _ in range(bits.take(5) + 1):
        bits.take(12)
        if bits.take(5) > 7:
            bits.take()
        if has_model and bits.take():
            bits.take(2 * delay_bits + 1)
        if has_delay and bits.take():
            bits.take(4)
    return time_bits


def _pass_uvlc(bits: _Bits) -> None:
    zeros = 0
    while not bits.take():
        zeros += 1
    if zeros < 32:
        bits.take(zeros)


def _has_own_size(bits: _Bits, sequence: _Sequence) -> bool:
    """Whether a frame's size may be another than the sequence's."""
    if sequence.is_reduced or bits.take():  # a frame that is shown again
        return False
    kind = bits.take(2)
    if bits.take():  # shown at once
        bits.take(sequence.time_bits)
        keeps_errors = kind in (_KEY_FRAME, _SWITCH_FRAME)
    else:
        bits.take()
        keeps_errors = kind == _SWITCH_FRAME
    if not keeps_errors:
        bits.take()
    bits.take()
    tools = bits.take() if sequence.screen_tools == _EACH_FRAME else sequence.screen_tools
    if tools and sequence.whole_motion == _EACH_FRAME:
        bits.take()
    bits.take(sequence.id_bits)
    return kind == _SWITCH_FRAME or bits.take() == 1
