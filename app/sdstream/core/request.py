"""What was asked (Draft) and what will be drawn (GenerationRequest); between them is core/resolve.

A Draft is dialect-neutral and all of it is optional but the prompt. A GenerationRequest has every
default, size and seed concrete.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from sdstream.core.catalog import Size
from sdstream.core.samplers import (
    CACHE_MODES,
    HIRES_UPSCALERS,
    SAMPLERS,
    SCHEDULES,
)

MAX_IMAGES: Final = 10
MAX_STEPS: Final = 150
MAX_PROMPT_CHARACTERS: Final = 32_000
#: As ``previews``: a picture after each step.
EVERY_STEP: Final = -1
#: Seeds are the runtime's int64; image i of n takes seed + i, which must fit too.
MAX_SEED: Final = 2**63 - 1 - MAX_IMAGES

Quality = Literal["standard", "hd", "low", "medium", "high", "auto"]
OutputFormat = Literal["png", "jpeg", "webp"]
MaskMode = Literal["auto", "alpha", "luminance", "opacity"]
Fit = Literal["crop", "stretch", "pad"]
Safety = Literal["off", "refuse", "blank"]

#: Fields of a Draft that are true or false.
_SWITCHES: Final = (
    "safety_check", "blank_flagged", "vae_tiling", "control_canny", "only_upscale",
)  # fmt: skip

#: A LoRA in the prompt, as AUTOMATIC1111 has it.
LORA_WORD: Final = re.compile(r"<lora:([^:<>]{1,128})(?::([^:<>]*))?>")

MAX_LORA_SCALE: Final = 10.0

#: Longest side that a format has a number for, in pixels.
LONGEST_SIDES: Final[Mapping[OutputFormat, int]] = {
    "png": 2**31 - 1,
    "jpeg": 65_500,
    "webp": 16_383,
}


def _plain_text(value: str) -> str:
    # NUL ends a C string and a lone surrogate has no UTF-8 form: the runtime would see another
    # prompt than the client sent.
    if "\0" in value:
        raise ValueError("must not contain a NUL character")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError("must not contain unpaired surrogates")
    return value


def no_boolean(value: Any) -> Any:
    """The value; a boolean, which Python takes for a number, is refused."""
    if isinstance(value, bool):
        raise ValueError("must not be a boolean")
    return value


class LoraChoice(BaseModel):
    """One LoRA of the operator's folder."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    id: str = Field(max_length=128, description="Name of the file without its ending.")
    scale: float = Field(
        1.0,
        ge=-MAX_LORA_SCALE,
        le=MAX_LORA_SCALE,
        description="How strong; negative is the opposite.",
    )


