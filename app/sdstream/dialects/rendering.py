"""Parts of answers that several dialects share."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from sdstream.core.errors import ImageServiceError
from sdstream.core.job import ImageResult, Job, Usage
from sdstream.core.request import GenerationRequest

JsonObject = dict[str, Any]

#: The end of every stream of OpenAI's API and its relatives.
DONE: Final = b"data: [DONE]\n\n"
#: A comment is the only thing that neither a loop over the events nor a proxy takes amiss.
KEEP_ALIVE: Final = b": keep-alive\n\n"

_QUALITY_WORDS: Final = {
    "auto": "medium", "standard": "medium", "hd": "high", "xhigh": "high", "max": "high",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """How a finished image is put into an answer.

    Attributes:
        as_url: A link in place of the bytes.
        data_url: Base64 with a ``data:`` prefix (mistral.rs' literal "B64Json").
        base_url: What links begin with, without a slash at the end.
        both: A link in addition to the bytes, of images that were stored.
        sign: Adds to the path of a link what opens it without a key.
    """

    as_url: bool = False
    data_url: bool = False
    base_url: str = ""
    both: bool = False
    sign: Callable[[str], str] = str

    @classmethod
    def of(cls, response_format: str, base_url: str = "", sign: Callable[[str], str] = str) -> Self:
        """Return the form that a ``response_format`` asks for."""
        wanted = response_format.lower()
        return cls(wanted == "url", response_format == "B64Json", base_url, wanted == "both", sign)

    def link(self, image: ImageResult) -> str | None:
        """Return the link of an image for a client without a key; None if it was not stored."""
        return self.base_url + self.sign(image_path(image.id)) if image.id else None


def compact(value: Any) -> bytes:
    """JSON on one line; half characters that a client sent, and UTF-8 has not, become "?"."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode(errors="replace")


def with_base64(fields: JsonObject, key: str, prefix: str, data: bytes) -> bytes:
    """``fields`` as JSON with base64 of ``data`` under ``key`` at its end.

    The base64 is joined in as bytes: it needs no escaping, and through json.dumps an image of
    4 MB would take four times as long.
    """
    head = compact({**fields, key: prefix})
    return b"".join((head[:-2], base64.b64encode(data), b'"}'))


def image_item(
    fields: JsonObject, request: GenerationRequest, image: ImageResult, form: ResponseFormat
) -> bytes:
    """One entry of ``data``: the fields with the image's link or bytes at the end."""
    if form.as_url:
        return compact({**fields, "url": form.link(image)})
    if form.both and image.id:
        fields = {**fields, "url": form.link(image)}
    prefix = f"data:image/{request.output_format};base64," if form.data_url else ""
    return with_base64(fields, "b64_json", prefix, image.content)


def image_url(base_url: str, image: ImageResult) -> str | None:
    """The link of a stored image, None when there was no room for it."""
    return base_url + image_path(image.id) if image.id else None


def image_path(image_id: str) -> str:
    """Return the path of a stored image."""
    return f"/v1/images/{image_id}/content"


def with_data(fields: JsonObject, items: list[bytes], tail: bytes) -> bytes:
    """``{…fields, "data": [items], …tail}`` from items and a tail that are JSON already."""
    return b"".join((compact(fields)[:-1], b',"data":[', b",".join(items), b"],", tail[1:]))


def usage_fields(usage: Usage) -> JsonObject:
    """Both families of usage: llama-box's speeds and OpenAI's tokens."""
    return {
        "generation_per_second": usage.generation_per_second,
        "time_per_generation_ms": usage.time_per_generation_ms,
        "time_to_process_ms": usage.time_to_process_ms,
        "input_tokens": usage.text_tokens + usage.image_tokens,
        "output_tokens": usage.output_tokens,
        "total_tokens": usage.text_tokens + usage.image_tokens + usage.output_tokens,
        "input_tokens_details": {
            "text_tokens": usage.text_tokens,
            "image_tokens": usage.image_tokens,
        },
    }


def parameters(request: GenerationRequest) -> JsonObject:
    """Return every effective value of a request, by the names that ask for them."""
    return {
        "model": request.model,
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "n": request.n,
        "size": str(request.asked_size),
        **({"generated_size": str(request.size)} if request.enlarged else {}),
        "seed": request.seed,
        "sample_steps": request.steps,
        "sampler": request.sampler,
        "schedule": request.schedule,
        "cfg_scale": request.cfg_scale,
        **request.options.given(),
        **({"kernels": request.kernels} if request.kernels else {}),
    }


def quality_word(quality: str) -> str:
    """Return the quality of an answer: OpenAI's clients know low, medium and high only."""
    return _QUALITY_WORDS.get(quality, quality)


def answer_fields(job: Job) -> JsonObject:
    """Return the fields of a whole answer except its images and its model."""
    request = job.request
    fields: JsonObject = {
        "size": str(request.output_size),
        "quality": quality_word(request.quality),
        "output_format": request.output_format,
        "background": "opaque",
        "parameters": parameters(request),
    }
    if request.warnings:
        fields["warnings"] = list(request.warnings)
    return fields


def error_fields(error: ImageServiceError) -> JsonObject:
    """The object under ``error``: code is the HTTP status, reason a stable machine word."""
    return {
        "code": error.status,
        "message": error.message,
        "type": error.type,
        "param": error.param,
        "reason": error.reason.value,
    }


def error_body(error: ImageServiceError) -> JsonObject:
    """A whole error answer; ``detail`` is where Xinference's client looks."""
    return {"error": error_fields(error), "detail": error.message}


def failure_frames(error: ImageServiceError) -> list[bytes]:
    """Return the end of a stream that has not all of its images, as OpenAI's clients read it."""
    return [b"data: " + compact(error_body(error)) + b"\n\n", DONE]


def error_headers(error: ImageServiceError) -> Mapping[str, str]:
    """Return the headers for whether and when to retry."""
    headers: dict[str, str] = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if error.should_retry is not None:
        headers["x-should-retry"] = str(error.should_retry).lower()
    return headers
