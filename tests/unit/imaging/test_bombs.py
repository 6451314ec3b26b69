"""TIFF, AVIF and EXIF that would cost excessive memory or time to read."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdstream.core.errors import InvalidRequest
from sdstream.imaging import avif, tiff
from sdstream.imaging.codecs import decode, texts
from sdstream.imaging.headers import size_of
from sdstream.imaging.parts import TooManyParts, UnreadableFile
from tests.support.pictures import file_of

LIMIT = 1_000_000


SHORT, LONG, RATIONAL = 3, 4, 5

#: A red image of 8 x 8 pixels, in one strip after the directory.
TAGS: Mapping[int, tuple[int, int, int]] = {
    256: (SHORT, 1, 8),
    257: (SHORT, 1, 8),
    258: (SHORT, 1, 8),
    259: (SHORT, 1, 1),
    262: (SHORT, 1, 1),
    273: (LONG, 1, 1000),
    277: (SHORT, 1, 1),
    278: (LONG, 1, 8),
    279: (LONG, 1, 64),
}


def tiff_of(tags: Mapping[int, tuple[int, int, int]], more: bytes = b"") -> bytes:
    """Build a TIFF of these tags (type, count, value or offset) with 64 bytes of pixels at 1000."""
    entries = [struct.pack("<HHII", name, *tag) for name, tag in tags.items()]
    head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(4)
    return head.ljust(1000, b"\0") + bytes(64) + more


def test_a_plain_tiff() -> None:
    """The file on which the other tests build is a valid image."""
    assert decode(tiff_of(TAGS), "image", LIMIT).size == (8, 8)


@pytest.mark.parametrize(
    "tags",
    [
        pytest.param({273: (LONG, 15_000, 2000), 278: (LONG, 1, 1)}, id="strips"),
        pytest.param({273: (LONG, 2, 2000), 278: (LONG, 1, 8)}, id="strips-again"),
        pytest.param({322: (LONG, 1, 60_000), 323: (LONG, 1, 60_000)}, id="tile"),
        pytest.param({320: (SHORT, 2**24, 2000)}, id="values"),
        pytest.param({34665: (LONG, 1, 1100)}, id="values-of-exif"),
        pytest.param({277: (LONG, 1, 2**30)}, id="samples"),
        pytest.param({256: (SHORT, 1, 60_000), 257: (SHORT, 1, 60_000)}, id="pixels"),
    ],
)
def test_tiffs_that_are_bombs(
    tags: Mapping[int, tuple[int, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A TIFF that would cost too much is rejected before Pillow opens it."""
    exif = struct.pack("<HHHII", 1, 1, RATIONAL, 2**20, 0)
    data = tiff_of({**TAGS, **tags}, bytes(36) + exif + bytes(2**24))
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("it was opened"))
    for read in (decode, texts):
        with pytest.raises(InvalidRequest, match="Invalid image"):
            read(data, "image", LIMIT)


def test_a_size_that_comes_twice() -> None:
    """A repeated size tag is rejected, as Pillow and libtiff may use different ones."""
    entries = [*TAGS.items(), (256, (SHORT, 1, 60_000))]
    data = b"II*\0" + struct.pack("<IH", 8, len(entries))
    data += b"".join(struct.pack("<HHII", name, *tag) for name, tag in entries)
    with pytest.raises(ValueError, match="twice"):
        size_of(data + bytes(2000))


def test_compressions_that_are_not_read() -> None:
    """The error contains the compression's number."""
    with pytest.raises(UnreadableFile, match="compression 34925 is not supported"):
        size_of(tiff_of({**TAGS, 259: (SHORT, 1, 34925)}))


def test_pixels_of_floating_point() -> None:
    """Floating-point pixels are rejected, as their range of brightness is not defined."""
    with pytest.raises(InvalidRequest, match="floating-point"):
        decode(file_of(Image.new("F", (8, 8), 0.5), "TIFF"), "image", LIMIT)


LOSSLESS = ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits")
MODES = ("RGB", "L", "1", "CMYK", "RGBA", "P", "I;16")


@pytest.mark.parametrize(
    ("compression", "mode"),
    [*product(LOSSLESS, MODES), *product(["jpeg"], ["RGB", "L", "CMYK"]), ("group4", "1")],
)
def test_tiffs_of_editors(compression: str, mode: str) -> None:
    """Every usual pixel type is decoded in every usual compression."""
    data = file_of(Image.new(mode, (300, 200)), "TIFF", compression=compression)
    assert decode(data, "image", LIMIT).size == (300, 200)


