"""Conversion of a client's request (ParsedRequest) into the runtime's (GenerationRequest).

``resolve`` checks all values; the code that runs after it does not check them again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final, NoReturn, TypeVar

from sdstream.core import model_options, resolve_edits, resolve_options
from sdstream.core.ask import ParsedRequest
from sdstream.core.catalog import Catalog
from sdstream.core.errors import InvalidRequest, NotFound, Reason
from sdstream.core.model_spec import ModelSpec
from sdstream.core.options import LARGEST_SEED, ImageParams, Options, Quality
from sdstream.core.pixels import SourceFile
from sdstream.core.request import (
    LONGEST_SIDES,
    NO_ASSETS,
    NO_SOURCES,
    Assets,
    GenerationRequest,
    Limits,
    Safety,
    Sources,
)
from sdstream.core.samplers import (
    DEFAULT_SCHEDULE,
    NO_SAMPLER,
    NO_SCHEDULE,
    SAMPLERS,
    SCHEDULES,
    find_sampler,
    find_schedule,
    nearest_sampler,
    refusal,
)
from sdstream.core.similar import did_you_mean, most_similar

T = TypeVar("T")

#: Parameters that a request may contain if it only upscales an image.
_OF_UPSCALING: Final = {
    "model", "upscaler", "upscale", "output_format", "output_compression", "safety_check", "n",
}  # fmt: skip

_STEP_FACTORS: Final[Mapping[Quality, float]] = {
    "low": 0.5,
    "high": 1.5,
    "xhigh": 1.5,
    "max": 1.5,
    "hd": 1.5,
}


def model_of(ask: ParsedRequest, catalog: Catalog) -> ModelSpec:
    """Return the model that a request names; raises NotFound."""
    spec = catalog.find(ask.params.model)
    if spec is None:
        raise NotFound(
            catalog.why_missing(ask.params.model),
            reason=Reason.MODEL_NOT_FOUND,
            param=ask.client_name("model"),
        )
    return spec


def check_count(ask: ParsedRequest, spec: ModelSpec, images: Sequence[SourceFile]) -> None:
    """Reject more input images than the model accepts, before they are decoded."""
    if len(images) > 1 and (ask.only_upscale or not spec.traits.references):
        who = "This route" if ask.only_upscale else f"The model '{spec.id}'"
        raise InvalidRequest(
            f"{who} accepts one input image, not {len(images)}.",
            reason=Reason.NOT_SUPPORTED,
            param=images[1].param.removesuffix("[]"),  # the ending of lists in forms
        )


def resolve(
    ask: ParsedRequest,
    catalog: Catalog,
    *,
    random_seed: Callable[[], int],
    limits: Limits,
    has_checker: bool = False,
    sources: Sources = NO_SOURCES,
    assets: Assets = NO_ASSETS,
) -> GenerationRequest:
    """Check a request and return it with concrete values for every default, size and seed.

    Args:
        ask: The client's request.
        catalog: The models.
        random_seed: Function that returns a seed of 0..MAX_SEED.
        limits: Limits of sizes, images and steps.
        has_checker: A safety checker is configured.
        sources: Facts about the input images.
        assets: The operator's LoRAs and upscalers.

    Raises:
        NotFound: The model is not in the catalogue.
        InvalidRequest: A value is not valid for the model; the error names the client's field.
    """
    spec = model_of(ask, catalog)
    safety = _safety(ask, has_checker)
    _check_limits(ask, limits)
    if ask.only_upscale:
        ask = resolve_options.with_upscalers(ask, assets)
        request = _upscaling(ask, spec, sources, assets, limits, safety)
    else:
        request = _generation(ask, spec, sources, assets, limits, safety, random_seed)
    _check_sides(ask, request)
    warnings = (
        *_alias(ask, spec, catalog),
        *_cut(request, spec),
        *_shape(request, spec),
        *_not_trained(request, spec, assets),
        *request.warnings,
    )
    return replace(request, warnings=warnings)


def _cut(request: GenerationRequest, spec: ModelSpec) -> tuple[str, ...]:
    """Return the warning for an image that is generated larger than requested and cropped."""
    if request.cut is None or request.enlarged:
        return ()
    return (
        f"The model '{spec.id}' cannot generate {request.cut}: the result is the middle of an "
        f"image of {request.runtime_size}.",
    )


def _shape(request: GenerationRequest, spec: ModelSpec) -> tuple[str, ...]:
    """Return the warning for a generated size that the model was not trained for."""
    rule = spec.size.enlarge
    if rule is None or not request.draws or request.size in rule.sizes:
        return ()
    return (
        f"The model '{spec.id}' was not trained for this aspect ratio: its image of "
        f"{request.size}, which is resized, may differ from the prompt.",
    )


def _not_trained(request: GenerationRequest, spec: ModelSpec, assets: Assets) -> tuple[str, ...]:
    """Return the warnings for words and numbers that a small model was not trained on."""
    vocabulary = assets.vocabularies.get(spec.files.model or "")
    return vocabulary.warnings(spec.id, request.prompt) if vocabulary else ()


def _alias(ask: ParsedRequest, spec: ModelSpec, catalog: Catalog) -> tuple[str, ...]:
    """Return the warning for a request that names its model by an alias."""
    name = ask.params.model
    if not name or not catalog.is_alias(name):
        return ()
    return (f"The model '{name}' is an alias of '{spec.id}'.",)


def _generation(
    ask: ParsedRequest,
    spec: ModelSpec,
    sources: Sources,
    assets: Assets,
    limits: Limits,
    safety: Safety,
    random_seed: Callable[[], int],
) -> GenerationRequest:
    _check_prompts(ask, spec)
    plan = resolve_edits.layout(ask, spec, sources, limits)
    resolve_edits.check_sources(ask, spec, sources, plan)
    ask = resolve_options.with_upscalers(ask, assets)
    size = plan.size
    larger = resolve_options.second_pass(ask, spec, size, sources, assets, limits)
    if plan.enlargement is not None:
        ask = resolve_options.with_own_upscaler(ask, spec, plan.enlargement, larger, assets)
    params = ask.params
    steps = _steps(params, spec, limits.steps)
    sampler, schedule = _sampling(ask, spec, steps)
    idle = model_options.check(ask, spec, sampler)
    cfg_scale = _first(params.cfg_scale, spec.defaults.cfg_scale, spec.traits.cfg_scale)
    upscaled = resolve_options.upscaled(ask, larger or size, assets, limits, plan.enlarged)
    prompt, loras = resolve_options.loras(ask, assets)
    return GenerationRequest(
        model=spec.id,
        prompt=prompt,
        negative_prompt=params.negative_prompt or "",
        width=size.width,
        height=size.height,
        steps=steps,
        sampler=sampler,
        schedule=schedule,
        cfg_scale=cfg_scale,
        seed=random_seed() if params.seed is None or params.seed == -1 else params.seed,
        n=params.n or 1,
        previews=ask.previews,
        safety=safety,
        quality=params.quality or "auto",
        output_format=params.output_format or "png",
        output_compression=_compression(ask),
        warnings=_warnings(ask, spec, cfg_scale),
        options=params.options().model_copy(
            update={
                **dict.fromkeys(idle),
                "lora": loras or None,
                **resolve_options.concrete(ask, spec, sources, plan.placement),
                **resolve_options.enlarging(ask, steps, assets, plan.enlargement),
            }
        ),
        input_images=int(sources.drawn_over) + len(sources.references),
        second_pass=larger,
        upscaled=upscaled,
        enlarged=plan.enlargement is not None,
        cut=plan.cut_of(upscaled or larger or size),
        placement=plan.placement,
        references=resolve_edits.reference_sizes(ask, spec, sources),
        lora_hashes=assets.hashes_of(lora.id for lora in loras),
    )


def _upscaling(
    ask: ParsedRequest,
    spec: ModelSpec,
    sources: Sources,
    assets: Assets,
    limits: Limits,
    safety: Safety,
) -> GenerationRequest:
    """Return a request that only upscales an image, in the worker process of a model."""
    params = ask.params
    inputs = ("mask", sources.masked), ("control", sources.control)
    options = ((n, getattr(params, n)) for n in ImageParams.model_fields if n not in _OF_UPSCALING)
    for name, value in (*inputs, *options):
        if value is not None and value is not False and value != "":
            raise ask.rejected(
                name, " is not supported on this route, which only upscales.", Reason.NOT_SUPPORTED
            )
    if params.n not in (None, 1):
        raise ask.rejected("n", " must be 1 on this route.")
    upscaler = params.upscaler or assets.only_upscaler
    if upscaler is None:
        there = ", ".join(assets.upscalers) or "none"
        raise ask.rejected("upscaler", f" is required; available: {there}.", Reason.MISSING_FIELD)
    size = sources.size
    assert size is not None
    chosen = replace(ask, params=params.model_copy(update={"upscaler": upscaler}))
    upscaled = resolve_options.upscaled(chosen, size, assets, limits)
    assert upscaled is not None
    factor = float(assets.upscalers[upscaler]) if params.upscale is None else params.upscale
    return GenerationRequest(
        model=spec.id,
        prompt="",
        negative_prompt="",
        width=size.width,
        height=size.height,
        steps=0,
        sampler=spec.traits.sampler,
        schedule=DEFAULT_SCHEDULE,
        cfg_scale=1.0,
        seed=0,
        n=1,
        safety=safety,
        output_format=params.output_format or "png",
        output_compression=_compression(ask),
        warnings=ask.warnings,
        input_images=1,
        options=Options(upscaler=upscaler, upscale=factor),
        upscaled=upscaled,
    )


def _check_sides(ask: ParsedRequest, request: GenerationRequest) -> None:
    longest = LONGEST_SIDES[request.output_format]
    side = max(request.output_size)
    if side > longest:
        raise ask.rejected(
            "output_format",
            f": {side} pixels on a side is more than the maximum of {longest} for "
            f"{request.output_format}.",
        )


def _first(*candidates: T | None) -> T:
    return next(value for value in candidates if value is not None)


def _check_prompts(ask: ParsedRequest, spec: ModelSpec) -> None:
    for name in ("prompt", "negative_prompt"):
        length = len(getattr(ask.params, name) or "")
        if length > spec.longest_prompt:
            raise ask.rejected(
                name,
                f" has {length} characters; the model '{spec.id}' accepts at most "
                f"{spec.longest_prompt}.",
            )


def _check_limits(ask: ParsedRequest, limits: Limits) -> None:
    """Reject more images and steps than the operator allows."""
    params = ask.params
    levels = None if params.sigmas is None else len(params.sigmas) - 1
    for option, value, limit, setting in (
        ("n", params.n, limits.images, "--max-images"),
        ("sample_steps", params.sample_steps, limits.steps, "--max-steps"),
        ("sigmas", levels, limits.steps, "--max-steps"),
        ("hires_steps", params.hires_steps, limits.steps, "--max-steps"),
    ):
        if value is not None and value > limit:
            what = "images" if option == "n" else "steps"
            raise ask.rejected(
                option, f": {value} {what} are more than the server's limit of {limit} ({setting})."
            )
    last = (params.seed or 0) + (params.n or 1) - 1
    if last > LARGEST_SEED:
        raise ask.rejected(
            "seed",
            f": the last of {params.n} images would have the seed {last}; send a smaller one.",
        )


def _steps(params: ImageParams, spec: ModelSpec, most: int) -> int:
    if params.sigmas is not None:
        return len(params.sigmas) - 1
    if params.sample_steps is not None:
        return params.sample_steps
    own = _first(spec.defaults.steps, spec.traits.steps)
    factor = _STEP_FACTORS.get(params.quality, 1.0) if params.quality else 1.0
    return min(most, max(1, round(own * factor)))


def _sampling(ask: ParsedRequest, spec: ModelSpec, steps: int) -> tuple[str, str]:
    chosen, implied = _sampler(ask)
    if ask.params.sigmas is not None:  # they replace the schedule in the name of a sampler
        implied = None
    named = _schedule(ask)
    if named and implied and named != implied:
        params, sampler_param = ask.params, ask.client_name("sampler")
        schedule_param = ask.client_name("schedule")
        raise InvalidRequest(
            f"'{sampler_param}' {params.sampler} and '{schedule_param}' "
            f"{params.schedule} conflict; send one of them.",
            reason=Reason.CONFLICTING_FIELDS,
            param=schedule_param,
        )
    sampler = _first(chosen, spec.defaults.sampler, spec.traits.sampler)
    schedule = _first(named, implied, spec.defaults.schedule, DEFAULT_SCHEDULE)
    why = refusal(schedule=schedule, steps=steps, flow=spec.traits.flow)
    if why:
        raise InvalidRequest(
            why, reason=Reason.UNSAFE_COMBINATION, param=ask.client_name("schedule")
        )
    return sampler, schedule


def _sampler(ask: ParsedRequest) -> tuple[str | None, str | None]:
    """Return the sampler that the client chose, and the schedule if the name contains one."""
    given = (ask.params.sampler or "").strip()
    if given.lower() in NO_SAMPLER:
        return None, None
    return find_sampler(given) or _unknown(ask, "sampler", SAMPLERS, nearest_sampler(given))


def _schedule(ask: ParsedRequest) -> str | None:
    given = (ask.params.schedule or "").strip()
    if given.lower() in NO_SCHEDULE:
        return None
    return find_schedule(given) or _unknown(
        ask, "schedule", SCHEDULES, most_similar(given, SCHEDULES)
    )


def _unknown(
    ask: ParsedRequest, option: str, names: Iterable[str], nearest: str | None
) -> NoReturn:
    given = getattr(ask.params, option)
    problem = f": unknown {option} '{given[:64]}'; available: {', '.join(names)}."
    raise ask.rejected(option, problem + did_you_mean(nearest))


def _safety(ask: ParsedRequest, has_checker: bool) -> Safety:
    if not ask.params.safety_check:
        return "off"
    if not has_checker:
        raise ask.rejected(
            "safety_check",
            " requires a safety checker, and none is configured.",
            Reason.SAFETY_CHECKER_UNAVAILABLE,
        )
    return "blank" if ask.blank_flagged else "refuse"


def _compression(ask: ParsedRequest) -> int:
    percent = ask.params.output_compression
    if percent is None or percent == 100:
        return 100
    if (ask.params.output_format or "png") == "png":
        raise ask.rejected(
            "output_compression", " below 100 requires output_format jpeg or webp; PNG is lossless."
        )
    return percent


def _warnings(ask: ParsedRequest, spec: ModelSpec, cfg_scale: float) -> tuple[str, ...]:
    warnings = [*ask.warnings]
    # The runtime uses img_cfg only if it differs from cfg_scale.
    image_guidance = ask.params.img_cfg not in (None, cfg_scale)
    if image_guidance and model_options.supports(spec, "img_cfg"):
        warnings.append(
            f"{ask.client_name('img_cfg')} has no effect unless the weights of '{spec.id}' are for "
            "inpainting or InstructPix2Pix."
        )
    if ask.params.negative_prompt and cfg_scale == 1.0:
        warnings.append(f"{ask.client_name('negative_prompt')} has no effect at cfg_scale 1.")
    if ask.params.safety_check and ask.reply.previews:
        warnings.append("safety_check disables previews.")
    return tuple(warnings)
