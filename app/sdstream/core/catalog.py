"""The catalogue: the models with their files and settings.

``Catalog.parse`` turns the text of models.yaml into immutable values. It does not access the disk;
its callers pass a function that checks whether a file exists. ``Catalog.on_machine`` adds the
models whose hub files are downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any, Final, Self

from pydantic import Field, ValidationError

from sdstream.core.catalog_names import (
    entries_of,
    is_among,
    name_problems,
    names_of,
    unknown_default,
)
from sdstream.core.catalog_yaml import (
    TOP,
    CatalogError,
    Lines,
    Part,
    Problem,
    key_name,
    line_near,
    load,
    problems_of,
)
from sdstream.core.locations import HUBS, QUANT, HubFile, is_address
from sdstream.core.model_spec import (
    NAME,
    Defaults,
    EnlargeRule,
    Files,
    ModelSpec,
    SizeRule,
    Variant,
)
from sdstream.core.runtime_options import WTYPES, RuntimeOptions
from sdstream.core.similar import did_you_mean, most_similar


class _File(Part):
    default: str | None = None
    models: tuple[ModelSpec, ...] = Field(min_length=1)


_PARTS: Final[Mapping[str, type[Part]]] = {
    TOP: _File,
    "": ModelSpec,
    "files": Files,
    "defaults": Defaults,
    "size": SizeRule,
    "size.enlarge": EnlargeRule,
    "runtime": RuntimeOptions,
}
_KEYS: Final = {place: tuple(part.model_fields) for place, part in _PARTS.items()}


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
    #: Lower-case name -> id in ``models``; an entry's name leads to its first downloaded quant.
    _spellings: Mapping[str, str] = field(default_factory=dict)
    default_aliases: frozenset[str] = frozenset()

    @classmethod
    def parse(
        cls,
        text: str,
        missing: Callable[[str], str | None] = lambda _: None,
        no_upscaler: Callable[[str], str | None] = lambda _: None,
    ) -> Self:
        """Read models.yaml.

        Args:
            text: Content of the file.
            missing: Function that returns why the file at a location cannot be used, or None.
            no_upscaler: Function that returns why no upscaler has a name, or None.

        Raises:
            CatalogError: The text is not valid. The error has all problems with their lines.
        """
        lines, data, problems = load(text)
        try:
            file = _File.model_validate(data)
        except ValidationError as error:
            problems += problems_of(error, lines, data, _KEYS)
            file = None
        # If an entry is not valid, the others are checked nevertheless.
        specs = dict(enumerate(file.models)) if file else _valid_entries(data)
        names = names_of(data)
        problems += name_problems(names, lines)
        for index, spec in specs.items():
            problems += _quant_problems(spec, index, lines)
            rule = spec.size.enlarge
            if rule is not None and (why := no_upscaler(rule.upscaler)):
                path = ("models", index, "size", "enlarge", "upscaler")
                problems.append(Problem(line_near(lines, path), f"{key_name(path, data)}: {why}"))
        problems += _missing_files(data, specs, lines, missing)
        problems += unknown_default(data, names, lines)
        if file is None or problems:
            raise CatalogError(*problems)
        entries = {spec.id: spec for spec in file.models}
        models = {name: spec for name, spec in entries.items() if not spec.quants}
        spellings = {name.casefold(): name for name in models}
        catalog = cls(entries, models, file.default or file.models[0].id, spellings)
        return catalog.led_by(catalog.default)

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
        can_alias = wanted != self.default and re.fullmatch(NAME, wanted)
        alias = f" 'sdstream serve --alias {wanted}' makes it an alias of the default model."
        if why := self._why_never(wanted):
            remedy = alias if can_alias else ""
            return f"The model '{wanted[:128]}' is not in the catalogue: {why}.{remedy}"
        model, _, quant = wanted.rpartition(":")
        entry = self._named(model)
        if entry is not None and entry.quants:
            return (
                f"The model '{wanted[:128]}' is not in the catalogue: '{entry.id}' has the quants "
                f"{', '.join(entry.quants)}.{_conversion(entry, quant)}"
            )
        remedy = did_you_mean(most_similar(wanted, self.models))
        if not remedy and can_alias:
            remedy = alias
        return (
            f"The model '{wanted[:128]}' is not in the catalogue; available: "
            f"{', '.join(self.models)}.{remedy}"
        )

    def why_unknown(self, name: str) -> str:
        """Return why neither ``find`` nor ``variant`` knows this name, with similar entries."""
        model = name.rpartition(":")[0] or name
        if self._named(model) is not None:
            return self.why_missing(name)
        if why := self._why_never(model):
            return f"The model '{name[:128]}' is not in the catalogue: {why}."
        ids = self._plain_names()
        wanted = _plain_name(model)
        near = [key for key in ids if wanted in key] or get_close_matches(wanted, ids)
        found = ", ".join(dict.fromkeys(ids[key] for key in near))
        what = f"did you mean {found}?" if near else "'sdstream models --all' lists all models."
        return f"The model '{name[:128]}' is not in the catalogue; {what}"

    def _why_never(self, name: str) -> str | None:
        """Return why no catalogue can have a model that other servers have, and what replaces it.

        Return None for other names.
        """
        found = [known for known in _NEVER if re.search(known[0], name.casefold())]
        if not found:
            return None
        _, why, instead = found[0]
        entry = self._plain_names().get(instead or _IR_ENDING.sub("", _plain_name(name)))
        return why if entry is None else f"{why}; use '{entry}'"

    def _plain_names(self) -> dict[str, str]:
        """Return the plain names of all entries: plain name -> id."""
        return {
            _plain_name(known): entry.id
            for entry in self.entries.values()
            for known in (*entry.aliases, entry.id)
        }

    def _wanted(self, name: str | None) -> str:
        """Return a name as a client sent it, or the default for a name of the default model."""
        own = name in (None, "", "default") or str(name).casefold() in self.default_aliases
        return self.default if own else str(name)

    def _named(self, name: str) -> ModelSpec | None:
        """Return the entry that has this id or alias."""
        return _entry_of(name, self.entries) or self._aliased(name)

    def _aliased(self, name: str) -> ModelSpec | None:
        return next((e for e in self.entries.values() if is_among(name, e.aliases)), None)


#: Pattern of models in the documents of other servers, why the catalogue has none of them, and the
#: plain name of the model to use instead; empty for the name without its ending.
_NEVER: Final = (
    (r"kolors|hunyuandit|cogview", "the runtime does not support its architecture", ""),
    (r"refiner", "the runtime does not support refiners", "sdxl-base-1.0"),
    (r"^openvino/|-ov$", "it is OpenVINO IR, which the runtime does not read", ""),
)
#: Ending of the names of repositories with OpenVINO IR.
_IR_ENDING: Final = re.compile(r"(-(int4|int8|fp16))?-ov$")


def _conversion(entry: ModelSpec, quant: str) -> str:
    """Return a sentence about making a quant that is not published; empty if this is impossible."""
    kind = quant.casefold()[:4]  # Q4_K_M is nearly q4_K
    wtype = next((name for name in WTYPES if name.casefold() == kind and name[0] == "q"), None)
    source = _quant(entry, "Q8_0")
    if wtype is None or source is None:
        return ""
    return (
        f" 'sdstream convert {entry.id}:{source} FILE.gguf --type {wtype}' makes a similar file, "
        "for an entry of models.yaml."
    )


def _plain_name(name: str) -> str:
    """Return a model's name without its owner and format, in lower case."""
    return name.casefold().rpartition("/")[2].removesuffix("-gguf")


