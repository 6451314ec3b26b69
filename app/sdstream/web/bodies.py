"""Reads request bodies, plain or compressed with gzip: strict JSON and complete multipart forms."""

from __future__ import annotations

import asyncio
import json
import math
import zlib
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from sdstream.core.errors import (
    InvalidRequest,
    PayloadTooLarge,
    Reason,
    UnsupportedMediaType,
)
from sdstream.core.pixels import SourceFile
from sdstream.dialects.fields import IMAGE_SIGNATURES

#: Sixteen images and a mask.
_MAX_FILES: Final = 17
#: More than all options of a request; some clients send each of them.
_MAX_FIELDS: Final = 128
#: A prompt of 32,000 characters can have 128,000 bytes of UTF-8.
_MAX_FIELD_BYTES: Final = 131_072
#: Maximum digits of a number. No option needs more than 19, and parsing integers is quadratic.
_MAX_DIGITS: Final = 64
#: Larger JSON bodies are parsed in a thread. Only bodies with images are that large.
_MAX_BYTES_AT_ONCE: Final = 2**20
#: Characters that start a JSON value or come before one. Each may become a Python object of 60
#: bytes or more, and parsing holds the interpreter lock. Base64 contains none of them; two prompts
#: that consist of commas contain 64,000.
_STRUCTURE: Final = (b"[", b"{", b",")
_MAX_STRUCTURE: Final = 100_000
#: Maximum levels of objects and arrays. Requests have fewer than ten; an answer that repeats the
#: fields of a request is encoded recursively.
_MAX_LEVELS: Final = 64

#: zlib's ``wbits`` for one gzip member: the largest window, and gzip's own header and checksum.
_GZIP: Final = 31
#: Maximum number of bytes that are decompressed at a time.
_PIECE: Final = 2**16

#: Types of bodies that are read as JSON. curl -d declares x-www-form-urlencoded by default.
_JSON_TYPES: Final = ("application/json", "application/x-www-form-urlencoded", "")


async def read_json(request: Request, max_bytes: int) -> dict[str, Any]:
    """Return the body, which must be one JSON object.

    Raises:
        PayloadTooLarge: The body is larger than ``max_bytes``, as sent or decompressed.
        UnsupportedMediaType: The headers declare another media type or another content coding.
        InvalidRequest: The body is damaged gzip, is not a JSON object, contains values that JSON
            does not allow (NaN), or contains more values than any valid request.
    """
    return (await read_raw_json(request, max_bytes))[1]


async def read_optional_json(request: Request, max_bytes: int) -> dict[str, Any] | None:
    """Return the body as a JSON object, None without a body; raises the errors of ``read_json``."""
    length = request.headers.get("content-length", "0").strip("0")
    if not length and "transfer-encoding" not in request.headers:
        return None
    return await read_json(request, max_bytes)


def declares_json(request: Request) -> bool:
    """Return whether the body is JSON according to its headers, if they say anything."""
    return _media_type(request) in _JSON_TYPES


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_raw_json(request: Request, max_bytes: int) -> tuple[bytes, dict[str, Any]]:
    """Return the body as bytes and as a JSON object; raises the errors of ``read_json``."""
    declared = _media_type(request)
    if declared not in _JSON_TYPES:
        raise _unsupported("application/json", declared)
    body = await _read(request, max_bytes)
    return body, await _parsed(body)


async def read_json_or_image(request: Request, max_bytes: int) -> dict[str, Any] | bytes:
    """Return the body as a JSON object, or unchanged if it is an image file.

    Clients send an image file with its media type, or without one.

    Raises:
        PayloadTooLarge: The body is larger than ``max_bytes``, as sent or decompressed.
        UnsupportedMediaType: The headers declare another media type or another content coding.
        InvalidRequest: The body is neither an image nor JSON; see ``read_json``.
    """
    declared = _media_type(request)
    is_image = declared.startswith("image/") or declared == "application/octet-stream"
    if not (is_image or declared in _JSON_TYPES):
        raise _unsupported("application/json and images", declared)
    body = await _read(request, max_bytes)
    return body if is_image or body.startswith(IMAGE_SIGNATURES) else await _parsed(body)


async def _read(request: Request, max_bytes: int) -> bytes:
    async with aclosing(_body(request, max_bytes)) as stream:
        return b"".join([part async for part in stream])


async def _parsed(body: bytes) -> dict[str, Any]:
    if len(body) <= _MAX_BYTES_AT_ONCE:
        return parse_json(body)
    return await asyncio.to_thread(parse_json, body)


