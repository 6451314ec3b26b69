"""Requests of AUTOMATIC1111's API, /sdapi/v1: txt2img and img2img.

Clients of this API send every option, most of them with values that have no effect. ``FOREIGN``
lists the options without an effect on this server; dialects/fields handles them and unknown ones.

Deliberate oddities:

1. Every client sends ``inpainting_fill`` 0 with a mask. This server has no equivalent. It accepts
   the value and reports in the answer's ``warnings`` that 0 acts as 1.
2. In a mask with transparency, the opaque part is painted. In OpenAI's masks, the transparent part
   is painted.
3. A mask without ``inpaint_full_res`` means "Only masked" without padding, as in AUTOMATIC1111.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sdstream.core.ask import Handling, Hints, ParsedRequest
from sdstream.core.errors import InvalidRequest, Reason
from sdstream.core.model_options import only_looks, supports
from sdstream.core.model_spec import ModelSpec
from sdstream.core.options import MAX_IMAGES, Fit
from sdstream.core.pixels import SourceFiles
from sdstream.dialects.a1111 import controlnet, second_pass
from sdstream.dialects.a1111.controlnet import Control
from sdstream.dialects.a1111.settings import CHECKPOINT, CLIP_SKIP, NO_SETTINGS, Settings, settings
from sdstream.dialects.fields import IGNORED, STYLES, Foreign, Taken, invalid, only, take
from sdstream.dialects.openai.request import parse as parse_openai
from sdstream.dialects.pictures import file_of
from sdstream.dialects.rendering import JsonObject
from sdstream.dialects.sdcpp.options import HIRES_UPSCALERS, find_hires_upscaler

#: Options of the image that openai.request.parse reads under the same names.
_DRAWN: Final = (
    "prompt", "negative_prompt", "seed", "steps", "cfg_scale", "distilled_cfg_scale",
    "width", "height", "lora",
)  # fmt: skip

_OFF: Final = only(0)
_NO_FILE: Final = only("", "None")

#: Fields that cannot change the image: they concern saving, bookkeeping or features that are off.
_HARMLESS: Final = frozenset(
    {
        "do_not_save_samples", "do_not_save_grid", "save_images", "comments", "force_task_id",
        "subseed", "s_tmin", "s_tmax", "refiner_switch_at", "script_args", "image_cfg_scale",
        "disable_extra_networks",
        "hr_checkpoint_name", "hr_sampler_name", "hr_scheduler", "hr_prompt",
        "hr_negative_prompt", "hr_cfg", "hr_distilled_cfg", "hr_additional_modules",
    }
)  # fmt: skip

FOREIGN: Final[Mapping[str, Foreign]] = {
    **dict.fromkeys(_HARMLESS, IGNORED),
    "styles": STYLES,
    "subseed_strength": _OFF,
    "seed_resize_from_h": only(0, -1),
    "seed_resize_from_w": only(0, -1),
    "restore_faces": only(False),
    "tiling": Foreign(
        (False,), refusal=" is not supported; models of models.yaml have 'circular'."
    ),
    "s_churn": _OFF,
    "s_noise": only(1, 0),
    "s_min_uncond": _OFF,
    "firstphase_width": _OFF,
    "firstphase_height": _OFF,
    "firstpass_image": _NO_FILE,
    "refiner_checkpoint": _NO_FILE,
    "script_name": _NO_FILE,
    "infotext": Foreign(refusal=" is not supported; send its options as fields."),
    "initial_noise_multiplier": only(1),
    "latent_mask": _NO_FILE,
    "mask_round": only(True),
    # ``parameters`` of an answer contains it.
    "generated_size": IGNORED,
}

#: Hires upscalers that work on the latent image.
LATENT_UPSCALE_MODES: Final = [name for name in HIRES_UPSCALERS if name.startswith("Latent")]

#: ``fit`` by resize_mode. As in AUTOMATIC1111, "fill" extends the edges and repaints everything.
_FITS: Final[tuple[Fit, ...]] = ("stretch", "crop", "fill")

#: AUTOMATIC1111's default strength of an img2img, and its default scale of a second pass.
_STRENGTH: Final = 0.75
_HIRES_SCALE: Final = 2.0


class _Fields(BaseModel):
    """The fields that this module reads; openai.request.parse reads the others."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    batch_size: int = Field(1, ge=1, le=MAX_IMAGES)
    n_iter: int = Field(1, ge=1, le=MAX_IMAGES)
    sampler_name: str = ""
    sampler_index: str = ""
    scheduler: str = ""
    send_images: bool = True
    override_settings: Mapping[str, Any] = Field(default_factory=dict)
    override_settings_restore_afterwards: bool = True
    alwayson_scripts: Mapping[str, Any] = Field(default_factory=dict)
    init_images: tuple[str, ...] = ()
    mask: str = ""
    include_init_images: bool = False
    denoising_strength: float | None = Field(None, ge=0, le=1)
    resize_mode: int = Field(0, ge=0, le=3)
    mask_blur: float | None = None
    mask_blur_x: float | None = None
    mask_blur_y: float | None = None
    inpainting_fill: int | None = Field(None, ge=0, le=3)
    inpaint_full_res: bool = True
    inpaint_full_res_padding: int = 0
    inpainting_mask_invert: bool = False
    enable_hr: bool = False
    hr_scale: float | None = None
    upscaler_scale: float | None = None
    hr_upscaler: str = "Latent"
    hr_second_pass_steps: float = 0
    hr_resize_x: int = 0
    hr_resize_y: int = 0
    eta: float | None = None
    clip_skip: int | None = None
    model: str = ""

    @property
    def scale(self) -> float:
        """The scale of the second pass; clients of DrawThings send it as ``upscaler_scale``."""
        return next(s for s in (self.hr_scale, self.upscaler_scale, _HIRES_SCALE) if s is not None)

    @property
    def scale_name(self) -> str:
        """The client's name of the field that sets the scale of the second pass."""
        names = ("hr_resize_x", "hr_resize_y", "hr_scale", "upscaler_scale")
        return next((name for name in names if getattr(self, name)), "enable_hr")


