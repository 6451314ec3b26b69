"""OpenAI's image API: the JSON and forms it takes, with all other spellings, and the JSON it gives.

One vocabulary, many spellings: ``ALIASES`` maps what clients write to the canonical names of
``core.request.Draft``. ``FOREIGN_FIELDS`` is the one table of fields that are known from some
dialect and do nothing here, with what happens to each; whatever is in neither is refused by name.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from sdstream.core.errors import InvalidRequest, NotSupportedYet, Reason
from sdstream.core.job import Job
from sdstream.core.pixels import SourceFile, SourceFiles
from sdstream.core.request import EVERY_STEP, Draft, no_boolean
from sdstream.dialects.rendering import (
    ImageForm,
    answer_fields,
    compact,
    image_item,
    usage_fields,
    with_data,
)

#: A client's spelling -> the canonical name.
ALIASES: Final = {
    "negative_sampler": "negative_prompt",
    "samples": "n",
    "num_images": "n",
    "batch_size": "n",
    "rng_seed": "seed",
    "steps": "sample_steps",
    "num_inference_steps": "sample_steps",
    "sampling_steps": "sample_steps",
    "sample_method": "sampler",
    "sampler_name": "sampler",
    "scheduler": "schedule",
    "schedule_method": "schedule",
    "guidance_scale": "cfg_scale",
    "distilled_cfg_scale": "guidance",
    "denoising_strength": "strength",
}


class Foreign(StrEnum):
    """What happens to a known field that does nothing here."""

    IGNORED = "ignored"
    NOT_YET = "not supported yet"
    NEEDS_IMAGE = "needs an image"
    UPLOADED = "is an uploaded file"
    REFUSED = "refused"


#: Harmless ones say something about the caller or ask for taste; the others would change the
#: picture, and silence about them would be a lie.
FOREIGN_FIELDS: Final[Mapping[str, Foreign]] = {
    "user": Foreign.IGNORED,
    "safety_identifier": Foreign.IGNORED,
    "moderation": Foreign.IGNORED,
    "style": Foreign.IGNORED,
    "input_fidelity": Foreign.IGNORED,
    "padding_image_to_multiple": Foreign.IGNORED,  # "fit" does
    "image": Foreign.NEEDS_IMAGE,
    "mask": Foreign.NEEDS_IMAGE,
    "control": Foreign.UPLOADED,
    "control_image": Foreign.UPLOADED,
    "prompt_2": Foreign.REFUSED,
    "prompt_3": Foreign.REFUSED,
    "negative_prompt_2": Foreign.REFUSED,
    "negative_prompt_3": Foreign.REFUSED,
    "max_sequence_length": Foreign.REFUSED,
    "markup": Foreign.REFUSED,
    "complexity": Foreign.REFUSED,
    "frame_count": Foreign.REFUSED,
    "frame_duration_ms": Foreign.REFUSED,
    "svg": Foreign.REFUSED,
    "input_image": Foreign.NEEDS_IMAGE,
    "lora_adapter_name": Foreign.NOT_YET,
    "lora_weight_filename": Foreign.NOT_YET,
    "style_preset": Foreign.REFUSED,
    "clip_guidance_preset": Foreign.REFUSED,
    "text_prompts": Foreign.REFUSED,
    "apply_invisible_watermark": Foreign.REFUSED,
    "return_latents": Foreign.REFUSED,
}

#: Fields of a Draft that are this program's own and no options of a client.
INTERNAL_FIELDS: Final = ("previews", "blank_flagged", "only_upscale", "spelling")

MAX_INPUT_IMAGES: Final = 16

#: OpenAI's clients send one image or a list of them; Xinference's says images for edits.
_IMAGE_PARTS: Final = ("image", "image[]", "images", "images[]")
_MASK_PARTS: Final = ("mask", "mask_image")
_CONTROL_PARTS: Final = ("control", "control_image")

#: Values that switch an option off although they are not empty, as text.
_NEUTRAL: Final[Mapping[str, tuple[str, ...]]] = {
    "clip_skip": ("-1",),
    "cache_mode": ("disabled",),
    "control_canny": ("false", "0", "off", "no"),
}

_MIN_CHUNK: Final = 1024
_DEFAULT_CHUNK: Final = 4096


StreamDialect = Literal["image.chunk", "openai", "both"]


class StreamOptions(BaseModel):
    """``stream_options`` of llama-box and GPUStack."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    include_usage: bool = Field(True, description="Usage on the last image's frame.")
    chunk_result: bool = Field(False, description="Split the final base64 over several frames.")
    chunk_size: int = Field(_DEFAULT_CHUNK, ge=_MIN_CHUNK, description="Characters a piece.")
    preview: bool = Field(False, description="A small picture with every step.")
    dialect: StreamDialect | None = Field(
        None, description="Form of the stream: image.chunk, openai, or both in one."
    )