def _quant(entry: ModelSpec, name: str) -> str | None:
    """Return the entry's quant with this name, ignoring case."""
    return next((q for q in entry.quants or () if q.casefold() == name.casefold()), None)


def _valid_entries(data: Any) -> dict[int, ModelSpec]:
    """Return the valid entries of a file that is not valid, by their index."""
    specs = {}
    for index, entry in enumerate(entries_of(data)):
        with suppress(ValidationError):
            specs[index] = ModelSpec.model_validate(entry)
    return specs


def _missing_files(
    data: Any, specs: Mapping[int, ModelSpec], lines: Lines, missing: Callable[[str], str | None]
) -> Iterator[Problem]:
    """Yield a problem for each file that cannot be used, also of entries that are not valid."""
    for index, entry in enumerate(entries_of(data)):
        files = dict(specs[index].files.items()) if index in specs else _paths_of(entry)
        for component, location in files.items():
            if why := missing(location):
                path = ("models", index, "files", component)
                yield Problem(line_near(lines, path), f"{key_name(path, data)}: {why}")


def _paths_of(entry: Any) -> dict[str, str]:
    """Return the paths in an entry that is not valid: component -> path."""
    files = entry.get("files") if isinstance(entry, dict) else None
    return {
        component: place
        for component, place in (files.items() if isinstance(files, dict) else ())
        if component in Files.model_fields and isinstance(place, str)
        if not is_address(place) and QUANT not in place
    }


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
