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
from sdstream.core.text import is_unicode
from sdstream.core.validation import PartProblems, flags, no_boolean, requirement, shown


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


_TAB: Final = "YAML allows no tab here; use spaces"
#: A line of text with a tab before its first word.
_INDENTED_BY_TAB: Final = re.compile(r"[ -]*\t[ \t-]*[^\s#]")
#: Columns from one tab stop to the next.
_TAB_STOP: Final = 8


class _Loader(yaml.SafeLoader):
    """A YAML loader that reads dates, and on, off, yes and no, as strings.

    A catalogue contains no dates. ``kernels: off`` is a string, and pydantic reads these words
    where a field is a boolean.

    Attributes:
        tabs: Lines that are indented by tabs, which is not YAML.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.tabs: list[int] = []

    def scan_to_next_token(self) -> None:
        """Skip tabs too, which PyYAML rejects where YAML 1.2 allows them, for example after ":"."""
        super().scan_to_next_token()
        while self.peek() == "\t":
            line, start = self.line, self.buffer.rfind("\n", 0, self.pointer) + 1
            indents = not self.flow_level and not self.buffer[start : self.pointer].strip()
            while self.peek() in "\t ":
                if self.peek() == "\t":
                    self.column += _TAB_STOP - 1 - self.column % _TAB_STOP
                self.forward()
            super().scan_to_next_token()
            # A line with only a comment, or nothing, has no indentation.
            if indents and self.line == line and self.peek() != "\0":
                self.tabs.append(line + 1)


_TYPE: Final = "tag:yaml.org,2002:"
_Loader.yaml_implicit_resolvers = {
    letter: [(tag, p) for tag, p in found if tag not in (f"{_TYPE}timestamp", f"{_TYPE}bool")]
    for letter, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# The booleans of YAML 1.2.
_Loader.add_implicit_resolver(
    f"{_TYPE}bool", re.compile(r"true|True|TRUE|false|False|FALSE"), [*"tTfF"]
)


def load(text: str) -> tuple[Lines, Any, list[Problem]]:
    """Return the lines of the file's keys, its content, and the problems that hide no others.

    These problems are duplicate keys, which YAML accepts, indentation by tabs, and values that do
    not fit to their tags.

    Raises:
        CatalogError: The text is not YAML, or its anchors make the content too large.
    """
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        index = _Index(loader)
        if root is None:
            return index.lines, None, []
        index.add(root, ())
        index.problems += (Problem(line, _TAB) for line in loader.tabs)
        return index.lines, loader.construct_document(root), index.problems
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        code = f"U+{ord(text[error.position]):04X}"
        raise CatalogError(Problem(line, f"YAML does not allow the character {code}")) from None
    except yaml.MarkedYAMLError as error:
        raise CatalogError(*_syntax_problems(error, text.splitlines())) from None
    except RecursionError:
        raise CatalogError(Problem(1, "the file is nested too deeply")) from None


def _syntax_problems(error: yaml.MarkedYAMLError, lines: list[str]) -> Iterator[Problem]:
    """Yield a problem for the end of the YAML, and one for each line that is indented by a tab."""
    tabs = [n for n, line in enumerate(lines, 1) if _INDENTED_BY_TAB.match(line)]
    yield from (Problem(line, _TAB) for line in tabs)
    mark = error.problem_mark or error.context_mark
    number = mark.line + 1 if mark else 1
    if number in tabs:
        return
    message = str(error.problem)
    if "'\\t'" in message:
        message = _TAB
    elif message == "but found another document":
        message = "a second YAML document begins here; the file may have only one"
    elif "\t" in "".join(lines[number - 1 : number]):
        message += "; the line contains a tab, use spaces"
    yield Problem(number, message)


#: Maximum number of keys and items in a file.
_MOST_VALUES: Final = 100_000
#: Types of keys that stand for their text, as in JSON.
_KEYS_AS_TEXT: Final = {f"{_TYPE}{name}" for name in ("null", "bool", "int", "float", "value")}


class _Index:
    """The lines of the keys and items of a file, and the problems of single values.

    Attributes:
        lines: Path of a key or item -> its line.
        problems: The problems.
    """

    def __init__(self, loader: _Loader) -> None:
        self.lines: Lines = {}
        self.problems: list[Problem] = []
        self._loader = loader
        self._count = 0

    def add(self, node: yaml.Node, path: tuple[str | int, ...]) -> None:
        """Add the keys and items of a node.

        Raises:
            CatalogError: Anchors that use other anchors make the content too large.
        """
        self._count += 1
        if self._count > _MOST_VALUES:
            problem = (
                f"the file has more than {_MOST_VALUES} values, counting each use of an anchor"
            )
            raise CatalogError(Problem(_line(node), problem))
        if isinstance(node, yaml.ScalarNode):
            self._check(node)
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self.lines[*path, index] = _line(item)
                self.add(item, (*path, index))
        elif isinstance(node, yaml.MappingNode):
            self._add_keys(node, path)

    def _add_keys(self, node: yaml.MappingNode, path: tuple[str | int, ...]) -> None:
        seen: set[str] = set()
        for key, value in node.value:
            if key.tag in _KEYS_AS_TEXT:
                key.tag = f"{_TYPE}str"
            self._check(key)
            name = str(key.value)
            if name in seen:
                self.problems.append(Problem(_line(key), f"duplicate key '{name}'"))
            seen.add(name)
            # The last of duplicate keys is the one that counts.
            self.lines[*path, name] = _line(key)
            self.add(value, (*path, name))

    def _check(self, node: yaml.Node) -> None:
        """Make a string of a value that does not fit to its tag, and record the problem."""
        if not isinstance(node, yaml.ScalarNode):
            return
        if not is_unicode(node.value):
            node.value = node.value.encode(errors="replace").decode()
            problem = r"an escape such as \ud800 is half a character; write the character itself"
            self.problems.append(Problem(_line(node), problem))
        try:
            str(self._loader.construct_object(node, deep=True))
        except yaml.constructor.ConstructorError as error:
            problem = str(error.problem)
        except (ValueError, LookupError, AttributeError):  # also more digits than Python reads
            tag = node.tag.replace(_TYPE, "!!")
            problem = f"{shown(node.value)} cannot be read as {tag}"
        else:
            return
        self.problems.append(Problem(_line(node), problem))
        # PyYAML leaves these as they were when it failed.
        self._loader.constructed_objects.pop(node, None)
        self._loader.recursive_objects.clear()
        self._loader.deep_construct = False
        node.tag = f"{_TYPE}str"


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def line_near(lines: Mapping[tuple[str | int, ...], int], path: tuple[str | int, ...]) -> int:
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 1)


#: pydantic's type of an error -> what the value must be, in the terms of YAML.
_YAML_KINDS: Final = dict.fromkeys(
    ("model_type", "model_attributes_type", "mapping_type", "dict_type"), "keys with values"
)


#: Places of a catalogue -> their keys. The places are those inside an entry: "" for the entry
#: itself, and dotted paths.
Keys = Mapping[str, Iterable[str]]

TOP: Final = "at the top of the file"
"""The place of the keys of the file itself in ``Keys``."""


def problems_of(
    error: ValidationError, lines: Lines, content: Any, keys: Keys
) -> Iterator[Problem]:
    """Yield all problems that pydantic found.

    Args:
        error: The errors of the file's content.
        lines: The lines of the file's keys.
        content: The file's content, for the ids of its entries.
        keys: The keys of each part of a catalogue, for suggestions.
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


