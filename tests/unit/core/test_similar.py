"""Suggestions for misspelled names."""

from __future__ import annotations

import pytest

from sdstream.core.samplers import find_sampler, nearest_sampler
from sdstream.core.similar import did_you_mean, most_similar, near_miss

KNOWN = ("sample_steps", "seed", "size", "n", "eta")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("sampel_steps", "sample_steps"),
        ("sampl_step", "sample_steps"),
        ("Sample-Steps", "sample_steps"),
        ("sed", "seed"),
        ("sead", "seed"),
        ("se", None),
        ("m", None),
        ("beta", None),
        ("feed", "seed"),
        ("samples_per", None),
    ],
)
def test_near_misses(name: str, meant: str | None) -> None:
    """One typing error is allowed, two from eight letters on, and none in the shortest names."""
    assert near_miss(name, KNOWN) == meant


def test_similar_names() -> None:
    """The most similar name is suggested, or none."""
    assert most_similar("sdxl-turbo-1", ["sd15", "sdxl-turbo"]) == "sdxl-turbo"
    assert most_similar("kolors", ["sd15", "sdxl-turbo"]) is None
    assert did_you_mean("a") == " Did you mean 'a'?"
    assert did_you_mean(None) == ""


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("DPM++ SDE Karras", "dpm++2s_a"), ("Euler anc", "euler_a"), ("Quantum leap", None)],
)
def test_the_nearest_sampler(name: str, nearest: str | None) -> None:
    """The nearest sampler is found regardless of the schedule in the name."""
    assert find_sampler(name) is None
    assert nearest_sampler(name) == nearest
