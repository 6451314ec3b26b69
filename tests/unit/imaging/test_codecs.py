"""Decoding, fitting and encoding of images."""

from __future__ import annotations

import io
import random
import struct
import zlib
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdstream.core.errors import InvalidRequest, Reason
from sdstream.core.options import Fit, MaskMode, OutputFormat
from sdstream.core.pixels import Pixels
from sdstream.core.size import Size
from sdstream.imaging.codecs import (
    composite,
    decode,
    encode,
    fit,
    fit_mask,
    mask_of,
    pixels_of,
    reduced,
    texts,
    upload_type,
)
from sdstream.imaging.headers import size_of
from tests.support.pictures import file_of

PIXELS = Pixels(8, 4, bytes(range(96)))
LIMIT = 1_000_000


def colour(picture: Pixels, x: int, y: int) -> tuple[int, ...]:
    """Return the colour of one pixel."""
    start = (y * picture.width + x) * picture.channels
    return tuple(picture.data[start : start + picture.channels])


def opened(data: bytes) -> Image.Image:
    """Return a decoded image that keeps no file open."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return image


# --- decoding


KINDS = ["PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF", "TIFF"]


@pytest.mark.parametrize("kind", KINDS)
def test_usual_formats(kind: str) -> None:
    """Each format is decoded with its size and, up to rounding, its colour."""
    picture = decode(file_of(Image.new("RGB", (6, 4), (250, 10, 10)), kind), "image", LIMIT)
    assert picture.size == (6, 4)
    assert all(abs(a - b) < 8 for a, b in zip(colour(picture, 3, 2), (250, 10, 10), strict=False))


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 100, (100, 100, 100)),
        ("LA", (100, 128), (100, 100, 100, 128)),
        ("RGBA", (1, 2, 3, 4), (1, 2, 3, 4)),
        ("I;16", 0x8040, (128, 128, 128)),
    ],
)
def test_modes_of_png(mode: str, value: Any, expected: tuple[int, ...]) -> None:
    """Grey, alpha and 16-bit images become 8 bits per channel, with their alpha."""
    picture = decode(file_of(Image.new(mode, (3, 3), value)), "image", LIMIT)
    assert colour(picture, 1, 1) == expected


@pytest.mark.parametrize(
    ("bits", "kind", "colours", "transparent"),
    [
        (2, 0, bytes([0b01100000]), (1,)),
        (4, 0, bytes([0x56]), (5,)),
        (8, 0, bytes([5, 6]), (5,)),
        (16, 0, bytes([0x80, 0x40, 0x70, 0x40]), (0x8040,)),
        (8, 2, bytes([1, 2, 3, 1, 2, 4]), (1, 2, 3)),
        (16, 2, bytes([1, 2, 2, 3, 3, 4, 1, 2, 2, 3, 4, 4]), (0x102, 0x203, 0x304)),
    ],
)
def test_a_transparent_colour_of_a_png(
    bits: int, kind: int, colours: bytes, transparent: tuple[int, ...]
) -> None:
    """The transparent colour of a PNG without a palette gets alpha 0 at each number of bits."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, bits, kind, 0, 0, 0))
    alpha = chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + colours))
    picture = decode(b"\x89PNG\r\n\x1a\n" + head + alpha + pixels + chunk(b"IEND"), "image", LIMIT)
    assert [colour(picture, x, 0)[3] for x in (0, 1)] == [0, 255]


def test_palettes_with_transparency() -> None:
    """A GIF's transparent colour gets alpha 0."""
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    picture = decode(file_of(image, "GIF", transparency=1), "image", LIMIT)
    assert colour(picture, 0, 0) == (255, 0, 0, 255)
    assert colour(picture, 1, 0)[3] == 0