class ReplyOptions(BaseModel):
    """How the answer is wanted, as opposed to what is drawn."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    response_format: Literal["b64_json", "url", "B64Json", "Url"] = Field(
        "b64_json",
        description="Base64 or a link; B64Json has a data: prefix and Url is url (mistral.rs).",
    )
    stream: bool = Field(False, description="Progress and images as server-sent events.")
    partial_images: Annotated[int | None, BeforeValidator(no_boolean)] = Field(
        None, ge=0, le=3, description="Pictures between the steps, in OpenAI's stream."
    )
    stream_options: Annotated[StreamOptions, Field(default_factory=StreamOptions)]
    background: Literal["auto", "opaque", "transparent"] = "auto"
    priority: Literal["low", "normal", "high"] = Field(
        "normal", description="Place in the queue: a better class always goes first."
    )
    on_disconnect: Literal["cancel", "continue"] | None = Field(
        None, description="What becomes of the job when its client leaves before the answer."
    )
    webhook_url: str | None = Field(
        None, max_length=2048, description="Where the job's end is posted to, if the server may."
    )

    @field_validator("background")
    @classmethod
    def _opaque_only(cls, value: str) -> str:
        if value == "transparent":
            raise ValueError("the runtime draws opaque pictures only")
        return value


_OPTIONS: Final = (
    Draft.model_fields.keys() | ReplyOptions.model_fields.keys() | FOREIGN_FIELDS.keys()
) - set(INTERNAL_FIELDS)


@dataclass(frozen=True, slots=True)
class Told:
    """What a request says of a stream's form beside its body.

    Attributes:
        dialect: Named in the query; it wins over whatever the body says.
        library: The form that the client's library reads, where nothing else speaks.
    """

    dialect: StreamDialect | None = None
    library: StreamDialect | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """A parsed request.

    Attributes:
        draft: What to draw.
        reply: How to answer.
        files: The input pictures.
        operation: What OpenAI's events are named for.
    """

    draft: Draft
    reply: ReplyOptions
    files: SourceFiles | None = None
    operation: Literal["generation", "edit"] = "generation"

    def form(self, base_url: str) -> ImageForm:
        """How images are put into the answer."""
        wanted = self.reply.response_format
        return ImageForm(wanted.lower() == "url", wanted == "B64Json", base_url)

    @property
    def fingerprint(self) -> str:
        """Digest that is the same for the same request, however it was written."""
        return fingerprint(self.draft, self.reply.model_dump(), self.files, self.operation)


def fingerprint(
    draft: Draft, reply: Mapping[str, Any], files: SourceFiles | None, operation: str
) -> str:
    """Digest of all that makes a request what it is."""
    hidden = (draft.only_upscale, draft.blank_flagged)
    words = json.dumps([draft.model_dump(mode="json"), hidden, reply, operation], sort_keys=True)
    digest = hashlib.sha256(words.encode())
    if files is not None:
        others = tuple(file for file in (files.mask, files.control) if file)
        marks = (files.own_alpha, files.inverted_mask, bool(files.mask), bool(files.control))
        digest.update(repr(marks).encode())
        for file in (*files.images, *others):
            digest.update(hashlib.sha256(file.data).digest())
    return digest.hexdigest()


def parse(
    body: Mapping[str, Any],
    told: Told = Told(),
    *,
    spelling: Mapping[str, str] = MappingProxyType({}),
) -> Ask:
    """Read the JSON of a generation.

    Args:
        body: The client's object.
        told: What was said beside it.
        spelling: The client's names of fields that another dialect has renamed.

    Raises:
        InvalidRequest: Names the field as the client spelled it.
    """
    return _ask(body, told, spelling)


def parse_generation_form(
    fields: Mapping[str, str], files: Sequence[SourceFile], told: Told = Told()
) -> Ask:
    """Read a generation that comes as a form, which may bring a control picture.

    Raises:
        InvalidRequest: Names the field as the client spelled it.
    """
    body = _unflattened(fields)
    for file in files:
        if file.param not in _CONTROL_PARTS:
            _refuse_foreign({file.param: file})
            raise unknown(file.param)
    control = _control(files, body)
    ask = _ask(body, told)
    return replace(ask, files=SourceFiles((), control=control) if control else None)


def parse_form(
    fields: Mapping[str, Any],
    files: Sequence[SourceFile],
    *,
    told: Told = Told(),
    mask_mode: str | None = None,
    prompt: str | None = None,
) -> Ask:
    """Read the form of an edit, a variation or an inpainting.

    Args:
        fields: Text fields; each may be given once.
        files: Uploaded files with the names of their fields.
        told: As for ``parse``.
        mask_mode: The route's own reading of masks.
        prompt: The prompt of a form without one, where the route allows that.

    Raises:
        InvalidRequest: Names the field as the client spelled it.
    """
    body = _unflattened(fields)
    if prompt is not None:
        body.setdefault("prompt", prompt)
    sources = _sources(files, body)
    if mask_mode is not None and sources.mask is not None:
        body.setdefault("mask_mode", mask_mode)
    ask = _ask(body, told)
    return replace(ask, files=sources, operation="edit")


def parse_query(parameters: Sequence[tuple[str, str]]) -> Ask:
    """Read a generation from the query of its URL, as EventSource sends it.

    Names that no table knows are left unread: pages put all kinds of things into their links.

    Args:
        parameters: Names with their values, in the query's order.

    Raises:
        InvalidRequest: Names the parameter.
    """
    known: dict[str, str] = {}
    for name, value in parameters:
        if not name.startswith("stream_options") and ALIASES.get(name, name) not in _OPTIONS:
            continue
        if known.setdefault(name, value) != value:
            raise InvalidRequest(
                f"'{name[:64]}' is there twice.", reason=Reason.CONFLICTING_FIELDS, param=name[:64]
            )
    if known.get("response_format", "url").lower() != "url":
        raise InvalidRequest(
            "'response_format' is url on this route.",
            reason=Reason.NOT_SUPPORTED,
            param="response_format",
        )
    if known.get("on_disconnect", "continue") != "continue":
        raise InvalidRequest(
            "'on_disconnect' is continue on this route.",
            reason=Reason.NOT_SUPPORTED,
            param="on_disconnect",
        )
    given = {"response_format": "url", "on_disconnect": "continue", "stream": "true"}
    return _ask({**_unflattened(known), **given}, Told())


def _ask(
    body: Mapping[str, Any], told: Told, renamed: Mapping[str, str] = MappingProxyType({})
) -> Ask:
    # Clients transmit nulls for what was not given.
    given = {
        name: value
        for name, value in _with_kwargs(body).items()
        if value is not None and str(value).lower() not in _NEUTRAL.get(name, ())
    }
    _refuse_foreign(given)
    canonical, spelling = _canonical(
        {name: value for name, value in given.items() if name not in FOREIGN_FIELDS}
    )
    spelling |= renamed
    reply_fields = {k: canonical.pop(k) for k in list(canonical) if k in ReplyOptions.model_fields}
    options = reply_fields.get("stream_options")
    if isinstance(options, Mapping):
        reply_fields["stream_options"] = {k: v for k, v in options.items() if v is not None}
    try:
        reply = ReplyOptions.model_validate(reply_fields)
        reply = _with_dialect(reply, told)
        draft = Draft.model_validate(
            {**canonical, "previews": _previews(reply), "spelling": spelling}
        )
    except ValidationError as error:
        raise invalid(error, spelling) from None
    return Ask(draft, reply)


def _with_kwargs(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Xinference's client sends its extra options as JSON in one string."""
    text = body.get("kwargs")
    if text is None:
        return body
    try:
        extra = json.loads(text) if isinstance(text, str) else text
    except (ValueError, RecursionError):
        extra = None
    if not isinstance(extra, Mapping):
        raise InvalidRequest("'kwargs' must be a JSON object.", param="kwargs")
    rest = {k: v for k, v in body.items() if k != "kwargs" and v is not None}
    for name in rest.keys() & extra.keys():
        if extra[name] not in (None, rest[name]):
            raise InvalidRequest(
                f"'{name}' is in 'kwargs' too, and differs there.",
                reason=Reason.CONFLICTING_FIELDS,
                param=name,
            )
    return {**extra, **rest}


