"""What becomes of a field of a request: an option, a wish for the answer, or a field of others.

``UNSUPPORTED_FIELDS`` is the one table of fields that are known from some system and do nothing
here, with what happens to each; a field in no table is rejected by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

from pydantic import ValidationError

from sdstream.core.ask import ReplyOptions
from sdstream.core.errors import InvalidRequest, NotSupportedYet, Reason
from sdstream.core.options import ALIASES, OPTIONS


class Unsupported(StrEnum):
    """What happens to a known field that does nothing here."""

    IGNORED = "ignored"
    NOT_YET = "not supported yet"
    NEEDS_IMAGE = "needs an image"
    UPLOADED = "is an uploaded file"
    REFUSED = "refused"


#: Harmless ones say something about the caller or ask for taste; the others would change the
#: picture, and silence about them would be a lie.
UNSUPPORTED_FIELDS: Final[Mapping[str, Unsupported]] = {
    "user": Unsupported.IGNORED,
    "safety_identifier": Unsupported.IGNORED,
    "moderation": Unsupported.IGNORED,
    "style": Unsupported.IGNORED,
    "input_fidelity": Unsupported.IGNORED,
    "padding_image_to_multiple": Unsupported.IGNORED,  # "fit" does
    "image": Unsupported.NEEDS_IMAGE,
    "mask": Unsupported.NEEDS_IMAGE,
    "control": Unsupported.UPLOADED,
    "control_image": Unsupported.UPLOADED,
    "prompt_2": Unsupported.REFUSED,
    "prompt_3": Unsupported.REFUSED,
    "negative_prompt_2": Unsupported.REFUSED,
    "negative_prompt_3": Unsupported.REFUSED,
    "max_sequence_length": Unsupported.REFUSED,
    "markup": Unsupported.REFUSED,
    "complexity": Unsupported.REFUSED,
    "frame_count": Unsupported.REFUSED,
    "frame_duration_ms": Unsupported.REFUSED,
    "svg": Unsupported.REFUSED,
    "input_image": Unsupported.NEEDS_IMAGE,
    "lora_adapter_name": Unsupported.NOT_YET,
    "lora_weight_filename": Unsupported.NOT_YET,
    "style_preset": Unsupported.REFUSED,
    "clip_guidance_preset": Unsupported.REFUSED,
    "text_prompts": Unsupported.REFUSED,
    "apply_invisible_watermark": Unsupported.REFUSED,
    "return_latents": Unsupported.REFUSED,
}

#: Canonical names of all fields that have an effect.
KNOWN: Final = OPTIONS.keys() | ReplyOptions.model_fields.keys()


def check_unsupported(given: Mapping[str, Any]) -> None:
    """Reject fields of other systems that would change the picture; raises InvalidRequest."""
    for name, value in given.items():
        if not value:  # some clients always send the fields of all that they know
            continue
        match UNSUPPORTED_FIELDS.get(ALIASES.get(name, name)):
            case Unsupported.NOT_YET:
                raise NotSupportedYet(name)
            case Unsupported.NEEDS_IMAGE:
                raise InvalidRequest(
                    f"'{name}' requires an input image, which this route does not accept.",
                    reason=Reason.NOT_SUPPORTED,
                    param=name,
                )
            case Unsupported.UPLOADED:
                raise InvalidRequest(
                    f"'{name}' must be an uploaded file in a multipart form.", param=name
                )
            case Unsupported.REFUSED:
                raise InvalidRequest(
                    f"'{name}' is not supported by this server's models.",
                    reason=Reason.NOT_SUPPORTED,
                    param=name,
                )


def canonical_names(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the fields by their canonical names, and the client's name of each."""
    canonical: dict[str, Any] = {}
    client_names: dict[str, str] = {}
    for name, value in given.items():
        target = ALIASES.get(name, name)
        if target not in KNOWN:
            raise unknown(name)
        if target in canonical and canonical[target] != value:
            raise InvalidRequest(
                f"'{client_names[target]}' and '{name}' are aliases with different values.",
                reason=Reason.CONFLICTING_FIELDS,
                param=name,
            )
        canonical[target] = value
        client_names[target] = name
    return canonical, client_names


def unknown(name: str) -> InvalidRequest:
    """The refusal of a field that no table knows."""
    return InvalidRequest(
        f"Unknown field '{name[:64]}'.", reason=Reason.UNKNOWN_FIELD, param=name[:64]
    )


def invalid(error: ValidationError, client_names: Mapping[str, str]) -> InvalidRequest:
    """The refusal for what pydantic found, with the field as the client spelled it."""
    first = error.errors(include_url=False)[0]
    name, *rest = (str(part) for part in first["loc"])
    param = ".".join([client_names.get(name, name), *rest])
    if first["type"] == "missing":
        return InvalidRequest(f"'{param}' is required.", reason=Reason.MISSING_FIELD, param=param)
    if first["type"] == "extra_forbidden":
        return unknown(param)
    what = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return InvalidRequest(f"'{param}': {what}.", param=param)
