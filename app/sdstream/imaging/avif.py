"""The sizes in an AVIF file, read before libavif decodes it.

The size in the container is not reliable. The decoder allocates memory for the frame size in the
AV1 stream, and scales the frame to the container's size afterwards. So this module reads the
headers of the AV1 streams of all items.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from sdstream.imaging.parts import MOST_PARTS, TooManyParts
from sdstream.imaging.tiff import check_exif

#: A box: its type, and the start and end of its contents in the file.
_Box = tuple[bytes, int, int]

_STILL, _SEQUENCE = b"avif", b"avis"
#: Brands of containers for several formats; a compatible brand names the format.
_CONTAINERS: Final = (b"mif1", b"msf1")

_ONCE: Final = (b"meta", b"iprp", b"iinf", b"iloc", b"idat")

_SEQUENCE_HEADER: Final = 1
#: OBU types: frame header, frame, redundant frame header.
_FRAME_HEADERS: Final = (3, 6, 7)
_KEY_FRAME, _SWITCH_FRAME = 0, 3
#: Value of a field of the sequence header: each frame header sets it.
_EACH_FRAME: Final = 2


def brands_of(data: bytes) -> list[bytes]:
    """Return the brands of a file of boxes (ISO 14496-12), the major brand first."""
    if data[4:8] != b"ftyp":
        return []
    (size,) = struct.unpack_from(">I", data)
    others = range(16, min(size, len(data), 256) - 3, 4)
    return [data[8:12], *(data[at : at + 4] for at in others)]


def is_avif(data: bytes) -> bool:
    """Return whether a file is an AVIF image or animation."""
    own, *others = brands_of(data) or [b""]
    named = (own, *others) if own in _CONTAINERS else (own,)
    return _STILL in named or _SEQUENCE in named


def as_still(data: bytes) -> bytes:
    """Return the file with a major brand that makes libavif decode its still image.

    Otherwise libavif decodes the frames of an animation.
    """
    return data if data[8:12] == _STILL else b"".join((data[:8], _STILL, data[12:]))


def size_of_avif(data: bytes) -> tuple[int, int]:
    """Return the width and height of the largest image or frame of an AVIF.

    Raises:
        TooManyParts: Decoding the file would take too much time and memory.
        ValueError, KeyError, struct.error, IndexError: The file is damaged, or contains only the
            frames of an animation.
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
            raise ValueError("a box ends after the box that contains it")
        yield kind, at + head, last
        at = last
    raise TooManyParts


def _named(data: bytes, at: int, end: int) -> dict[bytes, tuple[int, int]]:
    """Return a dictionary: type of a box -> start and end of its contents."""
    found: dict[bytes, tuple[int, int]] = {}
    for kind, start, last in _boxes(data, at, end):
        if kind in found and kind in _ONCE:
            raise ValueError("a box occurs twice")
        found[kind] = start, last
    return found


def _container_sizes(data: bytes, iprp: tuple[int, int]) -> Iterator[tuple[int, int]]:
    for kind, start, end in _boxes(data, *iprp):
        if kind == b"ipco":
            for inner, at, _ in _boxes(data, start, end):
                if inner == b"ispe":
                    yield struct.unpack_from(">II", data, at + 4)


def _kinds(data: bytes, iinf: tuple[int, int]) -> dict[int, bytes]:
    """Return a dictionary: number of an item -> its type (av01, Exif, grid …)."""
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
    """Yield the number and the contents of each item.

    Raises:
        TooManyParts: There are too many items, or their contents are larger than the file.
    """
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
    """A reader of big-endian numbers."""

    data: bytes
    at: int

    def take(self, width: int) -> int:
        """Return the next number, which has ``width`` bytes; 0 if ``width`` is 0."""
        if self.at + width > len(self.data):
            raise ValueError("cut short")
        self.at += width
        return int.from_bytes(self.data[self.at - width : self.at])


# --- AV1 (the bitstream's specification, 5.3 to 5.9) ----------------------------------------------


class _Bits:
    """A reader of bits, the most significant bit first."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data)
        self._left = 8 * len(data)

    def take(self, count: int = 1) -> int:
        """Return the next ``count`` bits as a number."""
        self._left -= count
        if self._left < 0:
            raise ValueError("cut short")
        return self._value >> self._left & (1 << count) - 1


@dataclass(frozen=True, slots=True)
class _Sequence:
    """The fields of a sequence header that are needed to find the size of frames."""

    size: tuple[int, int]
    #: Upper bound of the size that a frame header may contain instead.
    most: tuple[int, int]
    #: The header has the reduced form for still images; frames cannot have another size.
    is_reduced: bool
    time_bits: int = 0
    id_bits: int = 0
    screen_tools: int = _EACH_FRAME
    whole_motion: int = _EACH_FRAME


def _frame_sizes(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the size in each sequence header, and the maximum size of frames that may differ."""
    sequence: _Sequence | None = None
    for kind, content in _units(data):
        if kind == _SEQUENCE_HEADER:
            sequence = _sequence(_Bits(content[:256]))
            yield sequence.size
        elif kind in _FRAME_HEADERS and sequence and _has_own_size(_Bits(content[:64]), sequence):
            yield sequence.most


def _units(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the type and the contents of each OBU (unit of an AV1 stream) of an item."""
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
    bits.take(7)  # coding tools
    if bits.take():  # order hints of frames
        bits.take(2)
    screen_tools = _EACH_FRAME if bits.take() else bits.take()
    whole_motion = _EACH_FRAME
    if screen_tools and not bits.take():
        whole_motion = bits.take()
    return _Sequence(size, most, False, time_bits, id_bits, screen_tools, whole_motion)


def _operating_points(bits: _Bits) -> int:
    """Skip the timing information and the operating points.

    Returns:
        Number of bits of a frame's presentation time; 0 without one.
    """
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
    """Return whether a frame may have another size than its sequence header."""
    if sequence.is_reduced or bits.take():  # show_existing_frame
        return False
    kind = bits.take(2)
    if bits.take():  # show_frame
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