class Draft(BaseModel):
    """The options of one request as the client gave them, in canonical spelling.

    Pixels for sizes, 0..100 percent for ``output_compression``; None always means "not given".
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    prompt: str = Field(max_length=MAX_PROMPT_CHARACTERS, description="What to draw.")
    negative_prompt: str | None = Field(
        None, max_length=MAX_PROMPT_CHARACTERS, description="What to keep out; needs cfg_scale > 1."
    )
    model: str | None = Field(None, description='A model id; "default" or none is the default.')
    n: int | None = Field(None, ge=1, le=MAX_IMAGES, description="Images; image i has seed + i.")
    size: str | None = Field(None, description='"WIDTHxHEIGHT" in pixels, or "auto".')
    width: int | None = Field(None, ge=1, description="Pixels; with height, in place of size.")
    height: int | None = Field(None, ge=1, description="Pixels; with width, in place of size.")
    aspect_ratio: str | None = Field(
        None, description='Shape like "16:9", in place of size: about as many pixels as usual.'
    )
    seed: int | None = Field(None, ge=-1, le=MAX_SEED, description="-1 or none is random.")
    sample_steps: int | None = Field(None, ge=1, le=MAX_STEPS, description="Sampling steps.")
    sampler: str | None = Field(None, description="One of: " + ", ".join(SAMPLERS) + ".")
    schedule: str | None = Field(None, description="One of: " + ", ".join(SCHEDULES) + ".")
    cfg_scale: float | None = Field(None, ge=0, le=30, description="Classifier-free guidance.")
    guidance: float | None = Field(None, ge=0, le=30, description="Distilled guidance (FLUX-dev).")
    quality: Quality | None = Field(
        None, description="Steps when none are given: low 0.5x, high and hd 1.5x the model's own."
    )
    output_format: OutputFormat | None = Field(None, description="The image file's format.")
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = Field(
        None, description="Quality of JPEG and WebP in percent."
    )
    strength: float | None = Field(
        None, ge=0, le=1, description="How far from the input image: 0 keeps it, 1 ignores it."
    )
    fit: Fit | None = Field(
        None, description="How an input image of another shape becomes size: crop, stretch or pad."
    )
    mask_mode: MaskMode | None = Field(
        None,
        description="What is painted: where alpha is 0, where the mask is white, or (auto) alpha "
        "if the mask has any; opacity is the reverse of alpha, and luminance if it has none.",
    )
    mask_blur: float | None = Field(
        None, ge=0, le=64, description="Pixels over which the mask's edge fades."
    )
    lora: tuple[LoraChoice, ...] | None = Field(
        None, max_length=8, description="LoRAs of GET /v1/loras: [{id, scale}]."
    )
    eta: float | None = Field(
        None, ge=0, le=1, description="Noise added between steps, for samplers that add any."
    )
    clip_skip: int | None = Field(
        None, ge=1, le=12, description="Layers of CLIP to leave out at its end, from 1 for none."
    )
    flow_shift: float | None = Field(
        None, gt=0, le=100, description="Shift of the noise levels of flow models."
    )
    sigmas: tuple[Annotated[float, Field(ge=0, le=1000)], ...] | None = Field(
        None,
        min_length=2,
        max_length=MAX_STEPS + 1,
        description="Noise levels, falling to 0, in place of steps and schedule.",
    )
    slg_scale: float | None = Field(
        None, ge=0, le=30, description="Skip-layer guidance: away from what fewer layers draw."
    )
    slg_start: float | None = Field(None, ge=0, le=1, description="Share of the steps before it.")
    slg_end: float | None = Field(None, ge=0, le=1, description="Share of the steps at its end.")
    slg_layers: tuple[Annotated[int, Field(ge=0, le=999)], ...] | None = Field(
        None, min_length=1, max_length=64, description="Layers that it leaves out: 7, 8 and 9."
    )
    cache_mode: str | None = Field(
        None, description="Leaves out work between similar steps: " + ", ".join(CACHE_MODES) + "."
    )
    cache_threshold: float | None = Field(
        None, gt=0, le=10, description="How alike steps must be; more is quicker and coarser."
    )
    cache_start: float | None = Field(None, ge=0, le=1, description="Share of steps before it.")
    cache_end: float | None = Field(None, ge=0, le=1, description="Share of steps at its end.")
    cache_options: dict[str, float] | None = Field(
        None, max_length=16, description='Other numbers of the cache mode: {"warmup": 4}.'
    )
    vae_tiling: bool | None = Field(None, description="Decode in tiles: less memory, slower.")
    hires_scale: float | None = Field(
        None, gt=1, le=4, description="Draw small first, then enlarge by this and draw again."
    )
    hires_steps: int | None = Field(
        None, ge=1, le=MAX_STEPS, description="Steps of the second pass; as many as the first."
    )
    hires_strength: float | None = Field(
        None, ge=0, le=1, description="How far the second pass may go: 0.7."
    )
    hires_upscaler: str | None = Field(
        None, description="What enlarges: " + ", ".join(HIRES_UPSCALERS) + "."
    )
    upscaler: str | None = Field(
        None, description="Enlarges the finished image: one of GET /v1/upscalers."
    )
    upscale: float | None = Field(
        None, ge=1, le=8, description="How many times; as much as the upscaler does by itself."
    )
    control_strength: float | None = Field(
        None, ge=0, le=2, description="How strictly the control picture is followed: 0.9."
    )
    control_canny: bool | None = Field(
        None, description="Make the control picture of the edges of the one that was sent."
    )
    safety_check: bool = Field(
        False, description="Have each image checked; refused where no checker is configured."
    )
    previews: int = Field(0, exclude=True)
    #: Flagged images are answered as blank ones (Fireworks) instead of failing the job.
    blank_flagged: bool = Field(False, exclude=True)
    #: Nothing is drawn: the input image is enlarged.
    only_upscale: bool = Field(False, exclude=True)
    #: canonical name -> the client's spelling, for error messages
    spelling: dict[str, str] = Field(default_factory=dict, exclude=True, repr=False)

    @field_validator("prompt", "negative_prompt")
    @classmethod
    def _text(cls, value: str | None) -> str | None:
        return value if value is None else _plain_text(value)

    @field_validator("lora", mode="before")
    @classmethod
    def _json_in_a_form(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError("must be a list of objects with id and scale") from None

    @field_validator("cache_options", mode="before")
    @classmethod
    def _pairs_in_a_form(cls, value: Any) -> Any:
        """``warmup=4,Fn=2``, as the runtime's own program has it, or JSON."""
        if not isinstance(value, str):
            return value
        try:
            if value.lstrip().startswith("{"):
                return json.loads(value)
            return dict(pair.strip().split("=", 1) for pair in value.split(","))
        except (ValueError, RecursionError):
            raise ValueError("must be an object of numbers, or name=number,…") from None

    @field_validator("sigmas", "slg_layers", mode="before")
    @classmethod
    def _list_in_a_form(cls, value: Any) -> Any:
        return value.split(",") if isinstance(value, str) else value

    @field_validator("*", mode="before")
    @classmethod
    def _no_numbers_from_booleans(cls, value: Any, info: Any) -> Any:
        return value if info.field_name in _SWITCHES else no_boolean(value)

    def spelled(self, name: str) -> str:
        """How the client wrote this option."""
        return self.spelling.get(name, name)