def _unsupported(accepted: str, declared: str) -> UnsupportedMediaType:
    return UnsupportedMediaType(
        f"Unsupported content type: this route accepts {accepted}, not {declared[:64]}.",
        reason=Reason.UNSUPPORTED_MEDIA_TYPE,
    )


def _body(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """Return the decompressed body in pieces, with a limit before and after decompression."""
    listed = ",".join(request.headers.getlist("content-encoding")).lower()
    codings = [name.strip() for name in listed.split(",") if name.strip() not in ("", "identity")]
    stream = _bounded_stream(request, max_bytes)
    match codings:
        case []:
            return stream
        case ["gzip" | "x-gzip"]:
            return _inflated(stream, max_bytes)
        case _:
            raise UnsupportedMediaType(
                f"Unsupported content encoding: {', '.join(codings)[:64]}; "
                "send the body uncompressed, or compressed once with gzip.",
                reason=Reason.UNSUPPORTED_MEDIA_TYPE,
                param="Content-Encoding",
            )


async def _inflated(
    stream: AsyncGenerator[bytes, None], max_bytes: int
) -> AsyncGenerator[bytes, None]:
    """Decompress one gzip member piece by piece; only one piece is in memory at a time."""
    inflater = zlib.decompressobj(_GZIP)
    size = 0
    async with aclosing(stream):
        async for part in stream:
            while part and not inflater.eof:
                piece = _inflate(inflater, part)
                part = inflater.unconsumed_tail  # noqa: PLW2901
                size += len(piece)
                if size > max_bytes:
                    raise _too_large(max_bytes)
                yield piece
                # A part may decompress to a thousand times its size. Other tasks run in between.
                await asyncio.sleep(0)
            if inflater.unused_data or (part and inflater.eof):
                raise _broken_gzip("data follows the end of the gzip member; send one member only")
    if not inflater.eof:
        raise _broken_gzip("it is cut short")


def _inflate(inflater: zlib._Decompress, data: bytes) -> bytes:
    try:
        return inflater.decompress(data, _PIECE)
    except zlib.error:
        raise _broken_gzip("it is damaged") from None


def _broken_gzip(why: str) -> InvalidRequest:
    return InvalidRequest(
        f"The request body is not valid gzip: {why}.",
        reason=Reason.INVALID_CODING,
        param="Content-Encoding",
    )


async def _bounded_stream(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    # Starlette's own limit returns plain text. This one raises an error of the API.
    declared = request.headers.get("content-length", "")
    size = int(declared) if declared.isdecimal() else 0
    seen = 0
    if size <= max_bytes:
        async for part in request.stream():
            seen += len(part)
            if seen > max_bytes:
                break
            yield part
    if max(size, seen) > max_bytes:
        raise _too_large(max_bytes)


def _too_large(max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"The request body is larger than {max_bytes} bytes.", reason=Reason.BODY_TOO_LARGE
    )


def parse_json(body: bytes) -> dict[str, Any]:
    """Parse a JSON object strictly; raises InvalidRequest for every fault."""
    if sum(map(body.count, _STRUCTURE)) > _MAX_STRUCTURE:
        raise _not_json(f"it has more than {_MAX_STRUCTURE} commas and brackets")
    try:
        text = body.decode("utf-8-sig")
        value = json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_int=_bounded_int,
            parse_float=_finite_float,
            object_pairs_hook=_object_without_repeats,
        )
    except UnicodeDecodeError:
        raise _not_json("it is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise _not_json(_fault_of(error)) from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise _not_json(str(error)[:200]) from None
    if not isinstance(value, dict):
        raise _not_json("it is not an object")
    _check_levels(value)
    return value


def _check_levels(value: dict[str, Any]) -> None:
    """Reject a value that is nested deeper than _MAX_LEVELS; works without recursion."""
    level: list[Any] = [value]
    for _ in range(_MAX_LEVELS):
        items = (item for one in level for item in (one.values() if type(one) is dict else one))
        level = [item for item in items if type(item) in (dict, list)]
        if not level:
            return
    raise _too_deep()


@dataclass(frozen=True, slots=True)
class Form:
    """A multipart form: text fields by name, and files in the order in which they were sent."""

    fields: dict[str, str]
    files: list[SourceFile]


def only_image(form: Form) -> SourceFile:
    """Return the only file of a form; raises InvalidRequest unless it is one named ``image``."""
    if len(form.files) != 1 or form.files[0].param != "image":
        raise InvalidRequest(
            "One file 'image' is required.", reason=Reason.MISSING_FIELD, param="image"
        )
    return form.files[0]


async def read_form(request: Request, max_bytes: int) -> Form:
    """Return the body, which must be one complete multipart form.

    Raises:
        PayloadTooLarge: The body is larger than ``max_bytes``, as sent or decompressed.
        UnsupportedMediaType: The headers declare another media type or another content coding.
        InvalidRequest: The gzip or the form is damaged or incomplete, or the form has too many
            parts or repeats a field with a different value.
    """
    declared, parameters = parse_options_header(request.headers.get("content-type", ""))
    if declared != b"multipart/form-data":
        raise _unsupported("multipart/form-data", declared.decode("latin-1"))
    mark = b"--" + parameters.get(b"boundary", b"") + b"--"
    async with aclosing(_whole(_body(request, max_bytes), mark)) as stream:
        parsed = await _parse(request, stream)
    try:
        return await _collect(parsed)
    finally:
        await parsed.close()


async def _parse(request: Request, stream: AsyncGenerator[bytes, None]) -> FormData:
    parser = MultiPartParser(
        request.headers,
        stream,
        max_files=_MAX_FILES,
        max_fields=_MAX_FIELDS,
        max_part_size=_MAX_FIELD_BYTES,
    )
    try:
        return await parser.parse()
    except (MultiPartException, MultipartParseError, KeyError, UnicodeDecodeError) as error:
        message = getattr(error, "message", None) or "it is damaged"
        raise _broken_form(message.rstrip(".")) from None


async def _collect(parsed: FormData) -> Form:
    form = Form({}, [])
    for name, value in parsed.multi_items():
        if isinstance(value, UploadFile):
            data = await value.read()
            if data or value.filename:  # browsers send neither for an empty file field
                form.files.append(SourceFile(name, data))
        elif form.fields.setdefault(name, value) != value:
            raise InvalidRequest(
                f"Duplicate field '{name[:64]}' with different values.",
                reason=Reason.CONFLICTING_FIELDS,
                param=name[:64],
            )
    return form


async def _whole(stream: AsyncGenerator[bytes, None], mark: bytes) -> AsyncGenerator[bytes, None]:
    """Yield the bytes of a form; raises MultiPartException if the closing boundary is missing.

    The parser alone would silently drop an incomplete last part.
    """
    seen, tail = False, b""
    async with aclosing(stream):
        async for part in stream:
            window = tail + part
            seen = seen or mark in window
            tail = window[-len(mark) :]
            yield part
    if not seen:
        raise MultiPartException("its closing boundary is missing")


def _broken_form(why: str) -> InvalidRequest:
    return InvalidRequest(f"The form cannot be read: {why}.", reason=Reason.INVALID_FORM)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _bounded_int(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number has more than {_MAX_DIGITS} digits")
    return int(digits)


def _finite_float(text: str) -> float:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a number has more than {_MAX_DIGITS} digits")
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large a number")
    return value


def _object_without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        repeated = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"duplicate key '{repeated[:64]}'")
    return value


#: Syntax that is valid in JavaScript or Python but not in JSON -> the remedy in the error.
_FOREIGN: Final = {
    "//": "JSON does not allow comments; remove it",
    "/*": "JSON does not allow comments; remove it",
    "#": "JSON does not allow comments; remove it",
    "'": "JSON allows double quotes only",
    "None": "write null instead",
    "True": "write true instead",
    "False": "write false instead",
}


def _fault_of(error: json.JSONDecodeError) -> str:
    """Return what is wrong, and a remedy for trailing commas and syntax of other languages."""
    text, place = error.doc, error.pos
    before, rest = text[:place].rstrip(), text[place:].lstrip()
    if rest.startswith(","):  # newer Python versions report the position of the comma itself
        before, rest = before + ",", rest[1:].lstrip()
    if before.endswith(",") and rest[:1] in ("}", "]"):
        return f"the comma before '{rest[0]}' at character {place}; remove it"
    for start, remedy in _FOREIGN.items():
        if rest.startswith(start):
            return f"{start} at character {place}; {remedy}"
    return f"{error.msg} at character {place}"


def _too_deep() -> InvalidRequest:
    return _not_json(f"it has more than {_MAX_LEVELS} levels of objects and arrays")


def _not_json(why: str) -> InvalidRequest:
    return InvalidRequest(f"The request body is not valid JSON: {why}.", reason=Reason.INVALID_JSON)