def _with_dialect(reply: ReplyOptions, told: Told) -> ReplyOptions:
    """Settle the form of a stream: named, else by what only one kind of client sends."""
    options = reply.stream_options
    chosen = told.dialect or options.dialect
    if chosen is None and options.model_fields_set:
        chosen = "image.chunk"
    elif chosen is None and reply.partial_images is not None:
        chosen = "openai"
    elif chosen is None:
        chosen = told.library
    _check_stream(options, chosen, reply.response_format)
    named = StreamOptions.model_validate({**options.model_dump(), "dialect": chosen})
    return reply.model_copy(update={"stream_options": named})


def _check_stream(options: StreamOptions, dialect: str | None, response_format: str) -> None:
    """Refuse options that the form of the stream would pass over."""
    if options.chunk_result and dialect in ("openai", "both"):
        raise InvalidRequest(
            f"'chunk_result' cannot be had with the dialect '{dialect}', whose pictures are whole.",
            reason=Reason.NOT_SUPPORTED,
            param="stream_options.chunk_result",
        )
    if options.chunk_result and response_format.lower() == "url":
        raise InvalidRequest(
            "'chunk_result' splits base64, and the response_format is url.",
            reason=Reason.NOT_SUPPORTED,
            param="stream_options.chunk_result",
        )
    if not options.include_usage and dialect in ("openai", "both"):
        raise InvalidRequest(
            f"'include_usage' is always true with the dialect '{dialect}'.",
            reason=Reason.NOT_SUPPORTED,
            param="stream_options.include_usage",
        )