@dataclass(frozen=True, slots=True)
class SkipLayers:
    """Skip-layer guidance.

    Attributes:
        scale: How strong.
        layers: Blocks of the transformer that are left out.
        start, end: Shares of the steps between which it acts.
    """

    scale: float
    layers: tuple[int, ...]
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Caching:
    """Leaving out work between similar steps.

    Attributes:
        mode: A name of samplers.CACHE_MODES.
        threshold: How alike the steps must be; None is the runtime's own.
        start, end: Shares of the steps between which it acts; None is the runtime's own.
        options: Other names of samplers.CACHE_KNOBS with their values.
    """

    mode: str
    threshold: float | None
    start: float | None
    end: float | None
    options: tuple[tuple[str, float], ...] = ()

    @property
    def knobs(self) -> dict[str, float]:
        """All numbers that were given, by their names in samplers.CACHE_KNOBS."""
        given = {"threshold": self.threshold, "start": self.start, "end": self.end}
        return {n: v for n, v in {**given, **dict(self.options)}.items() if v is not None}


@dataclass(frozen=True, slots=True)
class Hires:
    """A second pass over the enlarged picture.

    Attributes:
        width, height: Pixels of the second pass.
        steps: Of the second pass.
        strength: How far it may go from the first.
        upscaler: A name of samplers.HIRES_UPSCALERS.
    """

    width: int
    height: int
    steps: int
    strength: float
    upscaler: str

    @property
    def size(self) -> Size:
        """Width and height in pixels."""
        return Size(self.width, self.height)


