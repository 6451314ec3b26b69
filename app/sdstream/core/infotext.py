"""The parameters of an image as text in AUTOMATIC1111's format, which many tools read.

The text contains the prompt, a line with the negative prompt if there is one, and a last line of
``Name: value, …``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sdstream import __version__
from sdstream.core.options import OPTIONS, ImageParams
from sdstream.core.request import GenerationRequest
from sdstream.core.samplers import (
    CACHE_MODES,
    DEFAULT_SCHEDULE,
    HIRES_UPSCALERS,
    NO_SAMPLER,
    NO_SCHEDULE,
    SAMPLERS,
    SCHEDULES,
    find_sampler,
    find_schedule,
)
from sdstream.core.size import Size

#: One "Name: value" in the last line of a parameters text; a value with commas is quoted. The
#: length of the name is limited, because a long line without a colon would take quadratic time.
_PARAMETER: Final = re.compile(r'([^\s:,"][^:,"]{0,63}):\s*("(?:[^"\\]|\\.)*"|[^,"]*)')
#: Maximum length of the last line in characters; a longer line is not read as parameters.
_MAX_FACTS: Final = 65_536
_NEGATIVE: Final = re.compile(r"^Negative prompt:", re.MULTILINE)
#: Key of the size that the model generated, in the text of an image that was resized afterwards.
_GENERATED: Final = "Generated size"
#: Length of a LoRA's hash; AUTOMATIC1111 writes the same length, and Civitai finds LoRAs by it.
_HASH_CHARACTERS: Final = 12
#: Length of a checkpoint's hash.
_MODEL_HASH_CHARACTERS: Final = 10
#: Key of the CPU kernels that generated the image; they affect rounding.
_KERNELS: Final = "Kernels"
_SIZE: Final = re.compile(r"(\d+)x(\d+)")
#: The scale at the end of the text of one LoRA.
_SCALE: Final = re.compile(r":\s*([+-]?[\d.][\d.e+-]*)\s*$")


def write(request: GenerationRequest, seed: int) -> str:
    """Return the parameters text of one image.

    The text of an image that was only upscaled has no prompt and no sampling options.

    Args:
        request: The request for which the image was generated.
        seed: Seed of this image.
    """
    lines: list[str] = []
    values = request.options.given()
    if request.draws:
        lines.append(request.prompt)
        if request.negative_prompt:
            lines.append(f"Negative prompt: {request.negative_prompt}")
        values = {
            "sample_steps": request.steps,
            "sampler": SAMPLERS[request.sampler].label,
            "schedule": SCHEDULES[request.schedule].label or "Automatic",
            "cfg_scale": request.cfg_scale,
            "seed": seed,
            "size": request.asked_size,
            "model": request.model,
            **values,
        }
    facts = {}
    for name, value in values.items():
        option = OPTIONS[name]
        if option.infotext and value is not False:
            facts[option.infotext] = option.flag_text if value is True else _text(value)
    if request.model_hash:
        facts["Model hash"] = short_hash(request.model_hash)
    if request.lora_hashes:
        hashes = (f"{n}: {h[:_HASH_CHARACTERS]}" for n, h in request.lora_hashes.items())
        facts["Lora hashes"] = ", ".join(hashes)
    if request.enlarged:
        facts[_GENERATED] = str(request.size)
    if request.kernels:
        facts[_KERNELS] = request.kernels
    facts["Version"] = f"sdstream {__version__}"
    lines.append(", ".join(f"{name}: {_quoted(text)}" for name, text in facts.items()))
    return "\n".join(lines)


def short_hash(checksum: str) -> str:
    """Return the part of a checkpoint's SHA-256 that AUTOMATIC1111 shows and Civitai looks up."""
    return checksum[:_MODEL_HASH_CHARACTERS]


def extended(text: str, facts: Mapping[str, str]) -> str:
    """Return a parameters text with more names and values in its last line."""
    added = ", ".join(f"{name}: {_quoted(value)}" for name, value in facts.items())
    return f"{text}, {added}" if text else added


def _text(value: object) -> str:
    """Return a value as AUTOMATIC1111 writes it: lists with commas, LoRAs as name:scale."""
    match value:
        case float():
            return repr(value).removesuffix(".0")
        case {"id": name, "scale": scale}:
            return f"{name}:{_text(scale)}"
        case dict():
            return ", ".join(f"{name}={_text(number)}" for name, number in value.items())
        case list():
            return ", ".join(map(_text, value))
        case _:
            return str(value)


def _quoted(text: str) -> str:
    """Return a text in quotes if it contains a comma, a colon, a quote or a line break."""
    return json.dumps(text, ensure_ascii=False) if {",", ":", '"', "\n"} & {*text} else text


