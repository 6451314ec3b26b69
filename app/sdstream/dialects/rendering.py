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

#: The last frame of a stream of OpenAI's API and of the APIs derived from it.
DONE: Final = b"data: [DONE]\n\n"
#: A comment: it keeps proxies from closing the connection, and clients do not read it as an event.
KEEP_ALIVE: Final = b": keep-alive\n\n"

_QUALITY_WORDS: Final = {
    "auto": "medium", "standard": "medium", "hd": "high", "xhigh": "high", "max": "high",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """The form in which an answer contains a finished image.

    Attributes:
        as_url: A link instead of the bytes.
        data_url: Base64 with a ``data:`` prefix ("B64Json" of mistral.rs).
        base_url: Prefix of every link, without a slash at the end.
        both: The bytes, and also a link if the image was stored.
        sign: Signs the path of a link, so that the link works without an API key.
    """

    as_url: bool = False
    data_url: bool = False
    base_url: str = ""
    both: bool = False
    sign: Callable[[str], str] = str

    @classmethod
    def of(cls, response_format: str, base_url: str = "", sign: Callable[[str], str] = str) -> Self:
        """Return the form that a value of ``response_format`` selects."""
        wanted = response_format.lower()
        return cls(wanted == "url", response_format == "B64Json", base_url, wanted == "both", sign)

    def link(self, image: ImageResult) -> str | None:
        """Return the signed link of an image, None if the image was not stored."""
        return self.base_url + self.sign(image_path(image.id)) if image.id else None


def compact(value: Any) -> bytes:
    """Return JSON on one line; lone surrogates, which UTF-8 cannot encode, become "?"."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode(errors="replace")


def with_base64(fields: JsonObject, key: str, prefix: str, data: bytes) -> bytes:
    """Return JSON with ``fields`` and, as the last field, ``key``: prefix plus base64 of ``data``.

    The base64 is appended as bytes because it needs no escaping. json.dumps would take four times
    as long for an image of 4 MB.
    """
    head = compact({**fields, key: prefix})
    return b"".join((head[:-2], base64.b64encode(data), b'"}'))


def image_item(
    fields: JsonObject, request: GenerationRequest, image: ImageResult, form: ResponseFormat
) -> bytes:
    """Return one entry of ``data``: the fields, then the image's link, its bytes, or both."""
    if form.as_url:
        return compact({**fields, "url": form.link(image)})
    if form.both and image.id:
        fields = {**fields, "url": form.link(image)}
    prefix = f"data:image/{request.output_format};base64," if form.data_url else ""
    return with_base64(fields, "b64_json", prefix, image.content)


def image_url(base_url: str, image: ImageResult) -> str | None:
    """Return the link of a stored image, None if the image was not stored."""
    return base_url + image_path(image.id) if image.id else None


def image_path(image_id: str) -> str:
    """Return the path of a stored image."""
    return f"/v1/images/{image_id}/content"


def with_data(fields: JsonObject, items: list[bytes], tail: bytes) -> bytes:
    """Return ``{…fields, "data": [items], …tail}``; the items and the tail are JSON already."""
    return b"".join((compact(fields)[:-1], b',"data":[', b",".join(items), b"],", tail[1:]))


def usage_fields(usage: Usage) -> JsonObject:
    """Return the usage in two formats: llama-box's speeds and OpenAI's token counts."""
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
    """Return the effective values of a request, under the names of the request's fields."""
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
    """Return the quality as low, medium or high, the only values that OpenAI's clients know."""
    return _QUALITY_WORDS.get(quality, quality)


def answer_fields(job: Job) -> JsonObject:
    """Return the fields of an answer that describe the request, without the model."""
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
    """Return the object under ``error``; ``code`` is the HTTP status, and ``reason`` is stable."""
    return {
        "code": error.status,
        "message": error.message,
        "type": error.type,
        "param": error.param,
        "reason": error.reason.value,
    }


def error_body(error: ImageServiceError) -> JsonObject:
    """Return the body of an error answer; Xinference's client reads the message in ``detail``."""
    return {"error": error_fields(error), "detail": error.message}


def failure_frames(error: ImageServiceError) -> list[bytes]:
    """Return the last frames of a failed stream, in the form that OpenAI's clients read."""
    return [b"data: " + compact(error_body(error)) + b"\n\n", DONE]


def error_headers(error: ImageServiceError) -> Mapping[str, str]:
    """Return the headers that state whether and when the client should retry."""
    headers: dict[str, str] = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if error.should_retry is not None:
        headers["x-should-retry"] = str(error.should_retry).lower()
    return headers
