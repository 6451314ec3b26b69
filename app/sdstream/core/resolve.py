"""From what was asked (Draft) to what will be drawn (GenerationRequest).

Nothing past ``resolve`` checks values again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NoReturn, TypeVar

from sdstream.core import powers
from sdstream.core.catalog import Catalog, ModelSpec, Size
from sdstream.core.errors import InvalidRequest, NotFound, Reason
from sdstream.core.request import (
    LONGEST_SIDES,
    MAX_STEPS,
    NO_EXTRAS,
    NO_SOURCES,
    Draft,
    Extras,
    GenerationRequest,
    Limits,
    Quality,
    Safety,
    Sources,
)
from sdstream.core.samplers import (
    DEFAULT_SCHEDULE,
    NO_SAMPLER,
    NO_SCHEDULE,
    SAMPLERS,
    SCHEDULES,
    refusal,
    sampler_named,
    schedule_named,
)

T = TypeVar("T")

#: Neither side is 0.
_RATIO: Final = re.compile(r"\s*([1-9]\d{0,3})\s*:\s*([1-9]\d{0,3})\s*")

#: Fields of a Draft that mean something where nothing is drawn.
_OF_ENLARGING: Final = {
    "model", "upscaler", "upscale", "output_format", "output_compression", "safety_check",
    "blank_flagged", "only_upscale", "previews", "spelling", "n",
}  # fmt: skip

#: First word of an option's name -> what it needs.
_NEEDED: Final = {"mask": "a mask", "control": "a control picture"}

_STEP_FACTORS: Final[Mapping[Quality, float]] = {"low": 0.5, "high": 1.5, "hd": 1.5}


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


def check_count(draft: Draft, spec: ModelSpec, images: int) -> None:
    """Refuse more input images than are looked at, before they are decoded."""
    if images > 1 and (draft.only_upscale or not spec.traits.references):
        who = "This route" if draft.only_upscale else f"The model '{spec.id}'"
        raise InvalidRequest(
            f"{who} takes one input image, not {images}.",
            reason=Reason.NOT_SUPPORTED,
            param="image",
        )


def resolve(
    draft: Draft,
    catalog: Catalog,
    *,
    random_seed: Callable[[], int],
    limits: Limits,
    has_checker: bool = False,
    sources: Sources = NO_SOURCES,
    extras: Extras = NO_EXTRAS,
) -> GenerationRequest:
    """Make every default, size and seed concrete.

    Args:
        draft: What was asked.
        catalog: The models there are.
        random_seed: Draws a seed of 0..MAX_SEED for requests without one.
        limits: Of sizes.
        has_checker: A safety checker is configured.
        sources: What is known of the input pictures.
        extras: What there is beside the models.

    Raises:
        NotFound: The model is not in the catalogue.
        InvalidRequest: A value that this model cannot take; names the client's field.
    """
    spec = model_of(draft, catalog)
    if draft.only_upscale:
        return _enlarging(draft, spec, sources, extras, limits, _safety(draft, has_checker))
    _check_prompts(draft, spec)
    _check_sources(draft, spec, sources)
    size = _size(draft, spec, limits.drawn, sources.size)
    steps = _steps(draft, spec)
    sampler, schedule = _sampling(draft, spec, steps)
    powers.check(draft, spec, sampler)
    cfg_scale = _first(draft.cfg_scale, spec.defaults.cfg_scale, spec.traits.cfg_scale)
    prompt, loras = powers.loras(draft, extras)
    hires = powers.hires(draft, spec, size, steps, limits.drawn, sources)
    request = GenerationRequest(
        model=spec.id,
        prompt=prompt,
        negative_prompt=draft.negative_prompt or "",
        width=size.width,
        height=size.height,
        steps=steps,
        sampler=sampler,
        schedule=schedule,
        cfg_scale=cfg_scale,
        guidance=powers.guidance(draft, spec),
        seed=random_seed() if draft.seed is None or draft.seed == -1 else draft.seed,
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
        slg=powers.skip_layers(draft),
        cache=powers.caching(draft),
        vae_tiling=draft.vae_tiling,
        loras=loras,
        hires=hires,
        upscale=powers.upscale(draft, hires.size if hires else size, extras, limits.enlarged),
        control_strength=_first(draft.control_strength, 0.9) if sources.control else None,
        control_canny=bool(draft.control_canny),
    )
    _check_sides(draft, request)
    return request


def _enlarging(
    draft: Draft,
    spec: ModelSpec,
    sources: Sources,
    extras: Extras,
    limits: Limits,
    safety: Safety,
) -> GenerationRequest:
    """A job that draws nothing: the model only lends its process."""
    pictures = ("mask", sources.masked), ("control", sources.control)
    options = ((n, getattr(draft, n)) for n in Draft.model_fields if n not in _OF_ENLARGING)
    for name, value in (*pictures, *options):
        if value is not None and value is not False and value != "":
            param = draft.spelled(name)
            raise InvalidRequest(
                f"'{param}' has no meaning where nothing is drawn.",
                reason=Reason.NOT_SUPPORTED,
                param=param,
            )
    if draft.n not in (None, 1):
        param = draft.spelled("n")
        raise InvalidRequest(f"'{param}' is 1 where nothing is drawn.", param=param)
    if draft.upscaler is None and len(extras.upscalers) != 1:
        there = ", ".join(extras.upscalers) or "none"
        raise InvalidRequest(
            f"'upscaler' is required; there are {there}.",
            reason=Reason.MISSING_FIELD,
            param="upscaler",
        )
    chosen = {"upscaler": draft.upscaler or next(iter(extras.upscalers))}
    size = sources.size
    assert size is not None
    request = GenerationRequest(
        model=spec.id,
        prompt="",
        negative_prompt="",
        width=size.width,
        height=size.height,
        steps=0,
        sampler=spec.traits.sampler,
        schedule=DEFAULT_SCHEDULE,
        cfg_scale=1.0,
        guidance=None,
        seed=0,
        n=1,
        safety=safety,
        output_format=draft.output_format or "png",
        output_compression=_compression(draft),
        upscale=powers.upscale(draft.model_copy(update=chosen), size, extras, limits.enlarged),
    )
    _check_sides(draft, request)
    return request


def _check_sides(draft: Draft, request: GenerationRequest) -> None:
    longest = LONGEST_SIDES[request.output_format]
    if max(request.output_size) > longest:
        param = draft.spelled("output_format")
        raise InvalidRequest(
            f"'{param}': a side of {max(request.output_size)} pixels is more than the {longest} "
            f"of {request.output_format}.",
            param=param,
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
    # References are looked at as they are.
    fitted = sources.drawn_over or sources.control
    lacking = [] if fitted else ["fit"]
    lacking += [] if sources.drawn_over else ["strength"]
    lacking += [] if sources.masked else ["mask_mode", "mask_blur"]
    lacking += [] if sources.control else ["control_strength", "control_canny"]
    for name in lacking:
        if getattr(draft, name) is not None:
            param = draft.spelled(name)
            what = _NEEDED.get(name.partition("_")[0], "an input image to draw over")
            raise InvalidRequest(
                f"'{param}' needs {what}.", reason=Reason.NOT_SUPPORTED, param=param
            )
    if sources.control and spec.files.control_net is None:
        raise InvalidRequest(
            f"The model '{spec.id}' has no ControlNet.",
            reason=Reason.NOT_SUPPORTED,
            param=draft.spelled("control"),
        )
    if sources.masked and draft.upscaler is not None:
        # What the mask keeps is kept exactly, which enlarging cannot.
        param = draft.spelled("upscaler")
        raise InvalidRequest(
            f"'{param}' cannot be had with a mask; enlarge the finished image afterwards.",
            reason=Reason.NOT_SUPPORTED,
            param=param,
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
        size = spec.default_size if source is None else spec.size_near(source, max_pixels)
    else:
        size = _parsed(draft)
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


def _parsed(draft: Draft) -> Size:
    try:
        return Size.parse(str(draft.size))
    except ValueError as error:
        param = draft.spelled("size")
        raise InvalidRequest(f"'{param}': {error}.", param=param) from None


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
    if draft.size not in (None, "auto", "") and _parsed(draft) != size:
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
    chosen, implied = _sampler(draft)
    named = _schedule(draft)
    if named and implied and named != implied:
        raise InvalidRequest(
            f"'{draft.spelled('sampler')}' {draft.sampler} and '{draft.spelled('schedule')}' "
            f"{draft.schedule} differ.",
            reason=Reason.CONFLICTING_FIELDS,
            param=draft.spelled("schedule"),
        )
    sampler = _first(chosen, spec.defaults.sampler, spec.traits.sampler)
    schedule = _first(named, implied, spec.defaults.schedule, DEFAULT_SCHEDULE)
    why = refusal(schedule=schedule, steps=steps, flow=spec.traits.flow)
    if why:
        raise InvalidRequest(why, reason=Reason.UNSAFE_COMBINATION, param=draft.spelled("schedule"))
    return sampler, schedule


def _sampler(draft: Draft) -> tuple[str | None, str | None]:
    """What was chosen, and the schedule that its name held."""
    given = (draft.sampler or "").strip()
    if given.lower() in NO_SAMPLER:
        return None, None
    return sampler_named(given) or _unknown(draft, "sampler", SAMPLERS)


def _schedule(draft: Draft) -> str | None:
    given = (draft.schedule or "").strip()
    if given.lower() in NO_SCHEDULE:
        return None
    return schedule_named(given) or _unknown(draft, "schedule", SCHEDULES)


def _unknown(draft: Draft, field: str, names: Iterable[str]) -> NoReturn:
    param, given = draft.spelled(field), getattr(draft, field)
    raise InvalidRequest(
        f"'{param}': unknown {field} '{given[:64]}'; there are {', '.join(names)}.", param=param
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
