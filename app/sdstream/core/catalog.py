"""The catalogue: the models with their files and settings.

``Catalog.parse`` turns the text of models.yaml into immutable values. It does not access the disk.
Its callers check later whether the files exist, and find the line for an error with
``Catalog.line_of``. ``Catalog.on_machine`` adds the models whose hub files are downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Self

from pydantic import Field, ValidationError

from sdstream.core.catalog_yaml import (
    CatalogError,
    Lines,
    Problem,
    line_near,
    load,
    with_lines,
)
from sdstream.core.locations import HUBS, QUANT, HubFile
from sdstream.core.model_spec import NAME, ModelSpec, Part, Variant
from sdstream.core.similar import did_you_mean, most_similar


class _File(Part):
    default: str | None = None
    models: tuple[ModelSpec, ...] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class CatalogChange:
    """The differences between two catalogues.

    Attributes:
        added, removed, changed: Ids of entries.
        default: The default model of the newer catalogue.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    default: str

    def __str__(self) -> str:
        """Return the change as text for a log."""
        parts = ("added", self.added), ("removed", self.removed), ("changed", self.changed)
        told = [f"{what} {', '.join(ids)}" for what, ids in parts if ids]
        return "; ".join(told) or "no entry changed"


@dataclass(frozen=True)
class Catalog:
    """The entries of models.yaml, and the models that can generate.

    Attributes:
        entries: All entries of models.yaml, by id.
        models: Models that can generate, by id: the entries without quants, and the downloaded
            quants of the other entries as MODEL:QUANT. ``parse`` leaves out the quants.
        default: The model of requests that do not name one; an id of ``models`` if it is
            downloaded.
        default_aliases: Other names of the default model in lower case, besides those in its entry.
    """

    entries: Mapping[str, ModelSpec]
    models: Mapping[str, ModelSpec]
    default: str
    _lines: Mapping[tuple[str | int, ...], int]
    #: Lower-case name -> id in ``models``; an entry's name leads to its first downloaded quant.
    _spellings: Mapping[str, str] = field(default_factory=dict)
    default_aliases: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read models.yaml.

        Raises:
            CatalogError: The text is not valid; the error has the line of each invalid key.
        """
        lines, data = load(text)
        try:
            file = _File.model_validate(data)
        except ValidationError as error:
            keys = {name for part in Part.__subclasses__() for name in part.model_fields}
            raise with_lines(error, lines, data, sorted(keys)) from None
        entries = {spec.id: spec for spec in file.models}
        problems = [*_problems(file.models, entries, lines)]
        models = {name: spec for name, spec in entries.items() if not spec.quants}
        spellings = {name.casefold(): name for name in models}
        catalog = cls(entries, models, file.default or file.models[0].id, lines, spellings)
        default = catalog.default
        if _entry_of(default, entries) is None and catalog.variant(default) is None:
            meant = most_similar(default, entries)
            message = f"no model has the id '{default}'" + (
                f"; did you mean '{meant}'?" if meant else ""
            )
            problems.append(Problem(line_near(lines, ("default",)), message))
        if problems:
            raise CatalogError(*problems)
        return catalog.led_by(default)

    def on_machine(self, find: Callable[[HubFile], str | None]) -> Self:
        """Return the same catalogue with the downloaded quants.

        Args:
            find: Function that returns the path of a hub file; None if it is not downloaded.
        """
        models: dict[str, ModelSpec] = {}
        spellings: dict[str, str] = {}
        for entry in self.entries.values():
            if not entry.quants:
                models[entry.id] = entry
                spellings[entry.id.casefold()] = entry.id
            for variant in entry.variants:
                paths = {component: find(file) for component, file in variant.hub_files.items()}
                here = {component: path for component, path in paths.items() if path is not None}
                if len(here) == len(paths):
                    models[variant.name] = variant.at(here)
                    spellings[variant.name.casefold()] = variant.name
                    spellings.setdefault(entry.id.casefold(), variant.name)
        catalog = replace(self, models=models, _spellings=spellings)
        return catalog.led_by(self.default)

    def led_by(self, name: str) -> Self:
        """Return the same catalogue with another default, which need not be downloaded.

        Args:
            name: Id, alias or quant of an entry.
        """
        found = self.find(name)
        return replace(self, default=name if found is None else found.id)

    def with_default_aliases(self, names: Sequence[str]) -> Self:
        """Return the same catalogue with more names for the default model.

        Raises:
            CatalogError: A name is the id of a model, or an alias of another model.
        """
        own = self._named(self.default) or self._named(self.default.rpartition(":")[0])
        for name in names:
            other = self._aliased(name)
            if other is None and (_entry_of(name, self.entries) or self.variant(name)):
                raise CatalogError(Problem(1, f"the alias '{name}' is the id of a model"))
            if other is not None and other != own:
                raise CatalogError(Problem(1, f"the alias '{name}' belongs to '{other.id}'"))
        return replace(self, default_aliases=frozenset(name.casefold() for name in names))

    def change_from(self, older: Catalog) -> CatalogChange:
        """Return the differences from an older catalogue."""
        both = [name for name in self.entries if name in older.entries]
        return CatalogChange(
            added=tuple(name for name in self.entries if name not in older.entries),
            removed=tuple(name for name in older.entries if name not in self.entries),
            changed=tuple(n for n in both if self.entries[n] != older.entries[n]),
            default=self.default,
        )

    def is_alias(self, name: str) -> bool:
        """Return whether a name that ``find`` accepts is an alias."""
        return name != "default" and name.casefold() not in self._spellings

    def aliases(self) -> dict[str, str]:
        """Return the aliases of the downloaded models: alias -> id."""
        own = {
            alias: spec.id
            for entry in self.entries.values()
            for alias in entry.aliases
            if (spec := self.find(entry.id)) is not None
        }
        default = self.find(None)
        names = sorted(self.default_aliases) if default is not None else ()
        return {**own, **dict.fromkeys(names, self.default)}

    def plus(self, spec: ModelSpec) -> Self:
        """Return the same catalogue with another entry without quants, which is the default."""
        added = {spec.id: spec}
        return replace(
            self,
            entries={**self.entries, **added},
            models={**self.models, **added},
            _spellings={**self._spellings, spec.id.casefold(): spec.id},
            default=spec.id,
        )

    def with_runtime(self, model: str, values: Mapping[str, object]) -> Self:
        """Return the same catalogue with other runtime options for a model.

        Args:
            model: Id in ``models``; the catalogue stays the same if the model is not downloaded.
            values: Name of a runtime option -> value.

        Raises:
            RuntimeOptionError: As for ``ModelSpec.with_runtime``.
        """
        spec = self.models.get(model)
        if spec is None or not values:
            return self
        return replace(self, models={**self.models, model: spec.with_runtime(values)})

    def find(self, name: str | None) -> ModelSpec | None:
        """Return the model with this name, or None if it does not exist or is not downloaded.

        None, "" and "default" stand for the default model. The name of an entry stands for its
        first downloaded quant. Case does not matter.
        """
        wanted = self._wanted(name)
        found = self.models.get(self._spellings.get(wanted.casefold(), wanted))
        if found is not None:
            return found
        entry = self._aliased(wanted)
        if entry is not None:
            return self.find(entry.id)
        model, _, quant = wanted.rpartition(":")
        entry = self._aliased(model)
        return None if entry is None else self.find(f"{entry.id}:{quant}")

    def variant(self, name: str) -> Variant | None:
        """Return the quant that MODEL:QUANT names, or the default quant of MODEL.

        Return None for a name that is not in the catalogue or has no quants.
        """
        entry = self._named(name)
        if entry is not None:
            return next(iter(entry.variants), None)
        model, _, quant = name.rpartition(":")
        entry = self._named(model)
        known = _quant(entry, quant) if entry else None
        return Variant(entry, known) if entry and known else None

    def why_missing(self, name: str | None) -> str:
        """Return why ``find`` returns None for this name, with the remedy."""
        wanted = self._wanted(name)
        variant = self.variant(wanted)
        if variant is not None:
            size = "" if variant.gigabytes is None else f" ({variant.gigabytes:g} GB)"
            return (
                f"The model '{wanted}' is in the catalogue but not downloaded: "
                f"'sdstream pull {wanted}' downloads it{size}."
            )
        entry = self._named(wanted.rpartition(":")[0])
        if entry is not None and entry.quants:
            return (
                f"The model '{wanted[:128]}' is not in the catalogue: '{entry.id}' has the quants "
                f"{', '.join(entry.quants)}."
            )
        remedy = did_you_mean(most_similar(wanted, self.models))
        if not remedy and wanted != self.default and re.fullmatch(NAME, wanted):
            remedy = f" 'sdstream serve --alias {wanted}' makes it an alias of the default model."
        return (
            f"The model '{wanted[:128]}' is not in the catalogue; available: "
            f"{', '.join(self.models)}.{remedy}"
        )

    def why_unknown(self, name: str) -> str:
        """Return why neither ``find`` nor ``variant`` knows this name, with similar entries."""
        model = name.rpartition(":")[0] or name
        if self._named(model) is not None:
            return self.why_missing(name)
        ids = {entry.casefold(): entry for entry in self.entries}
        wanted = model.casefold()
        near = [key for key in ids if wanted in key] or get_close_matches(wanted, ids)
        found = ", ".join(ids[key] for key in near)
        what = f"did you mean {found}?" if near else "'sdstream models --all' lists all models."
        return f"The model '{name[:128]}' is not in the catalogue; {what}"

    def _wanted(self, name: str | None) -> str:
        """Return a name as a client sent it, or the default for a name of the default model."""
        own = name in (None, "", "default") or str(name).casefold() in self.default_aliases
        return self.default if own else str(name)

    def _named(self, name: str) -> ModelSpec | None:
        """Return the entry that has this id or alias."""
        return _entry_of(name, self.entries) or self._aliased(name)

    def _aliased(self, name: str) -> ModelSpec | None:
        return next((e for e in self.entries.values() if _is_among(name, e.aliases)), None)

    def line_of(self, entry: str, component: str) -> int:
        """Return the line of models.yaml that contains this file of the entry."""
        return line_near(self._lines, ("models", [*self.entries].index(entry), "files", component))


def _quant(entry: ModelSpec, name: str) -> str | None:
    """Return the entry's quant with this name, ignoring case."""
    return next((q for q in entry.quants or () if q.casefold() == name.casefold()), None)


