"""Usual durations of a worker's phases, and the time limits of its watchdog."""

from __future__ import annotations

from typing import Final

from sdstream.core.messages import Phase, Share
from sdstream.core.request import GenerationRequest

#: A phase may take this many times its usual duration before the worker counts as hung.
_HANG_FACTOR: Final = 10.0

#: Phases that take longer for a larger image. Upscaling is not among them: its progress is
#: reported by tile, and all tiles have the same size.
_OF_PIXELS: Final = (Phase.SAMPLING, Phase.DECODING)


class Pace:
    """Usual duration of each phase: in seconds per pixel for the phases in ``_OF_PIXELS``.

    Jobs with different numbers of reference images are measured separately, because encoding
    reference images may take minutes. In a hires fix the second pass is slower than the first, and
    the runtime does not report which pass is running. Such jobs get the time limit of the larger
    size, and they are not measured.
    """

    def __init__(self, floor: float) -> None:
        self._floor = floor
        self._usual: dict[tuple[Phase, int], float] = {}
        self._pixels, self._references, self._stretch = 1, 0, 1.0
        #: The worker's share of the CPU, for the current job and later ones.
        self.share = Share(0, 1)

    def expect(self, request: GenerationRequest | None, references: int = 0) -> None:
        """Set the job whose phases follow; None stands for the loading of the model."""
        self._pixels, self._references, self._stretch = 1, references, 1.0
        if request is None:
            return
        self._pixels = request.width * request.height
        if request.second_pass is not None:
            # The time of attention grows with the square of the number of pixels.
            larger = request.second_pass.width * request.second_pass.height
            self._stretch = (larger / self._pixels) ** 2

    def note(self, phase: Phase, seconds: float) -> None:
        """Record one measurement in an exponentially weighted mean."""
        if self._stretch == 1.0:
            value, key = seconds / self._size(phase) / self.share.workers, (phase, self._references)
            self._usual[key] = 0.8 * self._usual.get(key, value) + 0.2 * value

    def usual(self, phase: Phase) -> float:
        """Return the usual seconds of the phase, or 0 if it was never measured."""
        known = self._usual.get((phase, self._references), 0.0)
        stretch = self._stretch if phase in _OF_PIXELS else 1.0
        return known * self._size(phase) * stretch * self.share.workers

    def limit(self, phase: Phase) -> float:
        """Return the seconds without progress after which the phase counts as hung."""
        if (phase, self._references) not in self._usual:
            return _HANG_FACTOR * self._floor * self.share.workers
        return max(self._floor, _HANG_FACTOR * self.usual(phase))

    def _size(self, phase: Phase) -> int:
        return self._pixels if phase in _OF_PIXELS else 1
