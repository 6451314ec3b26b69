"""Conversion of requests and runtime options to the parameter structs of the runtime."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from stable_diffusion_cpp import stable_diffusion_cpp as sd  # noqa: TID251

from sdstream.core.errors import EngineError, Reason
from sdstream.core.lora import LoraChoice
from sdstream.core.options import Options
from sdstream.core.pixels import Inputs
from sdstream.core.request import GenerationRequest
from sdstream.core.runtime_options import masks_attention
from sdstream.core.samplers import CACHE_KNOBS, DEFAULT_SCHEDULE, HIRES_UPSCALERS
from sdstream.core.size import Size
from sdstream.engine.native.bindings import control_image, lib, native_image
from sdstream.weights import inspection
from sdstream.weights.embedded import upscaler_file
from sdstream.weights.folders import weight_files

#: Component of models.yaml -> field of sd_ctx_params_t.
_PATH_FIELDS: Final = {
    "model": "model_path",
    "diffusion_model": "diffusion_model_path",
    "clip_l": "clip_l_path",
    "clip_g": "clip_g_path",
    "t5xxl": "t5xxl_path",
    "llm": "llm_path",
    "llm_vision": "llm_vision_path",
    "vae": "vae_path",
    "tae": "taesd_path",
    "control_net": "control_net_path",
}

#: Any non-empty path makes the runtime use the tiny autoencoder inside the model file. The runtime
#: logs a warning first, because no file has this name.
TAE_INSIDE: Final = "inside-the-model-file"

#: Side length in pixels of an upscaler's tiles. It determines the upscaler's memory, and how often
#: it reports progress.
UPSCALER_TILE: Final = 128

_CACHE_MODES: Final = {
    "easycache": sd.SDCacheMode.SD_CACHE_EASYCACHE,
    "ucache": sd.SDCacheMode.SD_CACHE_UCACHE,
    "dbcache": sd.SDCacheMode.SD_CACHE_DBCACHE,
    "taylorseer": sd.SDCacheMode.SD_CACHE_TAYLORSEER,
    "cache-dit": sd.SDCacheMode.SD_CACHE_CACHE_DIT,
    "spectrum": sd.SDCacheMode.SD_CACHE_SPECTRUM,
}
_HIRES_UPSCALERS: Final = {
    name: getattr(sd.SDHiresUpscaler, "SD_HIRES_UPSCALER_" + name.upper().replace("-", "_"))
    for name in HIRES_UPSCALERS
}


#: Values of RuntimeOptions -> values of the runtime.
_LORA_MODES: Final = {
    "auto": sd.LoraApplyMode.LORA_APPLY_AUTO,
    "immediately": sd.LoraApplyMode.LORA_APPLY_IMMEDIATELY,
    "at_runtime": sd.LoraApplyMode.LORA_APPLY_AT_RUNTIME,
}
_RNGS: Final = {"cuda": sd.RNGType.CUDA_RNG, "cpu": sd.RNGType.CPU_RNG}
_PREDICTIONS: Final = {
    "eps": sd.Prediction.EPS_PRED,
    "v": sd.Prediction.V_PRED,
    "edm_v": sd.Prediction.EDM_V_PRED,
}
#: Fields of sd_ctx_params_t -> fields of RuntimeOptions.
_CHROMA_FIELDS: Final = {
    "chroma_use_dit_mask": "chroma_dit_mask",
    "chroma_use_t5_mask": "chroma_t5_mask",
    "chroma_t5_mask_pad": "chroma_t5_mask_pad",
}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """The values of a loaded model that the parameters of an image depend on.

    Attributes:
        context: The ``sd_ctx_t *``.
        vae_tiling: The VAE works in tiles unless a request sets otherwise.
        lora_dir: Folder of the LoRAs, or None.
        upscaler_dir: Folder of the operator's own upscalers, or None.
    """

    context: Any
    vae_tiling: bool
    lora_dir: str | None
    upscaler_dir: str | None


def context_params(
    files: dict[str, Path],
    family: str,
    runtime: dict[str, Any],
    threads: int,
    embeddings: dict[str, Path],
    *,
    kernels: bool = False,
) -> Any:
    """Return the ``sd_ctx_params_t`` of a model.

    Args:
        files: Component -> its file.
        family: Family of the model.
        runtime: The fields of RuntimeOptions.
        threads: Number of CPU threads.
        embeddings: Word -> file of the embedding.
        kernels: The project's CPU kernels are in use. They compute convolutions directly, so the
            runtime need not copy the pixels into a matrix first. They are faster with fused
            attention, but it rounds keys and values to f16; the mode "exact" does not use it, nor
            does a model whose attention is masked.
    """
    params = sd.sd_ctx_params_t()
    lib.sd_ctx_params_init(ctypes.byref(params))
    for component, path in files.items():
        setattr(params, _PATH_FIELDS[component], str(path).encode())
    if runtime["tae"] and "tae" not in files:
        params.taesd_path = TAE_INSIDE.encode()
    # By default the runtime frees the weights after the first image and omits the VAE's encoder.
    params.free_params_immediately = False
    params.vae_decode_only = False
    params.n_threads = threads
    params.flash_attn = bool(runtime["flash_attn"])
    chosen = runtime["diffusion_flash_attn"]
    if chosen is None:
        chosen = runtime["flash_attn"]
    if chosen is None:
        masked = masks_attention(family, runtime["chroma_dit_mask"])
        chosen = kernels and runtime["kernels"] == "auto" and not masked
    params.diffusion_flash_attn = chosen
    params.diffusion_conv_direct = params.vae_conv_direct = runtime["conv_direct"] or kernels
    params.offload_params_to_cpu = runtime["offload"]
    params.qwen_image_zero_cond_t = runtime["zero_cond_t"]
    params.tae_preview_only = runtime["preview"] == "tae"
    params.circular_x = runtime["circular"] in ("x", "both")
    params.circular_y = runtime["circular"] in ("y", "both")
    if embeddings:
        array = (sd.sd_embedding_t * len(embeddings))()
        for entry, (word, path) in zip(array, embeddings.items(), strict=True):
            entry.name, entry.path = word.encode(), str(path).encode()
        # ctypes keeps the array alive through the pointer.
        params.embeddings = ctypes.cast(array, ctypes.POINTER(sd.sd_embedding_t))
        params.embedding_count = len(array)
    if runtime["wtype"]:
        params.wtype = lib.str_to_sd_type(runtime["wtype"].encode())
    _set_parts(params, runtime)
    return params


def _set_parts(params: Any, runtime: dict[str, Any]) -> None:
    """Set the options of single components; None keeps the library's default."""
    params.keep_clip_on_cpu = runtime["clip_on_cpu"]
    params.keep_vae_on_cpu = runtime["vae_on_cpu"]
    params.keep_control_net_on_cpu = runtime["control_net_on_cpu"]
    params.max_vram = runtime["max_vram"]
    params.lora_apply_mode = _LORA_MODES[runtime["lora_mode"]]
    params.rng_type = _RNGS[runtime["rng"]]
    params.force_sdxl_vae_conv_scale = runtime["sdxl_vae_scale"]
    if runtime["prediction"] is not None:
        params.prediction = _PREDICTIONS[runtime["prediction"]]
    for field, option in _CHROMA_FIELDS.items():
        if runtime[option] is not None:
            setattr(params, field, runtime[option])


