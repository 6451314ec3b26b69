"""The concrete values of a request's options."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from sdstream.core.ask import ParsedRequest
from sdstream.core.enlargement import Enlargement
from sdstream.core.errors import Reason
from sdstream.core.lora import (
    FILE_ENDING,
    HYPERNETWORK_TAG,
    LORA_TAG,
    MAX_LORA_SCALE,
    LoraChoice,
)
from sdstream.core.model_options import check_span, default_guidance, unknown_name
from sdstream.core.model_spec import ModelSpec
from sdstream.core.placement import Placement
from sdstream.core.request import Assets, Limits, Sources
from sdstream.core.resolve_edits import PADDING
from sdstream.core.resolve_size import check_pixels
from sdstream.core.samplers import HIRES_UPSCALERS
from sdstream.core.size import Size

_LORA_BEGINS = re.compile(r"<(?:lora|lyco):")

#: Defaults of skip-layer guidance, as in the runtime's own program.
_SLG_DEFAULTS = {"slg_start": 0.01, "slg_end": 0.2, "slg_layers": (7, 8, 9)}


def concrete(
    ask: ParsedRequest, spec: ModelSpec, sources: Sources, placement: Placement | None
) -> dict[str, Any]:
    """Return the defaults of options that the client left out: name -> value.

    Options whose default the runtime sets are not in the result.
    """
    params = ask.params
    defaults: dict[str, Any] = {}
    if spec.traits.distilled_guidance:
        defaults["guidance"] = default_guidance(spec)
    if sources.drawn_over:
        # The painted area of a mask need not keep anything of the input image. Without a mask the
        # result should still resemble the input image.
        bordered = placement is not None and placement.kept is not None
        defaults["strength"] = 1.0 if sources.masked or bordered else 0.75
        if placement is None:
            defaults["fit"] = "crop"
    if params.only_masked:
        defaults["only_masked_padding"] = PADDING
    if sources.references:
        defaults["reference_size"] = "auto"
    if params.slg_scale is not None:
        defaults |= _SLG_DEFAULTS
    if sources.control:
        defaults |= {"control_strength": 0.9, "control_canny": False}
    values = {name: value for name, value in defaults.items() if getattr(params, name) is None}
    if params.slg_scale is not None:
        given = {**params.given(), **values}
        check_span(ask, "slg_start", given["slg_start"], given["slg_end"])
    return values


def loras(ask: ParsedRequest, assets: Assets) -> tuple[str, tuple[LoraChoice, ...]]:
    """Return the prompt without LoRA tags, and the LoRAs of the option and of the tags."""
    if HYPERNETWORK_TAG.search(ask.params.prompt):
        raise ask.rejected(
            "prompt", " contains a hypernetwork tag; use a LoRA.", Reason.NOT_SUPPORTED
        )
    chosen = [(lora, "lora") for lora in ask.params.lora or ()]
    prompt = ask.params.prompt
    tags = LORA_TAG.findall(prompt)
    if tags and not assets.lora_in_prompt:
        raise ask.rejected(
            "prompt",
            " contains a LoRA tag; send LoRAs in 'lora', or start the server with "
            "--lora-in-prompt.",
            Reason.NOT_SUPPORTED,
        )
    if tags:
        chosen += [(LoraChoice(id=n, scale=_scale(ask, n, text)), "prompt") for n, text in tags]
        # The split yields text, name, scale, text … A space before a tag is removed with the tag.
        texts = LORA_TAG.split(prompt)[::3]
        prompt = "".join(text.rstrip() for text in texts).strip()
    if _LORA_BEGINS.search(prompt):
        raise ask.rejected(
            "prompt",
            " contains a LoRA tag that cannot be read; write <lora:NAME:SCALE>.",
            Reason.NOT_SUPPORTED,
        )
    chosen = [
        (lora.model_copy(update={"id": _file(ask, option, "lora", lora.id, assets)}), option)
        for lora, option in chosen
    ]
    if len({lora.id for lora, _ in chosen}) < len(chosen):
        raise ask.rejected(
            chosen[-1][1], " contains the same LoRA twice.", Reason.CONFLICTING_FIELDS
        )
    return prompt, tuple(lora for lora, _ in chosen)


def _file(ask: ParsedRequest, option: str, kind: str, name: str, assets: Assets) -> str:
    """Return the full name of one of the operator's files.

    ``name`` may lack the folder; the name of a LoRA may contain the ending of its file.
    """
    what, known = {"lora": ("LoRA", assets.loras), "upscaler": ("upscaler", assets.upscalers)}[kind]
    for spelling in (name, FILE_ENDING.sub("", name) if kind == "lora" else name):
        if spelling in known:
            return spelling
        same = [whole for whole in known if whole.rpartition("/")[2] == spelling]
        if len(same) == 1:
            return same[0]
        if same:
            raise ask.rejected(
                option,
                f": the {what} '{spelling}' is in several folders; write one of "
                f"{', '.join(sorted(same))}.",
            )
    for file, problem in assets.unusable.get(kind, {}).items():
        if name in (file, file.rpartition(".")[0]):
            raise ask.rejected(option, f": the {what} '{name}' cannot be used; its file {problem}.")
    without_files = HIRES_UPSCALERS if option == "hires_upscaler" else ()
    raise unknown_name(ask, option, what, name, [*without_files, *known])


def _scale(ask: ParsedRequest, name: str, text: str) -> float:
    try:
        scale = float(text or 1.0)
    except ValueError:
        scale = MAX_LORA_SCALE + 1
    if not abs(scale) <= MAX_LORA_SCALE:
        raise ask.rejected(
            "prompt",
            f": the scale of the LoRA '{name[:64]}' must be between -{MAX_LORA_SCALE:g} and "
            f"{MAX_LORA_SCALE:g}.",
        )
    return scale


def second_pass(
    ask: ParsedRequest,
    spec: ModelSpec,
    size: Size,
    sources: Sources,
    assets: Assets,
    limits: Limits,
) -> Size | None:
    """Return the size of the second pass in pixels; None without a second pass."""
    scale = ask.params.hires_scale
    if scale is None:
        return None
    if sources.size is not None:
        raise ask.rejected(
            "hires_scale", " cannot be combined with an input image.", Reason.NOT_SUPPORTED
        )
    multiple = spec.traits.multiple
    larger = Size(*(round(side * scale / multiple) * multiple for side in size))
    problem = spec.size_problem(larger)
    if larger == size:
        problem = (
            f"{size} would not change; sides are multiples of {multiple}, so use a larger factor"
        )
    if problem:
        raise ask.rejected("hires_scale", f": {problem}.")
    check_pixels(ask, "hires_scale", larger, limits.drawn)
    upscaler = ask.params.hires_upscaler
    if upscaler is not None and upscaler not in HIRES_UPSCALERS:
        _check_upscaler(ask, "hires_upscaler", upscaler, size, assets, limits)
    return larger


def _check_upscaler(
    ask: ParsedRequest, option: str, name: str, size: Size, assets: Assets, limits: Limits
) -> None:
    """Reject an image if the upscaler's direct result, before any reduction, is too large."""
    factor = assets.upscalers[name]
    whole = Size(size.width * factor, size.height * factor)
    if whole.width * whole.height > limits.enlarged:
        raise ask.rejected(
            option,
            f": the upscaler '{name}' enlarges {size} by {factor}, and {whole} is more than the "
            f"server's limit of {limits.enlarged} pixels (--max-upscaled-pixels).",
        )


