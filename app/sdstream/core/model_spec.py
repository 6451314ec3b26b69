"""One entry of the catalogue: its files, defaults and size bounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Final, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from sdstream.core.catalog_yaml import Part
from sdstream.core.locations import HUBS, QUANT, HubFile, Location
from sdstream.core.model_families import FAMILIES, Family
from sdstream.core.runtime_options import RuntimeOptionError, RuntimeOptions
from sdstream.core.samplers import SAMPLERS, SCHEDULES, refusal
from sdstream.core.similar import did_you_mean, most_similar
from sdstream.core.size import Size
from sdstream.core.validation import (
    PartProblems,
    no_boolean,
    one_of,
    requirement,
    shown,
    written_as,
)

#: The value of ``ModelSpec.device`` for the CPU.
CPU: Final = "cpu"


def _size_of(value: object) -> Size:
    if isinstance(value, Size):
        return value
    if not isinstance(value, str):
        raise ValueError('must be "WIDTHxHEIGHT" in pixels')
    return Size.parse(value)


SizeField = Annotated[Size, BeforeValidator(_size_of)]


class Files(Part):
    """The weights: one file with all components, or one file per component.

    A value has one of these forms:

    - a path; a relative path starts at the folder of models.yaml
    - ``builtin:NAME``
    - ``hf:OWNER/REPO/PATH`` or ``hf:OWNER/REPO@REVISION/PATH``
    - ``ms:OWNER/REPO/PATH`` or ``ms:OWNER/REPO@REVISION/PATH``

    In locations that begin with ``hf:`` or ``ms:``, ``{quant}`` stands for one of the entry's
    quants.
    """

    model: Location | None = None
    diffusion_model: Location | None = None
    clip_l: Location | None = None
    clip_g: Location | None = None
    t5xxl: Location | None = None
    llm: Location | None = None
    llm_vision: Location | None = None
    vae: Location | None = None
    tae: Location | None = None
    control_net: Location | None = None

    @model_validator(mode="after")
    def _something_to_draw_with(self) -> Self:
        if self.model is None and self.diffusion_model is None:
            raise ValueError("files needs 'model' or 'diffusion_model'")
        return self

    @property
    def checkpoint(self) -> str:
        """Location of the file with the diffusion model, which identifies the model elsewhere."""
        return self.model or self.diffusion_model or ""

    def items(self) -> Iterator[tuple[str, str]]:
        """Return (component, location) for each component that has a location."""
        return ((k, v) for k, v in self.__dict__.items() if v is not None)


class Defaults(Part):
    """Default values of options; a value that is missing here comes from the family."""

    size: SizeField | None = None
    steps: int | None = Field(None, ge=1, le=150)
    sampler: Annotated[str, one_of(SAMPLERS, "sampler")] | None = None
    schedule: Annotated[str, one_of(SCHEDULES, "schedule")] | None = None
    cfg_scale: float | None = Field(None, ge=0, le=30, allow_inf_nan=False)
    guidance: float | None = Field(None, ge=0, le=30, allow_inf_nan=False)


#: Pattern of the names of models, aliases and upscalers.
NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$"
Name = Annotated[
    str, written_as(NAME, "at most 128 letters, digits and . _ : / -, the first a letter or digit")
]


class EnlargeRule(Part):
    """The rule for sizes that the model was not trained for: generated images are resized.

    Attributes:
        sizes: Sizes that the model was trained for.
        upscaler: Name of an upscaler: a built-in one, or a file of the upscaler folder.
        max: Maximum width and height of the resized image in pixels.
        max_pixels: Maximum width x height of the resized image.
    """

    sizes: tuple[SizeField, ...] = Field(min_length=1)
    upscaler: Name
    max: int = Field(2048, ge=64, le=8192)
    max_pixels: int = Field(4_194_304, ge=4096)


class SizeRule(Part):
    """Bounds for the width and the height of generated images, in pixels.

    Attributes:
        min, max: Bounds for each side.
        enlarge: Rule for sizes that the model does not generate; None rejects such sizes.
    """

    min: int = Field(64, ge=16)
    max: int = Field(2048, le=8192)
    enlarge: EnlargeRule | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError("size.min is larger than size.max")
        return self


_QuantName = Annotated[
    str,
    written_as(
        r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}",
        "at most 32 letters, digits and . _ -, the first a letter or digit",
    ),
]
_Gigabytes = Annotated[float, BeforeValidator(no_boolean), Field(ge=0, allow_inf_nan=False)]

_MOST_REPLICAS: Final = 1024


def _replicas_of(value: object) -> object:
    if value != "auto" and not (type(value) is int and 1 <= value <= _MOST_REPLICAS):
        raise ValueError(f"must be 'auto' or from 1 to {_MOST_REPLICAS}, not {shown(value)}")
    return value


class ModelSpec(Part):
    """One entry of the catalogue.

    Attributes:
        aliases: Other names that requests may use for the model.
        page: Web page that describes the files.
        license: Licence of the files, as the hub names it.
        gated: The hub requires the token of an account that accepted the licence on ``page``.
        quants: Value of ``{quant}`` in the files -> gigabytes (10^9 bytes) that a pull downloads,
            or None if that is not known. The first quant is the default one.
        replicas: Maximum number of workers of the model that generate at the same time. In a
            cluster "auto" is one for each GPU. On one machine it is one for each core, at most 8,
            if the model computes on the CPU and its files are at most 256 MiB, and otherwise one.
        keep_alive: Seconds that an idle worker keeps the model loaded, at least one. None means the
            server's setting in a cluster; elsewhere the model stays loaded until another one needs
            the memory.
        device: Device on which the model computes: "cpu", or a GPU such as "cuda:1", "rocm:0" or
            "vulkan:0"; None lets the runtime choose.
    """

    id: Name
    aliases: tuple[Name, ...] = ()
    description: str = ""
    family: Annotated[str, one_of(FAMILIES, "family")]
    page: Annotated[str, written_as(r"https?://\S+", "an http or https address")] | None = None
    license: str | None = None
    gated: bool = False
    quants: dict[_QuantName, _Gigabytes | None] | None = Field(None, min_length=1)
    files: Files
    defaults: Defaults = Defaults()
    size: SizeRule = SizeRule()
    prompt_characters: int | None = Field(None, ge=1, le=32_000)
    runtime: RuntimeOptions = RuntimeOptions()
    replicas: Annotated[int | Literal["auto"], BeforeValidator(_replicas_of)] = 1
    keep_alive: float | None = Field(None, ge=0, allow_inf_nan=False)
    device: (
        Annotated[
            str,
            written_as(
                r"cpu|(cuda|rocm|vulkan):\d{1,2}",
                "'cpu', or a GPU such as 'cuda:0', 'rocm:0' or 'vulkan:0'",
            ),
        ]
        | None
    ) = None

    def with_runtime(self, values: Mapping[str, object]) -> Self:
        """Return the model with some runtime options changed.

        Args:
            values: Field of RuntimeOptions -> value, or the value as text. Other fields keep their
                values.

        Raises:
            RuntimeOptionError: A name does not exist, or a value is not valid for the model.
        """
        known = RuntimeOptions.model_fields
        for name in values:
            if name not in known:
                meant = did_you_mean(most_similar(name, known))
                message = (
                    f"unknown runtime option '{name[:64]}'; available: {', '.join(known)}.{meant}"
                )
                raise RuntimeOptionError(message, name)
        try:
            runtime = {**dict(self.runtime), **values}
            return type(self).model_validate({**dict(self), "runtime": runtime})
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = str(first["loc"][-1]) if first["loc"] else ""
            why = f"{name}: {requirement(first)}".removeprefix(": ")
            raise RuntimeOptionError(why if why.endswith("?") else f"{why}.", name) from None

    @property
    def traits(self) -> Family:
        """Properties of the model's architecture."""
        return FAMILIES[self.family]

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The quants that can be pulled, the default one first; empty without hub files."""
        return tuple(Variant(self, quant) for quant in self.quants or ())

    @field_validator("id")
    @classmethod
    def _not_reserved(cls, value: str) -> str:
        if value == "default":
            raise ValueError("'default' is reserved for the default model")
        return value

    @field_validator("quants")
    @classmethod
    def _told_apart(cls, value: Mapping[str, object] | None) -> Mapping[str, object] | None:
        names = [name.casefold() for name in value or ()]
        if len({*names}) < len(names):
            raise ValueError("two quants differ only in case")
        return value

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        problems = dict(self._problems())
        if problems:
            raise PartProblems(problems)
        return self

    def _problems(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """Yield (path of a key, problem) for values that do not fit to other values."""
        if self.files.control_net is not None and not self.traits.unet:
            yield (
                ("files", "control_net"),
                f"the runtime does not support ControlNet for the family '{self.family}'",
            )
        if self.defaults.guidance is not None and not self.traits.distilled_guidance:
            yield (
                ("defaults", "guidance"),
                f"the family '{self.family}' has no distilled guidance",
            )
        schedule, steps = self.defaults.schedule, self.defaults.steps or self.traits.steps
        if schedule and (why := refusal(schedule=schedule, steps=steps, flow=self.traits.flow)):
            yield ("defaults", "schedule"), why.removesuffix(".")
        for option, wrong in (*self._missing_files(), *self.runtime.problems(self.family)):
            yield ("runtime", option), wrong
        if problem := self.size_problem(self.default_size):
            path = ("defaults", "size") if self.defaults.size else ("size",)
            yield path, f"the default size {self.default_size} is not allowed: {problem}"
        for size in self.size.enlarge.sizes if self.size.enlarge else ():
            if problem := self.size_problem(size):
                yield ("size", "enlarge", "sizes"), f"the size {size} is not allowed: {problem}"

    def _missing_files(self) -> Iterator[tuple[str, str]]:
        """Yield (runtime option, problem) for options about a file that the model does not have."""
        if self.runtime.preview == "tae" and self.files.tae is None:
            yield "preview", "'tae' needs files.tae"
        if self.runtime.control_net_on_cpu and self.files.control_net is None:
            yield "control_net_on_cpu", "it needs files.control_net"
        if self.runtime.sdxl_vae_scale and self.family == "sdxl" and self.files.vae is None:
            yield (
                "sdxl_vae_scale",
                "it needs files.vae: the runtime always scales the VAE of a whole checkpoint",
            )

    def generates(self, size: Size) -> bool:
        """Return whether the model generates a size without resizing."""
        if self.size.enlarge is not None:
            return size in self.size.enlarge.sizes
        return self.size_problem(size) is None

    @property
    def longest_prompt(self) -> int:
        """Maximum length of a prompt, and of a negative prompt, in characters."""
        return self.prompt_characters or self.traits.prompt_characters

    def size_near(self, source: Size, max_pixels: int) -> Size:
        """Return a size with the shape of ``source`` that is within the model's bounds.

        Args:
            source: Size of an image.
            max_pixels: Upper bound of width x height. The result exceeds it only if the model's
                minimum sides require that.
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
        """Return the size of this shape with about as many pixels as the default size.

        If the shape is too far from a square, a side is 0 or ``size_problem`` rejects the result.
        """
        multiple = self.traits.multiple
        unit = math.sqrt(self.default_size.width * self.default_size.height / (width * height))
        return Size(*(round(side * unit / multiple) * multiple for side in (width, height)))

    def reference_size(self, source: Size) -> Size:
        """Return the size to which a reference image is resized for the model.

        The result has the shape of the image, and about as many pixels as the default size.

        Args:
            source: Size of the image that the client sent.
        """
        multiple, most = self.traits.multiple, self.size.max // self.traits.multiple
        area = self.default_size.width * self.default_size.height
        scale = math.sqrt(area / (source.width * source.height)) / multiple
        return Size(*(min(most, max(1, round(side * scale))) * multiple for side in source))

    @property
    def default_size(self) -> Size:
        """Width and height in pixels if a request does not name a size."""
        return self.defaults.size or self.traits.size

    def size_over(self, size: Size) -> Size:
        """Return ``size`` with each side rounded up to the model's minimum and multiple.

        The result may exceed the model's maximum.
        """
        multiple = self.traits.multiple
        sides = (max(side, self.size.min) for side in size)
        return Size(*(-(-side // multiple) * multiple for side in sides))

    def size_problem(self, size: Size) -> str | None:
        """Return why the model cannot generate this size; None if it can."""
        multiple = self.traits.multiple
        for name, value in (("width", size.width), ("height", size.height)):
            if not self.size.min <= value <= self.size.max:
                return f"{name} must be between {self.size.min} and {self.size.max}, not {value}"
            if value % multiple:
                return f"{name} must be a multiple of {multiple}, not {value}"
        return None


@dataclass(frozen=True)
class Variant:
    """One quant of an entry; it is pulled, served and removed as one model."""

    entry: ModelSpec
    quant: str

    @property
    def name(self) -> str:
        """MODEL:QUANT, the id of the downloaded model."""
        return f"{self.entry.id}:{self.quant}"

    @property
    def gigabytes(self) -> float | None:
        """Size of a complete download in 10^9 bytes; None if the catalogue does not contain it."""
        return (self.entry.quants or {})[self.quant]

    @property
    def hub_files(self) -> dict[str, HubFile]:
        """The files to download from a hub: component -> file."""
        return {
            component: HubFile.parse(location.replace(QUANT, self.quant))
            for component, location in self.entry.files.items()
            if location.startswith(HUBS)
        }

    def at(self, paths: Mapping[str, str]) -> ModelSpec:
        """Return the model with downloaded files.

        Args:
            paths: Component -> path of its downloaded file. Other components keep their locations.
        """
        files = Files(**{**dict(self.entry.files.items()), **paths})
        return self.entry.model_copy(update={"id": self.name, "files": files, "quants": None})