def _is_among(name: str, names: Iterable[str]) -> bool:
    return name.casefold() in map(str.casefold, names)


def _problems(
    specs: Sequence[ModelSpec], entries: Mapping[str, ModelSpec], lines: Lines
) -> Iterator[Problem]:
    """Yield the problems that involve several entries or several fields."""
    seen: dict[str, ModelSpec] = {}
    for index, spec in enumerate(specs):
        line = line_near(lines, ("models", index, "id"))
        if _entry_of(spec.id, seen) is not None:
            yield Problem(line, f"duplicate id '{spec.id}'")
        seen[spec.id] = spec
        yield from _quant_problems(spec, index, lines)
        name, _, quant = spec.id.rpartition(":")
        entry = _entry_of(name, entries)
        if entry is not None and _quant(entry, quant):
            yield Problem(line, f"the id '{spec.id}' is also a quant of '{entry.id}'")
    yield from _alias_problems(specs, entries, lines)


def _alias_problems(
    specs: Sequence[ModelSpec], entries: Mapping[str, ModelSpec], lines: Lines
) -> Iterator[Problem]:
    """Yield a problem for each alias that belongs to two models or equals the id of an entry."""
    taken: dict[str, str] = {}
    for index, spec in enumerate(specs):
        for alias in spec.aliases:
            line = line_near(lines, ("models", index, "aliases"))
            if _entry_of(alias, entries) is not None:
                yield Problem(line, f"the alias '{alias}' is the id of a model")
            if taken.setdefault(alias.casefold(), spec.id) != spec.id:
                yield Problem(line, f"the alias '{alias}' belongs to two models")


def _entry_of(name: str, entries: Mapping[str, ModelSpec]) -> ModelSpec | None:
    """Return the entry with this id, ignoring case."""
    wanted = name.casefold()
    return next((entry for entry in entries.values() if entry.id.casefold() == wanted), None)


def _quant_problems(spec: ModelSpec, index: int, lines: Lines) -> Iterator[Problem]:
    """Yield the problems of an entry that has hub files without quants, or the reverse."""
    here = ("models", index)
    from_hub = {name: place for name, place in spec.files.items() if place.startswith(HUBS)}
    if from_hub and not spec.quants:
        line = line_near(lines, (*here, "files", next(iter(from_hub))))
        yield Problem(
            line, f"models.{spec.id}: files on a hub require 'quants' with at least one name"
        )
    if not spec.quants:
        return
    line = line_near(lines, (*here, "quants"))
    if not from_hub:
        yield Problem(
            line, f"models.{spec.id}: 'quants' requires files on a hub (hf:OWNER/REPO/PATH)"
        )
    elif len(spec.quants) > 1 and not any(QUANT in place for place in from_hub.values()):
        yield Problem(
            line, f"models.{spec.id}: with several quants, at least one file must contain {QUANT}"
        )
