"""Reads models.yaml with the line of every key, so that an error names its line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import yaml
from pydantic import ValidationError

from sdstream.core.errors import ConfigurationError
from sdstream.core.similar import most_similar


class CatalogError(ConfigurationError):
    """models.yaml, or the ``file`` in its place, cannot be used; ``line`` counts from 1."""

    def __init__(self, message: str, line: int, file: str = "models.yaml") -> None:
        super().__init__(f"{file}, line {line}: {message}")
        self.message = message
        self.line = line


Lines = dict[tuple[str | int, ...], int]


class _Loader(yaml.SafeLoader):
    """YAML without dates, which nothing in a catalogue is."""


_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in found if not tag.endswith(":timestamp")]
    for letter, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def load(text: str) -> tuple[Lines, Any]:
    lines: Lines = {}
    try:
        root = yaml.compose(text, Loader=_Loader)
        if root is not None:
            _index(root, (), lines)
        return lines, yaml.load(text, Loader=_Loader)  # noqa: S506 - it is a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise CatalogError(str(error.problem), mark.line + 1 if mark else 1) from None
    except (yaml.YAMLError, ValueError) as error:
        raise CatalogError(str(error), 1) from None
    except RecursionError:
        raise CatalogError("the file is nested too deeply", 1) from None


def _index(node: yaml.Node, path: tuple[str | int, ...], lines: Lines) -> None:
    """Note the line of every key and item, and refuse keys that YAML would silently override."""
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _index(item, (*path, index), lines)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, str(key.value))
            line = key.start_mark.line + 1
            if here in lines:
                raise CatalogError(f"duplicate key '{key.value}'", line)
            lines[here] = line
            _index(value, here, lines)


def line_near(lines: Mapping[tuple[str | int, ...], int], path: tuple[str | int, ...]) -> int:
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 1)


#: pydantic's type of an error -> what is said in place of its own words on Python types.
_PLAIN_WORDS: Final = {
    "model_type": "must be keys with values",
    "model_attributes_type": "must be keys with values",
    "mapping_type": "must be keys with values",
    "dict_type": "must be keys with values",
    "tuple_type": "must be a list",
    "too_short": "must have one item at least",
    "string_type": "must be text",
}


def with_line(error: ValidationError, lines: Lines, keys: Iterable[str] = ()) -> CatalogError:
    """Return the error for what pydantic found.

    Args:
        error: Of the file's content.
        lines: Of its keys.
        keys: All keys that the file may have, for suggestions.
    """
    first = error.errors()[0]
    path = tuple(first["loc"])
    where = ".".join(str(part) for part in path) or "the file"
    if first["type"] == "extra_forbidden":
        meant = most_similar(str(path[-1]), keys)
        message = f"unknown key '{where}'" + (f"; did you mean '{meant}'?" if meant else "")
    elif first["type"] == "missing":
        message = f"the key '{where}' is missing"
    else:
        said = _PLAIN_WORDS.get(first["type"]) or first["msg"].removeprefix("Value error, ")
        message = f"{where}: {said}"
    return CatalogError(message, line_near(lines, path))
