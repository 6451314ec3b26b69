"""Why a model ignores an option: a sentence for each kind of model, None where it acts."""

from __future__ import annotations

from sdstream.core.model_spec import ModelSpec


def more_than_clip(spec: ModelSpec) -> str | None:
    """For layers of CLIP: a model with other text encoders ignores them."""
    if "clip_l" not in spec.traits.needs or spec.traits.flow:
        return f"the model '{spec.id}' reads more than CLIP"
    return None


def no_flow(spec: ModelSpec) -> str | None:
    """For noise levels of flow models."""
    return None if spec.traits.flow else f"the model '{spec.id}' is not a flow model"


def no_layers_to_skip(spec: ModelSpec) -> str | None:
    """For layers of transformers: a U-Net has none of them."""
    return f"the model '{spec.id}' has no such layers" if spec.traits.unet else None


def no_references(spec: ModelSpec) -> str | None:
    """For reference images."""
    if spec.traits.references:
        return None
    return f"the model '{spec.id}' takes no reference images"


def no_reference_index(spec: ModelSpec) -> str | None:
    """For the numbers of reference images: FLUX.2 always numbers them."""
    if spec.family == "flux2":
        return f"the model '{spec.id}' always numbers its reference images"
    return no_references(spec)


def no_image_guidance(spec: ModelSpec) -> str | None:
    """For guidance by the input image, which the runtime implements for U-Nets only."""
    if spec.traits.unet:
        return None
    return f"the model '{spec.id}' has no guidance by an image; use cfg_scale"


def no_shifted_timestep(spec: ModelSpec) -> str | None:
    """For shifted timesteps, which the runtime has for SDXL only."""
    if spec.family == "sdxl":
        return None
    return f"the model '{spec.id}' is not of Stable Diffusion XL"


def no_autoencoder(spec: ModelSpec) -> str | None:
    """For tiles of the autoencoder: some models generate pixels without one."""
    return None if "vae" in spec.traits.needs else f"the model '{spec.id}' has no autoencoder"


def no_control(spec: ModelSpec) -> str | None:
    """For control images."""
    return None if spec.files.control_net else f"the model '{spec.id}' has no ControlNet"


def no_distilled_guidance(spec: ModelSpec) -> str | None:
    """For distilled guidance."""
    if spec.traits.distilled_guidance:
        return None
    return f"the model '{spec.id}' has no distilled guidance; use cfg_scale"
