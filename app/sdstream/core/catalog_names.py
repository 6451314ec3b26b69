"""The names in models.yaml: those of the entries, also of invalid ones, and the default."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from sdstream.core.catalog_yaml import Lines, Problem, line_near
from sdstream.core.similar import most_similar


def entries_of(data: Any) -> list[Any]:
    """Return the entries of a file that is not valid; they may be anything."""
    entries = data.get("models") if isinstance(data, dict) else None
    return entries if isinstance(entries, list) else []


def is_among(name: str, names: Iterable[str]) -> bool:
    """Return whether a name is one of others, ignoring case."""
    return name.casefold() in map(str.casefold, names)


class Names(NamedTuple):
    """The names in an entry, which may be invalid otherwise.

    Attributes:
        id, aliases, quants: The values of the entry that are strings.
    """

    id: str
    aliases: tuple[str, ...]
    quants: tuple[str, ...]

    def include(self, name: str) -> bool:
        """Return whether a name is the id, an alias, or one of them with a quant."""
        own = (self.id, *self.aliases)
        model, _, quant = name.rpartition(":")
        return is_among(name, own) or (is_among(model, own) and is_among(quant, self.quants))


def names_of(data: Any) -> dict[int, Names]:
    """Return the names in each entry that has an id, by its index."""
    return {
        index: Names(entry["id"], _strings(entry.get("aliases")), _strings(entry.get("quants")))
        for index, entry in enumerate(entries_of(data))
        if isinstance(entry, dict) and isinstance(entry.get("id"), str)
    }


def _strings(values: Any) -> tuple[str, ...]:
    given = values if isinstance(values, list | dict) else ()
    return tuple(value for value in given if isinstance(value, str))


def unknown_default(data: Any, entries: Mapping[int, Names], lines: Lines) -> Iterator[Problem]:
    """Yield a problem if no entry has the name of the file's default."""
    default = data.get("default") if isinstance(data, dict) else None
    if not isinstance(default, str) or not default or not entries:
        return
    if not any(names.include(default) for names in entries.values()):
        meant = most_similar(default, [names.id for names in entries.values()])
        hint = f"; did you mean '{meant}'?" if meant else ""
        line = line_near(lines, ("default",))
        yield Problem(line, f"no model has the id '{default}'{hint}")


def name_problems(entries: Mapping[int, Names], lines: Lines) -> Iterator[Problem]:
    """Yield a problem for each name that stands for several models."""
    known = {names.id.casefold(): names for names in entries.values()}
    seen: set[str] = set()
    taken: dict[str, str] = {}
    for index, names in entries.items():
        line = line_near(lines, ("models", index, "id"))
        if names.id.casefold() in seen:
            yield Problem(line, f"duplicate id '{names.id}'")
        seen.add(names.id.casefold())
        model, _, quant = names.id.rpartition(":")
        entry = known.get(model.casefold())
        if entry is not None and is_among(quant, entry.quants):
            yield Problem(line, f"the id '{names.id}' is also a quant of '{entry.id}'")
        line = line_near(lines, ("models", index, "aliases"))
        for alias in names.aliases:
            if alias.casefold() in known:
                yield Problem(line, f"the alias '{alias}' is the id of a model")
            if taken.setdefault(alias.casefold(), names.id) != names.id:
                yield Problem(line, f"the alias '{alias}' belongs to two models")