@dataclass(frozen=True, slots=True)
class Drawing:
    """A parsed txt2img or img2img request.

    Attributes:
        ask: The request, with the input images of an img2img and the control image.
        control: The ControlNet unit, None without one.
        echo: The fields that the answer repeats as ``parameters``.
        batch_size: Images of one batch, for the answer.
        send_images: The answer contains the images.
        kept: Settings that also apply to later requests.
        recalled_clip_skip: The request has no clip_skip; an earlier request may have set it.
        second: Fields of the second pass, whose values the model decides about.
    """

    ask: ParsedRequest
    control: Control | None
    echo: JsonObject
    batch_size: int
    send_images: bool
    kept: Settings = NO_SETTINGS
    recalled_clip_skip: bool = False
    second: Mapping[str, Any] = field(default_factory=dict)


def parse(
    body: Mapping[str, Any],
    *,
    over_image: bool,
    earlier: Settings = NO_SETTINGS,
    handling: Handling = Handling.SUGGEST,
) -> Drawing:
    """Parse a txt2img or an img2img request.

    Args:
        body: The client's JSON object.
        over_image: The request is an img2img.
        earlier: Settings that earlier requests left for later ones.
        handling: How unknown fields are handled.

    Raises:
        InvalidRequest: A field is rejected; the error names it as the client spelled it.
    """
    given = {name: value for name, value in body.items() if value is not None}
    taken = take(given, (*_Fields.model_fields, *_DRAWN), foreign=FOREIGN, handling=handling)
    fields = _fields(taken)
    control = _scripts(fields, handling)
    if not over_image:
        _refuse_images(fields)
    canonical: JsonObject = {name: given[name] for name in _DRAWN if name in given}
    canonical["prompt"] = canonical.get("prompt", "")
    canonical |= _sampling(fields) | _count(fields)
    second = _second_pass(fields, given) if fields.enable_hr else {}
    canonical |= second
    override, ignored = settings(fields.override_settings, handling, "override_settings")
    canonical |= _chosen(fields, override.over(earlier))
    files = _files(fields) if over_image else None
    if control is not None:
        canonical |= {"control_strength": control.weight, "control_canny": control.canny}
        canonical["fit"] = control.fit
        files = _with_control(files, control)
    if over_image:
        canonical |= _over_image(fields)
    # Clients of sd-server put options into the prompt in this API too.
    hints = Hints(handling=handling, options_in_prompt=True)
    ask = parse_openai(canonical, hints, client_names=_spelling(fields))
    for part in (taken, ignored, *((control.taken,) if control else ())):
        ask = ask.noting(part.warnings, part.unknown)
    return Drawing(
        ask=replace(ask.noting(_warnings(fields)), files=files, any_size=True),
        control=control,
        echo=_echo(body, fields, has_control=control is not None),
        batch_size=fields.batch_size,
        send_images=fields.send_images,
        kept=NO_SETTINGS if fields.override_settings_restore_afterwards else override,
        recalled_clip_skip=fields.clip_skip is None and override.clip_skip is None,
        second=second_pass.differently_written(given) if second else {},
    )


