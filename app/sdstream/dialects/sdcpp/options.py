"""The option schema of stable-diffusion.cpp's server, and ``<sd_cpp_extra_args>`` in prompts.

The schema is nested: ``sample_params`` contains the sampler, the schedule and ``guidance``. Clients
send all options, most of them with values that have no effect.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from sdstream.core.ask import Handling
from sdstream.core.errors import InvalidRequest, Reason
from sdstream.core.options import is_neutral
from sdstream.dialects.fields import IGNORED, Foreign, is_nothing, only, take

#: Options at the top level: name in this API -> canonical name.
_TOP: Final[Mapping[str, str]] = {
    "prompt": "prompt", "negative_prompt": "negative_prompt", "clip_skip": "clip_skip",
    "width": "width", "height": "height", "strength": "strength", "seed": "seed",
    "batch_count": "n", "control_strength": "control_strength", "output_format": "output_format",
    "output_compression": "output_compression", "lora": "lora", "cache_mode": "cache_mode",
    "cache_option": "cache_options", "increase_ref_index": "increase_ref_index",
}  # fmt: skip
_SAMPLE: Final[Mapping[str, str]] = {
    "scheduler": "schedule", "sample_method": "sampler", "sample_steps": "sample_steps",
    "eta": "eta", "custom_sigmas": "sigmas", "flow_shift": "flow_shift",
    "shifted_timestep": "shifted_timestep",
}  # fmt: skip
_GUIDANCE: Final[Mapping[str, str]] = {
    "txt_cfg": "cfg_scale", "img_cfg": "img_cfg", "distilled_guidance": "guidance",
}  # fmt: skip
_SLG: Final[Mapping[str, str]] = {
    "scale": "slg_scale", "layers": "slg_layers", "layer_start": "slg_start",
    "layer_end": "slg_end",
}  # fmt: skip
_HIRES: Final[Mapping[str, str]] = {
    "upscaler": "hires_upscaler", "scale": "hires_scale", "steps": "hires_steps",
    "denoising_strength": "hires_strength",
}  # fmt: skip
_TILING: Final[Mapping[str, str]] = {
    "enabled": "vae_tiling", "target_overlap": "vae_tile_overlap",
    "tile_size_x": "vae_tile_size_x", "tile_size_y": "vae_tile_size_y",
}  # fmt: skip
_TILE_SIZES: Final = ("vae_tile_size_x", "vae_tile_size_y")

#: Fields that contain images.
IMAGES: Final = ("init_image", "mask_image", "control_image", "ref_images")

_NESTED: Final = ("sample_params", "hires", "vae_tiling_params")

_TOP_FOREIGN: Final[Mapping[str, Foreign]] = {
    "auto_resize_ref_image": IGNORED,  # parse_img_gen reads it
    "embed_image_metadata": IGNORED,
    "ip_adapter_image": Foreign(
        refusal=" is not supported: the models of this runtime have no IP-Adapter."
    ),
    "ip_adapter_strength": IGNORED,
    "scm_mask": Foreign(refusal=" has no effect in this release of the runtime; leave it empty."),
    "scm_policy_dynamic": IGNORED,
    "video_frames": only(1),
    "fps": IGNORED,
    "moe_boundary": IGNORED,
    "vace_strength": IGNORED,
    "upscale_repeats": only(1, 0),
    "high_noise_sample_params": IGNORED,
}
_GUIDANCE_FOREIGN: Final = {"slg": IGNORED}  # flatten reads it separately
_HIRES_FOREIGN: Final = {
    "enabled": IGNORED,
    "target_width": only(0),
    "target_height": only(0),
    "custom_sigmas": Foreign(refusal=" is not supported; the schedule of the first pass is used."),
    "upscale_tile_size": IGNORED,
}
_TILING_FOREIGN: Final = {
    "temporal_tiling": IGNORED,
    "rel_size_x": only(0),
    "rel_size_y": only(0),
    "extra_tiling_args": Foreign(refusal=" is not supported; leave it empty."),
}

#: AUTOMATIC1111's name of a hires upscaler -> the value of ``hires_upscaler``; this API uses the
#: same names.
HIRES_UPSCALERS: Final = {
    "Latent": "latent",
    "Latent (antialiased)": "latent-antialiased",
    "Latent (bicubic)": "latent-bicubic",
    "Latent (bicubic antialiased)": "latent-bicubic-antialiased",
    "Latent (nearest)": "latent-nearest",
    "Latent (nearest-exact)": "latent-nearest-exact",
    "None": "lanczos",  # resized by Lanczos, without a model
    "Lanczos": "lanczos",
    "Nearest": "nearest",
}


def find_hires_upscaler(name: str) -> str:
    """Return the value of ``hires_upscaler``: the runtime's name, or the name of an upscaler file.

    Args:
        name: AUTOMATIC1111's name in upper or lower case, or the name of an upscaler file.
    """
    wanted = name.strip()
    by_name = {spelling.lower(): ours for spelling, ours in HIRES_UPSCALERS.items()}
    return by_name.get(wanted.lower(), wanted)


TAG: Final = "<sd_cpp_extra_args>"
_END: Final = "</sd_cpp_extra_args>"


@dataclass
class Flat:
    """Options of a request after the nested schema is flattened.

    Attributes:
        fields: Canonical name -> value.
        names: Canonical name -> the client's name, for errors.
        warnings: Warnings about ignored fields, one sentence each.
        unknown: Names of ignored fields that no table contains.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    def read(  # one level of the schema
        self,
        given: Any,
        own: Mapping[str, str],
        foreign: Mapping[str, Foreign],
        handling: Handling,
        where: str,
        switch: str | None = None,
    ) -> None:
        """Add the fields of one object.

        Args:
            given: The object that the client sent; null counts as an empty object.
            own: Name of a field that has an effect -> its canonical name.
            foreign: Known fields that have no effect, by name.
            handling: How unknown fields are handled.
            where: Prefix of the names in messages.
            switch: The field that switches the object on. If the field is off, no field of the
                object has an effect, but unknown fields are still reported.

        Raises:
            InvalidRequest: A field is rejected.
        """
        if given is None:
            return
        if not isinstance(given, Mapping):
            name = where.rstrip(".")
            raise InvalidRequest(f"'{name}' must be an object.", param=name)
        off = _is_off(given, switch)
        if off:
            foreign = dict.fromkeys(foreign, IGNORED)
        taken = take(given, own, foreign=foreign, handling=handling, where=where)
        for name, value in ({} if off else taken.fields).items():
            self.fields[own[name]] = value
            self.names[own[name]] = where + name
        self.warnings += taken.warnings
        self.unknown += taken.unknown


