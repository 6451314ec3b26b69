"""Requests and JSON answers of Fireworks' image API.

Two routes accept the same request. Their JSON answers differ, because the clients fireworks-ai
(PyPI) and @ai-sdk/fireworks (npm) read different forms:

- A workflow returns one object with all images.
- The older image_generation returns a list with one object for each image.

Deliberate oddities:

1. The model in the path counts. A ``model`` in the body is ignored, since fireworks-ai always
   sends the constant "stable-diffusion-xl-1024-v1-0" there.
2. A seed of 0 means a random seed, on these routes only.
3. An image that a safety check flags is returned as a blank image with the finish reason
   CONTENT_FILTERED; the job does not fail.
4. The header ``Jpeg-Quality`` sets the quality of JPEG files, and the header
   ``Json-Return-Image-Accept`` sets the format of images in JSON. As in Fireworks' documentation,
   the first is ignored unless the image is a JPEG, and the second unless the answer is JSON.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from sdstream.core.ask import Hints, ParsedRequest, ReplyOptions
from sdstream.core.errors import InvalidRequest, Reason
from sdstream.core.job import ImageResult, Job
from sdstream.core.options import OutputFormat
from sdstream.dialects.openai.request import NO_HINTS, parse, with_kwargs
from sdstream.dialects.rendering import JsonObject, ResponseFormat, compact, with_base64

#: Options of the answer with their defaults. Other values are rejected, because the Accept header
#: and the path choose the form of the answer.
_USUAL_REPLY: Final[Mapping[str, object]] = {
    name: field.get_default()
    for name, field in ReplyOptions.model_fields.items()
    if name not in ("priority", "on_disconnect", "webhook_url", "group", "request_id")
}

_NUMBER: Final = re.compile(r"\d{1,3}", re.ASCII)
_JSON_IMAGES: Final[Mapping[str, OutputFormat]] = {"image/png": "png", "image/jpeg": "jpeg"}


def read(body: Mapping[str, Any], model: str, hints: Hints = NO_HINTS) -> ParsedRequest:
    """Parse a request.

    Args:
        body: The client's JSON object.
        model: The model in the path.
        hints: Choices of the client outside of the body.

    Raises:
        InvalidRequest: A field is rejected; the error names it as the client spelled it.
    """
    usual_form = ("response_format", "b64_json")
    asked = {k: v for k, v in with_kwargs(body).items() if v is not None and (k, v) != usual_form}
    for name, usual in _USUAL_REPLY.items():
        if asked.get(name, usual) != usual:
            raise InvalidRequest(
                f"'{name}' is not supported on this route; the Accept header selects "
                "the response format.",
                reason=Reason.NOT_SUPPORTED,
                param=name,
            )
    if str(asked.get("seed")) == "0":
        del asked["seed"]
    return replace(parse({**asked, "model": model}, hints), blank_flagged=True)


def with_headers(
    ask: ParsedRequest, wanted: OutputFormat | None, headers: Mapping[str, str]
) -> ParsedRequest:
    """Return the request with the image format and the JPEG quality from the headers.

    Args:
        ask: The request from ``read``.
        wanted: The image format that Accept chooses, None for JSON.
        headers: The headers, by name in lower case.

    Raises:
        InvalidRequest: A header is not valid, or conflicts with an option in the body.
    """
    found: dict[str, Any] = {"output_format": wanted or _in_json(headers)}
    quality = headers.get("jpeg-quality")
    if quality is not None and "jpeg" in (found["output_format"], ask.params.output_format):
        found["output_compression"] = _percent(quality)
    for name, value in found.items():
        given = getattr(ask.params, name)
        if None not in (given, value) and given != value:
            raise InvalidRequest(
                f"'{ask.client_name(name)}' conflicts with the headers.",
                reason=Reason.CONFLICTING_FIELDS,
                param=ask.client_name(name),
            )
    told = {name: value for name, value in found.items() if value is not None}
    return replace(ask, params=ask.params.model_copy(update=told))


def _in_json(headers: Mapping[str, str]) -> OutputFormat | None:
    name = headers.get("json-return-image-accept")
    if name is None:
        return None
    if name.strip().lower() not in _JSON_IMAGES:
        raise InvalidRequest(
            "'Json-Return-Image-Accept' must be image/png or image/jpeg.",
            param="Json-Return-Image-Accept",
        )
    return _JSON_IMAGES[name.strip().lower()]


def _percent(text: str) -> int:
    if _NUMBER.fullmatch(text) and int(text) <= 100:
        return int(text)
    raise InvalidRequest("'Jpeg-Quality' must be a number from 0 to 100.", param="Jpeg-Quality")


def finish_reason(images: Sequence[ImageResult]) -> str:
    """Return the finish reason of one or several images: CONTENT_FILTERED if one is flagged."""
    return "CONTENT_FILTERED" if any(image.flagged for image in images) else "SUCCESS"


def workflow_answer(job: Job, _form: ResponseFormat, _created: int) -> bytes:
    """Return the JSON of a workflow: one object, whose seed is that of the first image."""
    images = _images(job)
    head: JsonObject = {
        "id": job.id,
        "finishReason": finish_reason(images),
        "seed": job.request.seed,
    }
    if job.request.warnings:
        head["warnings"] = list(job.request.warnings)
    files = b",".join(b'"%b"' % base64.b64encode(image.content) for image in images)
    return b"".join((compact(head)[:-1], b',"base64":[', files, b"]}"))


def list_answer(job: Job, _form: ResponseFormat, _created: int) -> bytes:
    """Return the JSON of image_generation: a list with one object for each image."""
    items = (
        with_base64(
            {"finishReason": finish_reason([image]), "seed": image.seed},
            "base64",
            "",
            image.content,
        )
        for image in _images(job)
    )
    return b"[" + b",".join(items) + b"]"


def _images(job: Job) -> list[ImageResult]:
    return [job.images[index] for index in sorted(job.images)]
