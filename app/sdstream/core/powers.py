"""Options of the runtime beside size, steps and sampler: which model takes them, and what they are.

An option that would have no effect is refused, and ``options_of`` leaves it out: what a form shows
is what a request may say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, Final

from sdstream.core.catalog import ModelSpec, Size
from sdstream.core.errors import InvalidRequest, Reason
from sdstream.core.request import (
    LORA_WORD,
    MAX_LORA_SCALE,
    Caching,
    Draft,
    Extras,
    Hires,
    SkipLayers,
    Sources,
    Upscale,
)
from sdstream.core.samplers import (
    CACHE_KNOBS,
    CACHE_MODES,
    DEFAULT_SCHEDULE,
    HIRES_UPSCALERS,
    NOISY_SAMPLERS,
    SAMPLERS,
    SCHEDULES,
    refusal,
)

#: Options that say how another one is to be done.
_FOLLOWERS: Final = {
    "slg_scale": ("slg_start", "slg_end", "slg_layers"),
    "cache_mode": ("cache_threshold", "cache_start", "cache_end", "cache_options"),
    "hires_scale": ("hires_steps", "hires_strength", "hires_upscaler"),
    "upscaler": ("upscale",),
}

#: Fields of a Draft that no form of options is to show.
_NO_OPTIONS: Final = (
    "prompt", "negative_prompt", "model", *(n for n, f in Draft.model_fields.items() if f.exclude),
)  # fmt: skip


def check(draft: Draft, spec: ModelSpec, sampler: str) -> None:
    """Refuse options that this model or sampler would pass over, and names that are not there."""
    lacking = dict(_unfit(spec))
    if sampler not in NOISY_SAMPLERS:
        lacking["eta"] = f"the sampler '{sampler}' adds no noise"
    for leader, followers in _FOLLOWERS.items():
        if getattr(draft, leader) is None:
            lacking |= dict.fromkeys(followers, f"it needs '{leader}'")
    for name, why in lacking.items():
        if getattr(draft, name) is not None:
            param = draft.spelled(name)
            raise InvalidRequest(
                f"'{param}' would have no effect: {why}.",
                reason=Reason.NOT_SUPPORTED,
                param=param,
            )
    _check_sigmas(draft)
    _check_name(draft, "cache_mode", _cache_modes(spec))
    _check_name(draft, "hires_upscaler", HIRES_UPSCALERS)


def options_of(spec: ModelSpec, extras: Extras) -> dict[str, dict[str, Any]]:
    """The options that requests for a model may have: name -> JSON Schema, with its default.

    Args:
        spec: The model.
        extras: What there is beside it.
    """
    unfit = dict(_unfit(spec))
    unfit |= {name: why for leader, why in unfit.items() for name in _FOLLOWERS.get(leader, ())}
    if not spec.traits.distilled_guidance:
        unfit["guidance"] = ""
    if spec.files.control_net is None:
        unfit |= {"control_strength": "", "control_canny": ""}
    if not extras.loras:
        unfit["lora"] = ""
    if not extras.upscalers:
        unfit |= {"upscaler": "", "upscale": ""}
    choices = _choices(spec, extras)
    defaults = _defaults(spec)
    options = {}
    for name, schema in Draft.model_json_schema()["properties"].items():
        if name in unfit or name in _NO_OPTIONS:
            continue
        options[name] = {**_plain(schema), **choices.get(name, {}), **defaults.get(name, {})}
    return options


def takes(spec: ModelSpec, option: str) -> bool:
    """False for an option that the model would pass over."""
    return option not in dict(_unfit(spec))


def _unfit(spec: ModelSpec) -> Iterator[tuple[str, str]]:
    """Options that the model passes over, and why."""
    traits = spec.traits
    if "clip_l" not in traits.needs or traits.flow:
        yield "clip_skip", f"the model '{spec.id}' reads more than CLIP"
    if not traits.flow:
        yield "flow_shift", f"the model '{spec.id}' is no flow model"
    if traits.unet:
        yield "slg_scale", f"the model '{spec.id}' has no such layers"


def schedules_of(spec: ModelSpec) -> list[str]:
    """The schedules that a model can take."""
    # Twenty steps are enough for each that it can take at all.
    flow = spec.traits.flow
    return [s for s in SCHEDULES if refusal(schedule=s, steps=20, flow=flow) is None]


def defaults_of(spec: ModelSpec) -> dict[str, Any]:
    """What a request for a model gets where it does not say."""
    own, family = spec.defaults, spec.traits
    return {
        "size": str(spec.default_size),
        "sample_steps": own.steps or family.steps,
        "sampler": own.sampler or family.sampler,
        "schedule": own.schedule or DEFAULT_SCHEDULE,
        "cfg_scale": family.cfg_scale if own.cfg_scale is None else own.cfg_scale,
    }


def _choices(spec: ModelSpec, extras: Extras) -> dict[str, dict[str, Any]]:
    side = {"minimum": spec.size.min, "maximum": spec.size.max, "multipleOf": spec.traits.multiple}
    return {
        "sampler": {"enum": [*SAMPLERS]},
        "schedule": {"enum": schedules_of(spec)},
        "width": side,
        "height": side,
        "cache_mode": {"enum": [*_cache_modes(spec)]},
        "hires_upscaler": {"enum": [*HIRES_UPSCALERS]},
        "upscaler": {"enum": [*extras.upscalers]},
    }


def _defaults(spec: ModelSpec) -> dict[str, dict[str, Any]]:
    guidance = spec.defaults.guidance
    values = {
        **defaults_of(spec),
        "width": spec.default_size.width,
        "height": spec.default_size.height,
        "guidance": 3.5 if guidance is None else guidance,
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


def _check_name(draft: Draft, field: str, names: tuple[str, ...]) -> None:
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


# --- one by one ---------------------------------------------------------------------------------


def guidance(draft: Draft, spec: ModelSpec) -> float | None:
    """Distilled guidance; None for a family without one."""
    if not spec.traits.distilled_guidance:
        if draft.guidance is None:
            return None
        raise InvalidRequest(
            f"The model '{spec.id}' has no distilled guidance; use cfg_scale.",
            reason=Reason.NOT_SUPPORTED,
            param=draft.spelled("guidance"),
        )
    candidates = (draft.guidance, spec.defaults.guidance, 3.5)
    return next(value for value in candidates if value is not None)


def loras(draft: Draft, extras: Extras) -> tuple[str, tuple[tuple[str, float], ...]]:
    """The prompt without the LoRAs that are named in it, and (id, scale) of all."""
    chosen = [(lora.id, lora.scale, draft.spelled("lora")) for lora in draft.lora or ()]
    prompt, param = draft.prompt, draft.spelled("prompt")
    words = LORA_WORD.findall(prompt)
    if words and not extras.lora_in_prompt:
        raise InvalidRequest(
            f"'{param}' names a LoRA, which this server takes in 'lora' alone.",
            reason=Reason.NOT_SUPPORTED,
            param=param,
        )
    if words:
        chosen += [(name, _scale(name, scale, param), param) for name, scale in words]
        # Text, name, scale, text …; the space before a word goes with it.
        texts = LORA_WORD.split(prompt)[::3]
        prompt = "".join(text.rstrip() for text in texts).strip()
    for name, _, field in chosen:
        _check_known(name, "LoRA", [*extras.loras], field)
    if len({name for name, _, _ in chosen}) < len(chosen):
        field = chosen[-1][2]
        raise InvalidRequest(
            f"'{field}' names one LoRA twice.", reason=Reason.CONFLICTING_FIELDS, param=field
        )
    return prompt, tuple((name, scale) for name, scale, _ in chosen)


def _scale(name: str, text: str, param: str) -> float:
    try:
        scale = float(text or 1.0)
    except ValueError:
        scale = MAX_LORA_SCALE + 1
    if not abs(scale) <= MAX_LORA_SCALE:
        raise InvalidRequest(
            f"'{param}': the scale of the LoRA '{name[:64]}' is between -{MAX_LORA_SCALE:g} and "
            f"{MAX_LORA_SCALE:g}.",
            param=param,
        )
    return scale


def _check_known(name: str, what: str, known: list[str], param: str) -> None:
    if name not in known:
        there = f"there are {', '.join(sorted(known)[:20])}" if known else "there are none"
        raise InvalidRequest(f"'{param}': no {what} '{name[:64]}'; {there}.", param=param)


def skip_layers(draft: Draft) -> SkipLayers | None:
    """Skip-layer guidance, None for none."""
    if draft.slg_scale is None:
        return None
    start = 0.01 if draft.slg_start is None else draft.slg_start
    end = 0.2 if draft.slg_end is None else draft.slg_end
    _check_span(draft, "slg_start", start, end)
    return SkipLayers(draft.slg_scale, draft.slg_layers or (7, 8, 9), start, end)


def _check_span(draft: Draft, name: str, start: float, end: float) -> None:
    if start >= end:
        param = draft.spelled(name)
        raise InvalidRequest(
            f"'{param}' {start:g} is not before the end at {end:g}: nothing would be done.",
            param=param,
        )


def caching(draft: Draft) -> Caching | None:
    """What is left out between similar steps, None for nothing."""
    if draft.cache_mode is None:
        return None
    cache = Caching(
        draft.cache_mode,
        draft.cache_threshold,
        draft.cache_start,
        draft.cache_end,
        tuple((draft.cache_options or {}).items()),
    )
    for name in {"threshold", "start", "end"} & {*(draft.cache_options or {})}:
        if getattr(draft, f"cache_{name}") is not None:
            raise InvalidRequest(
                f"'{draft.spelled('cache_options')}' and 'cache_{name}' both say '{name}'.",
                reason=Reason.CONFLICTING_FIELDS,
                param=draft.spelled("cache_options"),
            )
    for name, value in cache.knobs.items():
        own = (
            f"cache_{name}"
            if getattr(draft, f"cache_{name}", None) is not None
            else "cache_options"
        )
        _check_knob(cache.mode, name, value, draft.spelled(own))
    if cache.start is not None and cache.end is not None:
        _check_span(draft, "cache_start", cache.start, cache.end)
    return cache


def _check_knob(mode: str, name: str, value: float, param: str) -> None:
    knobs = CACHE_KNOBS[mode]
    knob = knobs.get(name)
    if knob is None:
        raise InvalidRequest(
            f"'{param}': the cache mode '{mode}' has no '{name[:64]}'; it has {', '.join(knobs)}.",
            reason=Reason.NOT_SUPPORTED,
            param=param,
        )
    if not knob.low <= value <= knob.high or (knob.whole and value != int(value)):
        kind = "a whole number" if knob.whole else "a number"
        raise InvalidRequest(
            f"'{param}': '{name}' is {kind} from {knob.low:g} to {knob.high:g}.", param=param
        )


def hires(
    draft: Draft, spec: ModelSpec, size: Size, steps: int, max_pixels: int, sources: Sources
) -> Hires | None:
    """The second pass at a larger size, None for none."""
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
    larger = Size(*(round(side * scale / multiple) * multiple for side in size))
    problem = spec.size_problem(larger)
    if larger == size:
        problem = f"{size} stays as it is, for the next size is {multiple} pixels larger"
    if problem:
        raise InvalidRequest(f"'{param}': {problem}.", param=param)
    _check_pixels(larger, max_pixels, param)
    return Hires(
        larger.width,
        larger.height,
        draft.hires_steps or steps,
        0.7 if draft.hires_strength is None else draft.hires_strength,
        draft.hires_upscaler or "latent",
    )


def upscale(draft: Draft, size: Size, extras: Extras, max_pixels: int) -> Upscale | None:
    """What enlarges the finished image, None for nothing.

    Args:
        draft: What was asked.
        size: Of the image before.
        extras: Has the upscalers.
        max_pixels: Upper bound of width x height.
    """
    if draft.upscaler is None:
        return None
    param = draft.spelled("upscaler")
    _check_known(draft.upscaler, "upscaler", [*extras.upscalers], param)
    most = extras.upscalers[draft.upscaler]
    factor = most if draft.upscale is None else draft.upscale
    if factor > most:
        param = draft.spelled("upscale")
        raise InvalidRequest(
            f"'{param}': the upscaler '{draft.upscaler}' enlarges {most} times at most.",
            param=param,
        )
    larger = Size(*(round(side * factor) for side in size))
    _check_pixels(larger, max_pixels, draft.spelled("upscale"))
    return Upscale(draft.upscaler, larger.width, larger.height)


def _check_pixels(size: Size, max_pixels: int, param: str) -> None:
    if size.width * size.height > max_pixels:
        raise InvalidRequest(
            f"'{param}': {size} is more than this server's {max_pixels} pixels.", param=param
        )
