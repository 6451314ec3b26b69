"""Reads models.yaml with the line of every key, so that an error names its line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from sdstream.core.errors import ConfigurationError
from sdstream.core.similar import most_similar
from sdstream.core.validation import requirement


class Problem(NamedTuple):
    """One fault of a catalogue.

    Attributes:
        line: Of the file, from 1.
        message: What is wrong, with the key and the remedy.
    """

    line: int
    message: str


class CatalogError(ConfigurationError):
    """A catalogue cannot be used; the text has all of its problems, a line each.

    Attributes:
        problems: In the order of their lines.
    """

    def __init__(self, *problems: Problem, file: str = "models.yaml") -> None:
        self.problems = tuple(sorted(problems))
        if len(self.problems) == 1:
            text = f"{file}, line {self.line}: {self.message}"
        else:
            listed = (f"  line {line}: {message}" for line, message in self.problems)
            text = "\n".join((f"{file} has {len(self.problems)} problems:", *listed))
        super().__init__(text)

    @property
    def line(self) -> int:
        """Of the first problem."""
        return self.problems[0].line

    @property
    def message(self) -> str:
        """Of the first problem."""
        return self.problems[0].message

    def of_file(self, file: str) -> CatalogError:
        """Return the same error with the file's name."""
        return CatalogError(*self.problems, file=file)


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
        line = mark.line + 1 if mark else 1
        tab = "a tab cannot indent YAML; use spaces" if "'\\t'" in str(error.problem) else None
        raise CatalogError(Problem(line, tab or str(error.problem))) from None
    except (yaml.YAMLError, ValueError) as error:
        raise CatalogError(Problem(1, str(error))) from None
    except RecursionError:
        raise CatalogError(Problem(1, "the file is nested too deeply")) from None


def _index(node: yaml.Node, path: tuple[str | int, ...], lines: Lines) -> None:
    """Note the line of every key and item, and reject keys that YAML would silently override."""
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _index(item, (*path, index), lines)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, str(key.value))
            line = key.start_mark.line + 1
            if here in lines:
                raise CatalogError(Problem(line, f"duplicate key '{key.value}'"))
            lines[here] = line
            _index(value, here, lines)


def line_near(lines: Mapping[tuple[str | int, ...], int], path: tuple[str | int, ...]) -> int:
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 1)


#: pydantic's type of an error -> what the value must be, in words of YAML.
_YAML_KINDS: Final = dict.fromkeys(
    ("model_type", "model_attributes_type", "mapping_type", "dict_type"), "keys with values"
)


def with_lines(
    error: ValidationError, lines: Lines, content: Any, keys: Iterable[str] = ()
) -> CatalogError:
    """Return the error for all that pydantic found.

    Args:
        error: Of the file's content.
        lines: Of its keys.
        content: Of the file, for the ids of its entries.
        keys: All keys that the file may have, for suggestions.
    """
    found = error.errors()
    # A list with a faulty item counts as too short as well.
    roots = {one["loc"][:depth] for one in found for depth in range(len(one["loc"]))}
    faults = [one for one in found if one["loc"] not in roots]
    return CatalogError(*(_problem(one, lines, content, keys) for one in faults))


def _problem(found: ErrorDetails, lines: Lines, content: Any, keys: Iterable[str]) -> Problem:
    path = tuple(found["loc"])
    where = _named(path, content)
    if found["type"] == "extra_forbidden":
        # A key of one place may be unknown in another.
        meant = most_similar(str(path[-1]), [key for key in keys if key != path[-1]])
        message = f"unknown key '{where}'" + (f"; did you mean '{meant}'?" if meant else "")
    elif found["type"] == "missing":
        message = f"the key '{where}' is missing"
    else:
        message = f"{where}: {requirement(found, _YAML_KINDS)}"
    return Problem(line_near(lines, path), message)


def _named(path: tuple[str | int, ...], content: Any) -> str:
    """A path of keys as a person reads it: an entry by its id, and by its number without one."""
    match path:
        case ("models", int(index), *rest):
            entry = content["models"][index]
            name = entry.get("id") if isinstance(entry, dict) else None
            path = ("models", name if isinstance(name, str) else index, *rest)
    return ".".join(str(part) for part in path) or "the file"
