"""AUTOMATIC1111's extra-single-image: its JSON to a request that upscales."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError

from sdstream.core.ask import Handling, ParsedRequest
from sdstream.core.errors import InvalidRequest, Reason
from sdstream.core.options import ImageParams
from sdstream.core.pixels import SourceFiles
from sdstream.dialects.fields import IGNORED, Foreign, invalid, only, take
from sdstream.dialects.pictures import file_of

#: How extra-single-image spells what it asks for.
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


def parse_extra(body: Mapping[str, Any], handling: Handling = Handling.SUGGEST) -> ParsedRequest:
    """The JSON of an extra-single-image: how to enlarge which picture.

    Raises:
        InvalidRequest: Names the field.
    """
    own = ("image", *_EXTRA_SPELLING.values())
    taken = take(body, own, foreign=_FOREIGN, handling=handling)
    given = taken.fields
    if not isinstance(given.get("image"), str):
        raise InvalidRequest("'image' is required.", reason=Reason.MISSING_FIELD, param="image")
    file = file_of("image", given["image"])
    chosen = given.get("upscaler_1", "None")
    if chosen == "None":
        raise InvalidRequest(
            "'upscaler_1' must name an upscaler; the route does nothing else.",
            reason=Reason.MISSING_FIELD,
            param="upscaler_1",
        )
    try:
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
