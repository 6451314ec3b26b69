"""Requests of OpenAI's image API, as JSON, forms or queries, with other APIs' field names too."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

from pydantic import ValidationError

from sdstream.core.ask import Handling, Hints, ParsedRequest, ReplyOptions, StreamOptions
from sdstream.core.errors import InvalidRequest, Reason
from sdstream.core.option_texts import READERS, comparable
from sdstream.core.options import (
    ALIASES,
    MAX_PROMPT_CHARACTERS,
    OPTIONS,
    ImageParams,
    is_neutral,
)
from sdstream.core.pixels import SourceFile, SourceFiles
from sdstream.dialects.fields import (
    FOREIGN,
    IGNORED,
    SPELLINGS,
    Foreign,
    Taken,
    canonical_names,
    invalid,
    meant_by,
    no_effect,
    take,
    unknown_file,
)
from sdstream.dialects.pictures import MAX_INPUT_IMAGES, image_of, numbered, too_many
from sdstream.dialects.sdcpp.options import TAG, Flat, extra_args

NO_HINTS: Final = Hints()

#: Fields of input images. OpenAI's clients send ``image``, Xinference's client sends ``images``;
#: ``image_url`` is the name in the items of OpenAI's ``images``, which some send alone.
_IMAGE_PARTS: Final = ("image", "image[]", "images", "images[]", "image_url", "image_urls")
_MASK_PARTS: Final = ("mask", "mask[]", "mask_image")
_CONTROL_PARTS: Final = ("control", "control_image")
_PARTS: Final = (*_IMAGE_PARTS, *_MASK_PARTS, *_CONTROL_PARTS)

#: GPUStack's and llama-box's spelling of ``preview``.
_PREVIEW_SPELLINGS: Final = ("preview_faster",)
_STREAM_FOREIGN: Final[Mapping[str, Foreign]] = {
    "chunk_results": IGNORED,  # GPUStack's page sends this misspelling but reads whole images
    "include_obfuscation": IGNORED,
}

#: Texts that stand for null in a form.
_NULLS: Final = ("null", "None", "undefined")
_TEXTS: Final = ("prompt", "negative_prompt")
#: Values in the ``parameters`` of an upscale that had no effect. Clients send them back to repeat
#: the upscale; a ``sample_steps`` of 0 is in no other request.
_NOT_OF_UPSCALES: Final = ("sample_steps", "sampler", "schedule", "cfg_scale", "seed", "size")


@dataclass(frozen=True, slots=True)
class EditRoute:
    """The defaults of a route that accepts input images.

    Attributes:
        mask_mode: Default of ``mask_mode`` for a request with a mask; None adds none.
        prompt: Default prompt; None if the request must have one.
        only_upscale: The route only upscales the image.
    """

    mask_mode: str | None = None
    prompt: str | None = None
    only_upscale: bool = False


EDITS: Final = EditRoute()


def parse(
    body: Mapping[str, Any],
    hints: Hints = NO_HINTS,
    *,
    client_names: Mapping[str, str] = MappingProxyType({}),
) -> ParsedRequest:
    """Parse the JSON of a generation request.

    Args:
        body: The client's JSON object.
        hints: Choices of the client outside of the body.
        client_names: Canonical name -> the client's name, for fields that a dialect has renamed.

    Raises:
        InvalidRequest: A field is rejected; the error names it as the client spelled it.
    """
    return _parsed(body, hints, client_names)


def parse_generation_form(
    fields: Mapping[str, str], files: Sequence[SourceFile], hints: Hints = NO_HINTS
) -> ParsedRequest:
    """Parse the form of a generation request, which may contain a control image.

    Raises:
        InvalidRequest: A field is rejected; the error names it as the client spelled it.
    """
    body = _unflattened(fields)
    for file in files:
        if file.param not in _CONTROL_PARTS:
            take({file.param: "file"}, (), foreign=FOREIGN, handling=Handling.LENIENT)
            raise unknown_file(file.param, _CONTROL_PARTS)
    control = _only_one(files, _CONTROL_PARTS, "control image")
    ask = _parsed(body, hints, _name_of(control))
    return replace(ask, files=SourceFiles((), control=control) if control else None)


def parse_form(
    fields: Mapping[str, Any],
    files: Sequence[SourceFile],
    *,
    hints: Hints = NO_HINTS,
    route: EditRoute = EDITS,
) -> ParsedRequest:
    """Parse the form of an edit, a variation or an inpainting.

    Args:
        fields: Name -> text of the text fields.
        files: Uploaded files with the names of their fields.
        hints: As for ``parse``.
        route: Defaults of the route.

    Raises:
        InvalidRequest: A field is rejected; the error names it as the client spelled it.
    """
    body = _unflattened(fields)
    for file in files:
        if file.param not in _PARTS:
            raise unknown_file(file.param, _PARTS)
    for name in _PARTS:
        if name in body:
            raise InvalidRequest(f"'{name}' must be an uploaded file.", param=name)
    return _edit(body, files, hints, route)


def parse_edit(
    body: Mapping[str, Any], hints: Hints = NO_HINTS, route: EditRoute = EDITS
) -> ParsedRequest:
    """Parse the JSON of an edit, a variation or an inpainting, with images in base64.

    Args:
        body: The client's JSON object.
        hints: As for ``parse``.
        route: Defaults of the route.

    Raises:
        InvalidRequest: A field is rejected; the error names it as the client spelled it.
    """
    given = {k: v for k, v in body.items() if v not in (None, []) and not _is_unset_text(k, v)}
    files = [
        image_of(param, value)
        for name in _PARTS
        if name in given
        for param, value in numbered(name, given[name])
    ]
    rest = {name: value for name, value in given.items() if name not in _PARTS}
    return _edit(rest, files, hints, route)


def _edit(
    body: Mapping[str, Any], files: Sequence[SourceFile], hints: Hints, route: EditRoute
) -> ParsedRequest:
    # The options in ``kwargs`` come first: the route's defaults are for options that are not sent.
    body = {k: v for k, v in with_kwargs(body).items() if not _says_nothing(k, v)}
    if route.only_upscale and comparable(body.get("sample_steps")) == "0":
        body = {name: value for name, value in body.items() if name not in _NOT_OF_UPSCALES}
    if route.prompt is not None:
        body.setdefault("prompt", route.prompt)
    sources = _sources(files, own_alpha=body.get("mask_mode") == "alpha")
    if route.mask_mode is not None and sources.mask is not None:
        body.setdefault("mask_mode", route.mask_mode)
    ask = _parsed(body, hints, _name_of(sources.control))
    return replace(ask, files=sources, operation="edit", only_upscale=route.only_upscale)


def parse_query(
    parameters: Sequence[tuple[str, str]], *, options_in_prompt: bool = False
) -> ParsedRequest:
    """Parse a generation request from the query of a URL, for EventSource.

    Unknown parameters are ignored, because web pages add parameters to their links. Only a near
    miss of an option is reported in the warnings.

    Args:
        parameters: Names and values, in the order of the query.
        options_in_prompt: As in ``Hints``.

    Raises:
        InvalidRequest: A parameter is rejected; the error names it.
    """
    known: dict[str, str] = {}
    warnings = []
    for name, value in parameters:
        if not (name.startswith("stream_options") or name in SPELLINGS or name in FOREIGN):
            if (meant := meant_by(name)) is not None:
                warnings.append(no_effect(name, meant))
            continue
        if known.setdefault(name, value) != value:
            raise InvalidRequest(
                f"Duplicate field '{name[:64]}' with different values.",
                reason=Reason.CONFLICTING_FIELDS,
                param=name[:64],
            )
    for name, only in (("response_format", "url"), ("on_disconnect", "continue")):
        if known.get(name, only).lower() != only:
            raise InvalidRequest(
                f"'{name}' must be {only} on this route.", reason=Reason.NOT_SUPPORTED, param=name
            )
    given = {"response_format": "url", "on_disconnect": "continue", "stream": "true"}
    hints = Hints(handling=Handling.LENIENT, options_in_prompt=options_in_prompt)
    ask = _parsed({**_unflattened(known), **given}, hints)
    return ask.noting(warnings)


def _parsed(
    body: Mapping[str, Any], hints: Hints, renamed: Mapping[str, str] = MappingProxyType({})
) -> ParsedRequest:
    body, extra = _without_extra_args(with_kwargs(body), hints, renamed.get("prompt", "prompt"))
    renamed = {**renamed, **extra.names}
    taken = take(
        {name: value for name, value in body.items() if not _says_nothing(name, value)},
        SPELLINGS,
        foreign=FOREIGN,
        handling=hints.handling,
    )
    canonical, client_names = canonical_names(taken.fields)
    client_names |= renamed
    reply_fields = {k: canonical.pop(k) for k in list(canonical) if k in ReplyOptions.model_fields}
    nested = _stream_options(reply_fields, hints.handling)
    try:
        reply = _with_dialect(ReplyOptions.model_validate(reply_fields), hints)
        params = ImageParams.model_validate(canonical)
    except ValidationError as error:
        raise invalid(error, client_names) from None
    return ParsedRequest(
        params,
        reply,
        client_names=client_names,
        warnings=(*extra.warnings, *taken.warnings, *nested.warnings),
        unknown=(*extra.unknown, *taken.unknown, *nested.unknown),
    )


def _without_extra_args(
    body: Mapping[str, Any], hints: Hints, name: str
) -> tuple[Mapping[str, Any], Flat]:
    """Move the options inside the prompt's ``<sd_cpp_extra_args>`` into the fields.

    Args:
        body: The client's fields.
        hints: Choices of the client outside of the body.
        name: The client's name of the prompt, for errors.
    """
    prompt = body.get("prompt")
    if not isinstance(prompt, str) or len(prompt) > MAX_PROMPT_CHARACTERS or TAG not in prompt:
        return body, Flat()  # a prompt that is too long is rejected later
    if not hints.options_in_prompt:
        raise InvalidRequest(
            f"'{name}' contains {TAG}; send its options as fields, or start the server with "
            "--options-in-prompt.",
            reason=Reason.NOT_SUPPORTED,
            param=name,
        )
    prompt, extra = extra_args(prompt, hints.handling)
    ours = {ALIASES.get(name, name) for name in extra.fields}
    rest = {k: v for k, v in body.items() if ALIASES.get(k, k) not in ours}
    return {**rest, **extra.fields, "prompt": prompt}, extra


def _says_nothing(name: str, value: Any) -> bool:
    """Return whether a value is null, empty, or neutral; clients send these for unset options."""
    option = ALIASES.get(name, name)
    empty = _is_unset_text(option, value) or (value in ([], {}) and option in READERS)
    return value is None or empty or (option in OPTIONS and is_neutral(option, value))


def _is_unset_text(name: str, value: Any) -> bool:
    """Return whether a value is an empty text; an empty prompt is a value."""
    return bool(value == "") and name not in _TEXTS


def _stream_options(reply_fields: dict[str, Any], handling: Handling) -> Taken:
    """Apply ``take`` to ``stream_options`` and replace it in ``reply_fields``."""
    options = reply_fields.get("stream_options")
    if not isinstance(options, Mapping):
        return Taken({})
    own = (*StreamOptions.model_fields, *_PREVIEW_SPELLINGS)
    where = "stream_options."
    taken = take(options, own, foreign=_STREAM_FOREIGN, handling=handling, where=where)
    found = dict(taken.fields)
    for name in _PREVIEW_SPELLINGS:
        if name in found:
            found.setdefault("preview", found.pop(name))
    reply_fields["stream_options"] = found
    return taken


def with_kwargs(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Merge the options in ``kwargs``, a JSON string of Xinference's client, into the fields."""
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


