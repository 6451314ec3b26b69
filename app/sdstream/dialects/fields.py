"""The rule that accepts, ignores or rejects each field of a request.

All dialects use this rule, for JSON and for forms. A field that is an option of this server is
accepted. The rule for the other fields is:

1. A known field is ignored silently if it cannot change the image or has a neutral value. A neutral
   value is null, is empty, switches a feature off, or is the default of the system that the field
   comes from.
2. Any other known field is rejected, and the error names the alternative. If the field's entry has
   a ``note``, the field is ignored and reported in ``warnings`` instead.
3. An unknown field is ignored and reported in ``warnings``. Two kinds are rejected: a near miss of
   an option of this server, and a field that may contain an image.

``Prefer: handling=strict`` rejects every unknown field. ``handling=lenient`` also ignores near
misses.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

from sdstream.core.ask import Handling, ReplyOptions
from sdstream.core.errors import InvalidRequest, Reason
from sdstream.core.lora import LoraChoice
from sdstream.core.option_texts import comparable
from sdstream.core.options import ALIASES, OPTIONS
from sdstream.core.similar import did_you_mean, near_miss
from sdstream.core.validation import requirement


@dataclass(frozen=True, slots=True)
class Foreign:
    """A field of another system that has no effect here.

    Attributes:
        neutral: Neutral values besides null and empty ones, the usual value first. If it is empty,
            the values that switch a feature off are neutral.
        asking: The only values that are not neutral. If it is empty, ``neutral`` decides.
        refusal: Text of the error for a value that is not neutral; it follows the field's name.
        note: Text of the warning for a value that is not neutral; it follows the field's name.
    """

    neutral: tuple[object, ...] = ()
    asking: tuple[str, ...] = ()
    refusal: str | None = None
    note: str | None = None


#: A field that is ignored without a warning, for example one that describes the caller.
IGNORED: Final = Foreign()

_NOT_HERE: Final = Foreign(refusal=" is not supported by this server's models.")
_NEEDS_IMAGE: Final = Foreign(
    refusal=" requires an input image, which this route does not accept; use /v1/images/edits."
)
_UPLOADED: Final = Foreign(refusal=" must be an uploaded file in a multipart form.")
_ONE_PROMPT: Final = Foreign(
    refusal=" is not supported; all text encoders read 'prompt' and 'negative_prompt'."
)
_LORA: Final = Foreign(refusal=' is not supported; use \'lora\': [{"id": "NAME", "scale": 1}].')


#: AUTOMATIC1111's styles are texts that are added to the prompt.
STYLES: Final = Foreign(
    refusal=" is not supported: this server has no styles; write their text in the prompt."
)


def only(*neutral: object) -> Foreign:
    """Return a field that rejects all values except these; the error names the first one."""
    usual = json.dumps(neutral[0])
    return Foreign(neutral, refusal=f" must be {usual}; other values are not supported.")


#: Fields of OpenAI, Xinference, GPUStack, Fireworks and others, by their canonical names.
FOREIGN: Final[Mapping[str, Foreign]] = {
    **dict.fromkeys(
        (
            "user",
            "safety_identifier",
            "moderation",
            "metadata",
            "store",
            "logit_bias",
            "cache_control",
        ),
        IGNORED,
    ),
    # ``parameters`` of an answer contains both, and clients send it back to repeat the image.
    "generated_size": IGNORED,
    "kernels": Foreign(
        asking=("exact",),
        note=" has no effect; set SDSTREAM_KERNELS, or 'runtime: {kernels: …}' in models.yaml.",
    ),
    "style": Foreign(
        ("natural", "vivid", "auto"), note=" has no effect; describe the style in the prompt."
    ),
    "input_fidelity": Foreign(("low",), note=" has no effect; use 'strength'."),
    "padding_image_to_multiple": Foreign(note=" has no effect; use 'fit'."),
    "image": _NEEDS_IMAGE,
    "images": _NEEDS_IMAGE,
    "mask": _NEEDS_IMAGE,
    "input_image": _NEEDS_IMAGE,
    "control": _UPLOADED,
    "control_image": _UPLOADED,
    **dict.fromkeys(
        ("prompt_2", "prompt_3", "negative_prompt_2", "negative_prompt_3"), _ONE_PROMPT
    ),
    "max_sequence_length": Foreign((256, 512), note=" has no effect; prompts are not shortened."),
    "ddim_discretize": only("uniform"),
    "s_churn": only(0),
    "s_noise": only(1, 0),
    "s_tmin": IGNORED,
    "s_tmax": IGNORED,
    "styles": STYLES,
    **dict.fromkeys(
        ("markup", "complexity", "frame_count", "frame_duration_ms", "svg", "style_preset"),
        _NOT_HERE,
    ),
    "text_prompts": Foreign(refusal=" is not supported; use 'prompt' and 'negative_prompt'."),
    "lora_adapter_name": _LORA,
    "lora_weight_filename": _LORA,
    "clip_guidance_preset": only("NONE"),
    "apply_invisible_watermark": only(False),
    "return_latents": only(False),
}

#: Canonical names of all fields that have an effect.
KNOWN: Final = OPTIONS.keys() | ReplyOptions.model_fields.keys()

#: Canonical names and aliases of these fields.
SPELLINGS: Final = KNOWN | ALIASES.keys()

#: Fields of other APIs whose names resemble an option of this server but mean something else.
_LOOK_ALIKES: Final = frozenset(
    {
        "stop", "mode", "models", "guidance_rescale", "guidance_scale_2", "true_cfg_scale",
        "cfg_rescale", "mask_blur_x", "mask_blur_y",
    }
)  # fmt: skip

#: Names of fields that contain an image or select something that changes it, such as a LoRA.
_PICTURE_NAME: Final = re.compile(
    r"(?:^|[^a-z])(?:image|mask|lora|control|controlnet|adapter|reference)s?(?:$|[^a-z])"
)
#: The boundary between two words of a name in camel case, such as ``referenceImage``.
_CAMEL: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_SCHEMES: Final = ("http://", "https://", "file://", "s3://", "gs://")
_ENDINGS: Final = (
    ".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".avif", ".heic", ".tif", ".tiff",
)  # fmt: skip
#: Characters; longer text is not checked for an address.
_LONGEST_ADDRESS: Final = 4096
#: The first bytes of image files.
IMAGE_SIGNATURES: Final = (
    b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF",
    b"\0\0\0\x18ftyp", b"\0\0\0\x1cftyp", b"\0\0\0\x20ftyp",
)  # fmt: skip
#: Characters; shorter text cannot be an image file in base64.
_SHORTEST_PICTURE: Final = 64
_DEEPEST: Final = 8

_OFF: Final = ("0", "none", "null", "off", "disabled", "n/a")

MAX_NAME: Final = 64
#: Limit on the fields of one object: each unknown field is compared with every option.
_MOST_FIELDS: Final = 1024
_MOST_REPORTED: Final = 20


@dataclass(frozen=True, slots=True)
class Taken:
    """The fields of a client after ``take``.

    Attributes:
        fields: Fields that have an effect: the client's name -> value.
        warnings: Warnings about ignored fields, one sentence each.
        unknown: Names of ignored fields that no table contains.
    """

    fields: dict[str, Any]
    warnings: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


def take(
    given: Mapping[str, Any],
    own: Collection[str],
    *,
    foreign: Mapping[str, Foreign],
    handling: Handling,
    where: str = "",
    by_name: bool = True,
) -> Taken:
    """Apply the rule of this module to a client's fields.

    Args:
        given: Name -> value; a field that is null counts as absent.
        own: Names of the fields that have an effect.
        foreign: Known fields that have no effect, by name.
        handling: How unknown fields are handled.
        where: Prefix of the names in messages.
        by_name: An unknown field may count as an image because of its name, not only its value.

    Raises:
        InvalidRequest: A field is rejected; the error names it as the client spelled it.
    """
    if len(given) > _MOST_FIELDS:
        raise InvalidRequest(
            f"The request has {len(given)} fields; the limit is {_MOST_FIELDS}.",
            reason=Reason.UNKNOWN_FIELD,
        )
    found: dict[str, Any] = {}
    warnings: list[str] = []
    unknown_names: list[str] = []
    for name, value in given.items():
        shown = where + name[:MAX_NAME]
        entry = foreign.get(name)
        if value is None:
            continue
        if name in own:
            found[name] = value
        elif entry is not None:
            if (note := _without_effect(entry, shown, value)) is not None:
                warnings.append(note)
        elif not _is_empty(value):
            warnings.append(_unknown(name, value, own, handling, where, by_name=by_name))
            unknown_names.append(shown)
    return Taken(found, _at_most(warnings), tuple(unknown_names))


def _without_effect(entry: Foreign, name: str, value: object) -> str | None:
    """Return the warning about a known field, None if it needs none; raises InvalidRequest."""
    if entry.asking:
        nothing = comparable(value) not in entry.asking
    else:
        nothing = is_nothing(value, entry.neutral)
    if nothing:
        return None
    if entry.refusal is not None:
        raise InvalidRequest(f"'{name}'{entry.refusal}", reason=Reason.NOT_SUPPORTED, param=name)
    return None if entry.note is None else f"'{name}'{entry.note}"


def _unknown(
    name: str,
    value: object,
    own: Collection[str],
    handling: Handling,
    where: str,
    *,
    by_name: bool,
) -> str:
    """Return the warning about an unknown field; raises InvalidRequest if it is rejected."""
    shown = where + name[:MAX_NAME]
    meant = meant_by(name, own)
    if holds_picture(value) or (by_name and _names_picture(name) and not is_nothing(value)):
        raise InvalidRequest(
            f"Unknown field '{shown}' may contain or select an image; ignoring it would "
            "change the result. Remove it, or see the fields of this route in "
            f"/openapi.json.{did_you_mean(meant)}",
            reason=Reason.UNKNOWN_FIELD,
            param=shown,
        )
    if handling is Handling.STRICT or (meant and handling is Handling.SUGGEST):
        raise unknown(shown, meant)
    return no_effect(shown, meant)


def no_effect(name: str, meant: str | None) -> str:
    """Return the warning about an unknown field, which suggests the option ``meant``."""
    return f"Unknown field '{name[:MAX_NAME]}' has no effect.{did_you_mean(meant)}"


def _names_picture(name: str) -> bool:
    """Return whether a name contains a word for an image or for something that changes one."""
    return _PICTURE_NAME.search(_CAMEL.sub("_", name[:MAX_NAME]).lower()) is not None


def meant_by(name: str, own: Iterable[str] = SPELLINGS) -> str | None:
    """Return the field that an unknown name misspells; None if it resembles no field."""
    return None if name.lower() in _LOOK_ALIKES else near_miss(name, own)


def is_nothing(value: object, neutral: Collection[object] = ()) -> bool:
    """Return whether a value leaves its feature off, so that ignoring the field changes nothing.

    Args:
        value: The client's value; text such as "1" counts as the number that it spells.
        neutral: The neutral values; if it is empty, the values that switch a feature off are
            neutral.
    """
    if _is_empty(value):
        return True
    if isinstance(value, (list, tuple, Mapping)):
        if neutral or isinstance(value, Mapping):
            return any(value == other for other in neutral)
        return all(_is_empty_item(item) or comparable(item) in _OFF for item in value)
    words = map(comparable, neutral) if neutral else _OFF
    return comparable(value) in words


def _is_empty(value: object) -> bool:
    """Return whether a value is null or empty, or a list of such values only."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_empty_item, value))
    return _is_empty_item(value)