def flatten(body: Mapping[str, Any], handling: Handling, where: str = "") -> Flat:
    """Parse the options of a request, without its images.

    Args:
        body: The client's JSON object.
        handling: How unknown fields are handled.
        where: Prefix of the names in messages.

    Raises:
        InvalidRequest: A field is rejected; the error names it as the client spelled it.
    """
    flat = Flat()
    top = {k: v for k, v in body.items() if k not in (*_NESTED, *IMAGES)}
    flat.read(top, _TOP, _TOP_FOREIGN, handling, where)
    sample = body.get("sample_params")
    guidance = sample.get("guidance") if isinstance(sample, Mapping) else None
    if isinstance(sample, Mapping):
        sample = {name: value for name, value in sample.items() if name != "guidance"}
    inside = f"{where}sample_params."
    flat.read(sample, _SAMPLE, {}, handling, inside)
    flat.read(guidance, _GUIDANCE, _GUIDANCE_FOREIGN, handling, f"{inside}guidance.")
    if isinstance(guidance, Mapping):
        if guidance.get("img_cfg") in (None, guidance.get("txt_cfg")):  # as if unset
            flat.fields.pop("img_cfg", None)
        where_slg = f"{inside}guidance.slg."
        flat.read(guidance.get("slg"), _SLG, {}, handling, where_slg, switch="scale")
    _read_hires(flat, body.get("hires"), handling, f"{where}hires.")
    tiling, inside = body.get("vae_tiling_params"), f"{where}vae_tiling_params."
    flat.read(tiling, _TILING, _TILING_FOREIGN, handling, inside, switch="enabled")
    _leave_out_nothings(flat)
    return flat