def test_cmyk() -> None:
    """A CMYK JPEG is decoded to RGB."""
    picture = decode(file_of(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG"), "image", LIMIT)
    assert colour(picture, 4, 4) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int, kind: str) -> None:
    """The image is rotated and mirrored as its EXIF orientation demands."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.new("RGB", (16, 8))
    image.paste((255, 0, 0), (0, 0, 4, 4))
    options = {"quality": 100, "subsampling": "4:4:4"} if kind == "AVIF" else {}
    picture = decode(file_of(image, kind, exif=exif, **options), "image", LIMIT)
    corners = {1: "tl", 2: "tr", 3: "br", 4: "bl", 5: "tl", 6: "tr", 7: "br", 8: "bl"}
    where = corners[orientation]
    x = 0 if where[1] == "l" else picture.width - 1
    y = 0 if where[0] == "t" else picture.height - 1
    assert picture.size == ((16, 8) if orientation < 5 else (8, 16))
    assert is_near(colour(picture, x, y), (255, 0, 0))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_damaged_exif(kind: str) -> None:
    """An image whose EXIF data is damaged is not rotated, and has no text."""
    data = file_of(Image.new("RGB", (16, 8), "red"), kind, exif=b"Exif\0\0garbagegarbage")
    assert decode(data, "image", LIMIT).size == (16, 8)
    assert texts(data, "image", LIMIT) == {}


def is_near(found: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Return whether two colours differ by no more than a lossy format's error."""
    return all(abs(a - b) < 8 for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "AVIF"])
def test_the_first_frame_of_an_animation(kind: str) -> None:
    """The first frame or page is used."""
    frames = [Image.new("RGB", (16, 16), c) for c in ("red", "blue")]
    data = file_of(frames[0], kind, save_all=True, append_images=frames[1:])
    assert is_near(colour(decode(data, "image", LIMIT), 0, 0)[:3], (255, 0, 0))


#: A BigTIFF whose first directory is at an offset that no file has.
BIG_OFFSET = b"II+\0" + struct.pack("<HHQ", 8, 0, 2**64 - 1) + bytes(40)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"garbage", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\0\0\0\0WEBPVP8 ", b"BM",
        b"II*\0\x08\0\0\0\0\0", b"\0\0\0\x10ftypavif\0\0\0\0",
        BIG_OFFSET,
        file_of(Image.new("RGB", (50, 50), "red"))[:-30],
        file_of(Image.new("RGB", (50, 50), "red"), "JPEG")[:300],
        file_of(Image.new("RGB", (50, 50), "red"), "TIFF")[:300],
        file_of(Image.new("RGB", (50, 50), "red"), "AVIF")[:300],
    ],
)  # fmt: skip
def test_what_is_no_image(data: bytes) -> None:
    """Damaged, truncated and unknown files give GPUStack's message."""
    with pytest.raises(InvalidRequest) as caught:
        decode(data, "image[]", LIMIT)
    error = caught.value
    assert (error.message, error.param) == ("Invalid image", "image[]")
    assert error.reason is Reason.INVALID_IMAGE


HEADS = [
    b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0\x08\0\0\0", b"II+\0\x08\0\0\0",
    b"\0\0\0\x10ftypavif",
]  # fmt: skip


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\n<!DOCTYPE html><html>", "an HTML page"),
        (b"%PDF-1.4", "PDF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isommp42", "a video"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"8BPS\0\1", "Photoshop (PSD)"),
        (b"https://example.com/cat.png", "an address"),
    ],
)
def test_formats_that_are_not_read(data: bytes, name: str) -> None:
    """The error names the format and the supported ones."""
    with pytest.raises(InvalidRequest) as caught:
        decode(data, "image", LIMIT)
    assert caught.value.message == (
        f"Invalid image: {name} is not supported; send PNG, JPEG, WebP, GIF, BMP, AVIF or TIFF."
    )


@given(st.binary(max_size=200), st.sampled_from(HEADS))
def test_no_bytes_are_a_fault_of_the_server(data: bytes, head: bytes) -> None:
    """Random bytes, with or without a valid signature, raise nothing but InvalidRequest."""
    assert pixels_of(head + data) >= 0
    with suppress(InvalidRequest):
        assert decode(head + data, "image", LIMIT).data