def _is_empty_item(value: object) -> bool:
    return value in (None, "", [], {})


def holds_picture(value: object, depth: int = 0) -> bool:
    """Return whether a value is an image, contains one, or is the address of one.

    Args:
        value: A value from JSON.
        depth: Nesting level of the value; deeper levels than 8 are not searched.
    """
    if depth > _DEEPEST:
        return False
    match value:
        case str():
            return _is_picture(value)
        case Mapping():
            return any(holds_picture(item, depth + 1) for item in value.values())
        case list() | tuple():
            return any(holds_picture(item, depth + 1) for item in value)
        case _:
            return False


def _is_picture(text: str) -> bool:
    head = text[:_LONGEST_ADDRESS].strip().lower()
    if head.startswith("data:image/"):
        return True
    if len(text) < _LONGEST_ADDRESS and head.startswith(_SCHEMES) and not head.split()[1:]:
        return head.partition("?")[0].partition("#")[0].endswith(_ENDINGS)
    if len(text) < _SHORTEST_PICTURE:
        return False
    try:
        begin = base64.b64decode(text.lstrip()[:16], validate=True)
    except (binascii.Error, ValueError):
        return False
    return begin.startswith(IMAGE_SIGNATURES)


def _at_most(warnings: list[str]) -> tuple[str, ...]:
    more = len(warnings) - _MOST_REPORTED
    if more <= 0:
        return tuple(warnings)
    return (*warnings[:_MOST_REPORTED], f"{more} more fields have no effect.")


