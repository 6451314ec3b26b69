"""Reading what clients send: strict JSON, Accept, keys."""

from __future__ import annotations

import hmac
import json
from collections.abc import Iterable
from typing import Any, Final, NoReturn

from starlette.requests import Request

from app.core.errors import (
    InvalidRequest,
    NotAcceptable,
    PayloadTooLarge,
    Reason,
    UnsupportedMediaType,
)
from app.core.request import OutputFormat

#: Digits of an integer; no option has more than 19, and parsing is quadratic.
_MAX_DIGITS: Final = 64

_IMAGE_TYPES: Final[dict[str, OutputFormat]] = {
    "image/png": "png",
    "image/jpeg": "jpeg",
    "image/jpg": "jpeg",
    "image/webp": "webp",
}
_JSON_TYPES: Final = ("application/json", "application/*", "*/*")


async def read_json(request: Request, max_bytes: int) -> dict[str, Any]:
    """The body as one JSON object.

    Raises:
        PayloadTooLarge: The body has more than ``max_bytes``.
        UnsupportedMediaType: The body says that it is something else.
        InvalidRequest: It is no JSON object, or holds what JSON has no place for (NaN).
    """
    declared = request.headers.get("content-type", "application/json").partition(";")[0].strip()
    # curl -d says x-www-form-urlencoded unless told otherwise, and its body is JSON all the same.
    if declared.lower() not in ("application/json", "application/x-www-form-urlencoded", ""):
        raise UnsupportedMediaType(
            f"This route reads application/json, not {declared[:64]}.",
            reason=Reason.UNSUPPORTED_MEDIA_TYPE,
        )
    return parse_json(await _read_body(request, max_bytes))


async def _read_body(request: Request, max_bytes: int) -> bytes:
    # Starlette's own limit answers in plain text; this one raises our error.
    declared = request.headers.get("content-length", "")
    size = int(declared) if declared.isdecimal() else 0
    body = bytearray()
    if size <= max_bytes:
        async for part in request.stream():
            body += part
            if len(body) > max_bytes:
                break
    if max(size, len(body)) > max_bytes:
        raise PayloadTooLarge(
            f"The body is larger than {max_bytes} bytes.", reason=Reason.BODY_TOO_LARGE
        )
    return bytes(body)


def parse_json(body: bytes) -> dict[str, Any]:
    """Parse a JSON object strictly; every fault is an InvalidRequest."""
    try:
        text = body.decode("utf-8-sig")
        value = json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_int=_bounded_int,
            object_pairs_hook=_object_without_repeats,
        )
    except UnicodeDecodeError:
        raise _not_json("it is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise _not_json(f"{error.msg} at character {error.pos}") from None
    except RecursionError:
        raise _not_json("it is nested too deeply") from None
    except ValueError as error:
        raise _not_json(str(error)[:200]) from None
    if not isinstance(value, dict):
        raise _not_json("it is not an object")
    return value


def accepted_image(request: Request, images: int) -> OutputFormat | None:
    """The format when Accept asks for the image's bytes, None for JSON.

    A stream is never chosen by Accept: clients send application/json even when streaming.

    Raises:
        NotAcceptable: Nothing that Accept names can be answered.
    """
    ranked = _by_preference(request.headers.get("accept", "*/*"))
    for media_type in ranked:
        if media_type in _JSON_TYPES or media_type == "text/event-stream":
            return None
        if media_type in _IMAGE_TYPES or media_type == "image/*":
            if images > 1:
                raise NotAcceptable(
                    f"{images} images do not fit into one answer of type {media_type}.",
                    reason=Reason.NOT_ACCEPTABLE,
                    param="n",
                )
            return _IMAGE_TYPES.get(media_type, "png")
    if not ranked:
        return None
    raise NotAcceptable(
        "This route answers application/json, image/png, image/jpeg and image/webp.",
        reason=Reason.NOT_ACCEPTABLE,
    )


def has_valid_key(request: Request, keys: Iterable[str]) -> bool:
    """True when the request carries one of the keys, compared in constant time."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    offered = token.strip() if scheme.lower() == "bearer" else ""
    offered = offered or request.headers.get("x-api-key", "")
    # All are compared, wherever the right one stands.
    matches = [hmac.compare_digest(offered.encode(), key.encode()) for key in keys]
    return any(matches)


def _by_preference(accept: str) -> list[str]:
    """Media types of an Accept header, best first; those with q=0 are left out."""
    ranked: list[tuple[float, str]] = []
    for part in accept.split(","):
        media_type, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name == "q":
                try:
                    quality = float(value)
                except ValueError:
                    quality = 0.0
        if media_type and quality > 0:
            ranked.append((-quality, media_type))
    return [media_type for _, media_type in sorted(ranked, key=lambda pair: pair[0])]


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _bounded_int(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number has more than {_MAX_DIGITS} digits")
    return int(digits)


def _object_without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key '{repeated[:64]}' is there twice")
    return value


def _not_json(why: str) -> InvalidRequest:
    return InvalidRequest(f"The body is not valid JSON: {why}.", reason=Reason.INVALID_JSON)
