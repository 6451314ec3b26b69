"""What the patches of the runtime add, tested with a runtime compiled with them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sdstream.core.samplers import SAMPLERS
from sdstream.engine.native.patched import Patches
from sdstream.settings import worker_environment

ROOT = Path(__file__).parents[2]


def test_a_runtime_without_them_is_used_as_it_is() -> None:
    """The patches' functions do nothing on a plain wheel."""
    patches = Patches(object())
    assert not patches.present
    patches.cancel(None, cancelled=True)
    patches.keep_conditions(None, 1)
    assert patches.condition_counts(None) == (0, 0)


@pytest.fixture(scope="module")
def cancelled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[object]]:
    """Sampler -> [no image came, steps that began, the next image is right]."""
    cache = tmp_path_factory.mktemp("cancel")
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.cancel_check", str(cache), *SAMPLERS],
        cwd=ROOT, env=worker_environment(), capture_output=True, text=True, check=False,
        timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    answer: dict[str, list[object]] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sampling_stops_before_its_next_step(
    cancelled: dict[str, list[object]], sampler: str
) -> None:
    """A cancel stops sampling without ggml's abort callback, as on a GPU.

    The image after it is right.
    """
    ended, steps, right = cancelled[sampler]
    assert ended
    assert steps == 3
    assert right