@pytest.mark.parametrize("kind", KINDS)
def test_too_large_pictures_are_refused_by_their_header(kind: str) -> None:
    """The size in the header is checked before any pixel is decoded."""
    data = file_of(Image.new("RGB", (64, 64)), kind)
    with pytest.raises(InvalidRequest, match=r"64x64 is more than 4095 pixels"):
        decode(data[:-20] if kind not in ("WEBP", "TIFF", "AVIF") else data, "image", 4095)


JPEG = file_of(Image.new("RGB", (8, 8)), "JPEG")
PNG = file_of(Image.new("RGB", (8, 8)))
GIF = file_of(Image.new("P", (8, 8)), "GIF")
GIF_HEAD = b"GIF89a\x08\0\x08\0\0\0\0"
FRAME = b"\xff\xc0\x00\x0b\x08\x00\x08\x00\x08\x01\x01\x11\x00"


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    """Build a chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(JPEG[:2] + b"\xff\xe0\x00\x02" * 5000 + JPEG[2:], id="jpeg"),
        pytest.param(JPEG[:2] + FRAME + b"\xff\xe0\x00\x02" * 5000 + JPEG[2:], id="jpeg-frame"),
        pytest.param(JPEG[:2] + b"\xff\xd0" * 5000 + JPEG[2:], id="jpeg-bare"),
        pytest.param(JPEG[:2] + FRAME + JPEG[2:], id="jpeg-two-frames"),
        pytest.param(JPEG[:2] + b"\xff" * 70_000 + JPEG[2:], id="jpeg-padding"),
        pytest.param(JPEG[:4] + JPEG[4:20] + b"\0" * 70_000 + JPEG[20:], id="jpeg-junk"),
        pytest.param(
            JPEG[:2] + (b"\xff" * 99 + b"\xff\xe0\x00\x02") * 3000 + JPEG[2:], id="jpeg-both"
        ),
        pytest.param(PNG[:33] + chunk(b"prIv") * 5000 + PNG[33:], id="png"),
        pytest.param(PNG[:-12] + chunk(b"tEXt", b"a\0b") * 5000 + PNG[-12:], id="png-end"),
        pytest.param(GIF_HEAD + b"!\xfe" + b"\x01a" * 5000 + b"\0" + GIF[13:], id="gif"),
        pytest.param(GIF_HEAD + b"!\xfe\0" * 5000 + GIF[13:], id="gif-comments"),
        pytest.param(GIF_HEAD + b"x" * 5000 + GIF[13:], id="gif-junk"),
        pytest.param(GIF_HEAD + b"!\xf9\0" + b",abc" + GIF[13:], id="gif-empty-extension"),
        pytest.param(b"P6\n8 8\n255\n" + bytes(192), id="pnm"),
    ],
)
def test_files_that_only_keep_their_reader_busy(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of very many parts are rejected before Pillow reads them."""
    asked = []
    monkeypatch.setattr(Image, "open", lambda *_, **__: asked.append(1))
    for read in (decode, texts):
        with pytest.raises(InvalidRequest, match="Invalid image"):
            read(data, "image", LIMIT)
    assert pixels_of(data) == 0
    assert not asked


def test_pictures_with_much_beside_their_pixels() -> None:
    """Hundreds of segments or chunks, padding and long comments are accepted."""
    comment = b"\xff\xfe\x00\x05abc"
    rich = [
        JPEG[:2] + comment * 900 + JPEG[2:],
        JPEG[:2] + (b"\xff" * 30 + comment) * 100 + JPEG[2:],
        PNG[:33] + chunk(b"tEXt", b"a\0b") * 900 + PNG[33:],
        GIF[:-1].replace(b",", b"!\xfe" + b"\xff" + b"a" * 255 + b"\0,", 1) + b";",
    ]
    for data in rich:
        assert decode(data, "image", LIMIT).size == (8, 8)


