"""OpenAI's image API: the JSON, forms and queries that it takes, with all other spellings."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

from pydantic import ValidationError

from sdstream.core.ask import ParsedRequest, ReplyOptions, StreamHints, StreamOptions
from sdstream.core.errors import InvalidRequest, Reason
from sdstream.core.options import ALIASES, OPTIONS, ImageParams, is_neutral
from sdstream.core.pixels import SourceFile, SourceFiles
from sdstream.dialects.fields import (
    KNOWN,
    UNSUPPORTED_FIELDS,
    canonical_names,
    check_unsupported,
    invalid,
    unknown,
)

MAX_INPUT_IMAGES: Final = 16

NO_HINTS: Final = StreamHints()

#: OpenAI's clients send one image or a list of them; Xinference's says images for edits.
_IMAGE_PARTS: Final = ("image", "image[]", "images", "images[]")
_MASK_PARTS: Final = ("mask", "mask_image")
_CONTROL_PARTS: Final = ("control", "control_image")

#: Canonical names of a query that are read; all others are a page's own.
_QUERY: Final = KNOWN | UNSUPPORTED_FIELDS.keys()


def parse(
    body: Mapping[str, Any],
    hints: StreamHints = NO_HINTS,
    *,
    client_names: Mapping[str, str] = MappingProxyType({}),
) -> ParsedRequest:
    """Read the JSON of a generation.

    Args:
        body: The client's object.
        hints: What was said beside it.
        client_names: The client's names of fields that another dialect has renamed.

    Raises:
        InvalidRequest: Names the field as the client spelled it.
    """
    return _parsed(body, hints, client_names)


def parse_generation_form(
    fields: Mapping[str, str], files: Sequence[SourceFile], hints: StreamHints = NO_HINTS
) -> ParsedRequest:
    """Read a generation that comes as a form, which may bring a control picture.

    Raises:
        InvalidRequest: Names the field as the client spelled it.
    """
    body = _unflattened(fields)
    for file in files:
        if file.param not in _CONTROL_PARTS:
            check_unsupported({file.param: file})
            raise unknown(file.param)
    control = _control(files, body)
    ask = _parsed(body, hints)
    return replace(ask, files=SourceFiles((), control=control) if control else None)


def parse_form(
    fields: Mapping[str, Any],
    files: Sequence[SourceFile],
    *,
    hints: StreamHints = NO_HINTS,
    mask_mode: str | None = None,
    prompt: str | None = None,
) -> ParsedRequest:
    """Read the form of an edit, a variation or an inpainting.

    Args:
        fields: Text fields; each may be given once.
        files: Uploaded files with the names of their fields.
        hints: As for ``parse``.
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
    ask = _parsed(body, hints)
    return replace(ask, files=sources, operation="edit")


def parse_query(parameters: Sequence[tuple[str, str]]) -> ParsedRequest:
    """Read a generation from the query of its URL, as EventSource sends it.

    Names that no table knows are left unread: pages put all kinds of things into their links.

    Args:
        parameters: Names with their values, in the query's order.

    Raises:
        InvalidRequest: Names the parameter.
    """
    known: dict[str, str] = {}
    for name, value in parameters:
        if not name.startswith("stream_options") and ALIASES.get(name, name) not in _QUERY:
            continue
        if known.setdefault(name, value) != value:
            raise InvalidRequest(
                f"Duplicate field '{name[:64]}' with different values.",
                reason=Reason.CONFLICTING_FIELDS,
                param=name[:64],
            )
    if known.get("response_format", "url").lower() != "url":
        raise InvalidRequest(
            "'response_format' must be url on this route.",
            reason=Reason.NOT_SUPPORTED,
            param="response_format",
        )
    if known.get("on_disconnect", "continue") != "continue":
        raise InvalidRequest(
            "'on_disconnect' must be continue on this route.",
            reason=Reason.NOT_SUPPORTED,
            param="on_disconnect",
        )
    given = {"response_format": "url", "on_disconnect": "continue", "stream": "true"}
    return _parsed({**_unflattened(known), **given}, NO_HINTS)


def _parsed(
    body: Mapping[str, Any], hints: StreamHints, renamed: Mapping[str, str] = MappingProxyType({})
) -> ParsedRequest:
    given = {
        name: value
        for name, value in _with_kwargs(body).items()
        # Clients transmit nulls for what was not given.
        if value is not None and not (name in OPTIONS and is_neutral(name, value))
    }
    check_unsupported(given)
    canonical, client_names = canonical_names(
        {name: value for name, value in given.items() if name not in UNSUPPORTED_FIELDS}
    )
    client_names |= renamed
    reply_fields = {k: canonical.pop(k) for k in list(canonical) if k in ReplyOptions.model_fields}
    options = reply_fields.get("stream_options")
    if isinstance(options, Mapping):
        reply_fields["stream_options"] = {k: v for k, v in options.items() if v is not None}
    try:
        reply = _with_dialect(ReplyOptions.model_validate(reply_fields), hints)
        params = ImageParams.model_validate(canonical)
    except ValidationError as error:
        raise invalid(error, client_names) from None
    return ParsedRequest(params, reply, client_names=client_names)


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
                f"'{name}' has a different value in 'kwargs'.",
                reason=Reason.CONFLICTING_FIELDS,
                param=name,
            )
    return {**extra, **rest}


def _with_dialect(reply: ReplyOptions, hints: StreamHints) -> ReplyOptions:
    """Settle the form of a stream: named, else by what only one kind of client sends."""
    options = reply.stream_options
    chosen = hints.dialect or options.dialect
    if chosen is None and options.model_fields_set:
        chosen = "image.chunk"
    elif chosen is None and reply.partial_images is not None:
        chosen = "openai"
    elif chosen is None:
        chosen = hints.library
    _check_stream(options, chosen, reply.response_format)
    named = StreamOptions.model_validate({**options.model_dump(), "dialect": chosen})
    return reply.model_copy(update={"stream_options": named})


def _check_stream(options: StreamOptions, dialect: str | None, response_format: str) -> None:
    """Refuse options that the form of the stream would pass over."""
    if options.chunk_result and dialect in ("openai", "both"):
        raise InvalidRequest(
            f"'chunk_result' is not supported in the dialect '{dialect}', which sends "
            "whole images.",
            reason=Reason.NOT_SUPPORTED,
            param="stream_options.chunk_result",
        )
    if options.chunk_result and response_format.lower() == "url":
        raise InvalidRequest(
            "'chunk_result' requires response_format b64_json, not url.",
            reason=Reason.NOT_SUPPORTED,
            param="stream_options.chunk_result",
        )
    if not options.include_usage and dialect in ("openai", "both"):
        raise InvalidRequest(
            f"'include_usage' is always true with the dialect '{dialect}'.",
            reason=Reason.NOT_SUPPORTED,
            param="stream_options.include_usage",
        )


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
        raise InvalidRequest(f"Send at most {MAX_INPUT_IMAGES} images and one mask.", param=param)
    own_alpha = not masks and body.get("mask_mode") == "alpha"
    return SourceFiles(pictures, masks[0] if masks else None, own_alpha, control=control)


def _control(files: Sequence[SourceFile], body: Mapping[str, Any]) -> SourceFile | None:
    """The control picture of a form."""
    check_unsupported({name: body[name] for name in _CONTROL_PARTS if name in body})
    controls = [file for file in files if file.param in _CONTROL_PARTS]
    if len(controls) > 1:
        raise InvalidRequest("Send at most one control image.", param=controls[1].param)
    return controls[0] if controls else None
