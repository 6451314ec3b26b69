"""Requests of stable-diffusion.cpp's server (/sdcpp/v1/img_gen): its JSON to a ParsedRequest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sdstream.core.ask import Hints, ParsedRequest
from sdstream.core.pixels import SourceFile, SourceFiles
from sdstream.dialects.openai.request import MAX_INPUT_IMAGES, NO_HINTS, parse, too_many
from sdstream.dialects.pictures import file_of, text_of
from sdstream.dialects.sdcpp.options import flatten


def parse_img_gen(body: Mapping[str, Any], hints: Hints = NO_HINTS) -> ParsedRequest:
    """Read an img_gen.

    Args:
        body: The client's object.
        hints: What was said beside it.

    Raises:
        InvalidRequest: Names the field as the client spelled it.
    """
    flat = flatten(body, hints.handling)
    fields = flat.fields
    init, mask, control = (_image(body, n) for n in ("init_image", "mask_image", "control_image"))
    references = body.get("ref_images") or []
    if not isinstance(references, list) or len(references) > MAX_INPUT_IMAGES:
        raise too_many("ref_images")
    pictures = [
        *([init] if init else []),
        *(file_of(n, text_of(n, v)) for n, v in _numbered("ref_images", references)),
    ]
    if init is None:
        fields.pop("strength", None)  # always sent, and means nothing without one
    if control is None:
        fields.pop("control_strength", None)
    if references and body.get("auto_resize_ref_image") is False:
        fields["reference_size"] = "original"
    if mask is not None:
        fields["mask_mode"] = "luminance"
    # The job outlives its client, who comes back for the result.
    fields |= {"on_disconnect": "continue", "response_format": "b64_json"}
    ask = parse({"prompt": "", **fields}, hints, client_names=flat.names)
    files = None
    if pictures or mask or control:
        files = SourceFiles(tuple(pictures), mask, control=control)
    return replace(
        ask.noting(flat.warnings, flat.unknown),
        files=files,
        operation="edit" if pictures else "generation",
    )


def _numbered(name: str, values: list[Any]) -> list[tuple[str, Any]]:
    return [(f"{name}[{number}]", value) for number, value in enumerate(values)]


def _image(body: Mapping[str, Any], name: str) -> SourceFile | None:
    value = body.get(name)
    return file_of(name, text_of(name, value)) if value else None