# --- EXIF


def exif_of(count: int) -> bytes:
    """Build EXIF that rotates the image and contains this many fractions."""
    turned = struct.pack("<HHII", 0x0112, SHORT, 1, 6)
    fractions = struct.pack("<HHII", 0x9999, RATIONAL, count, 38)
    return b"II*\0" + struct.pack("<IH", 8, 2) + turned + fractions + bytes(4 + 8 * count)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "AVIF"])
def test_exif_of_millions_of_numbers(kind: str) -> None:
    """EXIF with far more numbers than cameras write is rejected, as each would cost memory."""
    image = Image.new("RGB", (16, 8))
    with pytest.raises(InvalidRequest, match="too many parts"):
        decode(file_of(image, kind, exif=exif_of(300_000)), "image", LIMIT)
    turned = decode(file_of(image, kind, exif=exif_of(300)), "image", LIMIT)
    assert turned.size == (8, 16)


@pytest.mark.parametrize("count", [300, 300_000])
def test_exif_in_a_text_of_a_png(count: int) -> None:
    """EXIF that a PNG contains as text in hex, which Pillow reads too, is checked as well."""
    info = PngInfo()
    info.add_text("Raw profile type exif", f"\nexif\n{8 * count}\n{exif_of(count).hex()}")
    data = file_of(Image.new("RGB", (16, 8)), "PNG", pnginfo=info)
    if count == 300:
        assert decode(data, "image", LIMIT).size == (8, 16)
    else:
        with pytest.raises(InvalidRequest, match="too many parts"):
            decode(data, "image", LIMIT)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(struct.pack("<2sHIH", b"II", 42, 8, 5_000), id="tags"),
        pytest.param(
            struct.pack("<2sHIHHHIIHHII", b"II", 42, 8, 2, 34665, LONG, 1, 8, 1, SHORT, 2**18, 0),
            id="itself",
        ),
        pytest.param(
            b"II\0*" + struct.pack("<IHHHII", 8, 1, 1, RATIONAL, 2**20, 0), id="another-version"
        ),
    ],
)
def test_exif_that_is_a_bomb(data: bytes) -> None:
    """Damaged EXIF is rejected too, as Pillow would read it."""
    for mark in (b"", b"Exif\0\0", b"Exif\0\0Exif\0\0"):
        with pytest.raises(TooManyParts):
            tiff.check_exif(mark + data)


def test_exif_that_leads_to_itself() -> None:
    """A directory that refers to itself is rejected instead of read for ever."""
    directory = struct.pack("<HHHII", 1, 34665, LONG, 1, 8)
    with pytest.raises(TooManyParts):
        tiff.check_exif(b"II*\0" + struct.pack("<I", 8) + directory)


@given(st.binary(max_size=300))
def test_any_exif(data: bytes) -> None:
    """Any bytes are accepted, or rejected with TooManyParts."""
    for head in (b"", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b"II+\0\x08\0\0\0"):
        with suppress(TooManyParts):
            tiff.check_exif(head + data)


# --- AVIF


RED = file_of(Image.new("RGB", (64, 48), "red"), "AVIF")


def bits(*fields: tuple[int, int]) -> bytes:
    """Pack numbers of these widths, padded with ones."""
    text = "".join(f"{value:0{width}b}" for value, width in fields)
    text += "1" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8)


def unit(kind: int, content: bytes) -> bytes:
    """Build an OBU with its size."""
    return bytes((kind << 3 | 2, len(content))) + content


def still_header(width: int, height: int) -> bytes:
    """Build the sequence header of a still image."""
    sizes = ((15, 4), (15, 4), (width - 1, 16), (height - 1, 16))
    return unit(1, bits((0, 3), (1, 1), (1, 1), (0, 5), *sizes, (0, 16)))


def moving_header(width: int, height: int) -> bytes:
    """Build the sequence header of a video whose frames may have up to 65,536 pixels a side."""
    points = ((0, 1), (0, 1), (0, 5), (0, 12), (4, 5))
    sizes = ((15, 4), (15, 4), (width - 1, 16), (height - 1, 16))
    tools = ((0, 1), (0, 7), (0, 1), (1, 1), (1, 1), (0, 16))
    return unit(1, bits((0, 3), (0, 1), (0, 1), *points, *sizes, *tools))


