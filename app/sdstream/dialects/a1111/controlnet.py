"""Units of AUTOMATIC1111's ControlNet extension, in ``alwayson_scripts``.

On this server, a model of the catalogue has at most one ControlNet. A request can therefore have
one unit, and the unit's ``model`` must be that ControlNet or "None".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sdstream.core.ask import Handling
from sdstream.core.errors import InvalidRequest, Reason
from sdstream.core.model_spec import ModelSpec
from sdstream.core.options import Fit
from sdstream.dialects.fields import IGNORED, Foreign, Taken, invalid, is_nothing, only, take
from sdstream.dialects.rendering import compact

SCRIPT: Final = "controlnet"
MODULES: Final = ("none", "canny")
#: Names of the routes GET /controlnet/….
LISTS: Final = ("version", "model_list", "module_list", "settings")

PARAM: Final = "alwayson_scripts"
_NO_MODEL: Final = ("", "none")
_FITS: Final[Mapping[str, Fit]] = {
    "0": "stretch",
    "just resize": "stretch",
    "1": "crop",
    "crop and resize": "crop",
    "2": "pad",
    "resize and fill": "pad",
}
#: webuiapi and others append the file's checksum: "canny [d14c016b]".
_CHECKSUM: Final = re.compile(r" \[[0-9a-f]{4,16}\]$")

_NO_IMAGE: Final = Foreign(refusal=" is not supported; the model follows the whole control image.")
#: Fields that concern saving, speed, or the preprocessing of the uploaded image.
_HARMLESS: Final = frozenset(
    {
        "inpaint_crop_input_image",
        "low_vram", "pixel_perfect", "processor_res", "save_detected_map", "is_ui", "input_mode",
        "batch_images", "output_dir", "loopback", "use_preview_as_input", "generated_image",
        "union_control_type", "pulid_mode",
    }
)  # fmt: skip
_FOREIGN: Final[Mapping[str, Foreign]] = {
    **dict.fromkeys(("mask", "mask_image", "effective_region_mask"), _NO_IMAGE),
    "guidance_start": only(0),
    "guidance_end": only(1),
    "control_mode": only("Balanced", 0),
    "guessmode": only(False),
    "hr_option": only("Both", "HiResFixOption.BOTH"),
    "advanced_weighting": only([]),
    "ipadapter_input": only([]),
    **dict.fromkeys(_HARMLESS, IGNORED),
}


class _Unit(BaseModel):
    """The fields of a unit that have an effect; ``_control`` checks those of type Any."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    enabled: bool = True
    image: Any = ""
    input_image: Any = ""
    module: str = "none"
    model: str = "none"
    weight: float = Field(1.0, ge=0, le=2)
    resize_mode: Any = "crop and resize"
    threshold_a: float = -1
    threshold_b: float = -1


@dataclass(frozen=True, slots=True)
class Control:
    """A unit that is switched on.

    Attributes:
        image: Base64 of the control image; empty means the input image.
        model: The ControlNet that the client names; empty means the model's ControlNet.
        fit: How the control image is resized to the generated size.
        weight: How strictly the generated image follows the control image.
        canny: The runtime detects the edges of the client's image, and follows the edges.
        taken: The fields after ``take``, with their warnings.
    """

    image: str
    model: str
    fit: Fit
    weight: float
    canny: bool
    taken: Taken


def parse(arguments: Sequence[Any], handling: Handling) -> Control | None:
    """Parse the arguments of the extension; return the unit that is switched on, or None.

    Raises:
        InvalidRequest: A field is rejected, or two units are switched on.
    """
    controls = [
        control
        for number, unit in enumerate(arguments)
        if (control := _control(unit, number, handling))
    ]
    if len(controls) > 1:
        raise _refusal(PARAM, SCRIPT, "a model has one ControlNet; send at most one unit")
    return controls[0] if controls else None


def check_model(control: Control, spec: ModelSpec) -> None:
    """Check that the ControlNet that a client names is the model's ControlNet.

    Raises:
        InvalidRequest: The names differ. A model without a ControlNet is rejected later.
    """
    own = name_of(spec)
    if control.model and own and control.model != own:
        why = f"the ControlNet of '{spec.id}' is '{own}', not '{control.model[:64]}'"
        raise _refusal(PARAM, SCRIPT, why)


def name_of(spec: ModelSpec) -> str | None:
    """Return the name of a model's ControlNet, which is the file's name without the ending."""
    if spec.files.control_net is None:
        return None
    file = spec.files.control_net.rpartition("/")[2]
    return file.rpartition(".")[0] or file


def listing(name: str, specs: Iterable[ModelSpec]) -> bytes:
    """Return the JSON of one of the routes in LISTS."""
    match name:
        case "model_list":
            found = sorted({own for spec in specs if (own := name_of(spec))})
            return compact({"model_list": found})
        case "module_list":
            return compact({"module_list": MODULES, "module_detail": {}})
        case "settings":
            return compact({"control_net_unit_count": 1})
        case _:
            return compact({"version": 3})


def _control(unit: Any, number: int, handling: Handling) -> Control | None:
    """Return a unit, None if it is switched off or empty."""
    where = f"{PARAM}.{SCRIPT}.args[{number}]"
    if not unit:
        return None
    if not isinstance(unit, Mapping):
        raise InvalidRequest(f"'{where}' must be an object.", param=where)
    if unit.get("enabled") is not None and is_nothing(unit["enabled"]):
        return None
    fields, taken = _fields(unit, where, handling)
    canny = fields.module.lower() == "canny"
    if fields.module.lower() not in MODULES:
        raise _refusal(where, "module", f"write {' or '.join(MODULES)}")
    fit = _FITS.get(str(fields.resize_mode).lower())
    if fit is None:
        raise _refusal(where, "resize_mode", f"write one of {', '.join(_FITS)}")
    model = _CHECKSUM.sub("", fields.model.strip())
    if canny and not fields.threshold_a == fields.threshold_b == -1:
        note = f"{where}: the thresholds of canny have no effect; the runtime uses its own."
        taken = replace(taken, warnings=(*taken.warnings, note))
    return Control(
        image=_picture(fields, where),
        model="" if model.lower() in _NO_MODEL else model,
        fit=fit,
        weight=fields.weight,
        canny=canny,
        taken=taken,
    )


def _fields(given: Mapping[str, Any], where: str, handling: Handling) -> tuple[_Unit, Taken]:
    prefix, own = f"{where}.", _Unit.model_fields
    taken = take(given, own, foreign=_FOREIGN, handling=handling, where=prefix)
    try:
        return _Unit.model_validate(taken.fields), taken
    except ValidationError as error:
        raise invalid(error, {name: prefix + name for name in own}) from None


def _picture(fields: _Unit, where: str) -> str:
    """Return the base64 from a string, or from the object that the extension's own page sends."""
    picture = fields.image or fields.input_image
    if isinstance(picture, Mapping):
        if picture.get("mask"):
            raise _refusal(where, "image", "a mask of the control image is not supported")
        picture = picture.get("image") or ""
    if not isinstance(picture, str):
        raise _refusal(where, "image", "it must be base64")
    return picture


def _refusal(where: str, name: str, why: str) -> InvalidRequest:
    param = f"{where}.{name[:64]}"
    return InvalidRequest(f"'{param}': {why}.", reason=Reason.NOT_SUPPORTED, param=param)