def read(text: str) -> dict[str, str]:
    """Return the names and values of a parameters text; a size becomes NAME-1 and NAME-2."""
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


# --- as options -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """The options in a parameters text, by their names in the API.

    Attributes:
        options: Canonical name -> value of the option's type.
        unread: Names in the text that are not options, or whose value is not valid.
    """

    options: dict[str, Any]
    unread: tuple[str, ...]


def read_options(text: str) -> ReadOptions | None:
    """Return the options of a parameters text; None if the text does not contain the steps.

    Args:
        text: Text of an image file that this server, AUTOMATIC1111 or a similar program wrote.
    """
    facts = read(text)
    if "Steps" not in facts:
        return None
    options: dict[str, Any] = {
        "prompt": facts.pop("Prompt"),
        "negative_prompt": facts.pop("Negative prompt"),
    }
    if {"Size-1", "Size-2"} <= facts.keys():
        facts["Size"] = f"{facts.pop('Size-1')}x{facts.pop('Size-2')}"
    for side in "12":
        facts.pop(f"{_GENERATED}-{side}", None)  # it follows from the size and the model
    # Older releases of AUTOMATIC1111 write the sampler and the schedule as one name: "DPM++ 2M
    # Karras".
    both = find_sampler(facts.get("Sampler", ""))
    if both is not None and both[1] is not None:
        facts.setdefault("Schedule type", both[1])
    unread = []
    for fact, value in facts.items():
        option = _option(fact, value)
        if option is not None:
            options |= option
        elif not _ASIDE.search(fact):
            unread.append(fact)
    _settle(options)
    return ReadOptions(options, tuple(unread))


def _settle(options: dict[str, Any]) -> None:
    """Remove the options that contradict others of the same text."""
    if "hires_scale" in options and "strength" in options:
        # AUTOMATIC1111 uses one name for both strengths. An image with a second pass had no input
        # image, so the value is that of the second pass.
        options.setdefault("hires_strength", options.pop("strength"))
    if "sigmas" in options:  # they replace the steps and the schedule
        for name in ("sample_steps", "schedule"):
            options.pop(name, None)


def _option(fact: str, text: str) -> dict[str, Any] | None:
    """Return the option of one name with its value; None if it is not a valid option."""
    name = _BY_INFOTEXT.get(fact)
    if name is None:
        return None
    option = OPTIONS[name]
    if option.flag_text != "True":
        return {name: True} if text == option.flag_text else None
    try:
        value = _NORMALISED.get(name, _spelled)(text)
        params = ImageParams.model_validate({"prompt": "", name: value})
    except ValueError:
        return None
    read = params.model_dump(mode="json")[name]
    return None if read is None else {name: read}


def _spelled(text: str) -> str:
    return text


def _size(text: str) -> str:
    if 0 in Size.parse(text):
        raise ValueError("a side of 0")
    return text


def _sampler(text: str) -> str | None:
    if text.lower() in NO_SAMPLER:
        return text
    found = find_sampler(text)
    return found[0] if found else None


def _schedule(text: str) -> str | None:
    return DEFAULT_SCHEDULE if text.lower() in NO_SCHEDULE else find_schedule(text)


def _cache(text: str) -> str | None:
    return text if text in CACHE_MODES else None


def _hires_upscaler(text: str) -> str:
    """Convert AUTOMATIC1111's form, for example "Latent (nearest-exact)"; keep other names."""
    own = re.sub(r"[ (]+", "-", text.lower()).replace(")", "")
    return own if own in HIRES_UPSCALERS else text


def _loras(text: str) -> list[dict[str, str]]:
    """Read "name:scale, name:scale"; a name may contain commas and colons."""
    found: list[dict[str, str]] = []
    name: list[str] = []
    for part in text.split(","):
        scale = _SCALE.search(part)
        name.append(part[: scale.start()] if scale else part)
        if scale:
            found.append({"id": ",".join(name).strip(), "scale": scale[1]})
            name = []
    if name:
        raise ValueError("a LoRA without a scale")
    return found


#: Option whose text differs from the API's form -> function that converts it. It returns None or
#: raises ValueError if no request accepts the value.
_NORMALISED: Final[Mapping[str, Callable[[str], Any]]] = {
    "size": _size,
    "sampler": _sampler,
    "schedule": _schedule,
    "cache_mode": _cache,
    "hires_upscaler": _hires_upscaler,
    "lora": _loras,
}
_BY_INFOTEXT: Final = {
    option.infotext: name for name, option in OPTIONS.items() if option.infotext is not None
}
#: Keys that describe the program and its files; they are not reported as unread.
_ASIDE: Final = re.compile(rf"^Version$|^{_KERNELS}$|^Hashes$| hash(es)?$")