@pytest.mark.parametrize("size", [(1, 1), (300, 200), (16_000, 1)])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"exif": b"Exif\0\0"}),
        ("GIF", {}),
        ("GIF", {"comment": b"a" * 1000, "loop": 0}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"big_tiff": True}),
        ("AVIF", {"quality": 10}),
    ],
)
def test_sizes_by_the_header(kind: str, options: dict[str, Any], size: tuple[int, int]) -> None:
    """The size read from the header is the image's size."""
    assert size_of(file_of(Image.new("RGB", size, "red"), kind, **options)) == size


def test_sizes_of_rare_bitmaps() -> None:
    """OS/2 bitmaps, and bitmaps with a negative height, are read."""
    os2 = b"BM" + struct.pack("<IHHI", 0, 0, 0, 26) + struct.pack("<IHHHH", 12, 6, 4, 1, 24)
    top = b"BM" + struct.pack("<IHHI", 0, 0, 0, 54) + struct.pack("<Iii", 40, 6, -4)
    assert size_of(os2) == size_of(top) == (6, 4)


# --- fitting and masks


HALVES = Pixels(80, 40, bytes([255, 0, 0] * 40 + [0, 0, 255] * 40) * 40)


@pytest.mark.parametrize(
    ("how", "left", "right"),
    [
        ("stretch", (255, 0, 0), (0, 0, 255)),
        ("crop", (255, 0, 0), (0, 0, 255)),
        ("pad", (255, 0, 0), (0, 0, 255)),
        ("fill", (255, 0, 0), (0, 0, 255)),
    ],
)
def test_fit(how: Fit, left: tuple[int, ...], right: tuple[int, ...]) -> None:
    """A wide image in a square keeps its left and right sides; pad and fill extend the edges."""
    square = fit(HALVES, Size(64, 64), how)
    assert square.size == (64, 64)
    assert colour(square, 2, 32) == left
    assert colour(square, 61, 32) == right
    assert colour(square, 2, 0) == left
    assert colour(square, 61, 63) == right


def test_fitting_flattens_on_white() -> None:
    """Transparent pixels become white, and an image of the same size is otherwise unchanged."""
    picture = fit(Pixels(2, 1, bytes([10, 20, 30, 255, 10, 20, 30, 0])), Size(2, 1), "crop")
    assert picture.data == bytes([10, 20, 30, 255, 255, 255])


@pytest.mark.parametrize(
    ("mask", "mode", "painted"),
    [
        (Pixels(2, 1, bytes([0, 0, 0, 255, 255, 255])), "auto", [False, True]),
        (Pixels(2, 1, bytes([0, 0, 0, 255, 0, 0, 0, 0])), "auto", [False, True]),
        (Pixels(2, 1, bytes([0, 0, 0, 255, 255, 255, 255, 255])), "auto", [False, True]),
        (Pixels(2, 1, bytes([255] * 4 + [255, 255, 255, 0])), "luminance", [True, True]),
        (Pixels(2, 1, bytes([0, 0, 0, 255, 255, 255])), "alpha", [False, False]),
        (Pixels(2, 1, bytes([127] * 3 + [128] * 3)), "luminance", [False, True]),
    ],
)
def test_masks(mask: Pixels, mode: MaskMode, painted: list[bool]) -> None:
    """OpenAI's transparent pixels and llama-box's white pixels are repainted."""
    found = mask_of(mask, mode)
    assert [value == 255 for value in found.data] == painted
    assert set(found.data) <= {0, 255}


def test_padding_is_painted() -> None:
    """The area that pad adds to an image is part of the mask."""
    black = Pixels(4, 2, bytes(24))
    mask = fit_mask(mask_of(black, "luminance"), Size(4, 4), "pad")
    assert [mask.data[row * 4] for row in range(4)] == [255, 0, 0, 255]


