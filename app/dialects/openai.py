"""OpenAI's image generation: the JSON it takes, with every other system's spellings, and gives.

One vocabulary, many spellings: ``ALIASES`` maps what clients write to the canonical names of
``core.request.Draft``. ``FOREIGN_FIELDS`` is the one table of fields that are known from some
dialect and do nothing here, with what happens to each; whatever is in neither is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from app.core.errors import InvalidRequest, NotSupportedYet, Reason
from app.core.job import Job
from app.core.request import Draft
from app.dialects.shapes import (
    ImageForm,
    answer_fields,
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
    "denoising_strength": "strength",
}


class Foreign(StrEnum):
    """What happens to a known field that does nothing here."""

    IGNORED = "ignored"
    NOT_YET = "not supported yet"
    NEEDS_IMAGE = "needs an image"
    REFUSED = "refused"


#: Harmless ones say something about the caller or ask for taste; the others would change the
#: picture, and silence about them would be a lie.
FOREIGN_FIELDS: Final[Mapping[str, Foreign]] = {
    "user": Foreign.IGNORED,
    "safety_identifier": Foreign.IGNORED,
    "moderation": Foreign.IGNORED,
    "style": Foreign.IGNORED,
    "input_fidelity": Foreign.IGNORED,
    "strength": Foreign.NEEDS_IMAGE,
    "image": Foreign.NEEDS_IMAGE,
    "mask": Foreign.NEEDS_IMAGE,
    "partial_images": Foreign.NOT_YET,
    "clip_skip": Foreign.NOT_YET,
    "slg_scale": Foreign.NOT_YET,
    "slg_start": Foreign.NOT_YET,
    "slg_end": Foreign.NOT_YET,
    "lora": Foreign.NOT_YET,
    "control": Foreign.NOT_YET,
    "control_strength": Foreign.NOT_YET,
    "control_canny": Foreign.NOT_YET,
    "vae_tiling": Foreign.NOT_YET,
    "cache_mode": Foreign.NOT_YET,
    "hires": Foreign.NOT_YET,
    "on_disconnect": Foreign.NOT_YET,
    "background_job": Foreign.NOT_YET,
    "kwargs": Foreign.NOT_YET,
    "prompt_2": Foreign.REFUSED,
    "prompt_3": Foreign.REFUSED,
    "negative_prompt_2": Foreign.REFUSED,
    "negative_prompt_3": Foreign.REFUSED,
    "max_sequence_length": Foreign.REFUSED,
    "aspect_ratio": Foreign.REFUSED,
    "markup": Foreign.REFUSED,
    "complexity": Foreign.REFUSED,
    "frame_count": Foreign.REFUSED,
    "frame_duration_ms": Foreign.REFUSED,
    "svg": Foreign.REFUSED,
}

_MIN_CHUNK: Final = 1024
_DEFAULT_CHUNK: Final = 4096


class StreamOptions(BaseModel):
    """``stream_options`` of llama-box and GPUStack."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    include_usage: bool = Field(True, description="Usage on the last image's frame.")
    chunk_result: bool = Field(False, description="Split the final base64 over several frames.")
    chunk_size: int = Field(_DEFAULT_CHUNK, ge=_MIN_CHUNK, description="Characters a piece.")
    preview: bool = Field(False, description="A small picture on every progress frame.")
    dialect: Literal["image.chunk", "openai", "both"] | None = Field(
        None, description="Form of the stream; only image.chunk is built so far."
    )


