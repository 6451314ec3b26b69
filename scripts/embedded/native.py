"""The runtime, as judging needs it: load one GGUF, draw pictures from prompts.

It uses the binding's C functions, not its class, which keeps callbacks in locals (a crash on the
second call), turns eta to 0 and leaks every picture.
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

# Busy waiting halves the speed beside a busy neighbour; the library reads this when it loads.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # noqa: TID251

import stable_diffusion_cpp as sd  # noqa: TID251 - no part of the service
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
    """Fill in the library's defaults, by a function that the binding leaves out."""
    initialise = getattr(binding._lib, function)
    initialise.argtypes, initialise.restype = [ctypes.c_void_p], None
    initialise(ctypes.byref(structure))


@dataclass(frozen=True)
class Settings:
    """How to draw."""

    width: int = 128
    """In pixels, a multiple of 16."""
    height: int = 128
    steps: int = 12
    cfg: float = 3.0
    """Guidance: 1 is none."""
    sampler: str = "euler"


class Runtime:
    """A loaded model. One per process: the library's callbacks are global."""

    def __init__(self, model: Path, threads: int = 2) -> None:
        self._quiet = sd.sd_log_callback(lambda level, text, data: None)
        self._still = sd.sd_progress_callback(lambda step, steps, time, data: None)
        sd.sd_set_log_callback(self._quiet, None)
        sd.sd_set_progress_callback(self._still, None)
        parameters = sd.sd_ctx_params_t()
        _fill("sd_ctx_params_init", parameters)
        parameters.model_path = os.fsencode(model)
        parameters.taesd_path = b"in the model's file"  # any path: the tensors are already there
        parameters.vae_decode_only = False
        parameters.free_params_immediately = False
        parameters.n_threads = threads
        # As the service runs it: several times quicker, and the same pictures but for rounding.
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
        """Draw a prompt; returns [height, width, 3]."""
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
        """Copy the one picture out of the library's memory, and free that."""
        image = result[0]
        shape = (image.height, image.width, image.channel)
        pixels = np.ctypeslib.as_array(image.data, shape=shape)[..., :3].copy()
        self._free(image.data)
        self._free(result)
        return pixels
