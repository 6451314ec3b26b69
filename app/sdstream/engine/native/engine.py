"""stable-diffusion.cpp through the low-level C functions of stable-diffusion-cpp-python 0.4.7.

Deliberate oddities, each of them measured:

1. The binding's class ``StableDiffusion`` is not used: it drops its callbacks while the library
   still holds them, reports failed loads as success, never frees result images, forces eta to 0
   and takes random seeds from 0..10000.
2. The log and progress callbacks are installed once and live as long as the process, since the
   library keeps one global pointer to each.
3. The progress callback does not say what progresses: weights, LoRAs, sampling and VAE tiles all
   report through it. The phase is read off the log lines, which come on the same thread and in
   order.
4. n images are n calls with batch_count 1 and seed + i: the pixels are those of a native batch,
   but the first image is there sooner and a cancel takes effect sooner.
5. ``eta`` stays at the +inf that the library's own initialiser sets, its word for "automatic".
"""

from __future__ import annotations

import ctypes
import logging
import re
import time
from pathlib import Path
from typing import Any, Final

from stable_diffusion_cpp import stable_diffusion_cpp as sd  # noqa: TID251

from sdstream.core.errors import EngineError, Reason
from sdstream.core.messages import ImageDrawn, Load, Loaded, Phase, Share
from sdstream.core.model_families import FAMILIES
from sdstream.core.model_spec import CPU
from sdstream.core.pixels import Inputs, Pixels
from sdstream.core.request import GenerationRequest
from sdstream.engine.native import kernels
from sdstream.engine.native.abort import AbortFlag
from sdstream.engine.native.back_projection import with_colours_of
from sdstream.engine.native.bindings import (
    LOG_LEVELS,
    free,
    has_fast_kernels,
    is_uniform,
    lib,
    native_image,
    resized,
    rgb,
    taken,
)
from sdstream.engine.native.loras import LoraCheck
from sdstream.engine.native.params import (
    TAE_INSIDE,
    UPSCALER_TILE,
    LoadedModel,
    context_params,
    file_of,
    generation_params,
    upscaler_path,
)
from sdstream.engine.native.patched import Patches
from sdstream.engine.native.progress import ImageProgress, LoadProgress
from sdstream.engine.port import Emit
from sdstream.system import available_cores
from sdstream.weights import inspection
from sdstream.weights.embedded import UPSCALERS, materialise
from sdstream.weights.embeddings import prepared_embeddings
from sdstream.weights.folders import weight_files

logger = logging.getLogger("sdstream.native")

#: Log line of a LoRA whose file could not be loaded; the runtime generates without it.
_LORA_LOST: Final = re.compile(r"load lora tensors from .* failed")

_ONE_COLOUR: Final = (
    "All pixels of the image have the same colour. Causes are weights that are damaged or NaN, and "
    "options far from the model's defaults."
)

_PREVIEW_MODES: Final = {
    "projection": sd.Preview.PREVIEW_PROJ,
    "tae": sd.Preview.PREVIEW_TAE,
    "decode": sd.Preview.PREVIEW_VAE,
}
#: Bytes of the conditions of earlier prompts that a worker keeps; one of T5-XXL has 4 MB.
_CONDITION_CACHE: Final = 64 << 20