class ReplyOptions(BaseModel):
    """How the answer is wanted, as opposed to what is drawn."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    response_format: Literal["b64_json", "url", "B64Json", "Url"] = Field(
        "b64_json",
        description="Base64 or a link; B64Json has a data: prefix and Url is url (mistral.rs).",
    )
    stream: bool = Field(False, description="Progress and images as server-sent events.")
    stream_options: Annotated[StreamOptions, Field(default_factory=StreamOptions)]
    background: Literal["auto", "opaque", "transparent"] = "auto"
    safety_check: bool = False

    @field_validator("background")
    @classmethod
    def _opaque_only(cls, value: str) -> str:
        if value == "transparent":
            raise ValueError("the runtime draws opaque pictures only")
        return value


@dataclass(frozen=True, slots=True)
class Ask:
    """A parsed request: what to draw and how to answer."""

    draft: Draft
    reply: ReplyOptions

    def form(self, base_url: str) -> ImageForm:
        """How images are put into the answer."""
        wanted = self.reply.response_format
        return ImageForm(wanted.lower() == "url", wanted == "B64Json", base_url)


def parse(body: Mapping[str, Any]) -> Ask:
    """Read the JSON of a generation.

    Raises:
        InvalidRequest: Names the field as the client spelled it.
    """
    # Clients transmit nulls for what was not given.
    given = {name: value for name, value in body.items() if value is not None}
    _refuse_foreign(given)
    canonical, spelling = _canonical(
        {name: value for name, value in given.items() if name not in FOREIGN_FIELDS}
    )
    reply_fields = {k: canonical.pop(k) for k in list(canonical) if k in ReplyOptions.model_fields}
    options = reply_fields.get("stream_options")
    if isinstance(options, Mapping):
        reply_fields["stream_options"] = {k: v for k, v in options.items() if v is not None}
    try:
        reply = ReplyOptions.model_validate(reply_fields)
        previews = reply.stream and reply.stream_options.preview
        draft = Draft.model_validate({**canonical, "previews": previews, "spelling": spelling})
    except ValidationError as error:
        raise _invalid(error, spelling) from None
    _check_reply(reply)
    return Ask(draft, reply)


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
            },
            job.request,
            image,
            form,
        )
        for image in images
    ]
    head = {"created": created}
    tail = {"model": job.request.model, **answer_fields(job), "usage": usage_fields(job.usage())}
    return with_data(head, items, tail)


def _refuse_foreign(given: Mapping[str, Any]) -> None:
    for name in given:
        match FOREIGN_FIELDS.get(ALIASES.get(name, name)):
            case Foreign.NOT_YET:
                raise NotSupportedYet(name)
            case Foreign.NEEDS_IMAGE:
                raise InvalidRequest(
                    f"'{name}' needs an input image, which this route does not take.",
                    reason=Reason.NOT_SUPPORTED,
                    param=name,
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
            raise _unknown(name)
        if target in ("previews", "spelling"):  # the Draft's own, not options
            raise _unknown(name)
        if target in canonical and canonical[target] != value:
            raise InvalidRequest(
                f"'{spelling[target]}' and '{name}' mean the same and differ.",
                reason=Reason.CONFLICTING_FIELDS,
                param=name,
            )
        canonical[target] = value
        spelling[target] = name
    return canonical, spelling


def _unknown(name: str) -> InvalidRequest:
    return InvalidRequest(
        f"Unknown field '{name[:64]}'.", reason=Reason.UNKNOWN_FIELD, param=name[:64]
    )


def _invalid(error: ValidationError, spelling: Mapping[str, str]) -> InvalidRequest:
    first = error.errors(include_url=False)[0]
    name, *rest = (str(part) for part in first["loc"])
    param = ".".join([spelling.get(name, name), *rest])
    if first["type"] == "missing":
        return InvalidRequest(f"'{param}' is required.", reason=Reason.MISSING_FIELD, param=param)
    if first["type"] == "extra_forbidden":
        return _unknown(param)
    what = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return InvalidRequest(f"'{param}': {what}.", param=param)


def _check_reply(reply: ReplyOptions) -> None:
    if reply.safety_check:
        raise InvalidRequest(
            "'safety_check' needs a safety checker, and none is configured.",
            reason=Reason.SAFETY_CHECKER_UNAVAILABLE,
            param="safety_check",
        )
    if reply.stream_options.dialect in ("openai", "both"):
        raise NotSupportedYet("stream_options.dialect")
