"""What was asked (Draft), what will be drawn (GenerationRequest), and the step between: resolve.

A Draft is dialect-neutral and all of it is optional but the prompt. A GenerationRequest has every
default, size and seed concrete; nothing past ``resolve`` checks values again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

from app.core.catalog import Catalog, ModelSpec, Size
from app.core.errors import InvalidRequest, NotFound, Reason
from app.core.samplers import (
    CACHE_MODES,
    DEFAULT_SCHEDULE,
    HIRES_UPSCALERS,
    NOISY_SAMPLERS,
    SAMPLERS,
    SCHEDULES,
    refusal,
)
from app.core.samplers import sampler_named as _sampler_named
from app.core.samplers import schedule_named as _schedule_named

MAX_IMAGES: Final = 10
MAX_STEPS: Final = 150
MAX_PROMPT_CHARACTERS: Final = 32_000
#: As ``previews``: a picture after each step.
EVERY_STEP: Final = -1
#: Seeds are the runtime's int64; image i of n takes seed + i, which must fit too.
MAX_SEED: Final = 2**63 - 1 - MAX_IMAGES

T = TypeVar("T")

Quality = Literal["standard", "hd", "low", "medium", "high", "auto"]
OutputFormat = Literal["png", "jpeg", "webp"]
MaskMode = Literal["auto", "alpha", "luminance", "opacity"]
Fit = Literal["crop", "stretch", "pad"]
Safety = Literal["off", "refuse", "blank"]

#: Fields of a Draft that are true or false.
_SWITCHES: Final = ("safety_check", "blank_flagged", "vae_tiling")

#: Neither side is 0.
_RATIO: Final = re.compile(r"\s*([1-9]\d{0,3})\s*:\s*([1-9]\d{0,3})\s*")

#: Options that say how another one is to be done.
_FOLLOWERS: Final = {
    "slg_scale": ("slg_start", "slg_end", "slg_layers"),
    "cache_mode": ("cache_threshold", "cache_start", "cache_end"),
    "hires_scale": ("hires_steps", "hires_strength", "hires_upscaler"),
}

_STEP_FACTORS: Final[Mapping[Quality, float]] = {"low": 0.5, "high": 1.5, "hd": 1.5}


def _plain_text(value: str) -> str:
    # NUL ends a C string and a lone surrogate has no UTF-8 form: the runtime would see another
    # prompt than the client sent.
    if "\0" in value:
        raise ValueError("must not contain a NUL character")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError("must not contain unpaired surrogates")
    return value


class LoraChoice(BaseModel):
    """One LoRA of the operator's folder."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    id: str = Field(max_length=128, description="Name of the file without its ending.")
    scale: float = Field(1.0, ge=-10, le=10, description="How strong; negative is the opposite.")


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
    safety_check: bool = Field(
        False, description="Have each image checked; refused where no checker is configured."
    )
    previews: int = Field(0, exclude=True)
    #: Flagged images are answered as blank ones (Fireworks) instead of failing the job.
    blank_flagged: bool = Field(False, exclude=True)
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

    @field_validator("sigmas", "slg_layers", mode="before")
    @classmethod
    def _list_in_a_form(cls, value: Any) -> Any:
        return value.split(",") if isinstance(value, str) else value

    @field_validator("*", mode="before")
    @classmethod
    def _no_numbers_from_booleans(cls, value: Any, info: Any) -> Any:
        if isinstance(value, bool) and info.field_name not in _SWITCHES:
            raise ValueError("must not be a boolean")
        return value

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
    """

    mode: str
    threshold: float | None
    start: float | None
    end: float | None


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
class GenerationRequest:
    """One job for the runtime, every value concrete.

    Attributes:
        model: Id in the catalogue.
        prompt, negative_prompt: Unicode without NUL.
        width, height: Pixels.
        steps: Sampling steps of one image.
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

    @property
    def size(self) -> Size:
        """Width and height in pixels."""
        return Size(self.width, self.height)

    @property
    def output_size(self) -> Size:
        """Width and height of the finished images: larger than ``size`` after a hires fix."""
        return self.hires.size if self.hires is not None else self.size


