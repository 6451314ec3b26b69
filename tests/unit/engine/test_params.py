"""Runtime options as parameters of the native library."""

from __future__ import annotations

from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from sdstream.core.errors import EngineError
from sdstream.core.model_spec import Files, ModelSpec
from sdstream.core.options import Options
from sdstream.core.pixels import Inputs, Pixels
from sdstream.core.request import GenerationRequest
from sdstream.core.runtime_options import RuntimeOptions
from sdstream.core.samplers import CACHE_SPAN
from sdstream.core.size import Size
from sdstream.engine.native.params import LoadedModel, context_params, generation_params
from tests.support.upscalers import write_upscaler


def native(*, family: str = "flux", kernels: bool = False, **options: Any) -> Any:
    """Return the native parameters of a model with these runtime options."""
    runtime = RuntimeOptions(**options).model_dump()
    runtime["kernels"] = runtime["kernels"] or "auto"
    return context_params({"model": Path("m")}, family, runtime, 1, {}, kernels=kernels)


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
    """A given option is passed on; otherwise the library's default applies."""
    assert getattr(native(), field) == before
    assert getattr(native(**{option: value}), field) == after


def test_flash_attention_of_the_diffusion_model_alone() -> None:
    """The option overrides flash_attn for this part, and the default of the kernels."""
    assert native(kernels=True).diffusion_flash_attn
    assert not native(kernels=True, diffusion_flash_attn=False).diffusion_flash_attn
    alone = native(diffusion_flash_attn=True)
    assert (alone.flash_attn, alone.diffusion_flash_attn) == (False, True)


@pytest.mark.parametrize("family", ["chroma", "chroma_radiance"])
def test_no_flash_attention_with_the_mask_of_chroma(family: str) -> None:
    """The kernels do not turn on flash attention, which requires the mask to be off."""
    assert not native(family=family, kernels=True).diffusion_flash_attn
    assert not native(family=family, kernels=True, chroma_dit_mask=True).diffusion_flash_attn
    assert native(family=family, kernels=True, chroma_dit_mask=False).diffusion_flash_attn


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("flux", {"prediction": "v"}, "runtime.prediction: it is for models with a U-Net"),
        ("sd1", {"sdxl_vae_scale": True}, "runtime.sdxl_vae_scale: it is for SDXL"),
        ("flux", {"chroma_dit_mask": True}, "runtime.chroma_dit_mask: it is for Chroma"),
        ("sdxl", {"sdxl_vae_scale": True}, "runtime.sdxl_vae_scale: it needs files.vae: "),
        ("flux", {"max_vram": 6}, "runtime.max_vram: it has no effect without 'offload: true'"),
        ("chroma", {"flash_attn": True}, "runtime.flash_attn: .* set 'chroma_dit_mask: false'"),
        (
            "chroma_radiance",
            {"diffusion_flash_attn": True, "chroma_dit_mask": True},
            "runtime.diffusion_flash_attn: the images of Chroma are wrong",
        ),
        (
            "flux",
            {"flash_attn": True, "diffusion_flash_attn": False},
            "runtime.diffusion_flash_attn: false has no effect with 'flash_attn: true'",
        ),
    ],
)
def test_options_without_effect(family: str, options: dict[str, Any], message: str) -> None:
    """The entry is rejected, as the option would have no effect."""
    with pytest.raises(ValidationError, match=message):
        ModelSpec(id="m", family=family, files=Files(model="m"), runtime=RuntimeOptions(**options))


@pytest.mark.parametrize(
    ("family", "files", "options"),
    [
        ("flux", {}, {"max_vram": 6, "offload": True}),
        ("sdxl", {"vae": "v"}, {"sdxl_vae_scale": True}),
        ("chroma", {}, {"flash_attn": True, "chroma_dit_mask": False}),
        ("chroma", {}, {"flash_attn": False, "diffusion_flash_attn": False}),
        ("flux", {}, {"flash_attn": True, "diffusion_flash_attn": True}),
    ],
)
def test_options_with_effect(family: str, files: dict[str, str], options: dict[str, Any]) -> None:
    """The entry is accepted if the options that another one requires are set."""
    runtime = RuntimeOptions(**options)
    spec = ModelSpec(id="m", family=family, files=Files(model="m", **files), runtime=runtime)
    assert spec.runtime == runtime


# --- options of a request -------------------------------------------------------------------------


def image(folder: Path | None = None, second_pass: Size | None = None, **options: Any) -> Any:
    """Return the native parameters of an image with these options and one reference image."""
    request = GenerationRequest(
        "m", "a cat", "", 64, 64, 4, "euler", "discrete", 7.0, 1, 1,
        options=Options(**options), second_pass=second_pass,
    )  # fmt: skip
    inputs = Inputs(references=(Pixels(8, 8, bytes(192)),))
    upscalers = None if folder is None else str(folder)
    return generation_params(request, inputs, 1, LoadedModel(None, False, None, upscalers))


@pytest.mark.parametrize(
    ("options", "field", "before", "after"),
    [
        ({"vae_tile_size_x": 48}, "vae_tiling_params.tile_size_x", 0, 48),
        ({"vae_tile_size_y": 64}, "vae_tiling_params.tile_size_y", 0, 64),
        ({"vae_tile_overlap": 0.25}, "vae_tiling_params.target_overlap", 0.5, 0.25),
        ({"img_cfg": 1.5}, "sample_params.guidance.img_cfg", float("inf"), 1.5),
        ({"shifted_timestep": 250}, "sample_params.shifted_timestep", 0, 250),
        ({"increase_ref_index": True}, "increase_ref_index", False, True),
    ],
)
def test_an_option_of_a_request_reaches_the_library(
    options: dict[str, Any], field: str, before: Any, after: Any
) -> None:
    """A given option is passed on; otherwise the library's default applies."""
    get = attrgetter(field)
    assert get(image()) == before
    assert get(image(**options)) == after


def test_the_span_of_the_cache_is_the_librarys() -> None:
    """The defaults with which requests are checked are those of the library."""
    cache = image().cache
    span = {"start": cache.start_percent, "end": cache.end_percent}
    assert span == pytest.approx(CACHE_SPAN)


def test_the_second_pass_takes_an_upscaler(tmp_path: Path) -> None:
    """The upscaler's file is passed with a tile size; a missing or invalid file is an error."""
    path = write_upscaler(tmp_path / "twice.safetensors", 2)
    size = Size(96, 96)
    numbers: dict[str, Any] = {"hires_steps": 3, "hires_strength": 0.5}
    hires = image(tmp_path, size, hires_upscaler="twice", **numbers).hires
    assert (hires.model_path, hires.upscaler) == (str(path).encode(), 9)
    assert (hires.target_width, hires.target_height, hires.upscale_tile_size) == (96, 96, 128)
    latent = image(tmp_path, size, hires_upscaler="latent", **numbers).hires
    assert (latent.model_path, latent.upscaler) == (None, 1)
    path.write_bytes(b"something else")
    for name in ("twice", "thrice"):
        with pytest.raises(EngineError, match=f"The upscaler '{name}' "):
            image(tmp_path, size, hires_upscaler=name, **numbers)
