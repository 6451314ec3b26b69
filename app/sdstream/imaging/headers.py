"""Checks of an image file's format, size and parts before Pillow opens the file.

Pillow allocates memory for every part that precedes the pixels: about a hundred bytes for an empty
segment of four bytes. A file that consists of such parts would take gigabytes of memory and block a
thread for seconds.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Final

from sdstream.imaging.avif import brands_of, is_avif, size_of_avif
from sdstream.imaging.parts import MOST_PARTS, TooManyParts, UnreadableFile
from sdstream.imaging.tiff import size_of_tiff

#: The supported formats, for errors.
FORMATS: Final = "PNG, JPEG, WebP, GIF, BMP, AVIF or TIFF"

#: Maximum number of bytes between the segments of a JPEG; Pillow reads them one by one.
_MOST_STRAY: Final = 2**16

_JPEG_MARKER: Final = re.compile(rb"\xff[^\x00\xff]")
#: Start-of-frame markers; their segments contain the size. Pillow treats DHP (DE) as one too.
_JPEG_FRAMES: Final = frozenset({*range(0xC0, 0xD0), 0xDE} - {0xC4, 0xC8, 0xCC})
#: Markers without a length, or with a length that Pillow does not read.
_JPEG_BARE: Final = frozenset({0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)})
_JPEG_SCAN: Final = 0xDA

_GIF_EXTENSION, _GIF_IMAGE, _GIF_END = b"!,;"
#: Label of an extension -> its minimum number of blocks; comments (FE) need none, application
#: extensions (FF) two, and others one.
_GIF_BLOCKS: Final = {0xFE: 0, 0xFF: 2}

#: Chunks that occur many times in a large image or animation; Pillow keeps nothing of them.
_PNG_PIXELS: Final = (b"IDAT", b"fdAT", b"fcTL")


#: First bytes of unsupported files that clients often send -> name of their format.
_OTHERS: Final = {
    b"\x00\x00\x00\x0cJXL ": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
    b"\x00\x00\x00\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\x00\x00\x01\x00": "ICO",
    b"8BPS": "Photoshop (PSD)",
    b"gimp xcf": "GIMP (XCF)",
    b"%PDF": "PDF",
    b"v/1\x01": "OpenEXR",
    b"#?RADIANCE": "Radiance HDR",
    b"qoif": "QOI",
    b"DDS ": "DDS",
    b"P5\n": "PGM",
    b"P6\n": "PPM",
    b"MM\0+": "BigTIFF with the big end first",
    b"\x1aE\xdf\xa3": "a WebM video",
}
_TEXTS: Final = {
    b"<svg": "SVG",
    b"<?xml": "SVG or other XML",
    b"<!doctype html": "an HTML page",
    b"<html": "an HTML page",
    b"http://": "an address",
    b"https://": "an address",
}
#: Brand of an unsupported file of boxes (ISO 14496-12) -> name of its format.
_BRANDS: Final = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"), "HEIC"),
    **dict.fromkeys((b"mif1", b"msf1"), "HEIF"),
    b"crx ": "Canon raw (CR3)",
    b"qt  ": "a QuickTime video",
}


def size_of(data: bytes) -> tuple[int, int]:
    """Return the width and height of a PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF.

    Raises:
        TooManyParts: Opening the file would take too much time and memory.
        UnreadableFile: The file has an unsupported format; the message names it.
        ValueError: The format is unknown, or the file is damaged.
    """
    read = next((read for magic, read in _READERS.items() if data.startswith(magic)), None)
    if read is None and is_avif(data):
        read = size_of_avif
    if read is None:
        raise _not_read(data)
    try:
        return read(data)
    except (struct.error, IndexError, KeyError, OverflowError):
        raise ValueError("it is cut short") from None


def _not_read(data: bytes) -> ValueError:
    text = data[:32].lstrip().lower()
    found = next((name for magic, name in _OTHERS.items() if data.startswith(magic)), None)
    found = found or next((name for tag, name in _TEXTS.items() if text.startswith(tag)), None)
    brands = brands_of(data)
    if found is None and brands:
        found = next((name for brand, name in _BRANDS.items() if brand in brands), "a video")
    if found is None:
        return ValueError("no known format")
    return UnreadableFile(f"{found} is not supported; send {FORMATS}")


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
            # A frame may have 20,000 channels, and Pillow would keep a tuple for each channel.
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
            # This is a block of an extension. If an extension has fewer blocks than it must have,
            # Pillow continues at a wrong byte.
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
    # Pillow gets the size from the decoder, which allocates memory for two frames before that.
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
    # TIFF in little-endian and big-endian form, and little-endian BigTIFF, the only one that Pillow
    # reads.
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0"), size_of_tiff),
}