@dataclass(frozen=True, slots=True)
class Sources:
    """What is known of the input pictures before they are fitted.

    Attributes:
        size: Of the first one, None without any.
        drawn_over: The first one is drawn over, not only looked at.
        masked: A mask came with it.
        references: Pictures that are looked at.
    """

    size: Size | None = None
    drawn_over: bool = False
    masked: bool = False
    references: int = 0


def model_of(draft: Draft, catalog: Catalog) -> ModelSpec:
    """The model that a draft names; raises NotFound."""
    spec = catalog.find(draft.model)
    if spec is None:
        raise NotFound(
            catalog.why_missing(draft.model),
            reason=Reason.MODEL_NOT_FOUND,
            param=draft.spelled("model"),
        )
    return spec


def resolve(
    draft: Draft,
    catalog: Catalog,
    *,
    random_seed: Callable[[], int],
    max_pixels: int,
    has_checker: bool = False,
    sources: Sources = Sources(),
    loras: Collection[str] = (),
) -> GenerationRequest:
    """Make every default, size and seed concrete.

    Args:
        draft: What was asked.
        catalog: The models there are.
        random_seed: Draws a seed of 0..MAX_SEED for requests without one.
        max_pixels: Upper bound of width x height.
        has_checker: A safety checker is configured.
        sources: What is known of the input pictures.
        loras: Names of the LoRAs there are.

    Raises:
        NotFound: The model is not in the catalogue.
        InvalidRequest: A value that this model cannot take; names the client's field.
    """
    spec = model_of(draft, catalog)
    _check_prompts(draft, spec)
    _check_sources(draft, spec, sources)
    size = _size(draft, spec, max_pixels, sources.size)
    steps = _steps(draft, spec)
    sampler, schedule = _sampling(draft, spec, steps)
    check_powers(draft, spec, sampler)
    cfg_scale = _first(draft.cfg_scale, spec.defaults.cfg_scale, spec.traits.cfg_scale)
    return GenerationRequest(
        model=spec.id,
        prompt=draft.prompt,
        negative_prompt=draft.negative_prompt or "",
        width=size.width,
        height=size.height,
        steps=steps,
        sampler=sampler,
        schedule=schedule,
        cfg_scale=cfg_scale,
        guidance=_guidance(draft, spec),
        seed=random_seed() if draft.seed in (None, -1) else int(draft.seed or 0),
        n=draft.n or 1,
        # A picture between the steps would show what the check is to keep back.
        previews=0 if draft.safety_check else draft.previews,
        safety=_safety(draft, has_checker),
        strength=_strength(draft, sources),
        fit=draft.fit or "crop",
        mask_mode=draft.mask_mode or "auto",
        mask_blur=draft.mask_blur or 0.0,
        quality=draft.quality or "auto",
        output_format=draft.output_format or "png",
        output_compression=_compression(draft),
        warnings=_warnings(draft, cfg_scale),
        eta=draft.eta,
        clip_skip=draft.clip_skip,
        flow_shift=draft.flow_shift,
        sigmas=draft.sigmas or (),
        slg=_skip_layers(draft),
        cache=_caching(draft),
        vae_tiling=draft.vae_tiling,
        loras=_loras(draft, loras),
        hires=_hires(draft, spec, size, steps, max_pixels, sources),
    )


def _first(*candidates: T | None) -> T:
    return next(value for value in candidates if value is not None)


def _check_prompts(draft: Draft, spec: ModelSpec) -> None:
    for name in ("prompt", "negative_prompt"):
        length = len(getattr(draft, name) or "")
        if length > spec.longest_prompt:
            param = draft.spelled(name)
            raise InvalidRequest(
                f"'{param}' has {length} characters; the model '{spec.id}' reads "
                f"{spec.longest_prompt}.",
                param=param,
            )


