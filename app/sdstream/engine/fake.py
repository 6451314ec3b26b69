"""A deterministic engine without a model, for tests and for trying clients.

It generates a gradient whose colours depend on the prompts, the seed and the size. Words of the
form ``key=value`` in the prompt make the real worker process misbehave:

    step=0.05     each sampling step takes that many seconds (default 0.001)
    crash=3       the process aborts (SIGABRT) at that step
    segv=3        SIGSEGV ends the process at that step
    hang=3        the process sends nothing more after that step, and a cancel has no effect
    fail=3        generation fails at that step
    warn=1        the image has a warning
    inputs=1      generation fails, and the error lists the input images
    deaf=1        a cancel has no effect, as on a GPU
    orphan=3      the process aborts at that step; a fork stays alive and holds its files open
    escape=3      the same, and the fork has left the process group
"""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time

from sdstream.core.errors import EngineError, Reason
from sdstream.core.messages import ImageDrawn, Load, Loaded, Phase, Preview, Progress, Share
from sdstream.core.pixels import Inputs
from sdstream.core.request import EVERY_STEP, GenerationRequest
from sdstream.core.runtime_options import KERNELS_OFF
from sdstream.engine.port import Emit

_STEP_SECONDS = 0.001
#: Lifetime of a fork, longer than the server may wait for it.
_ORPHAN_SECONDS = 20


class FakeEngine:
    """An engine that generates gradients; the module's docstring lists its control words."""

    def __init__(self) -> None:
        self._aborted = threading.Event()
        self._peeked = False

    def load(self, command: Load, emit: Emit) -> Loaded:
        """Return at once.

        The names of files control the result: ``broken`` makes loading fail, ``crash`` aborts the
        process, and ``sharing`` means that the engine can share the CPU.
        """
        emit(Progress("", 0, Phase.LOADING, 1, 1))
        if "broken" in command.files.values():
            raise EngineError(Reason.MODEL_UNAVAILABLE, "The file of 'model' is damaged.")
        if "crash" in command.files.values():
            os.abort()
        kernels = command.runtime["kernels"] or KERNELS_OFF
        return Loaded(
            0.0, can_abort=True, fast_kernels=True, on_cpu=True, kernels=kernels,
            can_share="sharing" in command.files.values(),
        )  # fmt: skip

    def draw(
        self, job: str, request: GenerationRequest, inputs: Inputs, index: int, emit: Emit
    ) -> ImageDrawn | None:
        """Emit the events of all phases, at the speed that the prompt sets."""
        cues = _cues(request.prompt)
        pause = cues.get("step", _STEP_SECONDS)
        self._peeked = False
        if "inputs" in cues:
            raise EngineError(Reason.GENERATION_FAILED, _told(inputs))
        emit(Progress(job, index, Phase.ENCODING, 0, request.steps))
        for step in range(request.steps + 1):
            every = request.previews == EVERY_STEP or self._peeked
            if step and (every or step <= request.previews):
                self._peeked = False
                emit(Preview(job, index, step, 8, 8, _gradient(request, index, 8, 8)))
            emit(Progress(job, index, Phase.SAMPLING, step, request.steps))
            _misbehave(cues, step)
            if self._pause(pause, deaf="deaf" in cues):
                return None
        emit(Progress(job, index, Phase.DECODING, request.steps, request.steps))
        return ImageDrawn(
            job=job,
            index=index,
            seed=request.seed + index,
            width=request.runtime_size.width,
            height=request.runtime_size.height,
            steps=request.steps,
            encode_seconds=pause,
            sample_seconds=pause * request.steps,
            decode_seconds=pause,
            blob=_picture(request, inputs, index),
            warnings=("The fake engine warns as requested.",) if "warn" in cues else (),
        )

    def clear_abort(self) -> None:
        """Clear an earlier abort."""
        self._aborted.clear()

    def abort(self) -> None:
        """Stop at the next step."""
        self._aborted.set()

    def peek(self) -> None:
        """Make the next step emit a preview."""
        self._peeked = True

    def share(self, share: Share) -> None:
        """Do nothing, because this engine does not compute with threads."""

    def _pause(self, seconds: float, *, deaf: bool) -> bool:
        """Sleep; return True if the image was aborted meanwhile."""
        if deaf:
            time.sleep(seconds)
            return False
        return self._aborted.wait(seconds)


def _told(inputs: Inputs) -> str:
    """Return an error message with the names and sizes of the input images."""
    references = ((f"reference {i}", p) for i, p in enumerate(inputs.references))
    named = {"image": inputs.image, "mask": inputs.mask, **dict(references)}
    named |= {"control": inputs.control, "canvas": inputs.canvas}
    sizes = ", ".join(f"{name} {picture.size}" for name, picture in named.items() if picture)
    return f"The fake engine got {sizes or 'no images'}."


def _cues(prompt: str) -> dict[str, float]:
    words = (word.partition("=") for word in prompt.split())
    return {key: float(value) for key, _, value in words if _is_number(value)}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _misbehave(cues: dict[str, float], step: int) -> None:
    # os.abort and raise_signal act on this thread at once; a signal sent to the process might be
    # handled later.
    if cues.get("crash") == step:
        os.abort()
    if step in (cues.get("orphan"), cues.get("escape")):
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if cues.get("escape") == step:
                os.setsid()
            time.sleep(_ORPHAN_SECONDS)
            os._exit(0)
        os.abort()
    if cues.get("segv") == step:
        signal.raise_signal(signal.SIGSEGV)
    if cues.get("hang") == step:
        time.sleep(3600)
    if cues.get("fail") == step:
        raise EngineError(Reason.GENERATION_FAILED, "The fake engine failed as requested.")


def _picture(request: GenerationRequest, inputs: Inputs, index: int) -> bytes:
    """Return the gradient, mixed with the input image by ``strength``.

    An image that is upscaled is not mixed.
    """
    drawn = _gradient(request, index, *request.runtime_size)
    if inputs.image is None or request.options.strength is None or request.upscaled:
        return drawn
    share = request.options.strength
    pairs = zip(drawn, inputs.image.data, strict=True)
    return bytes(round(new * share + old * (1 - share)) for new, old in pairs)


def _gradient(request: GenerationRequest, index: int, width: int, height: int) -> bytes:
    key = f"{request.prompt}|{request.negative_prompt}|{request.seed + index}"
    red, green, blue = hashlib.sha256(key.encode()).digest()[:3]
    rows = bytearray()
    for y in range(height):
        shade = 255 * y // height
        rows += bytes((red ^ shade, green, blue)) * width
    return bytes(rows)
