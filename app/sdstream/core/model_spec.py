"""One entry of the catalogue: its files, defaults, size bounds and runtime options."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Final, Literal, Self

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

from sdstream.core.locations import HUBS, QUANT, HubFile, Location
from sdstream.core.model_families import FAMILIES, Family
from sdstream.core.samplers import SAMPLERS, SCHEDULES
from sdstream.core.similar import did_you_mean, most_similar
from sdstream.core.size import Size
from sdstream.core.validation import requirement

#: The value of ``ModelSpec.device`` for the CPU.
CPU: Final = "cpu"

#: CPU kernels of a worker: the fastest, those that compute in f32, or only the runtime's own.
Kernels = Literal["auto", "exact", "off"]
KERNELS_OFF: Final = "off"

WTYPES: Final = (
    "f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0",
    "q2_K", "q3_K", "q4_K", "q5_K", "q6_K",
)  # fmt: skip


def _one_of(names: Mapping[str, object] | tuple[str, ...], what: str) -> AfterValidator:
    def check(value: str) -> str:
        if value not in names:
            raise ValueError(f"unknown {what} '{value}'; available: {', '.join(names)}")
        return value

    return AfterValidator(check)


def _size_of(value: object) -> Size:
    if isinstance(value, Size):
        return value
    if not isinstance(value, str):
        raise ValueError('must be "WIDTHxHEIGHT" in pixels')
    return Size.parse(value)


SizeField = Annotated[Size, BeforeValidator(_size_of)]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


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
    sampler: Annotated[str, _one_of(SAMPLERS, "sampler")] | None = None
    schedule: Annotated[str, _one_of(SCHEDULES, "schedule")] | None = None
    cfg_scale: float | None = Field(None, ge=0, le=30, allow_inf_nan=False)
    guidance: float | None = Field(None, ge=0, le=30, allow_inf_nan=False)


#: Pattern of the names of models, aliases and upscalers.
NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$"


class EnlargeRule(Part):
    """The rule for sizes that the model was not trained for: generated images are resized.

    Attributes:
        sizes: Sizes that the model was trained for.
        upscaler: Name of an upscaler: a built-in one, or a file of the upscaler folder.
        max: Maximum width and height of the resized image in pixels.
        max_pixels: Maximum width x height of the resized image.
    """

    sizes: tuple[SizeField, ...] = Field(min_length=1)
    upscaler: str = Field(pattern=NAME)
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


#: Families that support the options of Chroma.
_CHROMA: Final = ("chroma", "chroma_radiance")


class RuntimeOptions(Part):
    """How the native library runs the model.

    Attributes:
        threads: Number of CPU threads; 0 means one for each core that this process may use.
        flash_attn: Use flash attention. It is faster on GPUs and with the CPU kernels, and 1.8-2x
            slower with the runtime's own kernels on the CPU. None turns it on for the diffusion
            model if the kernels "auto" are in use.
        conv_direct: Use direct convolutions, which need less memory. With the CPU kernels they are
            always on.
        offload: Keep the weights in main memory and move them to the GPU as needed.
        wtype: Convert the weights to this type while loading.
        tae: Decode with the tiny autoencoder that the model file contains.
        vae_tiling: Decode in tiles, which needs less memory and is slower.
        preview: How the runtime makes previews between the steps. "projection" projects the latent,
            which costs almost nothing but works for published autoencoders only. "tae" uses the
            tiny autoencoder in ``files.tae``, and the VAE still decodes the result. "decode" uses
            the same decoder as for the result.
        zero_cond_t: Use timestep 0 for the tokens of reference images, as Qwen-Image-Edit 2511 was
            trained.
        circular: Axes along which opposite edges of an image match, so that copies of it tile.
        kernels: CPU kernels. "auto" is the fastest (products in bf16 and 8 bits if the CPU has fast
            instructions for them), "exact" computes in f32, and "off" uses only the runtime's own.
            None means the server's setting.
        diffusion_flash_attn: Use flash attention in the diffusion model; None means the value of
            ``flash_attn``.
        clip_on_cpu, vae_on_cpu, control_net_on_cpu: Compute this part on the CPU even if there is
            a GPU.
        max_vram: Gigabytes (2^30 bytes) of GPU memory for one computation; the runtime splits a
            larger one into parts. 0 means no limit.
        lora_mode: "immediately" merges LoRAs into the weights, which makes each step faster.
            "at_runtime" applies them beside the weights, which quantised weights require. "auto"
            chooses by the type of the weights.
        prediction: What a U-Net was trained to predict: noise, velocity, or velocity as in EDM;
            None detects it from the weights.
        rng: Generator of the initial noise: CUDA's, as in AUTOMATIC1111 on a GPU, or the CPU's, as
            in diffusers and ComfyUI.
        sdxl_vae_scale: Scale the convolutions of SDXL's VAE, whose original weights overflow in
            f16.
        chroma_dit_mask, chroma_t5_mask: Mask the padding in Chroma's diffusion model and in its
            text encoder; None means the value that Chroma was trained with.
        chroma_t5_mask_pad: Number of padding tokens that are not masked.
    """

    threads: int = Field(0, ge=0, le=1024)
    flash_attn: bool | None = None
    conv_direct: bool = False
    offload: bool = False
    wtype: Annotated[str, _one_of(WTYPES, "wtype")] | None = None
    tae: bool = False
    vae_tiling: bool = False
    preview: Literal["projection", "tae", "decode"] = "projection"
    zero_cond_t: bool = False
    circular: Literal["none", "x", "y", "both"] = "none"
    kernels: Kernels | None = None
    diffusion_flash_attn: bool | None = None
    clip_on_cpu: bool = False
    vae_on_cpu: bool = False
    control_net_on_cpu: bool = False
    max_vram: float = Field(0.0, ge=0, le=4096, allow_inf_nan=False)
    lora_mode: Literal["auto", "immediately", "at_runtime"] = "auto"
    prediction: Literal["eps", "v", "edm_v"] | None = None
    rng: Literal["cuda", "cpu"] = "cuda"
    sdxl_vae_scale: bool = False
    chroma_dit_mask: bool | None = None
    chroma_t5_mask: bool | None = None
    chroma_t5_mask_pad: int | None = Field(None, ge=0, le=512)

    def problem(self, family: str) -> tuple[str, str] | None:
        """Return the first option that a family ignores, and why; None if it ignores no option."""
        unet = FAMILIES[family].unet
        checks = (
            ("prediction", self.prediction is None or unet, "is for models with a U-Net"),
            ("sdxl_vae_scale", not self.sdxl_vae_scale or family == "sdxl", "is for SDXL"),
            *(
                (name, getattr(self, name) is None or family in _CHROMA, "is for Chroma")
                for name in ("chroma_dit_mask", "chroma_t5_mask", "chroma_t5_mask_pad")
            ),
        )
        return next(((name, why) for name, fits, why in checks if not fits), None)


class RuntimeOptionError(ValueError):
    """A runtime option is unknown, or the model cannot run with its value.

    Attributes:
        name: Name of the option; empty if the error is about several options.
    """

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.name = name


_QuantName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,31}$")]


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

    id: str = Field(pattern=NAME)
    aliases: tuple[Annotated[str, Field(pattern=NAME)], ...] = ()
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
    replicas: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = 1
    keep_alive: float | None = Field(None, ge=0, allow_inf_nan=False)
    device: str | None = Field(None, pattern=r"^(cpu|(cuda|rocm|vulkan):\d{1,2})$")

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
            raise RuntimeOptionError(
                f"{name}: {requirement(first)}.".removeprefix(": "), name
            ) from None

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
        if self.files.control_net is not None and not self.traits.unet:
            raise ValueError(
                f"the runtime does not support ControlNet for the family '{self.family}'"
            )
        if self.defaults.guidance is not None and not self.traits.distilled_guidance:
            raise ValueError(f"the family '{self.family}' has no distilled guidance")
        if self.runtime.preview == "tae" and self.files.tae is None:
            raise ValueError("runtime.preview 'tae' needs files.tae")
        if problem := self.runtime.problem(self.family):
            option, why = problem
            raise ValueError(f"runtime.{option} {why}, not for the family '{self.family}'")
        return self

    @model_validator(mode="after")
    def _default_size_fits(self) -> Self:
        known = self.size.enlarge.sizes if self.size.enlarge else ()
        for what, size in (("default size", self.default_size), *(("size", s) for s in known)):
            problem = self.size_problem(size)
            if problem:
                raise ValueError(f"the {what} {size} is not allowed: {problem}")
        return self

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

        If the shape is too far from a square, ``size_problem`` rejects the result.
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
