"""Progress of an image from the runtime's log lines and callbacks."""

from __future__ import annotations

import pytest

from sdstream.core.messages import Event, Progress
from sdstream.core.options import Options
from sdstream.core.request import GenerationRequest
from sdstream.core.size import Size
from sdstream.engine.native.progress import ImageProgress


@pytest.mark.parametrize("upscaler", ["lanczos", "drawings-4x"])
def test_tiles_between_two_passes_are_no_steps(upscaler: str) -> None:
    """Tiles, which the runtime reports by the callback for steps, are ignored."""
    told: list[Event] = []
    options = Options(hires_upscaler=upscaler, hires_steps=3)
    request = GenerationRequest(
        "m", "a cat", "", 64, 64, 4, "euler", "discrete", 7.0, 1, 1,
        options=options, second_pass=Size(128, 128),
    )  # fmt: skip
    progress = ImageProgress("job", 0, request, told.append)
    progress.heard("[INFO ] stable-diffusion.cpp:3400 - generating image: 1/1 - seed 1")
    for step in range(1, 5):
        progress.progressed(step, 4)
    progress.heard("[INFO ] stable-diffusion.cpp:3490 - hires fix: 3 steps")
    for tile in range(1, 10):
        progress.progressed(tile, 9)
    progress.heard("[DEBUG] vae.hpp:154 - computing vae encode graph completed, taking 0.1s")
    for step in range(1, 5):
        progress.progressed(step, 4)
    steps = [event.step for event in told if isinstance(event, Progress)]
    assert steps == sorted(steps)
    assert steps[-1] == progress.steps == 8
