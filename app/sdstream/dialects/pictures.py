"""Image files in JSON: data URLs or base64, in the forms that clients of several APIs send."""

from __future__ import annotations

import binascii
import re
from collections.abc import Mapping
from typing import Any, Final

from sdstream.core.errors import InvalidRequest, Reason
from sdstream.core.pixels import SourceFile

MAX_INPUT_IMAGES: Final = 16

_DATA_URL: Final = re.compile(r"\s*data:[\w.+/-]{0,64}(?:;[\w=.+-]{0,64}){0,4},", re.IGNORECASE)
_ADDRESS: Final = re.compile(r"\s*[a-z][a-z0-9+.-]{1,15}://", re.IGNORECASE)
#: Converts base64url to base64, and removes whitespace and padding.
_DIGITS: Final = str.maketrans("-_", "+/", " \t\r\n=")

#: Keys of an object that contain the text of an image.
_HOLDERS: Final = ("image_url", "url", "b64_json", "image", "data")
#: Limit on nested objects around the text; OpenAI's clients send two.
_DEEPEST: Final = 4


def file_of(param: str, text: str) -> SourceFile:
    """Decode an image file from text.

    Args:
        param: Name of the field that contained the text.
        text: Base64 or base64url, with or without padding, line breaks and a ``data:`` prefix.

    Raises:
        InvalidRequest: The text is an address, or is not base64.
    """
    if _ADDRESS.match(text):
        raise InvalidRequest(
            f"'{param}' is a URL, and this server does not download URLs; send the image itself "
            "as base64, as a data: URL or as a file in a multipart form.",
            reason=Reason.NOT_SUPPORTED,
            param=param,
        )
    prefix = _DATA_URL.match(text)
    digits = (text[prefix.end() :] if prefix else text).translate(_DIGITS)
    try:
        data = binascii.a2b_base64(digits + "=" * (-len(digits) % 4), strict_mode=True)
    except (binascii.Error, ValueError):
        data = b""
    if not data:
        raise InvalidRequest(
            f"Invalid image: '{param}' is not base64.", reason=Reason.INVALID_IMAGE, param=param
        )
    return SourceFile(param, data)


def image_of(param: str, value: Any) -> SourceFile:
    """Decode an image file from a value that ``text_of`` accepts; raises InvalidRequest."""
    return file_of(param, text_of(param, value))


def numbered(param: str, value: Any) -> list[tuple[str, Any]]:
    """Return each image of a field that holds one image or a list, with its name for errors.

    Raises:
        InvalidRequest: The list is longer than MAX_INPUT_IMAGES.
    """
    if not isinstance(value, list):
        return [(param, value)]
    if len(value) > MAX_INPUT_IMAGES:
        raise too_many(param)
    return [(f"{param}[{number}]", item) for number, item in enumerate(value)]


def too_many(param: str) -> InvalidRequest:
    """Return the error for more input images than MAX_INPUT_IMAGES."""
    return InvalidRequest(f"Send at most {MAX_INPUT_IMAGES} images.", param=param)


def text_of(param: str, value: Any) -> str:
    """Return the text of an image from a string or from an object that holds one.

    Args:
        param: Name of the field that contained the value.
        value: A string, ``{"image_url": "data:…"}``, ``{"image_url": {"url": "data:…"}}`` or
            ``{"url": "data:…", "type": …}``.

    Raises:
        InvalidRequest: The value contains no image.
    """
    for _ in range(_DEEPEST):
        if not isinstance(value, Mapping):
            break
        if value.get("file_id") is not None:
            raise InvalidRequest(
                f"'{param}.file_id' is not supported; send the image itself as a data: URL.",
                reason=Reason.NOT_SUPPORTED,
                param=f"{param}.file_id",
            )
        name = next((name for name in _HOLDERS if value.get(name)), None)
        if name is None:
            break
        param, value = f"{param}.{name}", value[name]
    if not isinstance(value, str):
        raise InvalidRequest(
            f"Invalid image: '{param}' must be base64 or a data: URL.",
            reason=Reason.INVALID_IMAGE,
            param=param,
        )
    return value