def generation_params(
    request: GenerationRequest, inputs: Inputs, seed: int, model: LoadedModel
) -> Any:
    """Return the ``sd_img_gen_params_t`` of one image.

    Args:
        request: The request, with all values resolved.
        inputs: Images in the size of the request; their bytes must outlive the native call.
        seed: Seed of this image.
        model: The loaded model.
    """
    options = request.options
    params = sd.sd_img_gen_params_t()
    lib.sd_img_gen_params_init(ctypes.byref(params))
    params.prompt = request.prompt.encode()
    params.negative_prompt = request.negative_prompt.encode()
    params.width, params.height = request.width, request.height
    params.seed, params.batch_count = seed, 1
    if inputs.image is not None:
        params.init_image = native_image(inputs.image)
        params.strength = options.strength
    if inputs.mask is not None:
        params.mask_image = native_image(inputs.mask)
    if inputs.control is not None:
        params.control_image = control_image(inputs.control, edges=bool(options.control_canny))
        params.control_strength = options.control_strength
    if inputs.references:
        references = (sd.sd_image_t * len(inputs.references))()
        references[:] = [native_image(picture) for picture in inputs.references]
        # ctypes keeps the array alive through the pointer.
        params.ref_images = ctypes.cast(references, ctypes.POINTER(sd.sd_image_t))
        params.ref_images_count = len(references)
        params.increase_ref_index = bool(options.increase_ref_index)
    tiling = model.vae_tiling if options.vae_tiling is None else options.vae_tiling
    _set_tiling(params.vae_tiling_params, options, enabled=tiling)
    if options.clip_skip is not None:
        params.clip_skip = options.clip_skip
    if options.cache_mode is not None:
        _set_cache(params.cache, options.cache_mode, options.cache_numbers)
    if request.second_pass is not None:
        _set_hires(params.hires, options, request.second_pass, model)
    if options.lora and model.lora_dir is not None:
        _set_loras(params, model.lora_dir, options.lora)
    _set_sampling(params.sample_params, request, model)
    return params