def enlarging(
    ask: ParsedRequest, steps: int, assets: Assets, enlargement: Enlargement | None
) -> dict[str, Any]:
    """Return the concrete options of the second pass and the upscaler: name -> value.

    Factors that the client sent are not in the result, so that they stay as the client sent them.

    Args:
        ask: The request, with the upscaler of its model's entry.
        steps: Number of steps of the first pass.
        assets: The operator's upscalers.
        enlargement: How the generated image gets the size of the request; None if it is not
            resized.
    """
    params = ask.params
    values: dict[str, Any] = {}
    if params.hires_scale is not None:
        values = {
            "hires_steps": params.hires_steps or steps,
            "hires_strength": 0.7 if params.hires_strength is None else params.hires_strength,
            "hires_upscaler": params.hires_upscaler or "latent",
        }
    if params.upscaler is not None and enlargement is not None:
        values["upscale"] = enlargement.factor
    elif params.upscaler is not None and params.upscale is None:
        values["upscale"] = float(assets.upscalers[params.upscaler])
    return values


def with_upscalers(ask: ParsedRequest, assets: Assets) -> ParsedRequest:
    """Return the request with the full names of its upscalers."""
    params = ask.params
    named = {"upscaler": params.upscaler}
    if params.hires_upscaler not in HIRES_UPSCALERS:
        named["hires_upscaler"] = params.hires_upscaler
    whole = {
        option: _file(ask, option, "upscaler", name, assets)
        for option, name in named.items()
        if name is not None
    }
    return replace(ask, params=params.model_copy(update=whole))


