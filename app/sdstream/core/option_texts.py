"""Conversion of options that clients send as text, such as lists and name-value pairs in forms."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from sdstream.core.text import is_unicode


def plain(value: str) -> str:
    """Return a prompt with CRLF replaced by LF.

    Raises:
        ValueError: The prompt contains a character that the runtime cannot receive.
    """
    # NUL ends a C string, and an unpaired surrogate has no UTF-8 form.
    if "\0" in value:
        raise ValueError("must not contain a NUL character")
    if not is_unicode(value):
        raise ValueError("must not contain unpaired surrogates")
    # Multipart forms end lines with CRLF; the same prompt in JSON must give the same image.
    return value.replace("\r\n", "\n")


def comparable(value: object) -> str:
    """Return a value as text; true, "True", 1, 1.0 and "1" give the same text."""
    text = str(value).strip().lower()
    text = {"true": "1", "false": "0"}.get(text, text)
    try:
        return f"{float(text):g}"
    except ValueError:
        return text


def _loras(value: Any) -> Any:
    """Read objects, in a list or alone, or JSON of them; one may be ``{"NAME": SCALE}``."""
    try:
        value = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        raise ValueError("must be a list of objects with id and scale") from None
    if isinstance(value, Mapping):
        return [{"id": name, "scale": scale} for name, scale in value.items()]
    if isinstance(value, list):
        return [_lora(entry) for entry in value]
    return value


def _lora(entry: Any) -> Any:
    match entry:
        case {**pair} if len(pair) == 1:
            name, scale = next(iter(pair.items()))
            # The only value of an object with a known key is the name of the LoRA.
            return {"id": name, "scale": scale} if isinstance(scale, int | float) else entry
        case _:
            return entry


def _pairs(value: Any) -> Any:
    """Read ``warmup=4,Fn=2``, which is the syntax of the runtime's own program, or JSON."""
    if not isinstance(value, str):
        return value
    try:
        if value.lstrip().startswith("{"):
            return json.loads(value)
        return dict(pair.strip().split("=", 1) for pair in value.split(","))
    except (ValueError, RecursionError):
        raise ValueError("must be an object of numbers, or name=number,…") from None


def _list(value: Any) -> Any:
    return value.split(",") if isinstance(value, str) else value


def _four_sides(value: Any) -> Any:
    """Read one number for all sides, or four numbers; text has ``left,top,right,bottom``."""
    sides = value.split(",") if isinstance(value, str) else value
    if isinstance(sides, int) and not isinstance(sides, bool):
        sides = [sides]
    if not isinstance(sides, list | tuple):
        return sides
    if len(sides) not in (1, 4):
        raise ValueError("must be one number, or four: left, top, right and bottom")
    return sides * (4 // len(sides))


#: Option -> function that reads its value.
READERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "lora": _loras,
    "cache_options": _pairs,
    "sigmas": _list,
    "slg_layers": _list,
    "expand": _four_sides,
}