def frame(own_size: int) -> bytes:
    """Build a key frame, shown at once, which may override the size."""
    return unit(6, bits((0, 1), (0, 2), (1, 1), (0, 1), (0, 1), (own_size, 1), (0, 16)))


@pytest.mark.parametrize(
    ("content", "sizes"),
    [
        (still_header(64, 48), [(64, 48)]),
        (still_header(16_384, 16_384), [(16_384, 16_384)]),
        (still_header(64, 48) + still_header(9_000, 1), [(64, 48), (9_000, 1)]),
        (moving_header(64, 48) + frame(0), [(64, 48)]),
        (moving_header(64, 48) + frame(0) + frame(1), [(64, 48), (65_536, 65_536)]),
        (b"\x12\0" + still_header(64, 48)[:1].replace(b"\n", b"\x08") + still_header(64, 48)[2:],
         [(64, 48)]),
    ],
)  # fmt: skip
def test_sizes_of_frames(content: bytes, sizes: list[tuple[int, int]]) -> None:
    """All sizes for which the decoder would allocate memory are found, in stream order."""
    assert list(avif._frame_sizes(content)) == sizes


def test_a_stream_larger_than_its_container() -> None:
    """The stream's size counts, even if the container declares a smaller one."""
    at = RED.index(b"\x12\0\n") + 2
    length = RED[at + 1] + 2
    header = still_header(16_384, 16_384)[:length].ljust(length, b"\0")
    header = header[:1] + bytes((length - 2,)) + header[2:]
    data = RED[:at] + header + RED[at + length :]
    assert size_of(RED) == (64, 48)
    assert size_of(data) == (16_384, 16_384)
    with pytest.raises(InvalidRequest, match="16384x16384 is more than"):
        decode(data, "image", LIMIT)


def test_a_container_larger_than_its_stream() -> None:
    """The container's size counts too, as the image would be scaled up to it."""
    data = RED.replace(struct.pack(">II", 64, 48), struct.pack(">II", 30_000, 30_000))
    with pytest.raises(InvalidRequest, match="30000x30000 is more than"):
        decode(data, "image", LIMIT)


def double(kind: bytes) -> Callable[[bytes], bytes]:
    """Return a function that duplicates a box of the container."""

    def doubled(data: bytes) -> bytes:
        at = data.index(kind) - 4
        (size,) = struct.unpack_from(">I", data, at)
        return data[:at] + 2 * data[at : at + size] + data[at + size :]

    return doubled


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(double(b"meta"), id="two-metas"),
        pytest.param(lambda data: data.replace(b"meta", b"skip"), id="no-meta"),
        pytest.param(lambda data: data.replace(b"iloc", b"free"), id="no-places"),
        pytest.param(lambda data: data[:32] + 5_000 * b"\0\0\0\x08free" + data[32:], id="boxes"),
    ],
)
def test_containers_that_are_no_pictures(damage: Callable[[bytes], bytes]) -> None:
    """An invalid container is rejected before libavif reads it."""
    with pytest.raises(ValueError, match=r".*"):
        size_of(damage(RED))


def test_other_names_of_the_format() -> None:
    """A container that lists avif only as a compatible brand is decoded."""
    decoded = decode(RED[:8] + b"mif1" + RED[12:], "image", LIMIT)
    assert decoded.size == (64, 48)


@given(st.integers(0, len(RED) - 1), st.integers(0, 255))
def test_a_wrong_byte_in_an_avif(at: int, value: int) -> None:
    """A changed byte gives an image or an InvalidRequest."""
    with suppress(InvalidRequest):
        decode(RED[:at] + bytes((value,)) + RED[at + 1 :], "image", LIMIT)


SMALL = file_of(Image.new("RGB", (9, 7), "red"), "TIFF", compression="tiff_lzw")


@given(st.integers(0, len(SMALL) - 1), st.integers(0, 255))
def test_a_wrong_byte_in_a_tiff(at: int, value: int) -> None:
    """A changed byte gives an image or an InvalidRequest."""
    with suppress(InvalidRequest):
        decode(SMALL[:at] + bytes((value,)) + SMALL[at + 1 :], "image", LIMIT)


def test_a_tiff_that_inflates() -> None:
    """No more pixels are inflated than the declared size requires."""
    squeezed = zlib.compress(bytes(2**26))
    tags = {**TAGS, 259: (SHORT, 1, 8), 273: (LONG, 1, 1064), 279: (LONG, 1, len(squeezed))}
    assert decode(tiff_of(tags, squeezed), "image", LIMIT).size == (8, 8)