def with_own_upscaler(
    ask: ParsedRequest,
    spec: ModelSpec,
    enlargement: Enlargement,
    larger: Size | None,
    assets: Assets,
) -> ParsedRequest:
    """Return the request with the upscaler of its model's entry.

    Args:
        ask: The request.
        spec: The model.
        enlargement: How the generated image gets the size of the request.
        larger: Size of the second pass; if it is large enough, no upscaler is used.
        assets: The operator's upscalers.

    Raises:
        InvalidRequest: The server lacks the upscaler, or the request sets another factor.
    """
    upscaler = enlargement.upscaler
    if upscaler is None:
        return ask
    factor = ask.params.upscale
    if factor is not None and abs(factor - enlargement.factor) > 0.001:
        raise ask.rejected(
            "upscale",
            f": {factor:g} contradicts the size, which requires an upscale by "
            f"{enlargement.factor:g}; enlarge the finished image afterwards.",
            Reason.CONFLICTING_FIELDS,
        )
    if larger is not None and larger.width >= enlargement.enlarged.width:
        unused = ask.params.model_copy(update={"upscaler": None, "upscale": None})
        return replace(ask, params=unused)
    if upscaler not in assets.upscalers:
        there = ", ".join(assets.upscalers) or "none"
        raise ask.rejected(
            "size",
            f": for this size, the model '{spec.id}' requires the upscaler '{upscaler}', which the "
            f"server does not have; available: {there}.",
            Reason.NOT_SUPPORTED,
        )
    return replace(ask, params=ask.params.model_copy(update={"upscaler": upscaler}))


def upscaled(
    ask: ParsedRequest, size: Size, assets: Assets, limits: Limits, own: Size | None = None
) -> Size | None:
    """Return the size after the upscaler and resizing, in pixels; None without either.

    Args:
        ask: The request.
        size: Size of the image before the upscaler.
        assets: The operator's upscalers.
        limits: Limits of the upscaler's direct result, even if that is reduced afterwards.
        own: Size after the resize that the entry in models.yaml asks for; None without one.
    """
    name = ask.params.upscaler
    if name is None:
        return own
    _check_upscaler(ask, "size" if own else "upscaler", name, size, assets, limits)
    if own is not None:
        return own
    most = assets.upscalers[name]
    factor = most if ask.params.upscale is None else ask.params.upscale
    if factor > most:
        raise ask.rejected("upscale", f": the upscaler '{name}' enlarges at most {most} times.")
    return Size(*(max(1, round(side * factor)) for side in size))
