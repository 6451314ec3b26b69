"""The catalogue: which models there are, what they are made of and how they like to be run.

``Catalog.parse`` turns the text of models.yaml into frozen values. It touches no disk: whether
the files exist is asked later, with ``Catalog.line_of`` to name the line at fault, and which files
of the hub lie on this machine is what ``Catalog.on_machine`` is told.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Annotated, Any, Final, Literal, NamedTuple, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from sdstream.core.samplers import SAMPLERS, SCHEDULES

#: As the device of a model.
CPU: Final = "cpu"

BUILTIN: Final = "builtin:"
"""Prefix of a file that the package makes itself instead of reading it from disk."""

HUB: Final = "hf:"
"""Prefix of a file that is pulled from the Hugging Face hub into its cache."""

QUANT: Final = "{quant}"
"""Stands for the name of a quant in the location of a hub file."""


class CatalogError(Exception):
    """models.yaml, or the ``file`` in its place, cannot be used; ``line`` counts from 1."""

    def __init__(self, message: str, line: int, file: str = "models.yaml") -> None:
        super().__init__(f"{file}, line {line}: {message}")
        self.message = message
        self.line = line


class HubFile(NamedTuple):
    """A file of a repository of the hub.

    Attributes:
        repo: OWNER/NAME.
        path: Inside the repository, with slashes.
        revision: A branch, a tag or a commit.
    """

    repo: str
    path: str
    revision: str

    def __str__(self) -> str:
        return f"{self.repo}/{self.path}"

    @classmethod
    def parse(cls, location: str) -> Self:
        """Read "hf:OWNER/REPO[@REVISION]/PATH"; raise ValueError on anything else."""
        match = _HUB_LOCATION.fullmatch(location)
        if match is None or {"", ".", ".."} & {*match["path"].split("/")}:
            raise ValueError(
                f"'{location}' is no file of the hub, which is written hf:OWNER/REPO/PATH or "
                "hf:OWNER/REPO@REVISION/PATH"
            )
        return cls(match["repo"], match["path"], match["revision"] or "main")


_WORD: Final = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_HUB_LOCATION: Final = re.compile(
    rf"{HUB}(?P<repo>{_WORD}/{_WORD})(?:@(?P<revision>{_WORD}))?/(?P<path>[^\\\s][^\\\n]*)"
)


class Size(NamedTuple):
    """Pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "WxH" or "W*H"; raise ValueError on anything else."""
        match = re.fullmatch(r"\s*(\d{1,5})\s*[xX*×]\s*(\d{1,5})\s*", text)
        if match is None:
            raise ValueError("a size is written WIDTHxHEIGHT, 512x512 for example")
        return cls(int(match[1]), int(match[2]))


@dataclass(frozen=True)
class Family:
    """What all models of one architecture have in common.

    Attributes:
        title: The name that people use.
        multiple: Width and height must be multiples of this many pixels.
        flow: Trained by flow matching rather than noise prediction.
        distilled_guidance: Takes ``guidance`` (FLUX-dev and its like).
        references: Takes reference images beside, or in place of, an image to draw over.
        needs: Components beside the diffusion model whose weights must be there: the runtime dies
            without its text encoders.
        size, steps, cfg_scale, sampler: What the architecture is usually run with.
    """

    title: str
    multiple: int
    flow: bool
    needs: tuple[Literal["clip_l", "clip_g", "t5xxl", "llm", "llm_vision", "vae"], ...]
    size: Size
    steps: int
    cfg_scale: float
    distilled_guidance: bool = False
    references: bool = False
    sampler: str = "euler"

    @property
    def unet(self) -> bool:
        """The denoiser is a U-Net, whose sides are multiples of 64; else a transformer."""
        return self.multiple == 64

    @property
    def prompt_characters(self) -> int:
        """Longest prompt that is safe to encode.

        CLIP cuts a prompt into pieces and T5 is cut at 512 tokens, but a language model attends
        from every token to every other: 16,000 characters took 2.4 GB and 32,000 took 8.6 GB.
        """
        return 4_000 if "llm" in self.needs else 32_000


# A U-Net halves the latent three times, and the latent is an eighth of the picture: 64. The
# transformers cut the latent into patches of two: 16.
FAMILIES: Final[Mapping[str, Family]] = {
    "sd1": Family("Stable Diffusion 1", 64, False, ("clip_l", "vae"), Size(512, 512), 20, 7.0),
    "sd2": Family("Stable Diffusion 2", 64, False, ("clip_l", "vae"), Size(768, 768), 20, 7.0),
    "sdxl": Family(
        "Stable Diffusion XL", 64, False, ("clip_l", "clip_g", "vae"), Size(1024, 1024), 25, 5.0
    ),
    "sd3": Family(
        "Stable Diffusion 3", 16, True, ("clip_l", "clip_g", "vae"), Size(1024, 1024), 20, 4.5
    ),
    "flux": Family("FLUX.1", 16, True, ("clip_l", "t5xxl", "vae"), Size(1024, 1024), 20, 1.0, True),
    "flux_kontext": Family(
        title="FLUX.1 Kontext",
        multiple=16,
        flow=True,
        needs=("clip_l", "t5xxl", "vae"),
        size=Size(1024, 1024),
        steps=20,
        cfg_scale=1.0,
        distilled_guidance=True,
        references=True,
    ),
    "chroma": Family("Chroma", 16, True, ("t5xxl", "vae"), Size(1024, 1024), 26, 4.0),
    "qwen_image": Family("Qwen-Image", 16, True, ("llm", "vae"), Size(1024, 1024), 20, 2.5),
    "qwen_image_edit": Family(
        title="Qwen-Image-Edit",
        multiple=16,
        flow=True,
        needs=("llm", "llm_vision", "vae"),
        size=Size(1024, 1024),
        steps=20,
        cfg_scale=2.5,
        references=True,
    ),
    "z_image": Family("Z-Image", 16, True, ("llm", "vae"), Size(1024, 1024), 8, 1.0),
    "ovis_image": Family("Ovis-Image", 16, True, ("llm", "vae"), Size(1024, 1024), 20, 5.0),
    "flux2": Family(
        "FLUX.2", 16, True, ("llm", "vae"), Size(1024, 1024), 20, 1.0, True, references=True
    ),
    "ernie_image": Family("ERNIE-Image", 16, True, ("llm", "vae"), Size(1024, 1024), 20, 5.0),
    "anima": Family("Anima", 16, True, ("llm", "vae"), Size(1024, 1024), 20, 6.0),
    "chroma_radiance": Family("Chroma1-Radiance", 16, True, ("t5xxl",), Size(1024, 1024), 26, 4.0),
}

WTYPES: Final = (
    "f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0",
    "q2_K", "q3_K", "q4_K", "q5_K", "q6_K",
)  # fmt: skip


def _one_of(names: Mapping[str, object] | tuple[str, ...], what: str) -> AfterValidator:
    def check(value: str) -> str:
        if value not in names:
            raise ValueError(f"unknown {what} '{value}'; there are {', '.join(names)}")
        return value

    return AfterValidator(check)


def _size_of(value: object) -> Size:
    if isinstance(value, Size):
        return value
    if not isinstance(value, str):
        raise ValueError('must be "WIDTHxHEIGHT" in pixels')
    return Size.parse(value)


SizeField = Annotated[Size, BeforeValidator(_size_of)]


def _a_location(value: str) -> str:
    if value.startswith(HUB):
        path = HubFile.parse(value).path
        if re.search(r"[{}]", path.replace(QUANT, "")):
            raise ValueError(f"of the words in braces there is {QUANT} only")
    elif QUANT in value:
        raise ValueError(f"{QUANT} stands in files of the hub only (hf:OWNER/REPO/PATH)")
    return value


_Location = Annotated[str, AfterValidator(_a_location)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Files(_Part):
    """The weights: one file with everything, or one per component.

    A value is a path (relative ones count from the folder of models.yaml), ``builtin:NAME`` or
    ``hf:OWNER/REPO/PATH`` (``hf:OWNER/REPO@REVISION/PATH``), in which ``{quant}`` stands for one of
    the entry's quants.
    """

    model: _Location | None = None
    diffusion_model: _Location | None = None
    clip_l: _Location | None = None
    clip_g: _Location | None = None
    t5xxl: _Location | None = None
    llm: _Location | None = None
    llm_vision: _Location | None = None
    vae: _Location | None = None
    tae: _Location | None = None
    control_net: _Location | None = None

    @model_validator(mode="after")
    def _something_to_draw_with(self) -> Self:
        if self.model is None and self.diffusion_model is None:
            raise ValueError("files needs 'model' or 'diffusion_model'")
        return self

    def items(self) -> Iterator[tuple[str, str]]:
        """(component, location) of those that are named."""
        return ((k, v) for k, v in self.__dict__.items() if v is not None)


class Defaults(_Part):
    """What a request gets when it does not say; what is missing here comes from the family."""

    size: SizeField | None = None
    steps: int | None = Field(None, ge=1, le=150)
    sampler: Annotated[str, _one_of(SAMPLERS, "sampler")] | None = None
    schedule: Annotated[str, _one_of(SCHEDULES, "schedule")] | None = None
    cfg_scale: float | None = Field(None, ge=0, le=30, allow_inf_nan=False)
    guidance: float | None = Field(None, ge=0, le=30, allow_inf_nan=False)


class SizeRule(_Part):
    """Bounds of width and height, each in pixels."""

    min: int = Field(64, ge=16)
    max: int = Field(2048, le=8192)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError("size.min is larger than size.max")
        return self


class RuntimeOptions(_Part):
    """How the native library runs the model.

    Attributes:
        threads: CPU threads; 0 means the cores that this process may use.
        flash_attn: Flash attention: faster on GPUs, 1.8-2x slower on the CPU.
        conv_direct: Direct convolutions: less memory, no faster.
        offload: Keep the weights in main memory and move them to the GPU as needed.
        wtype: Re-quantise the weights to this type while loading.
        tae: Decode with the tiny autoencoder that lies inside the model file.
        vae_tiling: Decode in tiles: less memory, slower.
        preview: How pictures between the steps are made: by a projection of the latent, nearly
            free but known for the published autoencoders only; by the tiny autoencoder of the
            files beside the VAE that decodes the result; or by whatever decodes the result.
        zero_cond_t: As Qwen-Image-Edit 2511 was trained: reference pictures count as finished.
        circular: Sides that join their opposite ones, for pictures to be laid side by side.
    """

    threads: int = Field(0, ge=0, le=1024)
    flash_attn: bool = False
    conv_direct: bool = False
    offload: bool = False
    wtype: Annotated[str, _one_of(WTYPES, "wtype")] | None = None
    tae: bool = False
    vae_tiling: bool = False
    preview: Literal["projection", "tae", "decode"] = "projection"
    zero_cond_t: bool = False
    circular: Literal["none", "x", "y", "both"] = "none"


_QuantName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,31}$")]


class ModelSpec(_Part):
    """One entry of the catalogue.

    Attributes:
        page: Where its files are told of.
        license: Under which they are given, by the hub's word for it.
        gated: The hub wants a token of somebody who accepted the licence on ``page``.
        quants: What ``{quant}`` in the files stands for -> gigabytes (10^9 bytes) that a pull
            fetches in all, None when not known; the first is the usual one.
        replicas: Workers of the model that may draw at once.
        keep_alive: Seconds that an idle worker stays loaded, at least one; None is until others
            need its room.
        device: Where it computes: "cpu", or "cuda:1", "rocm:0", "vulkan:0" and so on for one of
            several GPUs; None is wherever the runtime likes.
    """

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$")
    description: str = ""
    family: Annotated[str, _one_of(FAMILIES, "family")]
    page: str | None = Field(None, pattern=r"^https?://\S+$")
    license: str | None = None
    gated: bool = False
    quants: dict[_QuantName, Annotated[float, Field(ge=0, allow_inf_nan=False)] | None] | None = (
        Field(None, min_length=1)
    )
    files: Files
    defaults: Defaults = Defaults()
    size: SizeRule = SizeRule()
    prompt_characters: int | None = Field(None, ge=1, le=32_000)
    runtime: RuntimeOptions = RuntimeOptions()
    replicas: int = Field(1, ge=1, le=64)
    keep_alive: float | None = Field(None, ge=0, allow_inf_nan=False)
    device: str | None = Field(None, pattern=r"^(cpu|(cuda|rocm|vulkan):\d{1,2})$")

    @property
    def traits(self) -> Family:
        """The facts of the model's architecture."""
        return FAMILIES[self.family]

    @property
    def variants(self) -> tuple[Variant, ...]:
        """What can be pulled of the entry, the usual one first; none when it names no hub files."""
        return tuple(Variant(self, quant) for quant in self.quants or ())

    @field_validator("id")
    @classmethod
    def _not_reserved(cls, value: str) -> str:
        if value == "default":
            raise ValueError("'default' is what requests call the default model")
        return value

    @field_validator("quants")
    @classmethod
    def _told_apart(cls, value: Mapping[str, object] | None) -> Mapping[str, object] | None:
        names = [name.casefold() for name in value or ()]
        if len({*names}) < len(names):
            raise ValueError("two quants differ in the case of their letters only")
        return value

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.files.control_net is not None and not self.traits.unet:
            raise ValueError(f"the runtime has no ControlNet for the family '{self.family}'")
        if self.defaults.guidance is not None and not self.traits.distilled_guidance:
            raise ValueError(f"the family '{self.family}' has no distilled guidance")
        if self.runtime.preview == "tae" and self.files.tae is None:
            raise ValueError("runtime.preview 'tae' needs files.tae")
        return self

    @model_validator(mode="after")
    def _default_size_fits(self) -> Self:
        problem = self.size_problem(self.default_size)
        if problem:
            raise ValueError(f"the default size {self.default_size} is not allowed: {problem}")
        return self

    @property
    def longest_prompt(self) -> int:
        """Characters of a prompt, and of a negative one."""
        return self.prompt_characters or self.traits.prompt_characters

    def size_near(self, source: Size, max_pixels: int) -> Size:
        """The size for a picture like ``source``: its shape, within what may be drawn.

        Args:
            source: Of the picture.
            max_pixels: Upper bound of width x height, kept as far as the smallest sides allow.
        """
        shrink = min(1.0, self.size.max / max(source))
        scale = max(shrink, self.size.min / min(source))
        near = self._scaled(source, scale, round)
        if near.width * near.height > max_pixels:
            most = math.sqrt(max_pixels / (source.width * source.height))
            near = self._scaled(source, min(scale, most), math.floor)
        return near

    def _scaled(self, source: Size, scale: float, whole: Callable[[float], int]) -> Size:
        multiple = self.traits.multiple
        sides = (whole(side * scale / multiple) * multiple for side in source)
        lowest = -(-self.size.min // multiple) * multiple
        highest = self.size.max // multiple * multiple
        width, height = (min(highest, max(lowest, side)) for side in sides)
        return Size(width, height)

    def size_of_shape(self, width: int, height: int) -> Size:
        """The size of this shape with about as many pixels as the default one.

        A shape that is too far from a square gives a size that ``size_problem`` refuses.
        """
        multiple = self.traits.multiple
        unit = math.sqrt(self.default_size.width * self.default_size.height / (width * height))
        return Size(*(round(side * unit / multiple) * multiple for side in (width, height)))

    @property
    def default_size(self) -> Size:
        """Width and height of a picture whose request names none, in pixels."""
        return self.defaults.size or self.traits.size

    def size_problem(self, size: Size) -> str | None:
        """Why the model cannot draw this size, or None when it can."""
        multiple = self.traits.multiple
        for name, value in (("width", size.width), ("height", size.height)):
            if not self.size.min <= value <= self.size.max:
                return f"{name} must be between {self.size.min} and {self.size.max}, not {value}"
            if value % multiple:
                return f"{name} must be a multiple of {multiple}, not {value}"
        return None


@dataclass(frozen=True)
class Variant:
    """One quant of an entry: what is pulled, served and removed as one model."""

    entry: ModelSpec
    quant: str

    @property
    def name(self) -> str:
        """MODEL:QUANT, the id of the model once it is here."""
        return f"{self.entry.id}:{self.quant}"

    @property
    def gigabytes(self) -> float | None:
        """What a pull of everything fetches, in 10^9 bytes, as far as the catalogue knows."""
        return (self.entry.quants or {})[self.quant]

    @property
    def hub_files(self) -> dict[str, HubFile]:
        """Component -> file, of those that come from the hub."""
        return {
            component: HubFile.parse(location.replace(QUANT, self.quant))
            for component, location in self.entry.files.items()
            if location.startswith(HUB)
        }

    def at(self, paths: Mapping[str, str]) -> ModelSpec:
        """The model that these files, component -> path, make with those that need no pull."""
        files = Files(**{**dict(self.entry.files.items()), **paths})
        return self.entry.model_copy(update={"id": self.name, "files": files, "quants": None})


class _File(_Part):
    default: str | None = None
    models: tuple[ModelSpec, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Catalog:
    """What models.yaml has, and what of it can be drawn with.

    Attributes:
        entries: All of models.yaml, by id.
        models: What can be drawn with, by id: entries of plain files, and the quants of the others
            that are on this machine as MODEL:QUANT. ``parse`` alone knows of none of these.
        default: The model of requests that name none; an id of ``models`` if it is here.
    """

    entries: Mapping[str, ModelSpec]
    models: Mapping[str, ModelSpec]
    default: str
    _lines: Mapping[tuple[str | int, ...], int]
    #: Names of ``models`` in small letters, those of entries among them, to their ids.
    _spellings: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read models.yaml.

        Raises:
            CatalogError: With the line of the key at fault.
        """
        lines, data = _load(text)
        try:
            file = _File.model_validate(data)
        except ValidationError as error:
            raise _with_line(error, lines) from None
        entries: dict[str, ModelSpec] = {}
        for index, spec in enumerate(file.models):
            if _named(spec.id, entries) is not None:
                line = _nearest(lines, ("models", index, "id"))
                raise CatalogError(f"the id '{spec.id}' is there twice", line)
            _check_quants(spec, index, lines)
            entries[spec.id] = spec
        for index, spec in enumerate(file.models):
            name, _, quant = spec.id.rpartition(":")
            entry = _named(name, entries)
            if entry is not None and _quant(entry, quant):
                line = _nearest(lines, ("models", index, "id"))
                raise CatalogError(f"the id '{spec.id}' is that of a quant of '{entry.id}'", line)
        models = {name: spec for name, spec in entries.items() if not spec.quants}
        spellings = {name.casefold(): name for name in models}
        catalog = cls(entries, models, file.default or file.models[0].id, lines, spellings)
        default = catalog.default
        if _named(default, entries) is None and catalog.variant(default) is None:
            message = f"no model has the id '{default}'"
            raise CatalogError(message, _nearest(lines, ("default",)))
        return catalog.led_by(default)

    def on_machine(self, find: Callable[[HubFile], str | None]) -> Self:
        """The same catalogue with the quants that are here.

        Args:
            find: The path of a file of the hub, None when it is not here.
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
        """The same catalogue with another default, which need not be here."""
        return replace(self, default=self._spellings.get(name.casefold(), name))

    def plus(self, spec: ModelSpec) -> Self:
        """The same catalogue with one more entry, of plain files, which is the default."""
        added = {spec.id: spec}
        return replace(
            self,
            entries={**self.entries, **added},
            models={**self.models, **added},
            _spellings={**self._spellings, spec.id.casefold(): spec.id},
            default=spec.id,
        )

    def find(self, name: str | None) -> ModelSpec | None:
        """The model of that name; None and "default" stand for the default one.

        The name of an entry stands for the first of its quants that is here. The case of letters
        does not matter.
        """
        wanted = self.default if name in (None, "", "default") else str(name)
        return self.models.get(self._spellings.get(wanted.casefold(), wanted))

    def variant(self, name: str) -> Variant | None:
        """The quant that MODEL:QUANT names, or the usual one of MODEL; None when there is none."""
        entry = _named(name, self.entries)
        if entry is not None:
            return next(iter(entry.variants), None)
        model, _, quant = name.rpartition(":")
        entry = _named(model, self.entries)
        known = _quant(entry, quant) if entry else None
        return Variant(entry, known) if entry and known else None

    def why_missing(self, name: str | None) -> str:
        """Why ``find`` has nothing for this name, in a sentence with the remedy."""
        wanted = self.default if name in (None, "", "default") else str(name)
        variant = self.variant(wanted)
        if variant is not None:
            size = "" if variant.gigabytes is None else f" ({variant.gigabytes:g} GB)"
            return (
                f"The model '{wanted}' is in the catalogue and not on this machine: "
                f"'sdstream pull {wanted}' fetches it{size}."
            )
        entry = _named(wanted.rpartition(":")[0], self.entries)
        if entry is not None and entry.quants:
            return (
                f"The model '{wanted[:128]}' is not in the catalogue: '{entry.id}' is there as "
                f"{', '.join(entry.quants)}."
            )
        return (
            f"The model '{wanted[:128]}' is not in the catalogue; there are "
            f"{', '.join(self.models)}."
        )

    def why_unknown(self, name: str) -> str:
        """Why neither ``find`` nor ``variant`` has this name, with the entries that are like it."""
        model = name.rpartition(":")[0] or name
        if _named(model, self.entries) is not None:
            return self.why_missing(name)
        ids = {entry.casefold(): entry for entry in self.entries}
        wanted = model.casefold()
        near = [key for key in ids if wanted in key] or get_close_matches(wanted, ids)
        found = ", ".join(ids[key] for key in near)
        what = f"did you mean {found}?" if near else "'sdstream models --all' shows what is."
        return f"The model '{name[:128]}' is not in the catalogue; {what}"

    def line_of(self, entry: str, component: str) -> int:
        """The line of models.yaml that names this file of the entry."""
        return _nearest(self._lines, ("models", [*self.entries].index(entry), "files", component))


def _quant(entry: ModelSpec, name: str) -> str | None:
    """The entry's quant of that name, however its letters are written."""
    return next((q for q in entry.quants or () if q.casefold() == name.casefold()), None)


def _named(name: str, entries: Mapping[str, ModelSpec]) -> ModelSpec | None:
    """The entry of that name, however its letters are written."""
    wanted = name.casefold()
    return next((entry for entry in entries.values() if entry.id.casefold() == wanted), None)


def _check_quants(spec: ModelSpec, index: int, lines: _Lines) -> None:
    """Hub files and quants go together, which no field can know alone."""
    here = ("models", index)
    from_hub = {name: place for name, place in spec.files.items() if place.startswith(HUB)}
    if from_hub and not spec.quants:
        path = (*here, "files", next(iter(from_hub)))
        raise CatalogError(
            "files of the hub need 'quants', which names one at least", _nearest(lines, path)
        )
    if not spec.quants:
        return
    line = _nearest(lines, (*here, "quants"))
    if not from_hub:
        raise CatalogError("'quants' are those of files of the hub, and there are none", line)
    if len(spec.quants) > 1 and not any(QUANT in place for place in from_hub.values()):
        raise CatalogError(f"with several quants {QUANT} must be part of some file", line)


_Lines = dict[tuple[str | int, ...], int]


class _Loader(yaml.SafeLoader):
    """YAML without dates, which nothing in a catalogue is."""


_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in found if not tag.endswith(":timestamp")]
    for letter, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _load(text: str) -> tuple[_Lines, Any]:
    lines: _Lines = {}
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
        raise CatalogError("it is nested too deep", 1) from None


def _index(node: yaml.Node, path: tuple[str | int, ...], lines: _Lines) -> None:
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
                raise CatalogError(f"the key '{key.value}' is there twice", line)
            lines[here] = line
            _index(value, here, lines)


def _nearest(lines: Mapping[tuple[str | int, ...], int], path: tuple[str | int, ...]) -> int:
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


def _with_line(error: ValidationError, lines: _Lines) -> CatalogError:
    first = error.errors()[0]
    path = tuple(first["loc"])
    where = ".".join(str(part) for part in path) or "the file"
    if first["type"] == "extra_forbidden":
        message = f"unknown key '{where}'"
    elif first["type"] == "missing":
        message = f"the key '{where}' is missing"
    else:
        said = _PLAIN_WORDS.get(first["type"]) or first["msg"].removeprefix("Value error, ")
        message = f"{where}: {said}"
    return CatalogError(message, _nearest(lines, path))