def _check_sources(draft: Draft, spec: ModelSpec, sources: Sources) -> None:
    """Refuse what would have no effect: options of pictures that did not come."""
    lacking = ["fit"] if sources.size is None else []
    lacking += [] if sources.drawn_over else ["strength"]
    lacking += [] if sources.masked else ["mask_mode", "mask_blur"]
    for name in lacking:
        if getattr(draft, name) is not None:
            param = draft.spelled(name)
            what = "a mask" if name.startswith("mask") else "an input image to draw over"
            raise InvalidRequest(
                f"'{param}' needs {what}.", reason=Reason.NOT_SUPPORTED, param=param
            )
    if sources.references and not spec.traits.references:
        raise InvalidRequest(
            f"The model '{spec.id}' takes one input image, not {sources.references + 1}.",
            reason=Reason.NOT_SUPPORTED,
            param="image",
        )


def _strength(draft: Draft, sources: Sources) -> float | None:
    if not sources.drawn_over:
        return None
    if draft.strength is not None:
        return draft.strength
    # Under a mask there is nothing to keep; without one the picture should be recognised.
    return 1.0 if sources.masked else 0.75


def _size(draft: Draft, spec: ModelSpec, max_pixels: int, source: Size | None) -> Size:
    param = draft.spelled("size")
    if draft.aspect_ratio is not None:
        size = _shaped(draft, spec)
        param = draft.spelled("aspect_ratio")
    elif draft.width is not None or draft.height is not None:
        size = _width_and_height(draft)
        param = draft.spelled("width")
    elif draft.size in (None, "auto", ""):
        return spec.default_size if source is None else spec.size_near(source)
    else:
        try:
            size = Size.parse(str(draft.size))
        except ValueError as error:
            raise InvalidRequest(f"'{param}': {error}.", param=param) from None
    problem = spec.size_problem(size)
    if problem:
        if draft.width is not None and problem.startswith("height"):
            param = draft.spelled("height")
        raise InvalidRequest(f"'{param}': {problem}.", param=param)
    if size.width * size.height > max_pixels:
        raise InvalidRequest(
            f"'{param}': {size} is more than this server's {max_pixels} pixels.", param=param
        )
    return size


def _shaped(draft: Draft, spec: ModelSpec) -> Size:
    param = draft.spelled("aspect_ratio")
    for other in ("size", "width", "height"):
        if getattr(draft, other) not in (None, "auto", ""):
            raise InvalidRequest(
                f"'{param}' and '{draft.spelled(other)}' both choose the size; send one.",
                reason=Reason.CONFLICTING_FIELDS,
                param=param,
            )
    match = _RATIO.fullmatch(draft.aspect_ratio or "")
    if match is None:
        raise InvalidRequest(
            f"'{param}': a shape is written WIDTH:HEIGHT, 16:9 for example.", param=param
        )
    return spec.size_of_shape(int(match[1]), int(match[2]))


def _width_and_height(draft: Draft) -> Size:
    if draft.width is None or draft.height is None:
        given, missing = ("width", "height") if draft.height is None else ("height", "width")
        raise InvalidRequest(
            f"'{draft.spelled(given)}' needs '{missing}' beside it.",
            reason=Reason.MISSING_FIELD,
            param=missing,
        )
    size = Size(draft.width, draft.height)
    if draft.size not in (None, "auto", "") and draft.size != str(size):
        raise InvalidRequest(
            f"'{draft.spelled('size')}' and width and height name different sizes.",
            reason=Reason.CONFLICTING_FIELDS,
            param=draft.spelled("size"),
        )
    return size