@pytest.mark.parametrize("blur", [0.0, 2.0])
def test_outside_the_mask_nothing_changes(blur: float) -> None:
    """Pixels outside the mask are unchanged even with a soft edge."""
    original = Pixels(16, 16, bytes(range(256)) * 3)
    drawn = Pixels(16, 16, bytes([7]) * 768)
    mask = Pixels(16, 16, b"".join(bytes([0] * 8 + [255] * 8) for _ in range(16)))
    result = composite(drawn, original, mask, blur)
    for y in range(16):
        for x in range(8):
            assert colour(result, x, y) == colour(original, x, y)
    assert colour(result, 15, 8) == (7, 7, 7)


# --- encoding


def test_png_is_lossless_and_carries_its_text() -> None:
    """The pixels and a text outside Latin-1 are read back unchanged."""
    image = opened(encode(PIXELS, "png", parameters="猫 — a cat"))
    assert (image.mode, image.size, image.tobytes()) == ("RGB", (8, 4), PIXELS.data)
    assert image.info["parameters"] == "猫 — a cat"


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_exif_comment(output_format: OutputFormat) -> None:
    """JPEG and WebP contain the text as EXIF UserComment in UTF-16."""
    image = opened(encode(PIXELS, output_format, 90, "猫"))
    comment = image.getexif().get_ifd(0x8769)[0x9286]
    assert comment == b"UNICODE\0" + "猫".encode("utf-16-be")


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_nothing_is_embedded_unasked(output_format: OutputFormat) -> None:
    """Without parameters, the file contains only the image."""
    image = opened(encode(PIXELS, output_format))
    assert "parameters" not in image.info
    assert not image.getexif()


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_a_text_too_long_for_the_file(
    output_format: OutputFormat, caplog: pytest.LogCaptureFixture
) -> None:
    """A text over JPEG's limit is left out with a warning, and the image is still encoded."""
    text = "ä" * 70_000
    data = encode(Pixels(8, 8, bytes(192)), output_format, 100, text)
    found = texts(data, "image", 64)
    assert found.get("parameters", "") == ("" if output_format == "jpeg" else text)
    assert ("their 70000 characters are more" in caplog.text) == (output_format == "jpeg")


def test_pixels_by_the_header() -> None:
    """The number of pixels is 0 for a file that cannot be read."""
    assert pixels_of(file_of(Image.new("L", (30, 20)))) == 600
    cut = (
        b"",
        b"x",
        BIG_OFFSET,
        b"GIF89a",
        b"\xff\xd8\xff",
        b"RIFF\0\0\0\0WEBPVP8L",
        b"\x89PNG\r\n\x1a\n",
    )
    assert not any(pixels_of(data) for data in cut)


