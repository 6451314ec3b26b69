"""The library's Runner with the real runtime and the built-in model."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdstream import JobWasCancelled, Progress, Runner


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """A runner for the whole module."""
    with Runner(cache_dir=tmp_path_factory.mktemp("cache")) as runner:
        yield runner


def test_two_images_with_progress(runner: Runner, tmp_path: Path) -> None:
    """Each step is reported with a preview, and the same seed gives the same image again."""
    reports: list[Progress] = []
    response = runner.generate(
        "a red circle",
        n=2,
        size="64x64",
        steps=4,
        seed=7,
        previews=True,
        on_progress=reports.append,
    )
    steps = [(one.index, one.step) for one in reports if one.step]
    assert steps == [(i, step) for i in (0, 1) for step in (1, 2, 3, 4)]
    assert all(one.preview for one in reports if one.step)
    assert response.usage["generation_per_second"] > 0
    paths = response.save(tmp_path / "circle.png")
    assert [path.name for path in paths] == ["circle-1.png", "circle-2.png"]
    again = runner.generate("a red circle", size="64x64", steps=4, seed=8)
    assert _colours(again.data[0].content).tolist() == (_colours(response.data[1].content).tolist())


def test_an_edit_keeps_what_the_mask_keeps(runner: Runner) -> None:
    """An edit of an image by its path changes only the masked half."""
    before = runner.generate("a red circle", size="64x64", steps=4, seed=7)
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (32, 0, 64, 64))
    file = io.BytesIO()
    mask.save(file, "PNG")
    url = before.data[0].url
    assert url is not None
    after = runner.edit(
        url, "a blue square", mask=file.getvalue(), mask_mode="luminance", steps=4, seed=9
    )
    old, new = _colours(before.data[0].content), _colours(after.data[0].content)
    assert (old[:, :32] == new[:, :32]).all()
    assert (old[:, 32:] != new[:, 32:]).any()


def test_a_callback_cancels(runner: Runner) -> None:
    """cancel stops a job within a few steps, and the next request uses the same worker."""
    steps: list[int] = []

    def stop(progress: Progress) -> None:
        steps.append(progress.step)
        if progress.step == 2:
            runner.cancel()

    with pytest.raises(JobWasCancelled):
        runner.generate("a red circle", size="64x64", steps=100, on_progress=stop)
    assert 2 <= max(steps) < 100
    statuses: list[str] = []
    runner.generate(
        "a circle", size="64x64", steps=2, on_progress=lambda one: statuses.append(one.status)
    )
    assert "loading" not in statuses


def _colours(content: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))