@dataclass(frozen=True, slots=True)
class Upscale:
    """Enlarging the finished image.

    Attributes:
        upscaler: Its name in the operator's folder.
        width, height: Pixels of the result.
    """

    upscaler: str
    width: int
    height: int

    @property
    def size(self) -> Size:
        """Width and height in pixels."""
        return Size(self.width, self.height)


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One job for the runtime, every value concrete.

    Attributes:
        model: Id in the catalogue.
        prompt, negative_prompt: Unicode without NUL.
        width, height: Pixels.
        steps: Sampling steps of one image; 0 when an input image is only enlarged.
        sampler, schedule: Names of core.samplers.
        cfg_scale: Classifier-free guidance; 1 leaves the negative prompt out.
        guidance: Distilled guidance, None where the family has none.
        seed: Of the first image; image i has seed + i.
        n: Images.
        previews: Pictures of the state between, spread over the steps; EVERY_STEP for all.
        strength: Share of the steps that an input image goes through; None without one.
        fit: How input images become width x height.
        mask_mode: How the mask is read.
        mask_blur: Pixels over which the mask's edge fades.
        safety: What happens to images that the safety checker flags; off asks none.
        quality: As the client gave it, for the answer.
        output_format: File format of the images.
        output_compression: Percent of quality for JPEG and WebP.
        warnings: Sentences on options that cannot act as given.
        eta: Noise between the steps; None is the sampler's own.
        clip_skip: Layers of CLIP left out, from 1; None is the model's own.
        flow_shift: Of the noise levels; None is the model's own.
        sigmas: The noise levels themselves, one more than steps; empty leaves them to schedule.
        slg: Skip-layer guidance, None for none.
        cache: What is left out between similar steps, None for nothing.
        vae_tiling: Decode in tiles; None is the model's own.
        hires: A second pass at a larger size, None for none.
        loras: (id, scale) of each LoRA.
        upscale: Enlarging of the finished image, None for none.
        control_strength: How strictly a control picture is followed; None without one.
        control_canny: The control picture is made of the edges of the one that came.
    """

    model: str
    prompt: str
    negative_prompt: str
    width: int
    height: int
    steps: int
    sampler: str
    schedule: str
    cfg_scale: float
    guidance: float | None
    seed: int
    n: int
    previews: int = 0
    strength: float | None = None
    fit: Fit = "crop"
    mask_mode: MaskMode = "auto"
    mask_blur: float = 0.0
    safety: Safety = "off"
    quality: str = "auto"
    output_format: OutputFormat = "png"
    output_compression: int = 100
    warnings: tuple[str, ...] = ()
    eta: float | None = None
    clip_skip: int | None = None
    flow_shift: float | None = None
    sigmas: tuple[float, ...] = ()
    slg: SkipLayers | None = None
    cache: Caching | None = None
    vae_tiling: bool | None = None
    hires: Hires | None = None
    loras: tuple[tuple[str, float], ...] = ()
    upscale: Upscale | None = None
    control_strength: float | None = None
    control_canny: bool = False

    @property
    def size(self) -> Size:
        """Width and height in pixels."""
        return Size(self.width, self.height)

    @property
    def draws(self) -> bool:
        """False when an input image is only enlarged."""
        return self.steps > 0

    @property
    def output_size(self) -> Size:
        """Width and height of the finished images: larger than ``size`` after enlarging."""
        enlarged = self.upscale or self.hires
        return enlarged.size if enlarged is not None else self.size


@dataclass(frozen=True, slots=True)
class Sources:
    """What is known of the input pictures before they are fitted.

    Attributes:
        size: Of the first one, None without any.
        drawn_over: The first one is drawn over, not only looked at.
        masked: A mask came with it.
        references: Pictures that are looked at.
        control: A control picture came.
    """

    size: Size | None = None
    drawn_over: bool = False
    masked: bool = False
    references: int = 0
    control: bool = False


@dataclass(frozen=True, slots=True)
class Extras:
    """What the operator's folders add to the models.

    Attributes:
        loras: Names.
        lora_in_prompt: ``<lora:name:scale>`` in a prompt counts.
        upscalers: Name -> how many times it enlarges.
    """

    loras: Collection[str] = ()
    lora_in_prompt: bool = False
    upscalers: Mapping[str, int] = field(default_factory=dict)


NO_SOURCES: Final = Sources()
NO_EXTRAS: Final = Extras()


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper bounds of width x height.

    Attributes:
        drawn: Of what the model draws.
        enlarged: Of what an upscaler makes of it.
    """

    drawn: int = 4_194_304
    enlarged: int = 16_777_216