def _problem(found: ErrorDetails, lines: Lines, content: Any, keys: Keys) -> Problem:
    # pydantic marks an invalid key of a mapping so.
    path = tuple(part for part in found["loc"] if part != "[key]")
    where = key_name(path, content)
    if found["type"] == "extra_forbidden":
        message = f"unknown key '{where}'{_suggestion(path, keys)}"
    elif found["type"] == "missing":
        message = f"the key '{where}' is missing"
    else:
        message = f"{where}: {requirement(found, _YAML_KINDS)}"
    return Problem(line_near(lines, path), message)


def _suggestion(path: tuple[str | int, ...], keys: Keys) -> str:
    """Return where a key belongs, or which key is meant, for the end of a message."""
    *above, key = map(str, path)
    here = ".".join(above[2:]) if above else TOP
    others = [place for place in keys if place != here]
    homes = [_in(place) for place in others if key in keys[place]]
    inside = [home for home in homes if home != TOP]
    if inside:
        return f"; it belongs {' or '.join(inside)}"
    if meant := most_similar(key, keys[here]):
        return f"; did you mean '{meant}'?"
    if homes:
        return f"; it belongs {TOP}"
    known = {name: place for place in reversed(others) for name in keys[place]}
    meant = most_similar(key, known)
    return f"; did you mean '{meant}', which belongs {_in(known[meant])}?" if meant else ""


def _in(place: str) -> str:
    if place == TOP:
        return TOP
    return f"under '{place}'" if place else "directly in an entry of 'models'"


def key_name(path: tuple[str | int, ...], content: Any) -> str:
    """Return a path of keys for a message: an entry has its id, or its index without an id."""
    match path:
        case ("models", int(index), *rest):
            entry = content["models"][index]
            name = entry.get("id") if isinstance(entry, dict) else None
            path = ("models", name if isinstance(name, str) else index, *rest)
    return ".".join(str(part) for part in path) or "the file"