def _steps(draft: Draft, spec: ModelSpec) -> int:
    if draft.sigmas is not None:
        return len(draft.sigmas) - 1
    if draft.sample_steps is not None:
        return draft.sample_steps
    own = _first(spec.defaults.steps, spec.traits.steps)
    factor = _STEP_FACTORS.get(draft.quality, 1.0) if draft.quality else 1.0
    return min(MAX_STEPS, max(1, round(own * factor)))


def _sampling(draft: Draft, spec: ModelSpec, steps: int) -> tuple[str, str]:
    sampler = _first(
        _named(draft, "sampler", _sampler_named, SAMPLERS),
        spec.defaults.sampler,
        spec.traits.sampler,
    )
    schedule = _first(
        _named(draft, "schedule", _schedule_named, SCHEDULES),
        spec.defaults.schedule,
        DEFAULT_SCHEDULE,
    )
    why = refusal(schedule=schedule, steps=steps, flow=spec.traits.flow)
    if why:
        raise InvalidRequest(why, reason=Reason.UNSAFE_COMBINATION, param=draft.spelled("schedule"))
    return sampler, schedule


def _named(
    draft: Draft, field: str, find: Callable[[str], str | None], names: Mapping[str, str]
) -> str | None:
    given = getattr(draft, field)
    if given is None or given == "":
        return None
    found = find(given)
    if found is None:
        raise InvalidRequest(
            f"'{draft.spelled(field)}': unknown {field} '{given[:64]}'; there are "
            f"{', '.join(names)}.",
            param=draft.spelled(field),
        )
    return found


def check_powers(draft: Draft, spec: ModelSpec, sampler: str) -> None:
    """Refuse options of the runtime that this model or sampler would pass over."""
    traits = spec.traits
    clip = "clip_l" in traits.needs and not traits.flow
    lacking = {
        "eta": None if sampler in NOISY_SAMPLERS else f"the sampler '{sampler}' adds no noise",
        "clip_skip": None if clip else f"the model '{spec.id}' reads more than CLIP",
        "flow_shift": None if traits.flow else f"the model '{spec.id}' is no flow model",
        "slg_scale": f"the model '{spec.id}' has no such layers" if traits.unet else None,
    }
    lacking |= {
        name: f"it needs '{leader}'"
        for leader, followers in _FOLLOWERS.items()
        if getattr(draft, leader) is None
        for name in followers
    }
    for name, why in lacking.items():
        if why is not None and getattr(draft, name) is not None:
            param = draft.spelled(name)
            raise InvalidRequest(
                f"'{param}' would have no effect: {why}.",
                reason=Reason.NOT_SUPPORTED,
                param=param,
            )
    _check_sigmas(draft)
    _check_named(draft, "cache_mode", _cache_modes(spec))
    _check_named(draft, "hires_upscaler", HIRES_UPSCALERS)


def _cache_modes(spec: ModelSpec) -> tuple[str, ...]:
    return tuple(
        name
        for name, (for_unets, for_transformers) in CACHE_MODES.items()
        if (for_unets if spec.traits.unet else for_transformers)
    )


def _check_named(draft: Draft, field: str, names: tuple[str, ...]) -> None:
    given = getattr(draft, field)
    if given is not None and given not in names:
        param = draft.spelled(field)
        raise InvalidRequest(
            f"'{param}': there is no '{given[:64]}' for this model; there are {', '.join(names)}.",
            param=param,
        )


def _check_sigmas(draft: Draft) -> None:
    sigmas = draft.sigmas
    if sigmas is None:
        return
    for other in ("sample_steps", "schedule"):
        if getattr(draft, other) is not None:
            raise InvalidRequest(
                f"'{draft.spelled('sigmas')}' says what '{draft.spelled(other)}' would; send one.",
                reason=Reason.CONFLICTING_FIELDS,
                param=draft.spelled("sigmas"),
            )
    if any(later >= earlier for earlier, later in pairwise(sigmas)) or sigmas[-1] != 0:
        param = draft.spelled("sigmas")
        raise InvalidRequest(
            f"'{param}' must fall from value to value and end with 0.", param=param
        )