def _naming(drawing: Drawing, spec: ModelSpec, name: str) -> Drawing:
    """Replace the client's name of the model with the catalogue's, if the client named a model."""
    ask, kept = drawing.ask, drawing.kept
    if ask.params.model:
        ask = replace(ask, params=ask.params.model_copy(update={"model": name}))
    if kept.model:
        kept = replace(kept, model=spec.id)
    return replace(drawing, ask=ask, kept=kept)


def fitted(drawing: Drawing, spec: ModelSpec, name: str) -> Drawing:
    """Adapt a request to its model, which the catalogue knows by this id or alias.

    The catalogue's name replaces the client's name of the model. These options are removed, with a
    warning:

    - clip_skip from an earlier request, if the model does not support it
    - resize_mode and denoising_strength, if the model uses the input image only as a reference;
      every client sends them

    As in AUTOMATIC1111, a width or a height alone is completed by the default.

    Raises:
        InvalidRequest: A field of the second pass differs from the first pass.
    """
    drawing = _naming(drawing, spec, name)
    second_pass.check(drawing.second, drawing.ask, spec, name)
    params, files = drawing.ask.params, drawing.ask.files
    changed: dict[str, int | None] = {}
    words = []
    if drawing.recalled_clip_skip and params.clip_skip and not supports(spec, "clip_skip"):
        changed["clip_skip"] = None
        words.append(f"{CLIP_SKIP} has no effect: the model '{spec.id}' reads more than CLIP.")
    if only_looks(drawing.ask, spec):
        changed |= dict.fromkeys(("fit", "strength"))
        words.append(
            f"The model '{spec.id}' uses the image as a reference and generates a new one."
        )
    if (params.width is None) != (params.height is None) and not (files and files.images):
        width, height = spec.default_size
        changed |= {"width": params.width or width, "height": params.height or height}
    ask = replace(drawing.ask, params=params.model_copy(update=changed))
    return replace(drawing, ask=ask.noting(words))


def _fields(taken: Taken) -> _Fields:
    try:
        return _Fields.model_validate({k: v for k, v in taken.fields.items() if k not in _DRAWN})
    except ValidationError as error:
        raise invalid(error, {}) from None