def _with_dialect(reply: ReplyOptions, hints: Hints) -> ReplyOptions:
    """Choose the stream's dialect: the one that is named, or else the one that the client reads.

    Clients of llama-box send ``stream_options``, and OpenAI's clients send ``partial_images``. If a
    request has neither, the client's library decides.
    """
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


def _check_stream(options: StreamOptions, dialect: str | None, response_format: str | None) -> None:
    """Reject options that have no effect in the stream's dialect."""
    if options.chunk_result and dialect in ("openai", "both"):
        raise InvalidRequest(
            f"'chunk_result' is not supported in the dialect '{dialect}', which sends "
            "whole images.",
            reason=Reason.NOT_SUPPORTED,
            param="stream_options.chunk_result",
        )
    if options.chunk_result and (response_format or "").lower() == "url":
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
    """Return a form's fields as JSON would contain them, without empty fields."""
    body: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for name, value in fields.items():
        if name not in _TEXTS and (value == "" or value in _NULLS):
            continue
        nested = re.fullmatch(r"stream_options(?:_(\w+)|\[(\w+)\])", name)
        if nested:
            options[nested[1] or nested[2]] = value
        else:
            body[name] = value
    whole = _object_of(body.get("stream_options", {}))
    if options and isinstance(whole, Mapping):
        whole = {**whole, **options}
    if whole != {}:
        body["stream_options"] = whole
    return body


