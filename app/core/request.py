"""What was asked (Draft), what will be drawn (GenerationRequest), and the step between: resolve.

A Draft is dialect-neutral and all of it is optional but the prompt. A GenerationRequest has every
default, size and seed concrete; nothing past ``resolve`` checks values again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

from app.core.catalog import Catalog, ModelSpec, Size
from app.core.errors import InvalidRequest, NotFound, Reason
from app.core.samplers import DEFAULT_SCHEDULE, SAMPLERS, SCHEDULES, refusal
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

#: Neither side is 0.
_RATIO: Final = re.compile(r"\s*([1-9]\d{0,3})\s*:\s*([1-9]\d{0,3})\s*")

_STEP_FACTORS: Final[Mapping[Quality, float]] = {"low": 0.5, "high": 1.5, "hd": 1.5}


def _plain_text(value: str) -> str:
    # NUL ends a C string and a lone surrogate has no UTF-8 form: the runtime would see another
    # prompt than the client sent.
    if "\0" in value:
        raise ValueError("must not contain a NUL character")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError("must not contain unpaired surrogates")
    return value


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

    @field_validator("*", mode="before")
    @classmethod
    def _no_numbers_from_booleans(cls, value: Any, info: Any) -> Any:
        if isinstance(value, bool) and info.field_name not in ("safety_check", "blank_flagged"):
            raise ValueError("must not be a boolean")
        return value

    def spelled(self, name: str) -> str:
        """How the client wrote this option."""
        return self.spelling.get(name, name)


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

    @property
    def size(self) -> Size:
        """Width and height in pixels."""
        return Size(self.width, self.height)


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
            f"The model '{draft.model}' is not in the catalogue; there are "
            f"{', '.join(catalog.models)}.",
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
) -> GenerationRequest:
    """Make every default, size and seed concrete.

    Args:
        draft: What was asked.
        catalog: The models there are.
        random_seed: Draws a seed of 0..MAX_SEED for requests without one.
        max_pixels: Upper bound of width x height.
        has_checker: A safety checker is configured.
        sources: What is known of the input pictures.

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