def _scripts(fields: _Fields, handling: Handling) -> Control | None:
    """Return the ControlNet unit; raises InvalidRequest for another script that is switched on.

    For a script that is switched off, webuiapi sends [] or [False].
    """
    control = None
    for name, script in fields.alwayson_scripts.items():
        arguments = script.get("args") if isinstance(script, Mapping) else script
        if name.lower() == controlnet.SCRIPT and isinstance(arguments, list):
            control = controlnet.parse(arguments, handling)
        elif arguments and (not isinstance(arguments, Sequence) or any(arguments)):
            raise InvalidRequest(
                f"'alwayson_scripts': the script '{name[:64]}' is not supported.",
                reason=Reason.NOT_SUPPORTED,
                param="alwayson_scripts",
            )
    return control


def _refuse_images(fields: _Fields) -> None:
    if fields.init_images or fields.mask:
        raise InvalidRequest(
            "txt2img does not accept input images; use /sdapi/v1/img2img.",
            reason=Reason.NOT_SUPPORTED,
            param="init_images" if fields.init_images else "mask",
        )


def _sampling(fields: _Fields) -> JsonObject:
    """Return the sampler and the schedule."""
    # webuiapi always sends its default in the deprecated sampler_index, so sampler_name wins.
    name = fields.sampler_name or fields.sampler_index
    return {"sampler": name, "scheduler": fields.scheduler}


def _second_pass(fields: _Fields, given: Mapping[str, Any]) -> JsonObject:
    """Return the options of the hires fix, none if it keeps the size; raises InvalidRequest."""
    scale = _hires_scale(fields, given)
    if scale in (0, 1):
        return {}
    upscaler = find_hires_upscaler(fields.hr_upscaler)
    found: JsonObject = {"hires_scale": scale, "hires_upscaler": upscaler}
    if fields.hr_second_pass_steps:
        found["hires_steps"] = math.ceil(fields.hr_second_pass_steps)
    if fields.denoising_strength is not None:
        found["hires_strength"] = fields.denoising_strength
    return found


def _hires_scale(fields: _Fields, given: Mapping[str, Any]) -> float:
    """Return the scale of the second pass; hr_resize_x and hr_resize_y override hr_scale."""
    x, y = fields.hr_resize_x, fields.hr_resize_y
    if not (x or y):
        return fields.scale
    name = fields.scale_name
    width, height = given.get("width"), given.get("height")
    if not (isinstance(width, int) and isinstance(height, int) and min(width, height) > 0):
        raise InvalidRequest(
            f"'{name}' requires 'width' and 'height'.", reason=Reason.MISSING_FIELD, param=name
        )
    scales = {Fraction(new, old) for new, old in ((x, width), (y, height)) if new}
    if len(scales) > 1:
        raise InvalidRequest(
            f"'hr_resize_x' and 'hr_resize_y' ({x} x {y}) must keep the proportions of "
            f"{width} x {height}.",
            reason=Reason.NOT_SUPPORTED,
            param=name,
        )
    return float(scales.pop())


def _chosen(fields: _Fields, settings: Settings) -> JsonObject:
    """Return the model, clip_skip and eta.

    A clip_skip or eta of 1 is left out: every client sends it, even if the model or the sampler
    does not support the option.
    """
    found: JsonObject = {}
    model = fields.model or settings.model
    if model is not None:
        found["model"] = model
    clip_skip = settings.clip_skip if fields.clip_skip is None else fields.clip_skip
    if clip_skip not in (None, 1):
        found["clip_skip"] = clip_skip
    if fields.eta not in (None, 1):
        found["eta"] = fields.eta
    return found


def _count(fields: _Fields) -> JsonObject:
    images = fields.batch_size * fields.n_iter
    if images > MAX_IMAGES:
        raise InvalidRequest(
            f"'batch_size' times 'n_iter' must be at most {MAX_IMAGES}, not {images}.",
            param="batch_size",
        )
    return {"batch_size": images}


