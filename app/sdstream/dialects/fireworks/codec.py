"""Fireworks' image API: its JSON to a ParsedRequest, and a finished job to its JSON.

Two routes take the same request and differ in what they answer as application/json: workflows
give one object with all images, the older image_generation gives a list with one object each, as
the clients fireworks-ai (PyPI) and @ai-sdk/fireworks (npm) read them.

Deliberate oddities:

1. The model in the path decides; a ``model`` in the body is left unread, since fireworks-ai always
   sends the constant "stable-diffusion-xl-1024-v1-0" there.
2. A seed of 0 is random, on these routes only.
3. Images that a safety check flags are blank and marked as such; the job does not fail.
4. How JPEGs are compressed, and what kind of image JSON holds, are headers: ``Jpeg-Quality`` and
   ``Json-Return-Image-Accept``. As documented, each is unread where it has no meaning.
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
from sdstream.dialects.openai.request import NO_HINTS, parse
from sdstream.dialects.rendering import ResponseFormat, compact, with_base64

#: The answer's form is chosen by Accept and the path alone.
_USUAL_REPLY: Final[Mapping[str, object]] = {
    name: field.get_default()
    for name, field in ReplyOptions.model_fields.items()
    if name not in ("priority", "on_disconnect", "webhook_url")
}

_NUMBER: Final = re.compile(r"\d{1,3}", re.ASCII)
_JSON_IMAGES: Final[Mapping[str, OutputFormat]] = {"image/png": "png", "image/jpeg": "jpeg"}


def read(body: Mapping[str, Any], model: str, hints: Hints = NO_HINTS) -> ParsedRequest:
    """Read a request.

    Args:
        body: The client's object.
        model: From the path.
        hints: Wishes of the request outside of its body.

    Raises:
        InvalidRequest: Names the field as the client spelled it.
    """
    usual_form = ("response_format", "b64_json")
    asked = {k: v for k, v in body.items() if v is not None and (k, v) != usual_form}
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
    """The request with what its headers say of the image files.

    Args:
        ask: As ``read`` gave it.
        wanted: The file that Accept asks for, None for JSON.
        headers: By their names in small letters.

    Raises:
        InvalidRequest: Names the header.
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
    """What became of images that were looked at together: a flagged one is blank."""
    return "CONTENT_FILTERED" if any(image.flagged for image in images) else "SUCCESS"


def workflow_answer(job: Job, _form: ResponseFormat, _created: int) -> bytes:
    """The JSON of a workflow: one object, its seed that of the first image."""
    images = _images(job)
    head = {"id": job.id, "finishReason": finish_reason(images), "seed": job.request.seed}
    files = b",".join(b'"%b"' % base64.b64encode(image.content) for image in images)
    return b"".join((compact(head)[:-1], b',"base64":[', files, b"]}"))


def list_answer(job: Job, _form: ResponseFormat, _created: int) -> bytes:
    """The JSON of image_generation: a list with one object for each image."""
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
