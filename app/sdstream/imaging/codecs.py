"""Decoding and encoding of image files, resizing, masks and metadata.

The input is not trusted. The server opens only the formats that this module lists, checks the
header before Pillow opens the file (headers.py), and reads only the first frame or page.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from PIL import Image, ImageChops, ImageFilter, ImageOps
from PIL.PngImagePlugin import PngInfo

from sdstream.core.errors import InvalidRequest, Reason
from sdstream.core.options import Fit, MaskMode, OutputFormat
from sdstream.core.pixels import Pixels
from sdstream.core.placement import Box, contained
from sdstream.core.size import Size
from sdstream.imaging.avif import as_still, is_avif
from sdstream.imaging.headers import size_of
from sdstream.imaging.parts import UnreadableFile
from sdstream.imaging.tiff import check_exif

logger = logging.getLogger(__name__)

MEDIA_TYPES: Final[dict[OutputFormat, str]] = {
    "png": "image/png",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
}

#: First bytes of an upload -> media type. AVIF has its own check; other formats are not supported.
_UPLOAD_TYPES: Final = {
    b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"RIFF": "image/webp",
    b"GIF8": "image/gif", b"BM": "image/bmp", b"II*\0": "image/tiff", b"MM\0*": "image/tiff",
    b"II+\0": "image/tiff",
}  # fmt: skip

_INPUT_FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF", "TIFF")

_EXIF_IFD: Final = 0x8769
_USER_COMMENT: Final = 0x9286
_UNICODE: Final = b"UNICODE\0"
#: Maximum length of a JPEG's comment in bytes: a segment of 65,533 bytes has room for it and for
#: the EXIF data around it.
_LONGEST_COMMENT: Final = 65_400
_ASCII: Final = b"ASCII\0\0\0"

#: Name of a text chunk that contains EXIF data in hex, as ImageMagick writes it.
_EXIF_TEXT: Final = "Raw profile type exif"
#: Position of the number of bits of a channel in a PNG.
_PNG_BITS: Final = 24

#: Maximum length in characters of one text that is read from a file.
_MAX_TEXT: Final = 2**20

#: Level 1 takes half the time of Pillow's default, and files are 13 % larger (1024 x 1024 photos).
_PNG_LEVEL: Final = 1

#: WebP qualities for ``reduced``, best first; below the last one, a smaller image looks better.
_VIEW_QUALITIES: Final = (90, 75, 50)

_MODES: Final = {1: "L", 3: "RGB", 4: "RGBA"}


# --- from files -----------------------------------------------------------------------------------


def upload_type(data: bytes) -> str:
    """Return the media type of an uploaded image file."""
    begins = (kind for start, kind in _UPLOAD_TYPES.items() if data.startswith(start))
    return next(begins, "image/avif" if is_avif(data) else "application/octet-stream")


def decode(data: bytes, param: str, max_pixels: int) -> Pixels:
    """Decode an image file of any supported format.

    Args:
        data: The file.
        param: The field of the request that contains the file, for errors.
        max_pixels: Maximum width x height; larger images are rejected before they are decoded.

    Returns:
        RGB, or RGBA if the file has transparency. The image is rotated by its EXIF orientation.

    Raises:
        InvalidRequest: The file is not an image, or is damaged or too large.
    """
    with _faults_of(param):
        image = _opened(data, param, max_pixels)
        image.load()
        _check_exif(image)
        _scale_transparency(image, data)
        return as_pixels(_eight_bits(_upright(image)))


def pixels_of(data: bytes) -> int:
    """Return width x height from the header; 0 if the header cannot be read."""
    try:
        width, height = size_of(data)
    except ValueError:  # decode reports the reason
        return 0
    return width * height


@contextmanager
def _faults_of(param: str) -> Iterator[None]:
    """Raise InvalidRequest in place of any error that a damaged file causes."""
    try:
        yield
    except InvalidRequest:
        raise
    except UnreadableFile as error:
        raise _invalid(param, str(error)) from None
    # For damaged files Pillow's decoders raise many kinds of errors: OSError, SyntaxError,
    # ValueError, struct.error, IndexError, zlib.error, DecompressionBombError …
    except Exception:
        raise _invalid(param, None) from None


def _opened(data: bytes, param: str, max_pixels: int) -> Image.Image:
    """Return the file as an open image whose size is checked and whose pixels are not decoded."""
    # This check precedes Image.open, which allocates memory for two frames of an animated WebP.
    _check_size(size_of(data), param, max_pixels)
    if is_avif(data):
        data = as_still(data)
    image = Image.open(io.BytesIO(data), formats=_INPUT_FORMATS)
    _check_size(image.size, param, max_pixels)
    return image


def _check_exif(image: Image.Image) -> None:
    """Check EXIF data before Pillow reads its values.

    PNG and WebP have room for too many values; a JPEG segment does not.
    """
    exif = image.info.get("exif")
    if exif is None and isinstance(text := image.info.get(_EXIF_TEXT), str):
        with suppress(ValueError):  # Pillow does not read other texts either
            exif = bytes.fromhex("".join(text.split("\n")[3:]))
    if isinstance(exif, bytes):
        check_exif(exif)


def _upright(image: Image.Image) -> Image.Image:
    """Return the image rotated by its EXIF orientation; unchanged if that cannot be read."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # for damaged data Pillow raises many kinds of errors
        return image