def _loras(draft: Draft, known: Collection[str]) -> tuple[tuple[str, float], ...]:
    chosen = tuple((lora.id, lora.scale) for lora in draft.lora or ())
    param = draft.spelled("lora")
    for name, _ in chosen:
        if name not in known:
            there = f"there are {', '.join(sorted(known)[:20])}" if known else "there are none"
            raise InvalidRequest(f"'{param}': no LoRA '{name[:64]}'; {there}.", param=param)
    if len({name for name, _ in chosen}) < len(chosen):
        raise InvalidRequest(
            f"'{param}' names one LoRA twice.", reason=Reason.CONFLICTING_FIELDS, param=param
        )
    return chosen


def _skip_layers(draft: Draft) -> SkipLayers | None:
    if draft.slg_scale is None:
        return None
    return SkipLayers(
        draft.slg_scale,
        draft.slg_layers or (7, 8, 9),
        0.01 if draft.slg_start is None else draft.slg_start,
        0.2 if draft.slg_end is None else draft.slg_end,
    )


def _caching(draft: Draft) -> Caching | None:
    if draft.cache_mode is None:
        return None
    return Caching(draft.cache_mode, draft.cache_threshold, draft.cache_start, draft.cache_end)


def _hires(
    draft: Draft, spec: ModelSpec, size: Size, steps: int, max_pixels: int, sources: Sources
) -> Hires | None:
    scale, param = draft.hires_scale, draft.spelled("hires_scale")
    if scale is None:
        return None
    if sources.size is not None:
        raise InvalidRequest(
            f"'{param}' is for pictures that begin from nothing.",
            reason=Reason.NOT_SUPPORTED,
            param=param,
        )
    multiple = spec.traits.multiple
    width, height = (round(side * scale / multiple) * multiple for side in size)
    if width * height > max_pixels:
        raise InvalidRequest(
            f"'{param}': {width}x{height} is more than this server's {max_pixels} pixels.",
            param=param,
        )
    return Hires(
        width,
        height,
        draft.hires_steps or steps,
        0.7 if draft.hires_strength is None else draft.hires_strength,
        draft.hires_upscaler or "latent",
    )


def _safety(draft: Draft, has_checker: bool) -> Safety:
    if not draft.safety_check:
        return "off"
    if not has_checker:
        param = draft.spelled("safety_check")
        raise InvalidRequest(
            f"'{param}' needs a safety checker, and none is configured.",
            reason=Reason.SAFETY_CHECKER_UNAVAILABLE,
            param=param,
        )
    return "blank" if draft.blank_flagged else "refuse"


def _guidance(draft: Draft, spec: ModelSpec) -> float | None:
    if not spec.traits.distilled_guidance:
        if draft.guidance is None:
            return None
        raise InvalidRequest(
            f"The model '{spec.id}' has no distilled guidance; use cfg_scale.",
            reason=Reason.NOT_SUPPORTED,
            param=draft.spelled("guidance"),
        )
    return _first(draft.guidance, spec.defaults.guidance, 3.5)


def _compression(draft: Draft) -> int:
    percent = 100 if draft.output_compression is None else draft.output_compression
    if percent < 100 and (draft.output_format or "png") == "png":
        name = draft.spelled("output_compression")
        raise InvalidRequest(
            f"'{name}' below 100 needs output_format jpeg or webp: PNG is lossless.", param=name
        )
    return percent


def _warnings(draft: Draft, cfg_scale: float) -> tuple[str, ...]:
    warnings = []
    if draft.negative_prompt and cfg_scale == 1.0:
        warnings.append(f"{draft.spelled('negative_prompt')} has no effect at cfg_scale 1.")
    if draft.safety_check and draft.previews:
        warnings.append("There are no previews with safety_check.")
    return tuple(warnings)