def _object_of(value: Any) -> Any:
    """Return the object in a JSON text, as OpenAPI's clients send it in a form, or the value."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value


def _sources(files: Sequence[SourceFile], *, own_alpha: bool) -> SourceFiles:
    """Return the input images of an edit.

    Args:
        files: Uploaded files, each with the name of its form field, such as ``images[0]``.
        own_alpha: Without a mask, use the transparency of the image as the mask.
    """
    pictures = tuple(file for file in files if _field(file) in _IMAGE_PARTS)
    mask = _only_one(files, _MASK_PARTS, "mask")
    control = _only_one(files, _CONTROL_PARTS, "control image")
    if not pictures:
        raise InvalidRequest("'image' is required.", reason=Reason.MISSING_FIELD, param="image")
    if len(pictures) > MAX_INPUT_IMAGES:
        raise too_many("image")
    return SourceFiles(pictures, mask, own_alpha and mask is None, control=control)


def _only_one(files: Sequence[SourceFile], names: Sequence[str], what: str) -> SourceFile | None:
    found = [file for file in files if _field(file) in names]
    if len(found) > 1:
        raise InvalidRequest(f"Send at most one {what}.", param=found[1].param)
    return found[0] if found else None


def _name_of(control: SourceFile | None) -> Mapping[str, str]:
    """Return the client's name of the control image, for errors."""
    return {"control": control.param} if control else {}


def _field(file: SourceFile) -> str:
    """Return the top-level field of a file: "images" for ``images[0].image_url``."""
    return file.param if file.param in _PARTS else re.split(r"[.\[]", file.param, maxsplit=1)[0]
