"""Validation errors of pydantic in one form, for requests, files and settings.

The text contains the requirement and the value, for example "must be at most 150, not 500". The
caller puts the name of the field before it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sized
from functools import cache
from typing import TYPE_CHECKING, Any, Final, get_args

from pydantic import AfterValidator, BaseModel

from sdstream.core.similar import most_similar

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_MOST_SHOWN: Final = 64

#: pydantic's type of an error -> what the value must be.
_KINDS: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        ("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "a whole number"
    ),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    "finite_number": "a finite number",
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("string_type", "string_sub_type"), "a string"),
    "string_unicode": "a string without unpaired surrogates",
    **dict.fromkeys(("list_type", "tuple_type", "set_type", "frozen_set_type"), "a list"),
    **dict.fromkeys(
        ("dict_type", "mapping_type", "model_type", "model_attributes_type"), "an object"
    ),
}
#: pydantic's type of an error -> the words before the bound, and pydantic's name of the bound.
_BOUNDS: Final[Mapping[str, tuple[str, str]]] = {
    "less_than_equal": ("at most", "le"),
    "less_than": ("less than", "lt"),
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("more than", "gt"),
}
#: pydantic's type of an error -> the words before the bound, pydantic's name of the bound, and the
#: unit.
_LENGTHS: Final[Mapping[str, tuple[str, str, str]]] = {
    "string_too_long": ("at most", "max_length", "character"),
    "string_too_short": ("at least", "min_length", "character"),
    "too_long": ("at most", "max_length", "item"),
    "too_short": ("at least", "min_length", "item"),
}
#: Beginnings of pydantic's other messages.
_OTHERS: Final = re.compile(r"^(?:Value error, |(?:Input|URL|Value) should )")


class PartProblems(ValueError):
    """Values that are valid alone do not fit together; raised by validators of a whole model.

    Attributes:
        problems: Path of the key inside the model -> what is wrong with it.
    """

    def __init__(self, problems: Mapping[tuple[str, ...], str]) -> None:
        super().__init__("; ".join(f"{'.'.join(path)}: {why}" for path, why in problems.items()))
        self.problems = problems


class Boolean:
    """A boolean that another type must reject; pydantic would accept True as the number 1."""

    def __init__(self, *, value: bool) -> None:
        self._value = value

    def __str__(self) -> str:
        return str(self._value).lower()


def no_boolean(value: Any) -> Any:
    """Return the value; wrap a boolean so that pydantic does not accept it as a number."""
    return Boolean(value=value) if isinstance(value, bool) else value


@cache
def flags(cls: type[BaseModel]) -> frozenset[str]:
    """Return the names of a model's boolean fields."""
    return frozenset(
        name
        for name, field in cls.model_fields.items()
        if bool in (field.annotation, *get_args(field.annotation))
    )


def requirement(found: ErrorDetails, kinds: Mapping[str, str] = _KINDS) -> str:
    """Return what a value must be, and the value, in words that begin with "must".

    Messages of the project's own validators are returned as they are.

    Args:
        found: One error of pydantic.
        kinds: pydantic's type of an error -> what the value must be; overrides the default words.
    """
    kind, value, context = found["type"], found["input"], found.get("ctx", {})
    if kind == "literal_error":
        return f"must be {context['expected']}, not {shown(value)}"
    if name := kinds.get(kind) or _KINDS.get(kind):
        return f"must be {name}, not {shown(value)}"
    if kind in _BOUNDS:
        words, bound = _BOUNDS[kind]
        return f"must be {words} {shown(context[bound])}, not {shown(value)}"
    if kind in _LENGTHS and isinstance(value, Sized):
        words, bound, what = _LENGTHS[kind]
        most = context[bound]
        return f"must have {words} {most} {what}{'s' if most != 1 else ''}, not {len(value)}"
    message = found["msg"]
    return _OTHERS.sub("" if message.startswith("Value error") else "must ", message)


def shown(value: Any) -> str:
    """Return a JSON value as short text on one line, for messages."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case str():
            short = len(value) <= _MOST_SHOWN
            return repr(value if short else f"{value[: _MOST_SHOWN - 1]}…")
        case float():
            return str(value).removesuffix(".0")
        case list() | tuple():
            return "a list"
        case Mapping():
            return "an object"
        case _:
            return str(value)[:_MOST_SHOWN]


def one_of(names: Mapping[str, object] | tuple[str, ...], what: str) -> AfterValidator:
    """Return a validator that accepts only certain names, and suggests one of them.

    Args:
        names: The names.
        what: What they name, for the error.
    """

    def check(value: str) -> str:
        if value not in names:
            meant = most_similar(value, names)
            raise ValueError(
                f"unknown {what} {shown(value)}; available: {', '.join(names)}"
                + (f"; did you mean '{meant}'?" if meant else "")
            )
        return value

    return AfterValidator(check)


def written_as(pattern: str, what: str) -> AfterValidator:
    """Return a validator of a string's form.

    Args:
        pattern: Regular expression that the whole string must match.
        what: The form in words, for the error.
    """

    def check(value: str) -> str:
        if re.fullmatch(pattern, value) is None:
            raise ValueError(f"must be {what}, not {shown(value)}")
        return value

    return AfterValidator(check)
