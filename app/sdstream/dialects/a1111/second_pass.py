"""AUTOMATIC1111's fields of the second pass, which must mean the same as those of the first pass.

The second pass of this server differs from the first only in its size, strength and steps. Clients
send the other values again, maybe in another spelling or as the name of a default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sdstream.core.ask import ParsedRequest
from sdstream.core.errors import InvalidRequest, Reason
from sdstream.core.model_options import default_guidance, defaults_of
from sdstream.core.model_spec import ModelSpec
from sdstream.core.option_texts import comparable
from sdstream.core.options import ImageParams
from sdstream.core.request import Limits
from sdstream.core.samplers import NO_SAMPLER, NO_SCHEDULE, find_sampler, find_schedule
from sdstream.dialects.a1111.settings import checkpoint_names

#: Field of the second pass -> the field of the first pass that must mean the same.
FIELDS: Final[Mapping[str, str]] = {
    "hr_checkpoint_name": "model",
    "hr_sampler_name": "sampler_name",
    "hr_scheduler": "scheduler",
    "hr_prompt": "prompt",
    "hr_negative_prompt": "negative_prompt",
    "hr_cfg": "cfg_scale",
    "hr_distilled_cfg": "distilled_cfg_scale",
    "hr_additional_modules": "",
}
#: Values of these fields that mean "as in the first pass".
_SAME: Final[tuple[object, ...]] = (
    None, "", 0, [], "Use same checkpoint", "Use same sampler", "Use same scheduler",
    ["Use same choices"],
)  # fmt: skip


def differently_written(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the second pass whose values are not written as in the first pass.

    Args:
        given: The client's fields.
    """
    return {
        name: given[name]
        for name, first in FIELDS.items()
        if given.get(name) not in _SAME and given[name] != given.get(first)
    }


def check(second: Mapping[str, Any], ask: ParsedRequest, spec: ModelSpec, name: str) -> None:
    """Reject a field of the second pass that means something else than the first pass uses.

    Args:
        second: Name of the field -> its value.
        ask: The request.
        spec: The model of the request.
        name: The catalogue's id or alias of the model.

    Raises:
        InvalidRequest: A field differs.
    """
    for field, value in second.items():
        if not _agrees(field, value, ask.params, spec, name):
            raise InvalidRequest(
                f"'{field}' differs from the first pass; the second pass differs only in size.",
                reason=Reason.NOT_SUPPORTED,
                param=field,
            )


def _agrees(field: str, value: object, first: ImageParams, spec: ModelSpec, name: str) -> bool:
    text, usual = str(value), defaults_of(spec, Limits())
    match field:
        case "hr_checkpoint_name":
            known = {one.casefold() for one in (spec.id, name, *spec.aliases)}
            return any(one.casefold() in known for one in checkpoint_names(text))
        case "hr_sampler_name":
            sampler, implied = _sampler(text)
            used = _sampler(first.sampler)[0] or usual["sampler"]
            return sampler == used and implied in (None, _schedule(first, usual))
        case "hr_scheduler":
            schedule = usual["schedule"] if _is_automatic(text) else find_schedule(text)
            return bool(schedule == _schedule(first, usual))
        case "hr_cfg":
            used = usual["cfg_scale"] if first.cfg_scale is None else first.cfg_scale
            return comparable(value) == comparable(used)
        case "hr_distilled_cfg":
            used = default_guidance(spec) if first.guidance is None else first.guidance
            return comparable(value) == comparable(used)
        case "hr_prompt":
            return value == first.prompt
        case "hr_negative_prompt":
            return value == first.negative_prompt
        case _:
            return False


def _sampler(text: str | None) -> tuple[str | None, str | None]:
    """Return the sampler of a client's name, and the schedule if the name contains one."""
    plain = (text or "").strip()
    return (None, None) if plain.lower() in NO_SAMPLER else find_sampler(plain) or (None, None)


def _schedule(first: ImageParams, usual: Mapping[str, Any]) -> str:
    """Return the schedule that the first pass uses."""
    named = None if _is_automatic(first.schedule) else find_schedule(first.schedule or "")
    schedule: str = named or _sampler(first.sampler)[1] or usual["schedule"]
    return schedule


def _is_automatic(text: str | None) -> bool:
    return (text or "").strip().lower() in NO_SCHEDULE
