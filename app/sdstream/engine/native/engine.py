"""stable-diffusion.cpp through the low-level C functions of stable-diffusion-cpp-python 0.4.7.

Deliberate oddities, each of them measured:

1. The binding's class ``StableDiffusion`` is not used: it drops its callbacks while the library
   still holds them, reports failed loads as success, never frees result images, forces eta to 0
   and draws seeds from 0..10000.
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
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from PIL import Image
from stable_diffusion_cpp import stable_diffusion_cpp as sd  # noqa: TID251

from sdstream.core.errors import EngineError, Reason
from sdstream.core.messages import ImageDrawn, Load, Loaded, Phase, Preview, Progress
from sdstream.core.model_families import FAMILIES
from sdstream.core.model_spec import CPU
from sdstream.core.options import LoraChoice, Options
from sdstream.core.pixels import Inputs, Pixels
from sdstream.core.request import EVERY_STEP, GenerationRequest
from sdstream.core.samplers import CACHE_KNOBS, DEFAULT_SCHEDULE, HIRES_UPSCALERS
from sdstream.core.size import Size
from sdstream.engine.abort import AbortFlag
from sdstream.engine.port import Emit
from sdstream.weights import inspection
from sdstream.weights.embedded import materialise
from sdstream.weights.embeddings import prepared_embeddings
from sdstream.weights.folders import weight_files

logger = logging.getLogger("sdstream.native")

_LEVELS: Final = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR)

#: A part of the log line that begins a phase; generate_image itself begins with the encoding.
_PHASE_LINES: Final = (
    ("generating image: ", Phase.SAMPLING),
    ("- decoding ", Phase.DECODING),
    ("- upscaling from ", Phase.UPSCALING),
)

#: What the log says of a LoRA that changes nothing: of no tensor of it, or of its file.
_LORA_UNFIT: Final = re.compile(
    r"\(0 / \d+\) LoRA tensors have been applied|load lora tensors from .* failed"
)

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

#: Any non-empty path makes the runtime use a tiny autoencoder that the model file itself holds,
#: after a warning that there is no such file.
_TAE_INSIDE: Final = "inside-the-model-file"

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

_PREVIEW_MODES: Final = {
    "projection": sd.Preview.PREVIEW_PROJ,
    "tae": sd.Preview.PREVIEW_TAE,
    "decode": sd.Preview.PREVIEW_VAE,
}
#: Pixels to a side of what an upscaler takes at once: its memory, and how often it is heard of.
_UPSCALER_TILE: Final = 128
#: Thresholds, weak and strong grey of the runtime's own program.
_CANNY: Final = (0.08, 0.08, 0.8, 1.0)

_lib = sd._lib
_lib.sd_ctx_params_init.argtypes = [ctypes.POINTER(sd.sd_ctx_params_t)]
_lib.sd_ctx_params_init.restype = None
_lib.sd_img_gen_params_init.argtypes = [ctypes.POINTER(sd.sd_img_gen_params_t)]
_lib.sd_img_gen_params_init.restype = None
for _name in ("str_to_sample_method", "str_to_scheduler", "str_to_sd_type"):
    getattr(_lib, _name).argtypes = [ctypes.c_char_p]
    getattr(_lib, _name).restype = ctypes.c_int

_free = ctypes.CDLL(None).free
_free.argtypes = [ctypes.c_void_p]
_free.restype = None


class NativeEngine:
    """One loaded model. All but ``abort`` and ``peek`` belongs to one thread with a large stack."""

    def __init__(self) -> None:
        self._context: Any = None
        self._abort = AbortFlag(_lib)
        self._can_abort = False
        self._lora_dir: str | None = None
        self._upscaler_dir: str | None = None
        self._threads = 0
        self._unfit_lora = False
        self._secrets: dict[str, str] = {}
        self._first_error = ""
        self._vae_tiling = False
        self._preview_mode = sd.Preview.PREVIEW_PROJ
        self._peeked = False
        self._drawing: _Drawing | None = None
        self._loading: Callable[[int, int], None] | None = None
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
        self._lora_dir, self._upscaler_dir = command.lora_dir, command.upscaler_dir
        self._threads = command.runtime["threads"] or available_cores()
        self._secrets = {str(path): component for component, path in files.items()}
        inspection.check(files, command.family, tae=command.runtime["tae"])
        embeddings = _embeddings(command)
        params = _context_params(files, command.runtime, self._threads, embeddings)
        self._loading = _LoadProgress(emit)
        context = sd.new_sd_ctx(ctypes.byref(params))
        self._loading = None
        # A NULL context must be neither used nor freed.
        if not context:
            detail = f": {self._first_error}" if self._first_error else ""
            raise EngineError(
                Reason.MODEL_UNAVAILABLE, f"The runtime could not load the model{detail}."
            )
        self._context = context
        self._vae_tiling = command.runtime["vae_tiling"]
        self._preview_mode = _PREVIEW_MODES[command.runtime["preview"]]
        self._can_abort = self._abort.attach(context)
        if command.device not in ("", CPU) and self._abort.on_cpu:
            raise EngineError(
                Reason.MODEL_UNAVAILABLE,
                f"The model is to run on {command.device}, and the runtime found only the CPU.",
            )
        return Loaded(
            seconds=time.monotonic() - started,
            can_abort=self._can_abort,
            fast_kernels=_has_fast_kernels(),
            on_cpu=self._abort.on_cpu,
            system=sd.sd_get_system_info().decode("utf-8", "replace").strip(),
            embeddings=tuple(embeddings),
        )

    def draw(
        self, job: str, request: GenerationRequest, inputs: Inputs, index: int, emit: Emit
    ) -> ImageDrawn | None:
        """Draw one image; blocks until it is there, failed or aborted."""
        self._first_error, self._peeked, self._unfit_lora = "", False, False
        seed = request.seed + index
        drawing = self._drawing = _Drawing(job, index, request, emit)
        try:
            picture = self._generated(request, inputs, seed) if request.draws else inputs.image
            if picture is not None and request.upscaled is not None:
                picture = self._enlarged(picture, request)
        finally:
            self._drawing = None
        if picture is None:
            return None
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
            blob=picture.data,
        )

    def clear_abort(self) -> None:
        """Forget an earlier abort."""
        self._abort.reset()

    def abort(self) -> None:
        """Stop the image being drawn, where the backend can."""
        if self._can_abort:
            self._abort.request()

    def peek(self) -> None:
        """Make a preview with the step after the one that runs."""
        self._peeked = True

    # --- callbacks, on the drawing thread ---------------------------------------------------------

    def _on_log(self, level: int, text: bytes, _data: Any) -> None:
        line = self._redact(text.decode("utf-8", "replace").strip()).replace("\n", "\\n")
        severity = _LEVELS[level] if 0 <= level < len(_LEVELS) else logging.INFO
        if self._abort.requested or _TAE_INSIDE in line:
            severity = logging.DEBUG  # what was asked for is no fault
        elif self._drawing is not None and severity == logging.INFO:
            severity = logging.DEBUG  # a dozen lines an image; the server logs one a request
        logger.log(severity, "%s", line)
        if severity >= logging.ERROR and not self._first_error:
            # "[ERROR] file.cpp:123 - what happened"; those that follow say that it did
            self._first_error = line.rpartition(" - ")[2][:200]
        if _LORA_UNFIT.search(line):
            self._unfit_lora = True
        if self._drawing is not None:
            self._drawing.heard(line)

    def _on_progress(self, step: int, steps: int, _seconds: float, _data: Any) -> None:
        if self._drawing is not None:
            if self._drawing.phase is Phase.SAMPLING:
                self._abort.arm()
            self._drawing.progressed(step, steps)
            if self._drawing.phase is Phase.SAMPLING:
                self._want_preview(self._peeked or self._drawing.wants_preview(step + 1))
        elif self._loading is not None:
            self._loading(step, steps)

    def _on_preview(self, step: int, count: int, frames: Any, _noisy: bool, _data: Any) -> None:
        if self._drawing is not None and count > 0 and frames[0].data:
            self._peeked = False
            frame = frames[0]
            pixels = _rgb(frame)
            self._drawing.previewed(step, frame.width, frame.height, pixels)

    # --- details --------------------------------------------------------------------------------

    def _generated(self, request: GenerationRequest, inputs: Inputs, seed: int) -> Pixels | None:
        """What the model draws; None when it was aborted."""
        assert self._drawing is not None
        self._want_preview(self._drawing.wants_preview(1))
        params = self._generation_params(request, inputs, seed)
        images = sd.generate_image(self._context, ctypes.byref(params))
        if not images or not images[0].data:
            if images:
                _free(images)
            self._expect_nothing("The runtime gave no picture.")
            return None
        picture = _taken(images[0])
        _free(images)
        if self._unfit_lora:
            # The runtime draws without it, and says so in its log alone.
            raise EngineError(
                Reason.GENERATION_FAILED, "A LoRA of the request does not fit this model."
            )
        return picture

    def _enlarged(self, picture: Pixels, request: GenerationRequest) -> Pixels | None:
        """The picture enlarged by the request's upscaler; None when it was aborted."""
        name = request.options.upscaler or ""
        path = _file_of(self._upscaler_dir, name, "upscaler")
        if inspection.upscaler_factor(path) is None:
            raise EngineError(Reason.GENERATION_FAILED, f"The upscaler '{name}' is none any more.")
        context = sd.new_upscaler_ctx(
            str(path).encode(), False, False, self._threads, _UPSCALER_TILE
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
            image = sd.upscale(context, _native_image(picture), 0)
            if not image.data:
                self._expect_nothing("The upscaler gave no picture.")
                return None
            return _resized(_taken(image), request.output_size)
        finally:
            sd.free_upscaler_ctx(context)

    def _expect_nothing(self, message: str) -> None:
        """Raise why no picture came, as far as that was heard, unless it was aborted."""
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

    def _generation_params(self, request: GenerationRequest, inputs: Inputs, seed: int) -> Any:
        options = request.options
        params = sd.sd_img_gen_params_t()
        _lib.sd_img_gen_params_init(ctypes.byref(params))
        params.prompt = request.prompt.encode()
        params.negative_prompt = request.negative_prompt.encode()
        params.width, params.height = request.width, request.height
        params.seed, params.batch_count = seed, 1
        if inputs.image is not None:
            params.init_image = _native_image(inputs.image)
            params.strength = options.strength
        if inputs.mask is not None:
            params.mask_image = _native_image(inputs.mask)
        if inputs.control is not None:
            params.control_image = _control_image(inputs.control, edges=bool(options.control_canny))
            params.control_strength = options.control_strength
        if inputs.references:
            references = (sd.sd_image_t * len(inputs.references))()
            references[:] = [_native_image(picture) for picture in inputs.references]
            # Ctypes keeps the array alive through the pointer.
            params.ref_images = ctypes.cast(references, ctypes.POINTER(sd.sd_image_t))
            params.ref_images_count = len(references)
        tiling = self._vae_tiling if options.vae_tiling is None else options.vae_tiling
        params.vae_tiling_params.enabled = tiling
        if options.clip_skip is not None:
            params.clip_skip = options.clip_skip
        if options.cache_mode is not None:
            _set_cache(params.cache, options.cache_mode, options.cache_numbers)
        if request.second_pass is not None:
            _set_hires(params.hires, options, request.second_pass)
        if options.lora and self._lora_dir is not None:
            _set_loras(params, self._lora_dir, options.lora)
        self._set_sampling(params.sample_params, request)
        return params

    def _set_sampling(self, sample: Any, request: GenerationRequest) -> None:
        sample.sample_steps = request.steps
        sample.sample_method = _lib.str_to_sample_method(request.sampler.encode())
        sample.scheduler = self._scheduler(request.schedule, sample.sample_method)
        sample.guidance.txt_cfg = request.cfg_scale
        options = request.options
        if options.guidance is not None:
            sample.guidance.distilled_guidance = options.guidance
        if options.eta is not None:
            sample.eta = options.eta
        if options.flow_shift is not None:
            sample.flow_shift = options.flow_shift
        if options.sigmas:
            levels = (ctypes.c_float * len(options.sigmas))(*options.sigmas)
            # Ctypes keeps the array alive through the pointer.
            sample.custom_sigmas = ctypes.cast(levels, ctypes.POINTER(ctypes.c_float))
            sample.custom_sigmas_count = len(levels)
        if options.slg_scale is not None:
            _set_skip_layers(sample.guidance.slg, options)

    def _scheduler(self, name: str, sample_method: int) -> int:
        if name == DEFAULT_SCHEDULE:
            return int(sd.sd_get_default_scheduler(self._context, sample_method))
        return int(_lib.str_to_scheduler(name.encode()))


def convert(
    source: str, vae: str, target: str, wtype: str, rules: str, progress: Callable[[int, int], None]
) -> str:
    """Write weights in other types; the whole result is held in memory.

    It takes over the process' callbacks, so no engine may be in it.

    Args:
        source: A file of weights.
        vae: Another one, whose tensors get the prefix "vae."; empty for none.
        target: Is overwritten; .safetensors decides for that format, all else is GGUF.
        wtype: For all tensors that can have it.
        rules: "PATTERN=TYPE,…" (ECMAScript); an unknown type is ignored, a wrong pattern aborts.
        progress: Told the tensors that are read and quantised, and their number.

    Returns:
        What went wrong, empty when nothing did.
    """
    errors: list[str] = []

    def on_log(level: int, text: bytes, _data: Any) -> None:
        if 0 <= level < len(_LEVELS) and _LEVELS[level] >= logging.ERROR:
            errors.append(text.decode("utf-8", "replace").strip().rpartition(" - ")[2][:200])

    def on_progress(step: int, steps: int, _seconds: float, _data: Any) -> None:
        progress(step, steps)

    callbacks = sd.sd_log_callback(on_log), sd.sd_progress_callback(on_progress)
    sd.sd_set_log_callback(callbacks[0], None)
    sd.sd_set_progress_callback(callbacks[1], None)
    number = _lib.str_to_sd_type(wtype.encode())
    paths = (source.encode(), vae.encode(), target.encode())
    done = sd.convert(*paths, number, rules.encode(), False)
    return "" if done else (errors or ["no reason was given"])[0]


class _Drawing:
    """The image being drawn: tells its phases apart and times them."""

    def __init__(self, job: str, index: int, request: GenerationRequest, emit: Emit) -> None:
        self.phase = Phase.ENCODING
        #: Steps of a second pass, as the runtime will count them, and those of the pass before.
        self._second = (request.options.hires_steps or 0) + 1 if request.second_pass else 0
        self._before = 0
        self._pass_steps = request.steps
        self._step = 0
        self.steps = request.steps + self._second
        self._draws = request.draws
        self._job = job
        self._index = index
        self._previews = request.previews
        self._emit = emit
        self._began = {Phase.ENCODING: time.monotonic()}
        self._report(0)

    def heard(self, line: str) -> None:
        """Take up a log line of the runtime: some of them begin a phase."""
        for mark, phase in _PHASE_LINES:
            if mark in line and phase not in self._began:
                self.phase = phase
                self._began[phase] = time.monotonic()
                self._report(self.steps if phase is not Phase.SAMPLING else 0)

    def progressed(self, step: int, steps: int) -> None:
        """Take up the progress callback, which outside sampling counts LoRAs and tiles."""
        if self.phase is Phase.SAMPLING:
            if step < self._step:  # the second pass of a hires fix counts anew
                self._before, self._second = self._before + self._pass_steps, 0
            self._step, self._pass_steps = step, steps
            self.steps = self._before + steps + self._second
            self._report(self._before + step)
        elif self.phase is Phase.UPSCALING and not self._draws:
            self.steps = steps
            self._report(step)
        else:
            self._report(0 if self.phase is Phase.ENCODING else self.steps)

    def previewed(self, step: int, width: int, height: int, pixels: bytes) -> None:
        """Send a preview; heun and its like number their inner steps negatively."""
        self._emit(Preview(self._job, self._index, abs(step), width, height, pixels))

    def wants_preview(self, step: int) -> bool:
        """True when a picture is wanted after this step: each, or as many as asked, spread."""
        if self._previews == EVERY_STEP:
            return True
        parts = self._previews + 1
        return step in {round(self.steps * part / parts) for part in range(1, parts)}

    def seconds(self, phase: Phase) -> float:
        """How long the phase took, up to now for the last one."""
        if phase not in self._began:
            return 0.0
        later = [at for at in self._began.values() if at > self._began[phase]]
        return min(later, default=time.monotonic()) - self._began[phase]

    def _report(self, step: int) -> None:
        self._emit(Progress(self._job, self._index, self.phase, step, self.steps))


class _LoadProgress:
    """Passes on that weights are being read, at most once a second."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._next = 0.0

    def __call__(self, step: int, steps: int) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + 1.0
            self._emit(Progress("", 0, Phase.LOADING, step, steps))


def _set_loras(params: Any, folder: str, loras: Sequence[LoraChoice]) -> None:
    array = (sd.sd_lora_t * len(loras))()
    for entry, lora in zip(array, loras, strict=True):
        path = _file_of(folder, lora.id, "LoRA")
        inspection.check_lora(lora.id, path)
        entry.path, entry.multiplier = str(path).encode(), lora.scale
    # Ctypes keeps the array alive through the pointer.
    params.loras = ctypes.cast(array, ctypes.POINTER(sd.sd_lora_t))
    params.lora_count = len(array)


def _file_of(folder: str | None, name: str, what: str) -> Path:
    """The file of that name in one of the operator's folders."""
    path = weight_files(folder).get(name)
    if path is None:
        raise EngineError(Reason.GENERATION_FAILED, f"The {what} '{name}' is gone.")
    return path


def _set_cache(params: Any, mode: str, numbers: Mapping[str, float]) -> None:
    params.mode = _CACHE_MODES[mode]
    for name, value in numbers.items():
        knob = CACHE_KNOBS[mode][name]
        setattr(params, knob.field, int(value) if knob.whole else value)


def _set_hires(params: Any, options: Options, size: Size) -> None:
    params.enabled = True
    params.upscaler = _HIRES_UPSCALERS[options.hires_upscaler or "latent"]
    params.target_width, params.target_height = size
    params.steps, params.denoising_strength = options.hires_steps, options.hires_strength


def _set_skip_layers(params: Any, options: Options) -> None:
    chosen = options.slg_layers or ()
    layers = (ctypes.c_int * len(chosen))(*chosen)
    params.layers = ctypes.cast(layers, ctypes.POINTER(ctypes.c_int))
    params.layer_count = len(layers)
    params.layer_start, params.layer_end = options.slg_start, options.slg_end
    params.scale = options.slg_scale


def _embeddings(command: Load) -> dict[str, Path]:
    """Word -> file of the embeddings that fit the model; only CLIP reads any."""
    traits = FAMILIES[command.family]
    if command.embedding_dir is None or not traits.unet:
        return {}
    cache = Path(command.cache_dir) / "embeddings"
    return prepared_embeddings(weight_files(command.embedding_dir), command.family, cache)


def _context_params(
    files: dict[str, Path], runtime: dict[str, Any], threads: int, embeddings: dict[str, Path]
) -> Any:
    params = sd.sd_ctx_params_t()
    _lib.sd_ctx_params_init(ctypes.byref(params))
    for component, path in files.items():
        setattr(params, _PATH_FIELDS[component], str(path).encode())
    if runtime["tae"] and "tae" not in files:
        params.taesd_path = _TAE_INSIDE.encode()
    # The defaults free the weights after the first image and leave the encoder out.
    params.free_params_immediately = False
    params.vae_decode_only = False
    params.n_threads = threads
    params.flash_attn = params.diffusion_flash_attn = runtime["flash_attn"]
    params.diffusion_conv_direct = params.vae_conv_direct = runtime["conv_direct"]
    params.offload_params_to_cpu = runtime["offload"]
    params.qwen_image_zero_cond_t = runtime["zero_cond_t"]
    params.tae_preview_only = runtime["preview"] == "tae"
    params.circular_x = runtime["circular"] in ("x", "both")
    params.circular_y = runtime["circular"] in ("y", "both")
    if embeddings:
        array = (sd.sd_embedding_t * len(embeddings))()
        for entry, (word, path) in zip(array, embeddings.items(), strict=True):
            entry.name, entry.path = word.encode(), str(path).encode()
        # Ctypes keeps the array alive through the pointer.
        params.embeddings = ctypes.cast(array, ctypes.POINTER(sd.sd_embedding_t))
        params.embedding_count = len(array)
    if runtime["wtype"]:
        params.wtype = _lib.str_to_sd_type(runtime["wtype"].encode())
    return params


def available_cores() -> int:
    """Cores this process may use: its affinity, or less where a control group caps it."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no control group, or "max": no cap
        pass
    return cores


def _has_fast_kernels() -> bool:
    try:
        return bool(_lib.ggml_cpu_has_llamafile())
    except AttributeError:
        return False


def _native_image(picture: Pixels) -> Any:
    """A sd_image_t over the picture's own bytes, which must outlive the call."""
    pointer = ctypes.cast(ctypes.c_char_p(picture.data), ctypes.POINTER(ctypes.c_uint8))
    return sd.sd_image_t(picture.width, picture.height, picture.channels, pointer)


def _control_image(picture: Pixels, *, edges: bool) -> Any:
    """A sd_image_t of the picture, or of its edges."""
    if not edges:
        return _native_image(picture)
    # The library draws the edges over the pixels themselves.
    own = ctypes.create_string_buffer(picture.data, len(picture.data))
    pointer = ctypes.cast(own, ctypes.POINTER(ctypes.c_uint8))
    image = sd.sd_image_t(picture.width, picture.height, picture.channels, pointer)
    if not sd.preprocess_canny(image, *_CANNY, False):
        raise EngineError(Reason.GENERATION_FAILED, "No edges could be made of the picture.")
    return image


def _taken(image: Any) -> Pixels:
    """Copy a result out as RGB and free the library's memory of its pixels."""
    try:
        return Pixels(image.width, image.height, _rgb(image))
    finally:
        _free(image.data)


def _resized(picture: Pixels, wanted: Size) -> Pixels:
    """The picture at the wanted size, which is the upscaler's own or less."""
    if picture.size == wanted:
        return picture
    image = Image.frombytes("RGB", picture.size, picture.data)
    smaller = image.resize(wanted, Image.Resampling.LANCZOS)
    return Pixels(wanted.width, wanted.height, smaller.tobytes())


def _rgb(image: Any) -> bytes:
    """The pixels of a sd_image_t as RGB; inpainting models answer RGBA."""
    size = (image.width, image.height)
    pixels = ctypes.string_at(image.data, image.width * image.height * image.channel)
    if image.channel == 3:
        return pixels
    mode = {1: "L", 4: "RGBA"}[image.channel]
    return Image.frombytes(mode, size, pixels).convert("RGB").tobytes()
