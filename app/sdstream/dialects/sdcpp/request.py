"""Requests of the API of stable-diffusion.cpp's server, /sdcpp/v1/img_gen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sdstream.core.ask import Hints, ParsedRequest
from sdstream.core.errors import InvalidRequest, Reason
from sdstream.core.model_options import only_looks
from sdstream.core.model_spec import ModelSpec
from sdstream.core.pixels import SourceFile, SourceFiles
from sdstream.dialects.fields import is_nothing
from sdstream.dialects.openai.request import NO_HINTS, parse
from sdstream.dialects.pictures import image_of, numbered
from sdstream.dialects.sdcpp.options import flatten


def parse_img_gen(body: Mapping[str, Any], hints: Hints = NO_HINTS) -> ParsedRequest:
    """Parse an img_gen request.

    Args:
        body: The client's JSON object.
        hints: Choices of the client outside of the body.

    Raises:
        InvalidRequest: A field is rejected; the error names it as the client spelled it.
    """
    flat = flatten(body, hints.handling)
    fields = flat.fields
    init, mask, control = (_image(body, n) for n in ("init_image", "mask_image", "control_image"))
    references = body.get("ref_images") or []
    if not isinstance(references, list):
        raise InvalidRequest("'ref_images' must be a list.", param="ref_images")
    pictures = [
        *([init] if init else []),
        *(image_of(name, value) for name, value in numbered("ref_images", references)),
    ]
    if init is None:
        fields.pop("strength", None)  # clients always send it
    if control is None:
        fields.pop("control_strength", None)
    if mask is not None and init is None:
        raise InvalidRequest(
            "'mask_image' needs 'init_image'.", reason=Reason.MISSING_FIELD, param="init_image"
        )
    resizes = body.get("auto_resize_ref_image")
    if references and resizes not in (None, "") and is_nothing(resizes):
        fields["reference_size"] = "original"
    if mask is not None:
        fields["mask_mode"] = "luminance"
    # The job continues without a connection; the client polls for the result.
    fields |= {"on_disconnect": "continue", "response_format": "b64_json"}
    names = {**flat.names, "control": "control_image"}
    ask = parse({"prompt": "", **fields}, hints, client_names=names)
    files = None
    if pictures or mask or control:
        files = SourceFiles(tuple(pictures), mask, control=control)
    return replace(
        ask.noting(flat.warnings, flat.unknown),
        files=files,
        operation="edit" if pictures else "generation",
    )


def fitted(ask: ParsedRequest, spec: ModelSpec) -> ParsedRequest:
    """Adapt a request to its model.

    Clients of this API send a strength with every input image. The strength is removed if the model
    uses the image only as a reference.

    Raises:
        InvalidRequest: The request has reference images, and the model does not support them.
    """
    files = ask.files
    if files is None or not files.images:
        return ask
    if only_looks(ask, spec):
        return replace(ask, params=ask.params.model_copy(update={"strength": None}))
    if not spec.traits.references and files.images[-1].param.startswith("ref_images"):
        raise InvalidRequest(
            f"'ref_images': the model '{spec.id}' does not accept reference images; send "
            "'init_image'.",
            reason=Reason.NOT_SUPPORTED,
            param="ref_images",
        )
    return ask


def _image(body: Mapping[str, Any], name: str) -> SourceFile | None:
    value = body.get(name)
    return image_of(name, value) if value else None