def _set_tiling(params: Any, options: Options, *, enabled: bool) -> None:
    params.enabled = enabled
    params.tile_size_x = options.vae_tile_size_x or 0
    params.tile_size_y = options.vae_tile_size_y or 0
    if options.vae_tile_overlap is not None:
        params.target_overlap = options.vae_tile_overlap


def _set_sampling(sample: Any, request: GenerationRequest, model: LoadedModel) -> None:
    sample.sample_steps = request.steps
    sample.sample_method = lib.str_to_sample_method(request.sampler.encode())
    sample.scheduler = _scheduler(model, request.schedule, sample.sample_method)
    sample.guidance.txt_cfg = request.cfg_scale
    options = request.options
    if options.guidance is not None:
        sample.guidance.distilled_guidance = options.guidance
    if options.img_cfg is not None:
        sample.guidance.img_cfg = options.img_cfg
    if options.eta is not None:
        sample.eta = options.eta
    if options.shifted_timestep is not None:
        sample.shifted_timestep = options.shifted_timestep
    if options.flow_shift is not None:
        sample.flow_shift = options.flow_shift
    if options.sigmas:
        levels = (ctypes.c_float * len(options.sigmas))(*options.sigmas)
        # ctypes keeps the array alive through the pointer.
        sample.custom_sigmas = ctypes.cast(levels, ctypes.POINTER(ctypes.c_float))
        sample.custom_sigmas_count = len(levels)
    if options.slg_scale is not None:
        _set_skip_layers(sample.guidance.slg, options)


def _scheduler(model: LoadedModel, name: str, sample_method: int) -> int:
    if name == DEFAULT_SCHEDULE:
        return int(sd.sd_get_default_scheduler(model.context, sample_method))
    return int(lib.str_to_scheduler(name.encode()))


def _set_loras(params: Any, folder: str, loras: Sequence[LoraChoice]) -> None:
    array = (sd.sd_lora_t * len(loras))()
    for entry, lora in zip(array, loras, strict=True):
        path = file_of(folder, lora.id, "LoRA")
        entry.path, entry.multiplier = str(path).encode(), lora.scale
    # ctypes keeps the array alive through the pointer.
    params.loras = ctypes.cast(array, ctypes.POINTER(sd.sd_lora_t))
    params.lora_count = len(array)


def _set_cache(params: Any, mode: str, numbers: Mapping[str, float]) -> None:
    params.mode = _CACHE_MODES[mode]
    for name, value in numbers.items():
        knob = CACHE_KNOBS[mode][name]
        setattr(params, knob.field, int(value) if knob.whole else value)


def _set_hires(params: Any, options: Options, size: Size, model: LoadedModel) -> None:
    params.enabled = True
    name = options.hires_upscaler or "latent"
    if name in _HIRES_UPSCALERS:
        params.upscaler = _HIRES_UPSCALERS[name]
    else:
        params.upscaler = sd.SDHiresUpscaler.SD_HIRES_UPSCALER_MODEL
        params.model_path = str(upscaler_path(model.upscaler_dir, name)).encode()
        params.upscale_tile_size = UPSCALER_TILE
    params.target_width, params.target_height = size
    params.steps, params.denoising_strength = options.hires_steps, options.hires_strength


def _set_skip_layers(params: Any, options: Options) -> None:
    chosen = options.slg_layers or ()
    layers = (ctypes.c_int * len(chosen))(*chosen)
    params.layers = ctypes.cast(layers, ctypes.POINTER(ctypes.c_int))
    params.layer_count = len(layers)
    params.layer_start, params.layer_end = options.slg_start, options.slg_end
    params.scale = options.slg_scale


def upscaler_path(folder: str | None, name: str) -> Path:
    """Return the file of an upscaler: the built-in one, or one from the operator's folder.

    Raises:
        EngineError: The file no longer exists, or the runtime cannot load it.
    """
    path = upscaler_file(name) or file_of(folder, name, "upscaler")
    problem = inspection.examine(path, "upscaler").problem
    if problem is not None:
        raise EngineError(Reason.GENERATION_FAILED, f"The upscaler '{name}' {problem}.")
    return path


def file_of(folder: str | None, name: str, what: str) -> Path:
    """Return the file of a name in one of the operator's folders.

    Raises:
        EngineError: The file no longer exists.
    """
    path = weight_files(folder).get(name)
    if path is None:
        raise EngineError(Reason.GENERATION_FAILED, f"The {what} '{name}' no longer exists.")
    return path
