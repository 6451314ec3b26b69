"""The runtime for the judge: loads one GGUF file and generates images from prompts.

It uses the binding's C functions instead of its class. The class keeps callbacks in local variables
(and so crashes on the second call), sets eta to 0 and leaks every image.
"""

from __future__ import annotations

import ctypes
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Busy waiting halves the speed while other programs use the CPU. The library reads this at load.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # noqa: TID251

import stable_diffusion_cpp as sd  # noqa: TID251 - not part of the service
from stable_diffusion_cpp import stable_diffusion_cpp as binding  # noqa: TID251

from sdstream.engine.native import kernels

SAMPLERS: dict[str, int] = {
    "euler": sd.SampleMethod.EULER_SAMPLE_METHOD,
    "euler_a": sd.SampleMethod.EULER_A_SAMPLE_METHOD,
    "heun": sd.SampleMethod.HEUN_SAMPLE_METHOD,
    "dpm2": sd.SampleMethod.DPM2_SAMPLE_METHOD,
    "dpm++2s_a": sd.SampleMethod.DPMPP2S_A_SAMPLE_METHOD,
    "dpm++2m": sd.SampleMethod.DPMPP2M_SAMPLE_METHOD,
    "dpm++2mv2": sd.SampleMethod.DPMPP2Mv2_SAMPLE_METHOD,
    "ipndm": sd.SampleMethod.IPNDM_SAMPLE_METHOD,
    "ipndm_v": sd.SampleMethod.IPNDM_V_SAMPLE_METHOD,
    "lcm": sd.SampleMethod.LCM_SAMPLE_METHOD,
}


def _fill(function: str, structure: ctypes.Structure) -> None:
    """Set the library's defaults with a function that the binding does not declare."""
    initialise = getattr(binding._lib, function)
    initialise.argtypes, initialise.restype = [ctypes.c_void_p], None
    initialise(ctypes.byref(structure))


@dataclass(frozen=True)
class Settings:
    """Settings of a generation."""

    width: int = 128
    """Width in pixels, a multiple of 16."""
    height: int = 128
    steps: int = 12
    cfg: float = 2.0
    """Guidance scale; 1 disables guidance."""
    sampler: str = "euler"


class Runtime:
    """A loaded model. A process can have only one, since the library's callbacks are global."""

    def __init__(self, model: Path, threads: int = 2) -> None:
        self._quiet = sd.sd_log_callback(lambda level, text, data: None)
        self._still = sd.sd_progress_callback(lambda step, steps, time, data: None)
        sd.sd_set_log_callback(self._quiet, None)
        sd.sd_set_progress_callback(self._still, None)
        parameters = sd.sd_ctx_params_t()
        _fill("sd_ctx_params_init", parameters)
        parameters.model_path = os.fsencode(model)
        parameters.taesd_path = b"in the model's file"  # any path; the model's file has the tensors
        parameters.vae_decode_only = False
        parameters.free_params_immediately = False
        parameters.n_threads = threads
        # As in the service: several times faster, and the images differ only by rounding.
        direct = bool(kernels.install("auto", 0))
        parameters.diffusion_conv_direct = parameters.vae_conv_direct = direct
        parameters.diffusion_flash_attn = direct
        self._context = sd.new_sd_ctx(ctypes.byref(parameters))
        if not self._context:
            raise RuntimeError(f"{model} does not load")
        self._free = ctypes.CDLL(None).free
        self._free.argtypes = [ctypes.c_void_p]

    def draw(
        self, prompt: str, seed: int, settings: Settings, negative: str = ""
    ) -> NDArray[np.uint8]:
        """Generate an image from a prompt; return its pixels [height, width, 3]."""
        request = sd.sd_img_gen_params_t()
        _fill("sd_img_gen_params_init", request)
        request.prompt, request.negative_prompt = prompt.encode(), negative.encode()
        request.width, request.height = settings.width, settings.height
        request.seed, request.batch_count = seed, 1
        sampling = request.sample_params
        sampling.sample_method = SAMPLERS[settings.sampler]
        sampling.scheduler = sd.Scheduler.DISCRETE_SCHEDULER
        sampling.sample_steps, sampling.eta = settings.steps, math.inf
        sampling.guidance.txt_cfg = settings.cfg
        return self._take(sd.generate_image(self._context, ctypes.byref(request)))

    def _take(self, result: Any) -> NDArray[np.uint8]:
        """Copy the only image out of the library's memory, and free this memory."""
        image = result[0]
        shape = (image.height, image.width, image.channel)
        pixels = np.ctypeslib.as_array(image.data, shape=shape)[..., :3].copy()
        self._free(image.data)
        self._free(result)
        return pixels
