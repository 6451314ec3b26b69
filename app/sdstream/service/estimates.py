"""How fast a model generates here, as measured, and the waiting times that follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sdstream.core.messages import ImageDrawn
from sdstream.core.request import GenerationRequest

#: Weight of the newest image; the last three or four decide.
_NEWEST: Final = 0.3


@dataclass(frozen=True, slots=True)
class _Rates:
    """Seconds of one sampling step, and of reading the prompt and decoding together."""

    step_seconds: float
    other_seconds: float


class Speed:
    """Remembers each model's seconds by size; sizes never seen are scaled from the nearest.

    Images that an upscaler enlarges are kept apart from those that none does.
    """

    def __init__(self) -> None:
        self._rates: dict[tuple[object, ...], dict[int, _Rates]] = {}

    def note(self, request: GenerationRequest, drawn: ImageDrawn) -> None:
        """Take in what an image of the request took."""
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
        """What one image of the request takes; None when nothing like it was measured."""
        sizes = self._rates.get(_kind(request))
        if not sizes:
            return None
        pixels = _pixels(request)
        nearest = min(sizes, key=lambda known: max(known, pixels) / min(known, pixels))
        rates = sizes[nearest]
        seconds = rates.step_seconds * _steps(request) + rates.other_seconds
        return seconds * pixels / nearest


def _kind(request: GenerationRequest) -> tuple[object, ...]:
    """Requests that differ in it say nothing about each other."""
    return request.model, request.options.upscaler, request.draws


def _pixels(request: GenerationRequest) -> int:
    """Return the pixels of the largest image that is sampled and decoded."""
    return request.generated_size.width * request.generated_size.height


def _steps(request: GenerationRequest) -> float:
    """Sampling steps; those of a hires fix's first pass count as much less as they are smaller."""
    # An edit leaves out the steps before its strength.
    strength = request.options.strength
    steps = request.steps * (1.0 if strength is None else strength)
    if request.second_pass is not None:
        second = request.options.hires_steps or 0
        steps = steps * request.width * request.height / _pixels(request) + second
    return max(1.0, steps)


def _blend(known: float, fresh: float) -> float:
    return known + _NEWEST * (fresh - known)