def _scale_transparency(image: Image.Image, data: bytes) -> None:
    """Convert the transparent colour of a PNG without a palette to 8 bits, as Pillow's pixels.

    Args:
        image: The decoded image.
        data: The file; Pillow does not keep its number of bits.
    """
    colour = image.info.get("transparency")
    if image.format != "PNG" or image.mode not in ("L", "I;16", "RGB") or colour is None:
        return
    bits = data[_PNG_BITS]
    most = 2**bits - 1

    def scaled(value: int) -> int:
        return value >> 8 if bits == 16 else value * 255 // most

    image.info["transparency"] = (
        tuple(map(scaled, colour)) if isinstance(colour, tuple) else scaled(colour)
    )


def _check_size(size: tuple[int, int], param: str, max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise _invalid(param, f"{width}x{height} is more than {max_pixels} pixels")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Convert an image to RGB or RGBA; reject floating point, which has no standard white level."""
    if image.mode == "F":
        raise UnreadableFile("floating-point pixels are not supported")
    if image.mode.startswith("I"):  # grey with 16 or 32 bits: keep the high byte of 16 bits
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    has_alpha = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
    return image.convert("RGBA" if has_alpha else "RGB")


def _invalid(param: str, why: str | None) -> InvalidRequest:
    # GPUStack documents the message "Invalid image"; the cause is added if it is known.
    message = f"Invalid image: {why}." if why else "Invalid image"
    return InvalidRequest(message, reason=Reason.INVALID_IMAGE, param=param)


def texts(data: bytes, param: str, max_pixels: int) -> dict[str, str]:
    """Return the texts in an image file: name -> text, at most 2^20 characters of each.

    The text that AUTOMATIC1111 writes has the name ``parameters``.

    Args:
        data: The file.
        param, max_pixels: As for ``decode``.

    Raises:
        InvalidRequest: The file is not an image, or is damaged or too large.
    """
    with _faults_of(param):
        image = _opened(data, param, max_pixels)
        if image.format == "PNG":
            with suppress(Exception):  # damaged pixels do not matter
                image.load()  # a text may come after the pixels
        found = {str(name): text for name, text in image.info.items() if isinstance(text, str)}
        _check_exif(image)
        if image.format in ("JPEG", "WEBP", "AVIF", "TIFF"):
            comment = _comment(image)
            if isinstance(comment, bytes):
                found["parameters"] = _comment_text(comment)
        return {name: text[:_MAX_TEXT] for name, text in found.items()}


def _comment(image: Image.Image) -> object:
    """Return the EXIF UserComment; None without one, or if it cannot be read."""
    try:
        return image.getexif().get_ifd(_EXIF_IFD).get(_USER_COMMENT)
    except Exception:  # for damaged data Pillow raises many kinds of errors
        return None


def _comment_text(comment: bytes) -> str:
    """Decode an EXIF UserComment, whose first eight bytes name its encoding."""
    mark, text = comment[:8], comment[8:]
    if mark == _UNICODE:
        return _utf16(text)
    if mark == _ASCII:
        return text.decode("ascii", "replace")
    return comment.decode("utf-8", "replace")


def _utf16(text: bytes) -> str:
    """Decode UTF-16 by its byte order mark; without one, in the order that gives more ASCII.

    By the standard, the text has the byte order of the file, but programs write both orders.
    """
    if text.startswith((b"\xff\xfe", b"\xfe\xff")):
        return text.decode("utf-16", "replace")
    readings = [text.decode(order, "replace") for order in ("utf-16-be", "utf-16-le")]
    return max(readings, key=lambda reading: sum(map(str.isascii, reading)))


# --- between pixels -------------------------------------------------------------------------------


def fit(picture: Pixels, size: Size, how: Fit) -> Pixels:
    """Return the image at another size as RGB; transparency becomes white.

    Args:
        picture: The image.
        size: The new size.
        how: ``crop`` scales the image to cover the size and keeps the middle. ``stretch`` changes
            the aspect ratio. ``pad`` and ``fill`` scale the image to fit inside the size and repeat
            its outermost pixels around it.
    """
    return as_pixels(_fitted(flat(as_image(picture)), size, how, Image.Resampling.LANCZOS))


def cut(picture: Pixels, size: Size) -> Pixels:
    """Return the middle of an image; ``size`` must not be larger than the image."""
    left, top = (picture.width - size.width) // 2, (picture.height - size.height) // 2
    return as_pixels(as_image(picture).crop((left, top, left + size.width, top + size.height)))


def resized(picture: Pixels, size: Size, *, nearest: bool = False) -> Pixels:
    """Return an image at another size, resampled by Lanczos or by nearest neighbour."""
    how = Image.Resampling.NEAREST if nearest else Image.Resampling.LANCZOS
    return as_pixels(as_image(picture).resize(size, how))


def mask_of(picture: Pixels, mode: MaskMode, *, inverted: bool = False) -> Pixels:
    """Return a mask as one channel: 0 keeps a pixel and 255 paints it.

    Args:
        picture: The mask as the client sent it.
        mode: ``alpha`` paints where the mask is transparent (OpenAI), ``luminance`` where it is
            white (llama-box, Xinference), and ``opacity`` where it is opaque (AUTOMATIC1111).
            ``auto`` means ``alpha`` if the mask has any transparency, and otherwise ``luminance``.
            Without transparency ``opacity`` means ``luminance`` too.
        inverted: Swap the painted and the kept area.
    """
    image = as_image(picture)
    transparent = image.mode == "RGBA" and _darkest(image.getchannel("A")) < 255
    if mode == "auto":
        mode = "alpha" if transparent else "luminance"
    if mode == "alpha":
        alpha = image.getchannel("A") if image.mode == "RGBA" else Image.new("L", image.size, 255)
        grey = ImageChops.invert(alpha)
    elif mode == "opacity" and transparent:
        grey = image.getchannel("A")
    else:
        grey = flat(image).convert("L")
    if inverted:
        grey = ImageChops.invert(grey)
    return as_pixels(grey.point(lambda value: 255 if value >= 128 else 0))


def fit_mask(mask: Pixels, size: Size, how: Fit) -> Pixels:
    """Return a mask of 0 and 255 at another size, resized like its image; borders are painted."""
    return as_pixels(_fitted(as_image(mask), size, how, Image.Resampling.NEAREST, fill=255))


def composite(generated: Pixels, original: Pixels, mask: Pixels, blur: float) -> Pixels:
    """Return the generated pixels where the mask is white, and the original pixels elsewhere.

    Args:
        generated, original: The generated and the original image: RGB, of the same size.
        mask: One channel of 0 and 255, of the same size.
        blur: Radius in pixels over which the edge fades inside the mask. Pixels outside the mask
            never change.
    """
    grey = as_image(mask)
    if blur:
        soft = grey.filter(ImageFilter.GaussianBlur(blur))
        grey = ImageChops.darker(grey, soft)
    return as_pixels(Image.composite(as_image(generated), as_image(original), grey))


def _darkest(channel: Image.Image) -> int:
    return next(value for value, count in enumerate(channel.histogram()) if count)


def blank(size: Size) -> Pixels:
    """Return a black image."""
    return Pixels(size.width, size.height, bytes(size.width * size.height * 3))


def _fitted(
    image: Image.Image, size: Size, how: Fit, resampling: Image.Resampling, fill: int = 0
) -> Image.Image:
    if image.size == size:
        return image
    if how == "stretch":
        return image.resize(size, resampling)
    if how == "crop":
        return ImageOps.fit(image, size, resampling)
    box = contained(Size(*image.size), size)
    inner = image.resize(box.size, resampling)
    if image.mode != "L":
        return extended(inner, size, box)
    sheet = Image.new("L", size, fill)
    sheet.paste(inner, box)
    return sheet


def extended(image: Image.Image, size: Size, at: Box) -> Image.Image:
    """Return a larger image that contains an image and repeats its outermost pixels around it.

    Args:
        image: RGB or grey.
        size: Size of the larger image.
        at: Position of the image in the larger one; it has the size of the image.
    """
    if image.size == size:
        return image
    sheet = Image.new(image.mode, size)
    sheet.paste(image, at)
    width, height = at.size
    left, right = image.crop((0, 0, 1, height)), image.crop((width - 1, 0, width, height))
    for edge, begin, end in ((left, 0, at.left), (right, at.right, size.width)):
        if end > begin:
            sheet.paste(edge.resize((end - begin, height)), (begin, at.top))
    rows = (at.top, 0, at.top), (at.bottom - 1, at.bottom, size.height)
    for row, begin, end in rows:
        if end > begin:
            edge = sheet.crop((0, row, size.width, row + 1))
            sheet.paste(edge.resize((size.width, end - begin)), (0, begin))
    return sheet


def flat(image: Image.Image) -> Image.Image:
    """Return an RGBA image as RGB with transparency as white; return other images unchanged."""
    if image.mode != "RGBA":
        return image
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")


def as_image(picture: Pixels) -> Image.Image:
    """Return pixels as a Pillow image."""
    return Image.frombytes(_MODES[picture.channels], picture.size, picture.data)


def as_pixels(image: Image.Image) -> Pixels:
    """Return a Pillow image, which is grey, RGB or RGBA, as pixels."""
    return Pixels(image.width, image.height, image.tobytes())


# --- to files -------------------------------------------------------------------------------------


def encode(
    picture: Pixels,
    output_format: OutputFormat,
    compression: int = 100,
    parameters: str | None = None,
) -> bytes:
    """Encode an image as a file.

    Args:
        picture: RGB.
        output_format: "png", "jpeg" or "webp".
        compression: Quality of JPEG and WebP in percent.
        parameters: Text to embed in the PNG text chunk ``parameters`` or in the EXIF UserComment.
    """
    image = as_image(picture)
    file = io.BytesIO()
    if output_format == "png":
        info = PngInfo()
        if parameters is not None:
            info.add_text("parameters", parameters)
        image.save(file, "PNG", compress_level=_PNG_LEVEL, pnginfo=info)
    else:
        exif = Image.Exif() if parameters is None else _user_comment(parameters, output_format)
        # At high quality the JPEG stores the colour of each pixel, not one for four pixels.
        chroma = {"subsampling": 0} if output_format == "jpeg" and compression >= 95 else {}
        image.save(file, output_format.upper(), quality=compression, exif=exif, **chroma)
    return file.getvalue()


def reduced(data: bytes, max_bytes: int) -> bytes:
    """Return an image file as WebP of limited length: lower the quality first, then the size.

    Args:
        data: A file that this server wrote.
        max_bytes: Maximum length of the result in bytes, at least 1,000.
    """
    with Image.open(io.BytesIO(data)) as image:
        view = image.convert("RGB")
    while True:
        for quality in _VIEW_QUALITIES:
            file = io.BytesIO()
            view.save(file, "WEBP", quality=quality)
            if file.tell() <= max_bytes:
                return file.getvalue()
        view = view.reduce(2)


def _user_comment(text: str, output_format: OutputFormat) -> Image.Exif:
    """Return the text as EXIF data; empty if the text is too long for a JPEG segment."""
    exif = Image.Exif()
    # The prefix marks UTF-16; programs that read this tag expect it as big-endian.
    comment = _UNICODE + text.encode("utf-16-be")
    if output_format == "jpeg" and len(comment) > _LONGEST_COMMENT:
        logger.warning(
            "a JPEG is written without its parameters, because their %d characters are more than "
            "it has room for; PNG and WebP have no such limit",
            len(text),
        )
        return exif
    exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = comment
    return exif
