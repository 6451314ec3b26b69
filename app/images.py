"""Pixels to image files, with the parameters written into them."""

from __future__ import annotations

import io
from typing import Final

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from app import __version__
from app.core.request import GenerationRequest, OutputFormat

MEDIA_TYPES: Final[dict[OutputFormat, str]] = {
    "png": "image/png",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
}

_EXIF_IFD: Final = 0x8769
_USER_COMMENT: Final = 0x9286

#: Level 1 is half the time of Pillow's default for 13 % more bytes (1024 x 1024, photo-like).
_PNG_LEVEL: Final = 1


def parameters_text(request: GenerationRequest, seed: int) -> str:
    """The parameters of one image in AUTOMATIC1111's form, which many tools read back."""
    lines = [request.prompt]
    if request.negative_prompt:
        lines.append(f"Negative prompt: {request.negative_prompt}")
    facts = {
        "Steps": request.steps,
        "Sampler": request.sampler,
        "Schedule type": request.schedule,
        "CFG scale": f"{request.cfg_scale:g}",
        "Seed": seed,
        "Size": request.size,
        "Model": request.model,
        "Version": f"sdstream {__version__}",
    }
    if request.guidance is not None:
        facts["Distilled CFG Scale"] = f"{request.guidance:g}"
    lines.append(", ".join(f"{name}: {value}" for name, value in facts.items()))
    return "\n".join(lines)


def encode(
    pixels: bytes,
    width: int,
    height: int,
    output_format: OutputFormat,
    compression: int = 100,
    parameters: str | None = None,
) -> bytes:
    """Make an image file.

    Args:
        pixels: RGB, width x height x 3 bytes, rows from the top.
        width, height: Pixels.
        output_format: "png", "jpeg" or "webp".
        compression: Quality of JPEG and WebP in percent.
        parameters: Text to embed: as PNG text chunk ``parameters`` or EXIF UserComment.
    """
    image = Image.frombytes("RGB", (width, height), pixels)
    file = io.BytesIO()
    if output_format == "png":
        info = PngInfo()
        if parameters is not None:
            info.add_text("parameters", parameters)
        image.save(file, "PNG", compress_level=_PNG_LEVEL, pnginfo=info)
    else:
        exif = _user_comment(parameters) if parameters is not None else Image.Exif()
        image.save(file, output_format.upper(), quality=compression, exif=exif)
    return file.getvalue()


def _user_comment(text: str) -> Image.Exif:
    exif = Image.Exif()
    # The tag's own prefix for UTF-16, big-endian as the readers of this tag expect it.
    exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = b"UNICODE\0" + text.encode("utf-16-be")
    return exif
