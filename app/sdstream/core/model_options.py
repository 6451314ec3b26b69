"""Which options a model supports, as checks of a request and as JSON Schema.

An option that would have no effect is rejected, and ``options_of`` leaves it out: a form shows what
a request may contain.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from sdstream.core.ask import ParsedRequest
from sdstream.core.enlargement import SHORTEST_SIDE
from sdstream.core.errors import InvalidRequest, Reason
from sdstream.core.model_spec import ModelSpec
from sdstream.core.options import OPTIONS, ImageParams, Options, params_schema
from sdstream.core.pixels import SourceFiles
from sdstream.core.request import Assets, Limits
from sdstream.core.samplers import (
    CACHE_KNOBS,
    CACHE_MODES,
    DEFAULT_SCHEDULE,
    HIRES_UPSCALERS,
    SAMPLERS,
    SCHEDULES,
    refusal,
)
from sdstream.core.similar import did_you_mean, most_similar


def check(ask: ParsedRequest, spec: ModelSpec, sampler: str) -> list[str]:
    """Reject options that this model or sampler would ignore, and names that do not exist.

    Returns:
        The options that it ignores and clients send all the same, at their usual values.

    Raises:
        InvalidRequest: Names the option as the client spelled it.
    """
    idle = dict(_without_effect(ask.params, spec, sampler))
    for name, why in idle.items():
        if getattr(ask.params, name) not in (None, *OPTIONS[name].usual):
            raise ask.rejected(name, f" would have no effect: {why}.", Reason.NOT_SUPPORTED)
    _check_sigmas(ask)
    _check_name(ask, "cache_mode", _cache_modes(spec))
    _check_cache(ask)
    return [name for name in idle if name in Options.model_fields]


def _without_effect(
    params: ImageParams, spec: ModelSpec, sampler: str
) -> Iterator[tuple[str, str]]:
    for name, option in OPTIONS.items():
        if why := option.unsupported(spec):
            yield name, why
        elif option.needs and _is_off(params, spec, option.needs):
            yield name, f"it needs '{option.needs}'"
    if not SAMPLERS[sampler].noisy:
        yield "eta", f"the sampler '{sampler}' adds no noise"


def _is_off(params: ImageParams, spec: ModelSpec, option: str) -> bool:
    value = getattr(params, option)
    if value is None:  # the model's entry may turn on options of the same name
        value = getattr(spec.runtime, option, None)
    return value is None or value is False  # 0 is a value


def supports(spec: ModelSpec, option: str) -> bool:
    """Return whether a model supports an option."""
    return OPTIONS[option].unsupported(spec) is None


def only_looks(spec: ModelSpec, files: SourceFiles) -> bool:
    """Return whether a model takes the input images as references and edits none of them."""
    return spec.traits.references and bool(files.images) and files.mask is None


def options_of(spec: ModelSpec, assets: Assets, limits: Limits) -> dict[str, dict[str, Any]]:
    """Return the options of requests for a model: name -> JSON Schema, with its default.

    Args:
        spec: The model.
        assets: The operator's LoRAs and upscalers.
        limits: Of images and steps.
    """
    schemas = params_schema()["properties"]
    choices = _choices(spec, assets, limits)
    defaults = _defaults(spec, limits)
    return {
        name: {**_plain(schemas[name]), **choices.get(name, {}), **defaults.get(name, {})}
        for name, option in OPTIONS.items()
        if option.listed and supports(spec, name) and not _lacks_files(option.needs or name, assets)
    }


def shared_options(
    specs: Sequence[ModelSpec], assets: Assets, limits: Limits
) -> dict[str, dict[str, Any]]:
    """Return the options that one of several models supports: name -> JSON Schema.

    Bounds, choices and defaults that differ between the models are left out.

    Args:
        specs: The models.
        assets: The operator's LoRAs and upscalers.
        limits: Of images and steps.
    """
    schemas = params_schema()["properties"]
    every = [options_of(spec, assets, limits) for spec in specs]
    shared: dict[str, dict[str, Any]] = {}
    for name in OPTIONS:
        variants = [options[name] for options in every if name in options]
        if variants:
            same = all(variant == variants[0] for variant in variants)
            shared[name] = variants[0] if same else _plain(schemas[name])
    return shared


def _lacks_files(option: str, assets: Assets) -> bool:
    return (option == "lora" and not assets.loras) or (
        option == "upscaler" and not assets.upscalers
    )


def schedules_of(spec: ModelSpec) -> list[str]:
    """Return the schedules that a model can take."""
    # Twenty steps are enough for each that it can take at all.
    flow = spec.traits.flow
    return [s for s in SCHEDULES if refusal(schedule=s, steps=20, flow=flow) is None]


def defaults_of(spec: ModelSpec, limits: Limits) -> dict[str, Any]:
    """Return what a request for a model gets where it does not say."""
    own, family = spec.defaults, spec.traits
    return {
        "size": str(spec.default_size),
        "sample_steps": min(own.steps or family.steps, limits.steps),
        "sampler": own.sampler or family.sampler,
        "schedule": own.schedule or DEFAULT_SCHEDULE,
        "cfg_scale": family.cfg_scale if own.cfg_scale is None else own.cfg_scale,
    }


def default_guidance(spec: ModelSpec) -> float:
    """Return the distilled guidance of a model whose family has one."""
    return 3.5 if spec.defaults.guidance is None else spec.defaults.guidance


def sizes_of(spec: ModelSpec) -> dict[str, Any]:
    """Return the bounds of a model's sizes in pixels, and the multiple that sides must be of."""
    larger = spec.size.enlarge
    if larger is None:
        return {"min": spec.size.min, "max": spec.size.max, "multiple": spec.traits.multiple}
    bounds = {"min": SHORTEST_SIDE, "max": larger.max, "multiple": 1}
    return {**bounds, "max_pixels": larger.max_pixels, "generated": [str(s) for s in larger.sizes]}