class NativeEngine:
    """One loaded model. All but abort, peek and share belongs to one thread with a large stack."""

    def __init__(self) -> None:
        self._model: LoadedModel
        self._abort = AbortFlag(lib)
        self._patches = Patches(lib)
        self._can_abort = False
        self._cores = 0
        self._threads = 0
        self._can_share = False
        self._direct = False
        self._lost_lora = False
        self._loras: LoraCheck
        self._secrets: dict[str, str] = {}
        self._first_error = ""
        self._preview_mode = sd.Preview.PREVIEW_PROJ
        self._peeked = False
        self._drawing: ImageProgress | None = None
        self._loading: LoadProgress | None = None
        # Bound to the object for its whole life: see oddity 2.
        self._callbacks = (
            sd.sd_log_callback(self._on_log),
            sd.sd_progress_callback(self._on_progress),
            sd.sd_preview_callback(self._on_preview),
        )
        sd.sd_set_log_callback(self._callbacks[0], None)
        sd.sd_set_progress_callback(self._callbacks[1], None)

    # --- Engine ---------------------------------------------------------------------------------

    def load(self, command: Load, emit: Emit) -> Loaded:
        """Load the weights; the process holds one model in its life."""
        started = time.monotonic()
        files = {
            component: materialise(location, Path(command.cache_dir))
            for component, location in command.files.items()
        }
        self._cores = available_cores()
        self._threads = command.runtime["threads"] or self._cores
        self._secrets = {str(path): component for component, path in files.items()}
        inspection.check(
            files,
            command.family,
            tae=command.runtime["tae"],
            renames=self._patches.present,
        )
        embeddings = _embeddings(command)
        in_use = kernels.install(command.runtime["kernels"], self._abort.address)
        params = context_params(
            files, command.runtime, self._threads, embeddings, kernels=bool(in_use)
        )
        loading = self._loading = LoadProgress(emit)
        context = sd.new_sd_ctx(ctypes.byref(params))
        self._loading = None
        # A NULL context must be neither used nor freed.
        if not context:
            detail = f": {self._first_error}" if self._first_error else ""
            raise EngineError(
                Reason.MODEL_UNAVAILABLE, f"The runtime could not load the model{detail}."
            )
        self._model = LoadedModel(
            context, command.runtime["vae_tiling"], command.lora_dir, command.upscaler_dir
        )
        self._loras = LoraCheck(
            files,
            unet=FAMILIES[command.family].unet,
            wtype=command.runtime["wtype"] or "",
            version=loading.version,
        )
        self._direct = bool(params.vae_conv_direct)
        self._preview_mode = _PREVIEW_MODES[command.runtime["preview"]]
        self._can_abort = self._abort.attach(context) or self._patches.present
        self._can_share = self._patches.present and not command.runtime["threads"]
        self._patches.keep_conditions(context, _CONDITION_CACHE)
        if command.device not in ("", CPU) and self._abort.on_cpu:
            raise EngineError(
                Reason.MODEL_UNAVAILABLE,
                f"The model requires {command.device}, and the runtime found only the CPU.",
            )
        return Loaded(
            seconds=time.monotonic() - started,
            can_abort=self._can_abort,
            fast_kernels=has_fast_kernels(),
            on_cpu=self._abort.on_cpu,
            system=sd.sd_get_system_info().decode("utf-8", "replace").strip(),
            embeddings=tuple(embeddings),
            kernels=in_use.name,
            kernels_problem=in_use.problem,
            can_share=self._can_share,
        )

    def draw(
        self, job: str, request: GenerationRequest, inputs: Inputs, index: int, emit: Emit
    ) -> ImageDrawn | None:
        """Generate one image; blocks until it is finished, failed or aborted."""
        self._first_error, self._peeked, self._lost_lora = "", False, False
        self._warnings: list[str] = []
        seed = request.seed + index
        drawing = self._drawing = ImageProgress(job, index, request, emit)
        computed, reused = self._patches.condition_counts(self._model.context)
        try:
            picture = self._generated(request, inputs, seed) if request.draws else inputs.image
            if picture is not None and request.upscaled is not None:
                picture = self._enlarged(picture, request)
        finally:
            self._drawing = None
        if picture is None:
            return None
        now_computed, now_reused = self._patches.condition_counts(self._model.context)
        return ImageDrawn(
            job=job,
            index=index,
            seed=seed,
            width=picture.width,
            height=picture.height,
            steps=drawing.steps if request.draws else 0,
            encode_seconds=drawing.seconds(Phase.ENCODING),
            sample_seconds=drawing.seconds(Phase.SAMPLING),
            decode_seconds=drawing.seconds(Phase.DECODING) + drawing.seconds(Phase.UPSCALING),
            warnings=tuple(self._warnings),
            conditions_computed=now_computed - computed,
            conditions_reused=now_reused - reused,
            blob=picture.data,
        )

    def clear_abort(self) -> None:
        """Forget an earlier abort."""
        self._abort.reset()
        self._patches.cancel(self._model.context, cancelled=False)

    def abort(self) -> None:
        """Stop the image being generated: at once on the CPU, else before the next step."""
        if self._can_abort:
            self._abort.request()
            self._patches.cancel(self._model.context, cancelled=True)

    def peek(self) -> None:
        """Make a preview with the step after the one that runs."""
        self._peeked = True

    def share(self, share: Share) -> None:
        """Compute with a share of the cores from the next step on."""
        if self._can_share:
            self._threads = share.threads(self._cores)
            self._patches.set_threads(self._model.context, self._threads)

    # --- callbacks, on the generating thread ------------------------------------------------------

    def _on_log(self, level: int, text: bytes, _data: Any) -> None:
        line = self._redact(text.decode("utf-8", "replace").strip()).replace("\n", "\\n")
        severity = LOG_LEVELS[level] if 0 <= level < len(LOG_LEVELS) else logging.INFO
        if self._abort.requested or TAE_INSIDE in line:
            severity = logging.DEBUG  # a requested cancel is not a fault
        elif self._drawing is not None and severity == logging.INFO:
            severity = logging.DEBUG  # a dozen lines an image; the server logs one a request
        logger.log(severity, "%s", line)
        if severity >= logging.ERROR and not self._first_error:
            # "[ERROR] file.cpp:123 - what happened"; those that follow say that it did
            self._first_error = line.rpartition(" - ")[2][:200]
        if _LORA_LOST.search(line):
            self._lost_lora = True
        if self._drawing is not None:
            self._drawing.heard(line)
        elif self._loading is not None:
            self._loading.heard(line)

    def _on_progress(self, step: int, steps: int, _seconds: float, _data: Any) -> None:
        if self._drawing is not None:
            if self._drawing.phase is Phase.SAMPLING:
                self._abort.arm()
            self._drawing.progressed(step, steps)
            if self._drawing.phase is Phase.SAMPLING:
                self._want_preview(self._peeked or self._drawing.wants_preview(step + 1))
        elif self._loading is not None:
            self._loading.progressed(step, steps)

    def _on_preview(self, step: int, count: int, frames: Any, _noisy: bool, _data: Any) -> None:
        stopped = self._abort.stopped  # then the frame may be incomplete
        if self._drawing is not None and count > 0 and frames[0].data and not stopped:
            self._peeked = False
            frame = frames[0]
            pixels = rgb(frame)
            self._drawing.previewed(step, frame.width, frame.height, pixels)

    # --- details --------------------------------------------------------------------------------

    def _generated(self, request: GenerationRequest, inputs: Inputs, seed: int) -> Pixels | None:
        """Return what the model generates; None if it was aborted."""
        assert self._drawing is not None
        self._want_preview(self._drawing.wants_preview(1))
        for lora in request.options.lora or ():
            path = file_of(self._model.lora_dir, lora.id, "LoRA")
            self._warnings += self._loras.check(lora.id, path)
        params = generation_params(request, inputs, seed, self._model)
        images = sd.generate_image(self._model.context, ctypes.byref(params))
        if not images or not images[0].data:
            if images:
                free(images)
            self._expect_nothing("The runtime returned no image.")
            return None
        picture = taken(images[0])
        free(images)
        if self._abort.stopped:
            return None  # the last operations may have stopped half-way
        if is_uniform(picture):
            self._warnings.append(_ONE_COLOUR)
        if self._lost_lora:
            # The runtime generates without it, and reports that in its log alone.
            raise EngineError(
                Reason.GENERATION_FAILED, "The runtime could not load a LoRA of the request."
            )
        return picture

    def _enlarged(self, picture: Pixels, request: GenerationRequest) -> Pixels | None:
        """Return the image at the request's size; None if it was aborted."""
        name = request.options.upscaler
        if name is None:
            return resized(picture, request.runtime_size)
        path = upscaler_path(self._model.upscaler_dir, name)
        context = sd.new_upscaler_ctx(
            str(path).encode(), False, self._direct, self._threads, UPSCALER_TILE
        )
        if not context:
            raise EngineError(
                Reason.GENERATION_FAILED,
                f"The runtime could not load the upscaler '{name}'.",
            )
        try:
            if self._can_abort and self._abort.attach_upscaler(context):
                self._abort.arm()
            # It takes the factor from its weights; this one is for the log of others.
            image = sd.upscale(context, native_image(picture), 0)
            if not image.data:
                self._expect_nothing("The upscaler returned no image.")
                return None
            enlarged = taken(image)
            if name in UPSCALERS and not self._abort.stopped:
                enlarged = with_colours_of(picture, enlarged)
            if self._abort.stopped:
                return None
            return resized(enlarged, request.runtime_size)
        finally:
            sd.free_upscaler_ctx(context)

    def _expect_nothing(self, message: str) -> None:
        """Raise why no image was returned, by the log, unless it was aborted."""
        if not self._abort.requested:
            raise EngineError(Reason.GENERATION_FAILED, self._first_error or message)

    def _redact(self, line: str) -> str:
        """The line with the component's name in place of each path."""
        for path, component in self._secrets.items():
            line = line.replace(path, component)
        return line

    def _want_preview(self, wanted: bool) -> None:
        """Have the next step make a preview, or not.

        The library looks at the callback and its mode once an image, but at this wish each step:
        its own interval argument has no effect.
        """
        sd.sd_set_preview_callback(self._callbacks[2], self._preview_mode, 1, wanted, False, None)


def _embeddings(command: Load) -> dict[str, Path]:
    """Return word -> file of the embeddings that fit the model; only CLIP reads any."""
    traits = FAMILIES[command.family]
    if command.embedding_dir is None or not traits.unet:
        return {}
    cache = Path(command.cache_dir) / "embeddings"
    return prepared_embeddings(weight_files(command.embedding_dir), command.family, cache)
