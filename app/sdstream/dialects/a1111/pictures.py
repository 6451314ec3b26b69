"""Image files in AUTOMATIC1111's JSON: base64, with or without the prefix of a data URL."""

from __future__ import annotations

import binascii
import re
from collections.abc import Mapping
from typing import Any, Final

from sdstream.core.errors import InvalidRequest, Reason
from sdstream.core.pixels import SourceFile
from sdstream.dialects.fields import unknown

_DATA_URL: Final = re.compile(r"data:[\w.+/-]{0,64}(?:;[\w=.+-]{0,64}){0,4},")


def image_field(body: Mapping[str, Any]) -> SourceFile:
    """The file under ``image`` of a png-info.

    Raises:
        InvalidRequest: It is missing, or no base64.
    """
    for name in body:
        if name != "image":
            raise unknown(name)
    if not isinstance(body.get("image"), str):
        raise InvalidRequest("'image' is required.", reason=Reason.MISSING_FIELD, param="image")
    return file_of("image", body["image"].strip())


def file_of(param: str, text: str) -> SourceFile:
    """A file from base64, with or without a data: prefix."""
    prefix = _DATA_URL.match(text)
    try:
        data = binascii.a2b_base64(text[prefix.end() :] if prefix else text)
    except (binascii.Error, ValueError):
        data = b""
    if not data:
        raise InvalidRequest(
            f"Invalid image: '{param}' is not base64.", reason=Reason.INVALID_IMAGE, param=param
        )
    return SourceFile(param, data)
