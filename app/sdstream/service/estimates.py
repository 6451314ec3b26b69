"""The measured speed of models on this server, and the estimated time of an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sdstream.core.messages import ImageDrawn
from sdstream.core.request import GenerationRequest

#: Weight of the newest image in the moving average, which the last three or four images dominate.
_NEWEST: Final = 0.3


@dataclass(frozen=True, slots=True)
class _Rates:
    """Seconds of one sampling step, and of encoding the prompt and decoding the image together."""

    step_seconds: float
    other_seconds: float


class Speed:
    """Average seconds of each model by image size; an unmeasured size is scaled from the nearest.

    Images of different upscalers, and images that are only enlarged, are measured separately.
    """

    def __init__(self) -> None:
        self._rates: dict[tuple[object, ...], dict[int, _Rates]] = {}

    def note(self, request: GenerationRequest, drawn: ImageDrawn) -> None:
        """Add the times of a finished image of the request to the averages."""
        fresh = _Rates(
            drawn.sample_seconds / _steps(request), drawn.encode_seconds + drawn.decode_seconds
        )
        sizes = self._rates.setdefault(_kind(request), {})
        pixels = _pixels(request)
        known = sizes.get(pixels, fresh)
        sizes[pixels] = _Rates(
            _blend(known.step_seconds, fresh.step_seconds),
            _blend(known.other_seconds, fresh.other_seconds),
        )

    def image_seconds(self, request: GenerationRequest) -> float | None:
        """Return the estimated seconds of one image; None if no similar image was measured."""
        sizes = self._rates.get(_kind(request))
        if not sizes:
            return None
        pixels = _pixels(request)
        nearest = min(sizes, key=lambda known: max(known, pixels) / min(known, pixels))
        rates = sizes[nearest]
        seconds = rates.step_seconds * _steps(request) + rates.other_seconds
        return seconds * pixels / nearest


def _kind(request: GenerationRequest) -> tuple[object, ...]:
    """Return the key of measurements: only requests with equal keys are comparable."""
    return request.model, request.options.upscaler, request.draws


def _pixels(request: GenerationRequest) -> int:
    """Return the pixels of the largest image that is sampled and decoded."""
    return request.generated_size.width * request.generated_size.height


def _steps(request: GenerationRequest) -> float:
    """Return the steps at full size; a smaller first pass counts in proportion to its pixels."""
    # An edit runs only a part of the steps: strength is the fraction.
    strength = request.options.strength
    steps = request.steps * (1.0 if strength is None else strength)
    if request.second_pass is not None:
        second = request.options.hires_steps or 0
        steps = steps * request.width * request.height / _pixels(request) + second
    return max(1.0, steps)


def _blend(known: float, fresh: float) -> float:
    return known + _NEWEST * (fresh - known)
