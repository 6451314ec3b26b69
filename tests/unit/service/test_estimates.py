"""Time estimates from measured images."""

from __future__ import annotations

from typing import Any

import pytest

from sdstream.core.messages import ImageDrawn
from sdstream.core.options import Options
from sdstream.core.request import GenerationRequest
from sdstream.core.size import Size
from sdstream.service.estimates import Speed


def drawn(size: int, steps: int, sampling: float, other: float) -> ImageDrawn:
    """An image that took this many seconds."""
    return ImageDrawn("job", 0, 1, size, size, steps, other / 2, sampling, other / 2, b"")


def asked(size: int, steps: int, **changes: Any) -> GenerationRequest:
    """A request for one image."""
    return GenerationRequest(
        "m", "p", "", size, size, steps, "euler", "default", 1.0, 7, 1, **changes
    )


def test_nothing_is_known_of_a_model_that_never_drew() -> None:
    """There is no estimate before the model's first image."""
    assert Speed().image_seconds(asked(64, 10)) is None


def test_steps_count() -> None:
    """Twice the steps double the sampling time, but not the decoding time."""
    speed = Speed()
    speed.note(asked(64, 10), drawn(64, 10, 5.0, 1.0))
    assert speed.image_seconds(asked(64, 10)) == pytest.approx(6.0)
    assert speed.image_seconds(asked(64, 20)) == pytest.approx(11.0)
    assert speed.image_seconds(asked(64, 10, options=Options(strength=0.5))) == pytest.approx(3.5)


def test_sizes_never_seen_are_scaled() -> None:
    """The time of a new size is scaled by its pixels from the nearest measured size."""
    speed = Speed()
    speed.note(asked(64, 10), drawn(64, 10, 5.0, 1.0))
    speed.note(asked(512, 10), drawn(512, 10, 500.0, 100.0))
    assert speed.image_seconds(asked(128, 10)) == pytest.approx(24.0)
    assert speed.image_seconds(asked(256, 10)) == pytest.approx(150.0)


def test_the_newest_count_most() -> None:
    """The estimate follows a slower machine after a few images."""
    speed = Speed()
    speed.note(asked(64, 10), drawn(64, 10, 1.0, 0.0))
    for _ in range(10):
        speed.note(asked(64, 10), drawn(64, 10, 10.0, 0.0))
    seconds = speed.image_seconds(asked(64, 10))
    assert seconds is not None
    assert 9.5 < seconds < 10.0


def test_a_hires_fix() -> None:
    """One measured hires fix gives estimates for hires fixes and for single passes."""
    hires = asked(64, 20, second_pass=Size(128, 128), options=Options(hires_steps=15))
    speed = Speed()
    speed.note(hires, drawn(128, 36, 40.0, 2.0))  # 20 small steps take as long as 5
    assert speed.image_seconds(hires) == pytest.approx(42.0)
    assert speed.image_seconds(asked(128, 10)) == pytest.approx(22.0)
    assert speed.image_seconds(asked(64, 20)) == pytest.approx(10.5)