def canonical_names(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the values and the client's names of fields, both by canonical name.

    Raises:
        InvalidRequest: Two aliases of a field have different values.
    """
    canonical: dict[str, Any] = {}
    client_names: dict[str, str] = {}
    for name, value in given.items():
        target = ALIASES.get(name, name)
        if target in canonical and canonical[target] != value:
            raise InvalidRequest(
                f"'{client_names[target]}' and '{name}' are aliases with different values.",
                reason=Reason.CONFLICTING_FIELDS,
                param=name,
            )
        canonical[target] = value
        client_names[target] = name
    return canonical, client_names


def unknown(name: str, meant: str | None = None) -> InvalidRequest:
    """Return the error for an unknown field, which suggests the option ``meant``."""
    shown = name[:MAX_NAME]
    return InvalidRequest(
        f"Unknown field '{shown}'.{did_you_mean(meant)}", reason=Reason.UNKNOWN_FIELD, param=shown
    )


def unknown_file(name: str, taken: Iterable[str]) -> InvalidRequest:
    """Return the error for a file in a form field that the route does not have.

    Args:
        name: Name of the form field.
        taken: Names of the form fields that the route accepts files in.
    """
    return InvalidRequest(
        f"Unknown file '{name[:MAX_NAME]}'; this route accepts {', '.join(taken)}.",
        reason=Reason.UNKNOWN_FIELD,
        param=name[:MAX_NAME],
    )


def invalid(error: ValidationError, client_names: Mapping[str, str]) -> InvalidRequest:
    """Return the error for the first fault that pydantic found, with the client's field name."""
    first = error.errors(include_url=False)[0]
    name, *rest = (str(part) for part in first["loc"])
    param = ".".join([client_names.get(name, name), *rest])
    if first["type"] == "missing":
        return InvalidRequest(f"'{param}' is required.", reason=Reason.MISSING_FIELD, param=param)
    if first["type"] == "extra_forbidden":
        return unknown(param, near_miss(rest[-1] if rest else name, LoraChoice.model_fields))
    what = requirement(first)
    # A predicate ("must be …") follows the name directly; any other text follows a colon.
    between = " " if what.startswith("must ") else ": "
    return InvalidRequest(f"'{param}'{between}{what}.", param=param)
