"""Upscale requests of AUTOMATIC1111's API: extra-single-image and extra-batch-images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

from sdstream.core.ask import Handling, ParsedRequest
from sdstream.core.errors import InvalidRequest, Reason
from sdstream.core.options import ImageParams
from sdstream.core.pixels import SourceFile, SourceFiles
from sdstream.dialects.fields import IGNORED, Foreign, invalid, only, take
from sdstream.dialects.pictures import file_of, text_of

#: Canonical name of an option -> its name in extra-single-image.
_EXTRA_SPELLING: Final = {"upscaler": "upscaler_1", "upscale": "upscaling_resize"}

_HARMLESS: Final = frozenset(
    {
        "show_extras_results", "codeformer_weight", "upscaling_resize_w", "upscaling_resize_h",
        "upscaling_crop", "upscale_first",
    }
)  # fmt: skip

_FOREIGN: Final[Mapping[str, Foreign]] = {
    "resize_mode": Foreign((0,), refusal=" must be 0: give the factor as 'upscaling_resize'."),
    "gfpgan_visibility": only(0),
    "codeformer_visibility": only(0),
    "upscaler_2": only("None"),
    "extras_upscaler_2_visibility": only(0),
    **dict.fromkeys(_HARMLESS, IGNORED),
}


#: Upscaler that needs no file -> whether it is nearest-neighbour. "None" keeps the image's size.
PLAIN: Final[Mapping[str, bool]] = {"None": False, "Lanczos": False, "Nearest": True}

MAX_BATCH: Final = 16


@dataclass(frozen=True, slots=True)
class PlainResize:
    """An image that is enlarged without a model.

    Attributes:
        file: The image file.
        factor: Scale of the width and the height.
        nearest: Use nearest-neighbour resampling instead of Lanczos.
    """

    file: SourceFile
    factor: float
    nearest: bool


def plain_resize(ask: ParsedRequest) -> PlainResize | None:
    """Return the resize that a request asks for; None if it needs an upscaler file."""
    name = next((n for n in PLAIN if n.lower() == (ask.params.upscaler or "").lower()), None)
    if name is None or ask.files is None:
        return None
    factor = 1.0 if name == "None" else ask.params.upscale or 1.0
    return PlainResize(ask.files.images[0], factor, PLAIN[name])


def parse_batch(
    body: Mapping[str, Any], handling: Handling = Handling.SUGGEST
) -> list[ParsedRequest]:
    """Parse an extra-batch-images request; return one request for each image.

    Raises:
        InvalidRequest: A field is rejected; the error names it.
    """
    rest = {name: value for name, value in body.items() if name != "imageList"}
    images = body.get("imageList")
    if not isinstance(images, list) or not 1 <= len(images) <= MAX_BATCH:
        raise InvalidRequest(
            f"'imageList' must be a list of 1 to {MAX_BATCH} images.", param="imageList"
        )
    return [
        parse_extra({**rest, "image": text_of(name, image)}, handling, name)
        for name, image in ((f"imageList[{i}]", image) for i, image in enumerate(images))
    ]


def parse_extra(
    body: Mapping[str, Any], handling: Handling = Handling.SUGGEST, param: str = "image"
) -> ParsedRequest:
    """Parse an extra-single-image request.

    Args:
        body: The client's JSON object.
        handling: How unknown fields are handled.
        param: Name of the image in errors.

    Raises:
        InvalidRequest: A field is rejected; the error names it.
    """
    own = ("image", *_EXTRA_SPELLING.values())
    taken = take(body, own, foreign=_FOREIGN, handling=handling)
    given = taken.fields
    if not isinstance(given.get("image"), str):
        raise InvalidRequest("'image' is required.", reason=Reason.MISSING_FIELD, param="image")
    file = file_of(param, given["image"])
    try:
        chosen = given.get("upscaler_1") or "None"
        params = ImageParams(prompt="", upscaler=chosen, upscale=given.get("upscaling_resize", 2.0))
    except ValidationError as error:
        raise invalid(error, _EXTRA_SPELLING) from None
    return ParsedRequest(
        params,
        files=SourceFiles((file,)),
        only_upscale=True,
        client_names=_EXTRA_SPELLING,
        warnings=taken.warnings,
        unknown=taken.unknown,
    )
