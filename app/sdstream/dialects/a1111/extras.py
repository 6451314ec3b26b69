"""AUTOMATIC1111's extra-single-image: its JSON to a request that upscales."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError

from sdstream.core.ask import ParsedRequest
from sdstream.core.errors import InvalidRequest, Reason
from sdstream.core.options import ImageParams
from sdstream.core.pixels import SourceFiles
from sdstream.dialects.a1111.fields import own_fields
from sdstream.dialects.a1111.pictures import image_field
from sdstream.dialects.fields import invalid

#: How extra-single-image spells what it asks for.
_EXTRA_SPELLING: Final = {"upscaler": "upscaler_1", "upscale": "upscaling_resize"}

#: Would make another picture of it, so these values only.
_EXTRA_NEUTRAL: Final[Mapping[str, tuple[object, ...]]] = {
    "resize_mode": (0,),
    "gfpgan_visibility": (0,),
    "codeformer_visibility": (0,),
    "upscaler_2": ("None", ""),
    "extras_upscaler_2_visibility": (0,),
}
_EXTRA_IGNORED: Final = frozenset(
    {
        "show_extras_results", "codeformer_weight", "upscaling_resize_w", "upscaling_resize_h",
        "upscaling_crop", "upscale_first",
    }
)  # fmt: skip


def parse_extra(body: Mapping[str, Any]) -> ParsedRequest:
    """The JSON of an extra-single-image: how to enlarge which picture.

    Raises:
        InvalidRequest: Names the field.
    """
    file = image_field({name: value for name, value in body.items() if name == "image"})
    own = ("image", *_EXTRA_SPELLING.values())
    given = own_fields(body, own, neutral=_EXTRA_NEUTRAL, ignored=_EXTRA_IGNORED)
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
        params, files=SourceFiles((file,)), only_upscale=True, client_names=_EXTRA_SPELLING
    )