def _choices(spec: ModelSpec, assets: Assets, limits: Limits) -> dict[str, dict[str, Any]]:
    bounds = sizes_of(spec)
    side = {
        "minimum": bounds["min"],
        "maximum": bounds["max"],
        "multipleOf": bounds["multiple"],
    }
    return {
        "sampler": {"enum": [*SAMPLERS]},
        "schedule": {"enum": schedules_of(spec)},
        "width": side,
        "height": side,
        "cache_mode": {"enum": [*_cache_modes(spec)]},
        "hires_upscaler": {"enum": [*HIRES_UPSCALERS, *assets.upscalers]},
        "upscaler": {"enum": [*assets.upscalers]},
        "n": {"maximum": limits.images},
        "sample_steps": {"maximum": limits.steps},
        "hires_steps": {"maximum": limits.steps},
        "sigmas": {"maxItems": limits.steps + 1},
    }


def _defaults(spec: ModelSpec, limits: Limits) -> dict[str, dict[str, Any]]:
    values = {
        **defaults_of(spec, limits),
        "width": spec.default_size.width,
        "height": spec.default_size.height,
        "guidance": default_guidance(spec),
        "n": 1,
        "output_format": "png",
        "output_compression": 100,
    }
    return {name: {"default": value} for name, value in values.items()}


def _plain(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A field's schema without the null that stands for "not given"."""
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    plain = {**(kinds[0] if kinds else {}), **schema}
    return {k: v for k, v in plain.items() if k not in ("anyOf", "title", "default")}


def _cache_modes(spec: ModelSpec) -> tuple[str, ...]:
    return tuple(
        name
        for name, (for_unets, for_transformers) in CACHE_MODES.items()
        if (for_unets if spec.traits.unet else for_transformers)
    )


# --- one by one ---------------------------------------------------------------------------------


def _check_name(ask: ParsedRequest, option: str, names: tuple[str, ...]) -> None:
    given = getattr(ask.params, option)
    if given is not None and given not in names:
        raise ask.rejected(
            option,
            f": '{given[:64]}' is not available for this model; choose one of {', '.join(names)}.",
        )


def _check_sigmas(ask: ParsedRequest) -> None:
    sigmas = ask.params.sigmas
    if sigmas is None:
        return
    for other in ("sample_steps", "schedule"):
        if getattr(ask.params, other) is not None:
            raise ask.rejected(
                "sigmas",
                f" and '{ask.client_name(other)}' set the same thing; send one.",
                Reason.CONFLICTING_FIELDS,
            )
    if any(later >= earlier for earlier, later in pairwise(sigmas)) or sigmas[-1] != 0:
        raise ask.rejected("sigmas", " must decrease and end with 0.")


def check_span(ask: ParsedRequest, option: str, start: float, end: float) -> None:
    """Reject shares of the steps between which nothing would be done; ``option`` is the start."""
    if start >= end:
        raise ask.rejected(option, f" {start:g} must be less than the end, {end:g}.")


def _check_cache(ask: ParsedRequest) -> None:
    params = ask.params
    if params.cache_mode is None:
        return
    for name in ("threshold", "start", "end"):
        if name in (params.cache_options or {}) and getattr(params, f"cache_{name}") is not None:
            raise ask.rejected(
                "cache_options",
                f" and 'cache_{name}' both set '{name}'.",
                Reason.CONFLICTING_FIELDS,
            )
    for name, value in params.cache_numbers.items():
        given = getattr(params, f"cache_{name}", None) is not None
        problem = _knob_problem(params.cache_mode, name, value)
        if problem is not None:
            raise ask.rejected(f"cache_{name}" if given else "cache_options", *problem)
    if params.cache_start is not None and params.cache_end is not None:
        check_span(ask, "cache_start", params.cache_start, params.cache_end)


def _knob_problem(mode: str, name: str, value: float) -> tuple[str, Reason] | None:
    knobs = CACHE_KNOBS[mode]
    knob = knobs.get(name)
    if knob is None:
        return (
            f": the cache mode '{mode}' has no '{name[:64]}'; it has {', '.join(knobs)}.",
            Reason.NOT_SUPPORTED,
        )
    if not knob.low <= value <= knob.high or (knob.whole and value != int(value)):
        kind = "a whole number" if knob.whole else "a number"
        return f": '{name}' is {kind} from {knob.low:g} to {knob.high:g}.", Reason.INVALID_VALUE
    return None


def unknown_name(
    ask: ParsedRequest, option: str, what: str, name: str, known: list[str]
) -> InvalidRequest:
    """Return the error for a file name that does not exist.

    Args:
        ask: The request.
        option: The option that names it.
        what: Kind of file: "LoRA".
        name: As the client sent it.
        known: The names that exist.
    """
    there = f"there are {', '.join(sorted(known)[:20])}" if known else "none exists"
    meant = did_you_mean(most_similar(name, known))
    return ask.rejected(option, f": no {what} '{name[:64]}'; {there}.{meant}")
