"""The options that a model supports: checks of a request, and JSON Schema for forms.

An option that would have no effect is rejected, and ``options_of`` leaves it out, so that a form
shows only what a request may contain.
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
from sdstream.core.request import Assets, Limits
from sdstream.core.samplers import (
    CACHE_KNOBS,
    CACHE_MODES,
    CACHE_SPAN,
    DEFAULT_SCHEDULE,
    HIRES_UPSCALERS,
    SAMPLERS,
    SCHEDULES,
    refusal,
)
from sdstream.core.similar import did_you_mean, most_similar


def check(ask: ParsedRequest, spec: ModelSpec, sampler: str) -> list[str]:
    """Reject options that the model or the sampler would ignore, and names that do not exist.

    Returns:
        Names of options that have no effect and that ``resolve`` clears. If a client sent one of
        them, it sent a value that clients send to every model (``Option.usual``).

    Raises:
        InvalidRequest: An option is not valid; the error names it as the client spelled it.
    """
    idle = dict(_without_effect(ask.params, spec, sampler))
    for name, why in idle.items():
        if getattr(ask.params, name) not in (None, *OPTIONS[name].usual):
            raise ask.rejected(name, f" would have no effect: {why}.", Reason.NOT_SUPPORTED)
    _check_sigmas(ask, spec)
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
    if value is None:  # the model's entry may turn on the option in ``runtime``
        value = getattr(spec.runtime, option, None)
    return value is None or value is False  # 0 is a value


def supports(spec: ModelSpec, option: str) -> bool:
    """Return whether a model supports an option."""
    return OPTIONS[option].unsupported(spec) is None


def only_looks(ask: ParsedRequest, spec: ModelSpec) -> bool:
    """Return whether a model uses all input images as references and edits none of them."""
    files = ask.files
    if files is None or not files.images or not spec.traits.references:
        return False
    masked = files.mask is not None or files.own_alpha
    # An upscale or an expansion edits the image, even if the model takes references.
    return not (masked or ask.only_upscale or ask.params.expand)


def options_of(spec: ModelSpec, assets: Assets, limits: Limits) -> dict[str, dict[str, Any]]:
    """Return the options of requests for a model: name -> JSON Schema with the default.

    Args:
        spec: The model.
        assets: The operator's LoRAs and upscalers.
        limits: Limits of images and steps.
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
    """Return the options that at least one of several models supports: name -> JSON Schema.

    If the schema of an option differs between the models, the result has the general one, without
    bounds, choices and defaults of a model.

    Args:
        specs: The models.
        assets: The operator's LoRAs and upscalers.
        limits: Limits of images and steps.
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
    """Return the schedules that a model supports."""
    # Twenty steps are enough for every schedule that a model supports.
    flow = spec.traits.flow
    return [s for s in SCHEDULES if refusal(schedule=s, steps=20, flow=flow) is None]


def defaults_of(spec: ModelSpec, limits: Limits) -> dict[str, Any]:
    """Return the values of options that a request for a model leaves out."""
    own, family = spec.defaults, spec.traits
    return {
        "size": str(spec.default_size),
        "sample_steps": min(own.steps or family.steps, limits.steps),
        "sampler": own.sampler or family.sampler,
        "schedule": own.schedule or DEFAULT_SCHEDULE,
        "cfg_scale": family.cfg_scale if own.cfg_scale is None else own.cfg_scale,
    }


def default_guidance(spec: ModelSpec) -> float:
    """Return the default distilled guidance of a model whose family supports it."""
    return 3.5 if spec.defaults.guidance is None else spec.defaults.guidance


def sizes_of(spec: ModelSpec) -> dict[str, Any]:
    """Return the bounds of a model's sizes, and the number that each side must be a multiple of."""
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
    """Return a field's schema without the null that means "not given"."""
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


def _check_sigmas(ask: ParsedRequest, spec: ModelSpec) -> None:
    sigmas = ask.params.sigmas
    if sigmas is None:
        return
    # The parameters of an answer contain these values too, and may be sent back.
    own = spec.defaults.schedule or DEFAULT_SCHEDULE
    for other, same in (("sample_steps", len(sigmas) - 1), ("schedule", own)):
        if getattr(ask.params, other) not in (None, same):
            raise ask.rejected(
                "sigmas",
                f" and '{ask.client_name(other)}' set the same thing; send one.",
                Reason.CONFLICTING_FIELDS,
            )
    if any(later >= earlier for earlier, later in pairwise(sigmas)) or sigmas[-1] != 0:
        raise ask.rejected("sigmas", " must decrease and end with 0.")


def check_span(ask: ParsedRequest, option: str, start: float, end: float) -> None:
    """Reject a range of steps that is empty; ``option`` is the name of its start."""
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
    _check_cache_span(ask)


def _check_cache_span(ask: ParsedRequest) -> None:
    """Reject a span for which the runtime would turn the cache off."""
    params = ask.params
    start, end = ({**CACHE_SPAN, **params.cache_numbers}[name] for name in CACHE_SPAN)
    if start < end:
        return
    options = ("cache_start", "cache_end")
    raise ask.rejected(
        next((name for name in options if getattr(params, name) is not None), "cache_options"),
        f": the cache would begin after {start:g} of the steps and end after {end:g}; its start "
        "must be less than its end.",
    )


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
        return (
            f": '{name}' must be {kind} from {knob.low:g} to {knob.high:g}.",
            Reason.INVALID_VALUE,
        )
    return None


def unknown_name(
    ask: ParsedRequest, option: str, what: str, name: str, known: list[str]
) -> InvalidRequest:
    """Return the error for a file name that does not exist.

    Args:
        ask: The request.
        option: The option that contains the name.
        what: Kind of file, for example "LoRA".
        name: The name as the client sent it.
        known: The names that exist.
    """
    there = f"available: {', '.join(sorted(known)[:20])}" if known else "none exists"
    meant = did_you_mean(most_similar(name, known))
    return ask.rejected(option, f": no {what} '{name[:64]}'; {there}.{meant}")
