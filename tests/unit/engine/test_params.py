"""Runtime options as the parameters of the native library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from sdstream.core.model_spec import Files, ModelSpec, RuntimeOptions
from sdstream.engine.native.params import context_params


def native(*, kernels: bool = False, **options: Any) -> Any:
    """The parameters of a model with runtime options."""
    runtime = RuntimeOptions(**options).model_dump()
    runtime["kernels"] = runtime["kernels"] or "auto"
    return context_params({"model": Path("m")}, runtime, 1, {}, kernels=kernels)


@pytest.mark.parametrize(
    ("option", "value", "field", "before", "after"),
    [
        ("clip_on_cpu", True, "keep_clip_on_cpu", False, True),
        ("vae_on_cpu", True, "keep_vae_on_cpu", False, True),
        ("control_net_on_cpu", True, "keep_control_net_on_cpu", False, True),
        ("max_vram", 5.5, "max_vram", 0.0, 5.5),
        ("lora_mode", "immediately", "lora_apply_mode", 0, 1),
        ("lora_mode", "at_runtime", "lora_apply_mode", 0, 2),
        ("prediction", "eps", "prediction", 6, 0),
        ("prediction", "v", "prediction", 6, 1),
        ("prediction", "edm_v", "prediction", 6, 2),
        ("rng", "cpu", "rng_type", 1, 2),
        ("sdxl_vae_scale", True, "force_sdxl_vae_conv_scale", False, True),
        ("chroma_dit_mask", False, "chroma_use_dit_mask", True, False),
        ("chroma_t5_mask", True, "chroma_use_t5_mask", False, True),
        ("chroma_t5_mask_pad", 4, "chroma_t5_mask_pad", 1, 4),
        ("diffusion_flash_attn", True, "diffusion_flash_attn", False, True),
    ],
)
def test_an_option_reaches_the_library(
    option: str, value: Any, field: str, before: Any, after: Any
) -> None:
    """Beside the library's own default, which stays where an option is not given."""
    assert getattr(native(), field) == before
    assert getattr(native(**{option: value}), field) == after


def test_flash_attention_of_the_diffusion_model_alone() -> None:
    """It wins over the option for all parts, and over what the kernels turn on."""
    assert native(kernels=True).diffusion_flash_attn
    assert not native(kernels=True, diffusion_flash_attn=False).diffusion_flash_attn
    both = native(flash_attn=True, diffusion_flash_attn=False)
    assert (both.flash_attn, both.diffusion_flash_attn) == (True, False)


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("flux", {"prediction": "v"}, "runtime.prediction is for models with a U-Net"),
        ("sd1", {"sdxl_vae_scale": True}, "runtime.sdxl_vae_scale is for SDXL"),
        ("flux", {"chroma_dit_mask": True}, "runtime.chroma_dit_mask is for Chroma"),
    ],
)
def test_options_of_other_families(family: str, options: dict[str, Any], message: str) -> None:
    """They would have no effect: the entry is rejected."""
    with pytest.raises(ValidationError, match=message):
        ModelSpec(id="m", family=family, files=Files(model="m"), runtime=RuntimeOptions(**options))