def _is_off(given: Mapping[str, Any], switch: str | None) -> bool:
    return switch is not None and is_nothing(given.get(switch))


def _read_hires(flat: Flat, hires: Any, handling: Handling, where: str) -> None:
    flat.read(hires, _HIRES, _HIRES_FOREIGN, handling, where, switch="enabled")
    if hires is None or _is_off(hires, "enabled"):
        return
    name = str(flat.fields.get("hires_upscaler") or "Latent")
    flat.fields["hires_upscaler"] = find_hires_upscaler(name)
    if is_nothing(flat.fields.get("hires_steps")):
        flat.fields.pop("hires_steps", None)
    if is_neutral("hires_scale", flat.fields.setdefault("hires_scale", 2.0)):
        for option in _HIRES.values():
            flat.fields.pop(option, None)


def _leave_out_nothings(flat: Flat) -> None:
    """Remove the options whose values have no effect; clients of this API always send them."""
    fields = flat.fields
    for name in ("sigmas", "lora", "cache_options", "vae_tiling"):
        if is_nothing(fields.get(name)):
            fields.pop(name, None)
    for name in ("flow_shift", "shifted_timestep", "increase_ref_index", *_TILE_SIZES):
        if is_nothing(fields.get(name)):
            fields.pop(name, None)
    if "sigmas" in fields:  # clients send steps and schedule with them
        for name in ("sample_steps", "schedule"):
            fields.pop(name, None)
    if fields.get("output_format", "png") == "png":
        fields.pop("output_compression", None)
    if isinstance(fields.get("lora"), list):
        where = flat.names["lora"]
        fields["lora"] = [_lora(where, number, item) for number, item in enumerate(fields["lora"])]


def _lora(where: str, number: int, item: Any) -> Any:
    """Return an entry without ``is_high_noise``, which only video models use."""
    if not isinstance(item, Mapping):
        return item
    if item.get("is_high_noise"):
        name = f"{where}[{number}].is_high_noise"
        raise InvalidRequest(
            f"'{name}' must be false; it is for video models.",
            reason=Reason.NOT_SUPPORTED,
            param=name,
        )
    return {name: value for name, value in item.items() if name != "is_high_noise"}


def extra_args(prompt: str, handling: Handling) -> tuple[str, Flat]:
    """Return a prompt without its ``<sd_cpp_extra_args>`` element, and the options in the element.

    Raises:
        InvalidRequest: The prompt contains two elements, or the end tag is missing. Or the content
            is not a JSON object, contains an image or a prompt, or has an option that is rejected.
    """
    before, _, rest = prompt.partition(TAG)
    text, end, after = rest.partition(_END)
    if not end or TAG in after:
        raise _in_prompt(f"send one {TAG} that ends with {_END}")
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, Mapping):
        raise _in_prompt(f"{TAG} must contain a JSON object")
    for name in (*IMAGES, "prompt"):
        if not is_nothing(body.get(name)):
            raise _in_prompt(f"'{name}' is not supported inside {TAG}; send it as a field")
    parts = (part.strip() for part in (before, after))
    return " ".join(filter(None, parts)), flatten(body, handling, "prompt.")


def _in_prompt(why: str) -> InvalidRequest:
    return InvalidRequest(f"'prompt': {why}.", reason=Reason.NOT_SUPPORTED, param="prompt")