def _previews(reply: ReplyOptions) -> int:
    if reply.stream_options.preview:
        return EVERY_STEP  # for whoever watches the job, streamed or not
    return (reply.partial_images or 0) if reply.stream else 0


def _unflattened(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A form's fields as the JSON would have them; empty ones were left empty by a person."""
    body: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for name, value in fields.items():
        if value == "" and name not in ("prompt", "negative_prompt"):
            continue
        nested = re.fullmatch(r"stream_options(?:_(\w+)|\[(\w+)\])", name)
        if nested:
            options[nested[1] or nested[2]] = value
        else:
            body[name] = value
    if options:
        body["stream_options"] = options
    return body


def _sources(files: Sequence[SourceFile], body: Mapping[str, Any]) -> SourceFiles:
    pictures = tuple(file for file in files if file.param in _IMAGE_PARTS)
    masks = [file for file in files if file.param in _MASK_PARTS]
    for file in files:
        if file.param not in (*_IMAGE_PARTS, *_MASK_PARTS, *_CONTROL_PARTS):
            raise unknown(file.param)
    control = _control(files, body)
    for name in (*_IMAGE_PARTS, *_MASK_PARTS):
        if name in body:
            raise InvalidRequest(f"'{name}' must be an uploaded file.", param=name)
    if not pictures:
        raise InvalidRequest("'image' is required.", reason=Reason.MISSING_FIELD, param="image")
    if len(pictures) > MAX_INPUT_IMAGES or len(masks) > 1:
        param = masks[0].param if len(masks) > 1 else "image"
        raise InvalidRequest(
            f"There are at most {MAX_INPUT_IMAGES} images and one mask.", param=param
        )
    own_alpha = not masks and body.get("mask_mode") == "alpha"
    return SourceFiles(pictures, masks[0] if masks else None, own_alpha, control=control)


def _control(files: Sequence[SourceFile], body: Mapping[str, Any]) -> SourceFile | None:
    """The control picture of a form."""
    _refuse_foreign({name: body[name] for name in _CONTROL_PARTS if name in body})
    controls = [file for file in files if file.param in _CONTROL_PARTS]
    if len(controls) > 1:
        raise InvalidRequest("There is at most one control picture.", param=controls[1].param)
    return controls[0] if controls else None


def plain_answer(job: Job, form: ImageForm, created: int) -> bytes:
    """The JSON of a finished job.

    Args:
        job: Completed.
        form: How images are put in.
        created: Unix seconds.
    """
    images = [job.images[index] for index in sorted(job.images)]
    items = [
        image_item(
            {
                "index": image.index,
                "seed": image.seed,
                "revised_prompt": None,
                "finish_reason": "stop",
                # As Xinference answers; its clients look at both keys.
                **({"b64_json": None} if form.as_url else {}),
            },
            job.request,
            image,
            form,
        )
        for image in images
    ]
    head = {"created": created}
    tail = {"model": job.request.model, **answer_fields(job), "usage": usage_fields(job.usage())}
    return with_data(head, items, compact(tail))


def _refuse_foreign(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if not value:  # some clients always send the fields of all that they know
            continue
        match FOREIGN_FIELDS.get(ALIASES.get(name, name)):
            case Foreign.NOT_YET:
                raise NotSupportedYet(name)
            case Foreign.NEEDS_IMAGE:
                raise InvalidRequest(
                    f"'{name}' needs an input image, which this route does not take.",
                    reason=Reason.NOT_SUPPORTED,
                    param=name,
                )
            case Foreign.UPLOADED:
                raise InvalidRequest(
                    f"'{name}' must be an uploaded file, in a multipart form.", param=name
                )
            case Foreign.REFUSED:
                raise InvalidRequest(
                    f"'{name}' has no meaning for this server's models.",
                    reason=Reason.NOT_SUPPORTED,
                    param=name,
                )


def _canonical(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Canonical names for the client's; also which spelling was used for each."""
    canonical: dict[str, Any] = {}
    spelling: dict[str, str] = {}
    for name, value in given.items():
        target = ALIASES.get(name, name)
        if target not in Draft.model_fields and target not in ReplyOptions.model_fields:
            raise unknown(name)
        if target in INTERNAL_FIELDS:  # the Draft's own, not options
            raise unknown(name)
        if target in canonical and canonical[target] != value:
            raise InvalidRequest(
                f"'{spelling[target]}' and '{name}' mean the same and differ.",
                reason=Reason.CONFLICTING_FIELDS,
                param=name,
            )
        canonical[target] = value
        spelling[target] = name
    return canonical, spelling


def unknown(name: str) -> InvalidRequest:
    """The refusal of a field that no table knows."""
    return InvalidRequest(
        f"Unknown field '{name[:64]}'.", reason=Reason.UNKNOWN_FIELD, param=name[:64]
    )


def invalid(error: ValidationError, spelling: Mapping[str, str]) -> InvalidRequest:
    """The refusal for what pydantic found, with the field as the client spelled it."""
    first = error.errors(include_url=False)[0]
    name, *rest = (str(part) for part in first["loc"])
    param = ".".join([spelling.get(name, name), *rest])
    if first["type"] == "missing":
        return InvalidRequest(f"'{param}' is required.", reason=Reason.MISSING_FIELD, param=param)
    if first["type"] == "extra_forbidden":
        return unknown(param)
    what = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return InvalidRequest(f"'{param}': {what}.", param=param)