def _spelling(fields: _Fields) -> dict[str, str]:
    """Return canonical name -> the client's name of options, for errors."""
    return {
        "model": "model" if fields.model else CHECKPOINT,
        "sampler": "sampler_name" if fields.sampler_name else "sampler_index",
        "fit": "resize_mode",
        "clip_skip": CLIP_SKIP if fields.clip_skip is None else "clip_skip",
        "only_masked": "inpaint_full_res",
        "only_masked_padding": "inpaint_full_res_padding",
        "hires_scale": fields.scale_name,
        "hires_steps": "hr_second_pass_steps",
        "hires_upscaler": "hr_upscaler",
        "hires_strength": "denoising_strength",
        "control": controlnet.PARAM,
    }


# --- requests: input images -----------------------------------------------------------------------


def _files(fields: _Fields) -> SourceFiles:
    if not fields.init_images:
        raise InvalidRequest(
            "'init_images' is required.", reason=Reason.MISSING_FIELD, param="init_images"
        )
    if len(fields.init_images) > 1:
        raise InvalidRequest(
            "'init_images' must contain one image; several are not supported.",
            reason=Reason.NOT_SUPPORTED,
            param="init_images",
        )
    return SourceFiles(
        images=(file_of("init_images", fields.init_images[0]),),
        mask=file_of("mask", fields.mask) if fields.mask else None,
        inverted_mask=fields.inpainting_mask_invert,
    )


def _with_control(files: SourceFiles | None, control: Control) -> SourceFiles:
    """Add the control image: the image of the unit, or else the input image."""
    param = controlnet.PARAM
    if control.image:
        picture = file_of(param, control.image)
    elif files is not None:
        picture = files.images[0]
    else:
        raise InvalidRequest(
            f"'{param}': the ControlNet unit requires 'image'.",
            reason=Reason.MISSING_FIELD,
            param=param,
        )
    return replace(files or SourceFiles(()), control=picture)


def _over_image(fields: _Fields) -> JsonObject:
    if fields.resize_mode == len(_FITS):
        raise InvalidRequest(
            "'resize_mode' 3 (latent upscale) is not supported; use 0, 1 or 2.",
            reason=Reason.NOT_SUPPORTED,
            param="resize_mode",
        )
    chosen: JsonObject = {}
    if not (fields.mask and fields.inpaint_full_res):
        chosen["fit"] = _FITS[fields.resize_mode]
    if fields.denoising_strength is not None:
        chosen["denoising_strength"] = fields.denoising_strength
    if fields.mask:
        chosen.setdefault("denoising_strength", _STRENGTH)
        chosen |= {"mask_mode": "opacity", "mask_blur": _blur(fields)}
        if fields.inpaint_full_res:
            chosen["only_masked"] = True
            chosen["only_masked_padding"] = fields.inpaint_full_res_padding
        if fields.inpainting_fill in (2, 3):
            raise InvalidRequest(
                "'inpainting_fill' must be 0 or 1; generation starts from the input image.",
                reason=Reason.NOT_SUPPORTED,
                param="inpainting_fill",
            )
    return chosen


def _blur(fields: _Fields) -> float:
    """Return the blur; as in AUTOMATIC1111, ``mask_blur`` overrides the values of the axes."""
    if fields.mask_blur is not None:
        return fields.mask_blur
    given = {way for way in (fields.mask_blur_x, fields.mask_blur_y) if way is not None}
    if len(given) > 1:
        raise InvalidRequest(
            "'mask_blur_x' and 'mask_blur_y' must have the same value.",
            reason=Reason.NOT_SUPPORTED,
            param="mask_blur_x",
        )
    return next(iter(given), 0.0)


def _warnings(fields: _Fields) -> tuple[str, ...]:
    if fields.mask and fields.inpainting_fill == 0:
        return ("inpainting_fill 0 acts as 1: generation starts from the image as it is.",)
    return ()


def _echo(body: Mapping[str, Any], fields: _Fields, *, has_control: bool) -> JsonObject:
    """Return the request's fields, without the images unless include_init_images is set."""
    echo = dict(body)
    if not fields.include_init_images:
        echo |= {name: None for name in ("init_images", "mask") if name in body}
        if has_control:
            del echo["alwayson_scripts"]
    return echo
