"""The progress of the runtime: phases from its log lines, steps from its progress callback."""

from __future__ import annotations

import re
import time
from typing import Final

from sdstream.core.messages import Phase, Preview, Progress
from sdstream.core.request import EVERY_STEP, GenerationRequest
from sdstream.core.samplers import LATENT_UPSCALERS
from sdstream.engine.port import Emit

#: Text in the log line that begins a phase -> the phase. Each image begins with the encoding.
_PHASE_LINES: Final = (
    ("generating image: ", Phase.SAMPLING),
    ("- decoding ", Phase.DECODING),
    ("- upscaling from ", Phase.UPSCALING),
)

#: Log lines before and after the run of a pixel upscaler between the two passes of a hires fix.
#: During this run the progress callback counts tiles instead of steps.
_BETWEEN_BEGINS: Final = "- hires fix: "
_BETWEEN_ENDS: Final = "computing vae encode graph completed"

_VERSION_LINE: Final = re.compile(r" - Version: (.+)$")


class ImageProgress:
    """The phases of the image being generated, with their start times."""

    def __init__(self, job: str, index: int, request: GenerationRequest, emit: Emit) -> None:
        self.phase = Phase.ENCODING
        #: Steps of a second pass that has not begun yet, as the runtime will count them.
        self._second = (request.options.hires_steps or 0) + 1 if request.second_pass else 0
        #: Steps of the passes that are finished.
        self._before = 0
        upscaler = request.options.hires_upscaler or "latent"
        self._pixels_between = upscaler not in LATENT_UPSCALERS
        self._between = False
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
        """Handle a log line of the runtime; some lines begin a phase."""
        if self._pixels_between and _BETWEEN_BEGINS in line:
            self._between = True
        elif _BETWEEN_ENDS in line:
            self._between = False
        for mark, phase in _PHASE_LINES:
            if mark in line and phase not in self._began:
                self.phase = phase
                self._began[phase] = time.monotonic()
                self._report(self.steps if phase is not Phase.SAMPLING else 0)

    def progressed(self, step: int, steps: int) -> None:
        """Handle the progress callback, which counts LoRAs and tiles as well as sampling steps."""
        if self._between:
            self._report(self._before + self._step)
        elif self.phase is Phase.SAMPLING:
            if step < self._step:  # the second pass of a hires fix starts again at 1
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
        """Emit a preview; samplers such as heun use negative numbers for inner steps."""
        self._emit(Preview(self._job, self._index, abs(step), width, height, pixels))

    def wants_preview(self, step: int) -> bool:
        """Return whether this step should have a preview.

        The request asks for previews of all steps, or for a number of them at equal intervals.
        """
        if self._previews == EVERY_STEP:
            return True
        parts = self._previews + 1
        return step in {round(self.steps * part / parts) for part in range(1, parts)}

    def seconds(self, phase: Phase) -> float:
        """Return the duration of a phase in seconds; the last phase is measured up to now."""
        if phase not in self._began:
            return 0.0
        later = [at for at in self._began.values() if at > self._began[phase]]
        return min(later, default=time.monotonic()) - self._began[phase]

    def _report(self, step: int) -> None:
        self._emit(Progress(self._job, self._index, self.phase, step, self.steps))


class LoadProgress:
    """The progress of loading, which is reported at most once a second.

    Attributes:
        version: The runtime's name for the kind of model; empty until the runtime logs it.
    """

    def __init__(self, emit: Emit) -> None:
        self.version = ""
        self._emit = emit
        self._next = 0.0

    def heard(self, line: str) -> None:
        """Read the kind of model from a log line of the runtime, if the line contains it."""
        found = _VERSION_LINE.search(line)
        if found is not None:
            self.version = found[1]

    def progressed(self, step: int, steps: int) -> None:
        """Handle the progress callback."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + 1.0
            self._emit(Progress("", 0, Phase.LOADING, step, steps))