def test_compression_is_quality() -> None:
    """A lower compression value gives fewer bytes."""
    noise = Pixels(64, 64, bytes((i * 7919) % 256 for i in range(64 * 64 * 3)))
    sizes = [len(encode(noise, "jpeg", percent)) for percent in (5, 50, 95)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


# --- AUTOMATIC1111: masks and texts


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize(
    ("mask", "left_painted"),
    [
        (Pixels(2, 1, bytes((0, 0, 0, 255, 255, 255, 255, 0))), True),
        (Pixels(2, 1, bytes((0, 0, 0, 255, 255, 255, 255, 255))), False),
        (Pixels(2, 1, bytes((255, 255, 255, 0, 0, 0))), True),
    ],
)
def test_opacity(mask: Pixels, left_painted: bool, inverted: bool) -> None:
    """Opaque pixels are repainted, or white ones in an opaque mask; an inverted mask swaps both."""
    painted = mask_of(mask, "opacity", inverted=inverted)
    expected = (255, 0) if left_painted != inverted else (0, 255)
    assert tuple(painted.data) == expected


@pytest.mark.parametrize("kind", ["AVIF", "TIFF"])
def test_comments_of_other_formats(kind: str) -> None:
    """The EXIF text of AVIF and TIFF files, which editors write, is read."""
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0a cat"
    file = file_of(Image.new("RGB", (16, 16)), kind, exif=exif.tobytes())
    assert texts(file, "image", LIMIT)["parameters"] == "a cat"


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_what_is_written_is_read_back(output_format: OutputFormat) -> None:
    """Parameters in any script are read back from each format."""
    file = encode(PIXELS, output_format, 90, "猫\na cat")
    assert texts(file, "image", LIMIT)["parameters"] == "猫\na cat"
    assert texts(encode(PIXELS, output_format), "image", LIMIT) == {}


@pytest.mark.parametrize(
    ("comment", "text"),
    [
        (b"ASCII\0\0\0a cat", "a cat"),
        (b"a cat", "a cat"),
        (b"UNICODE\0\0a\xd8", "a\N{REPLACEMENT CHARACTER}"),
        (b"UNICODE\0" + "a cat, 猫".encode("utf-16-le"), "a cat, 猫"),
        (b"UNICODE\0\xff\xfe" + "猫".encode("utf-16-le"), "猫"),
        (b"UNICODE\0\xfe\xff" + "猫".encode("utf-16-be"), "猫"),
        (b"ASCII\0\0\0\xff", "\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_comments_of_other_programs(comment: bytes, text: str) -> None:
    """Other encodings of the tag are read; undecodable characters are replaced."""
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = comment
    file = file_of(Image.new("RGB", (8, 8)), "JPEG", exif=exif)
    assert texts(file, "image", LIMIT)["parameters"] == text


def test_a_text_after_the_pixels() -> None:
    """A text chunk at the end of a PNG is read, even if the pixels are damaged."""
    text = chunk(b"tEXt", b"parameters\0a cat")
    whole = PNG[:-12] + text + PNG[-12:]
    assert texts(whole, "image", LIMIT) == {"parameters": "a cat"}
    early = PNG[:33] + text + PNG[33:-20]
    assert texts(early, "image", LIMIT) == {"parameters": "a cat"}


@pytest.mark.parametrize(
    ("kind", "options"), [("TIFF", {}), ("TIFF", {"big_tiff": True}), ("PNG", {}), ("AVIF", {})]
)
def test_media_types_of_uploads(kind: str, options: dict[str, Any]) -> None:
    """The media type is that of the format, also for a BigTIFF."""
    data = file_of(Image.new("RGB", (8, 8)), kind, **options)
    assert upload_type(data) == f"image/{kind.lower()}"


@given(st.binary(max_size=200))
def test_texts_of_anything(data: bytes) -> None:
    """Any bytes give texts or an InvalidRequest."""
    with suppress(InvalidRequest):
        texts(data, "image", LIMIT)


def test_texts_of_megabytes_are_cut() -> None:
    """Each text is cut to 2**20 characters, far more than parameters need."""
    info = PngInfo()
    info.add_text("parameters", "a" * 3_000_000)
    info.add_text("Software", "b")
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=info)
    found = texts(file.getvalue(), "image", LIMIT)
    assert found == {"parameters": "a" * 2**20, "Software": "b"}


def test_texts_of_large_files_are_refused() -> None:
    """The image's size is checked before its texts are read."""
    with pytest.raises(InvalidRequest) as caught:
        texts(file_of(Image.new("L", (100, 100))), "image", 9_999)
    assert caught.value.reason is Reason.INVALID_IMAGE


# --- reduced images


@pytest.mark.parametrize(("max_bytes", "size"), [(1_000_000, (256, 128)), (2_000, (64, 32))])
def test_reduced_images(max_bytes: int, size: tuple[int, int]) -> None:
    """The quality is reduced first, then the size."""
    noise = Image.frombytes("RGB", (256, 128), random.Random(7).randbytes(3 * 256 * 128))
    view = reduced(file_of(noise), max_bytes)
    assert len(view) <= max_bytes
    assert (opened(view).format, opened(view).size) == ("WEBP", size)
