"""A reader of models.yaml that records the line of every key, so that errors can name lines."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails

from sdstream.core.errors import ConfigurationError
from sdstream.core.similar import most_similar
from sdstream.core.validation import PartProblems, flags, no_boolean, requirement


class Part(BaseModel):
    """A part of a catalogue; a key that is not one of its fields is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_numbers_from_booleans(cls, value: Any, info: ValidationInfo) -> Any:
        return value if info.field_name in flags(cls) else no_boolean(value)


class Problem(NamedTuple):
    """One problem in a catalogue.

    Attributes:
        line: Line of the file, from 1.
        message: What is wrong, with the key and the remedy.
    """

    line: int
    message: str


class CatalogError(ConfigurationError):
    """A catalogue is not valid; the message lists all of its problems, one per line.

    Attributes:
        problems: The problems in the order of their lines.
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
        """The line of the first problem."""
        return self.problems[0].line

    @property
    def message(self) -> str:
        """The message of the first problem."""
        return self.problems[0].message

    def of_file(self, file: str) -> CatalogError:
        """Return the same error with another file name."""
        return CatalogError(*self.problems, file=file)


Lines = dict[tuple[str | int, ...], int]


class _Loader(yaml.SafeLoader):
    """A YAML loader that reads dates, and on, off, yes and no, as strings.

    A catalogue contains no dates. ``kernels: off`` is a string, and pydantic reads these words
    where a field is a boolean.
    """


_BOOL: Final = "tag:yaml.org,2002:bool"
_Loader.yaml_implicit_resolvers = {
    letter: [(tag, p) for tag, p in found if not tag.endswith(":timestamp") and tag != _BOOL]
    for letter, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# The booleans of YAML 1.2.
_Loader.add_implicit_resolver(_BOOL, re.compile(r"true|True|TRUE|false|False|FALSE"), [*"tTfF"])


#: Maximum number of keys and items in a file.
_MOST_VALUES: Final = 100_000


def load(text: str) -> tuple[Lines, Any, list[Problem]]:
    """Return the lines of the file's keys, its content, and the duplicate keys, which YAML accepts.

    Raises:
        CatalogError: The text is not YAML, or its anchors make the content too large.
    """
    lines: Lines = {}
    try:
        root = yaml.compose(text, Loader=_Loader)
        duplicates = [] if root is None else [*_index(root, (), lines)]
        return lines, yaml.load(text, Loader=_Loader), duplicates  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        tab = "YAML allows no tab here; use spaces" if "'\\t'" in str(error.problem) else None
        raise CatalogError(Problem(line, tab or str(error.problem))) from None
    except (yaml.YAMLError, ValueError) as error:
        raise CatalogError(Problem(1, str(error))) from None
    except RecursionError:
        raise CatalogError(Problem(1, "the file is nested too deeply")) from None


def _index(node: yaml.Node, path: tuple[str | int, ...], lines: Lines) -> Iterator[Problem]:
    """Record the line of every key and item; yield a problem for each duplicate key.

    Raises:
        CatalogError: Anchors that use other anchors make the content too large.
    """
    lines.setdefault(path, node.start_mark.line + 1)
    if len(lines) > _MOST_VALUES:
        problem = f"the file has more than {_MOST_VALUES} values, counting each use of an anchor"
        raise CatalogError(Problem(node.start_mark.line + 1, problem))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _index(item, (*path, index), lines)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, str(key.value))
            line = key.start_mark.line + 1
            if here in lines:
                yield Problem(line, f"duplicate key '{key.value}'")
            lines[here] = line
            yield from _index(value, here, lines)


def line_near(lines: Mapping[tuple[str | int, ...], int], path: tuple[str | int, ...]) -> int:
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 1)


#: pydantic's type of an error -> what the value must be, in the terms of YAML.
_YAML_KINDS: Final = dict.fromkeys(
    ("model_type", "model_attributes_type", "mapping_type", "dict_type"), "keys with values"
)


def problems_of(
    error: ValidationError, lines: Lines, content: Any, keys: Iterable[str] = ()
) -> Iterator[Problem]:
    """Yield all problems that pydantic found.

    Args:
        error: The errors of the file's content.
        lines: The lines of the file's keys.
        content: The file's content, for the ids of its entries.
        keys: All keys that a catalogue may contain, for suggestions.
    """
    found = error.errors()
    # If an item of a list is invalid, pydantic may also report the list as too short.
    roots = {one["loc"][:depth] for one in found for depth in range(len(one["loc"]))}
    faults = [one for one in found if one["loc"] not in roots]
    for fault in faults:
        match fault.get("ctx", {}).get("error"):
            case PartProblems(problems=problems):
                for inside, message in problems.items():
                    path = (*fault["loc"], *inside)
                    yield Problem(line_near(lines, path), f"{key_name(path, content)}: {message}")
            case _:
                yield _problem(fault, lines, content, keys)


def _problem(found: ErrorDetails, lines: Lines, content: Any, keys: Iterable[str]) -> Problem:
    # pydantic marks an invalid key of a mapping so.
    path = tuple(part for part in found["loc"] if part != "[key]")
    where = key_name(path, content)
    if found["type"] == "extra_forbidden":
        # A key that is valid in one place may be unknown in another.
        meant = most_similar(str(path[-1]), [key for key in keys if key != path[-1]])
        message = f"unknown key '{where}'" + (f"; did you mean '{meant}'?" if meant else "")
    elif found["type"] == "missing":
        message = f"the key '{where}' is missing"
    else:
        message = f"{where}: {requirement(found, _YAML_KINDS)}"
    return Problem(line_near(lines, path), message)


def key_name(path: tuple[str | int, ...], content: Any) -> str:
    """Return a path of keys for a message: an entry has its id, or its index without an id."""
    match path:
        case ("models", int(index), *rest):
            entry = content["models"][index]
            name = entry.get("id") if isinstance(entry, dict) else None
            path = ("models", name if isinstance(name, str) else index, *rest)
    return ".".join(str(part) for part in path) or "the file"
