"""Reasons why models ignore options; each function returns None if the option has an effect."""

from __future__ import annotations

from sdstream.core.model_spec import ModelSpec


def more_than_clip(spec: ModelSpec) -> str | None:
    """Return why a model ignores ``clip_skip``: it has text encoders besides CLIP."""
    if "clip_l" not in spec.traits.needs or spec.traits.flow:
        return f"the model '{spec.id}' also has text encoders other than CLIP"
    return None


def no_flow(spec: ModelSpec) -> str | None:
    """Return why a model ignores ``flow_shift``: it is not a flow model."""
    return None if spec.traits.flow else f"the model '{spec.id}' is not a flow model"


def no_layers_to_skip(spec: ModelSpec) -> str | None:
    """Return why a model ignores ``slg_*``: a U-Net has no transformer layers to skip."""
    return f"the model '{spec.id}' has no such layers" if spec.traits.unet else None


def no_references(spec: ModelSpec) -> str | None:
    """Return why a model ignores options of reference images: it does not accept any."""
    if spec.traits.references:
        return None
    return f"the model '{spec.id}' does not accept reference images"


def no_reference_index(spec: ModelSpec) -> str | None:
    """Return why a model ignores ``increase_ref_index``: FLUX.2 always numbers references."""
    if spec.family == "flux2":
        return f"the model '{spec.id}' always numbers its reference images"
    return no_references(spec)


def no_image_guidance(spec: ModelSpec) -> str | None:
    """Return why a model ignores ``img_cfg``: it is for U-Nets and FLUX.1 Fill only."""
    if spec.traits.unet or spec.family == "flux":
        return None
    return f"the model '{spec.id}' does not support image guidance; use cfg_scale"


def no_shifted_timestep(spec: ModelSpec) -> str | None:
    """Return why a model ignores ``shifted_timestep``: the runtime implements it for SDXL only."""
    if spec.family == "sdxl":
        return None
    return f"the model '{spec.id}' is not a Stable Diffusion XL model"


def no_autoencoder(spec: ModelSpec) -> str | None:
    """Return why a model ignores ``vae_tile_*``: it generates pixels without an autoencoder."""
    return None if "vae" in spec.traits.needs else f"the model '{spec.id}' has no autoencoder"


def no_control(spec: ModelSpec) -> str | None:
    """Return why a model ignores ``control_*``: it has no ControlNet."""
    return None if spec.files.control_net else f"the model '{spec.id}' has no ControlNet"


def no_distilled_guidance(spec: ModelSpec) -> str | None:
    """Return why a model ignores ``guidance``: it has no distilled guidance."""
    if spec.traits.distilled_guidance:
        return None
    return f"the model '{spec.id}' has no distilled guidance; use cfg_scale"
