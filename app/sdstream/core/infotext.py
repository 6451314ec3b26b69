"""The parameters of an image as text, in AUTOMATIC1111's form, which many tools read back.

The prompt, perhaps a line with the negative prompt, and a last line of ``Name: value, …``.
"""

from __future__ import annotations

import json
import re
from typing import Final

from sdstream import __version__
from sdstream.core.request import GenerationRequest

#: One "Name: value" of the last line of a parameters text; values with commas are quoted. The
#: name is bounded, else a long line without a colon would take quadratic time.
_PARAMETER: Final = re.compile(r'([^\s:,"][^:,"]{0,63}):\s*("(?:[^"\\]|\\.)*"|[^,"]*)')
#: Characters of that line; a longer one holds no parameters.
_MAX_FACTS: Final = 65_536
_NEGATIVE: Final = re.compile(r"^Negative prompt:", re.MULTILINE)
_SIZE: Final = re.compile(r"(\d+)x(\d+)")


def write(request: GenerationRequest, seed: int) -> str:
    """The text of one image."""
    lines = [request.prompt]
    if request.negative_prompt:
        lines.append(f"Negative prompt: {request.negative_prompt}")
    facts = {
        "Steps": request.steps,
        "Sampler": request.sampler,
        "Schedule type": request.schedule,
        "CFG scale": f"{request.cfg_scale:g}",
        "Seed": seed,
        "Size": request.size,
        "Model": request.model,
    }
    if request.guidance is not None:
        facts["Distilled CFG Scale"] = f"{request.guidance:g}"
    if request.strength is not None:
        facts["Denoising strength"] = f"{request.strength:g}"
    facts |= _powers(request)
    facts["Version"] = f"sdstream {__version__}"
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in facts.items()))
    return "\n".join(lines)


def _powers(request: GenerationRequest) -> dict[str, object]:
    """The further options of an image, by AUTOMATIC1111's names where it has one."""
    facts: dict[str, object] = {
        "Eta": request.eta,
        "Clip skip": request.clip_skip,
        "Mask blur": request.mask_blur or None,
        "Shift": request.flow_shift,
        "ControlNet weight": request.control_strength,
        "ControlNet module": "canny" if request.control_canny else None,
        "Sigmas": ", ".join(f"{level:g}" for level in request.sigmas) or None,
        "LoRA": ", ".join(f"{name}:{scale:g}" for name, scale in request.loras) or None,
    }
    if request.slg is not None:
        slg = request.slg
        facts |= {"SLG scale": slg.scale, "SLG start": slg.start, "SLG end": slg.end}
        facts["SLG layers"] = ", ".join(map(str, slg.layers))
    if request.cache is not None:
        numbers = ", ".join(f"{name}={value:g}" for name, value in request.cache.knobs.items())
        facts |= {"Cache": request.cache.mode, "Cache options": numbers or None}
    if request.hires is not None:
        hires = request.hires
        facts |= {"Hires upscale": hires.width / request.width, "Hires steps": hires.steps}
        facts |= {"Hires upscaler": hires.upscaler, "Hires denoising strength": hires.strength}
    if request.upscale is not None:
        upscale, before = request.upscale, request.hires or request
        facts["Postprocess upscaler"] = upscale.upscaler
        facts["Postprocess upscale by"] = upscale.width / before.width
    return {name: value for name, value in facts.items() if value is not None}


def _quoted(value: object) -> str:
    """A value as AUTOMATIC1111 writes it: in quotes where it could be taken for two."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if {",", ":", "\n"} & {*text} else text


def read(text: str) -> dict[str, str]:
    """Names and values of a parameters text; a size comes as NAME-1 and NAME-2."""
    if not text.strip():
        return {}
    before, _, last = text.strip().rpartition("\n")
    pairs = _PARAMETER.findall(last) if len(last) <= _MAX_FACTS else []
    if len(pairs) < 3:
        before, pairs = text.strip(), []
    prompt, *negative = _NEGATIVE.split(before, maxsplit=1)
    found = {"Prompt": prompt.strip(), "Negative prompt": "".join(negative).strip()}
    for name, value in pairs:
        size = _SIZE.fullmatch(value)
        if size:
            found |= {f"{name}-1": size[1], f"{name}-2": size[2]}
        else:
            found[name] = _unquoted(value.strip())
    return found


def _unquoted(value: str) -> str:
    try:
        return str(json.loads(value)) if value.startswith('"') else value
    except ValueError:
        return value
