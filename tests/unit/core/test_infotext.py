"""The parameters of an image as text, written and read."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from sdstream.core import infotext
from sdstream.core.request import Caching, GenerationRequest, Hires, SkipLayers, Upscale

REQUEST = GenerationRequest("m", "a cat", "dog", 8, 4, 20, "euler_a", "karras", 7.5, None, 1, 2)


def test_parameters_in_automatic1111s_form() -> None:
    """Prompt, negative prompt, then one line of names and values with the image's own seed."""
    lines = infotext.write(REQUEST, seed=2).splitlines()
    assert lines[:2] == ["a cat", "Negative prompt: dog"]
    assert lines[2].startswith("Steps: 20, Sampler: ")
    assert "CFG scale: 7.5, Seed: 2, Size: 8x4, Model: m" in lines[2]


def test_every_power_is_in_the_text() -> None:
    """By AUTOMATIC1111's names where it has one; a value that could be two is in quotes."""
    plain = infotext.write(REQUEST, seed=2)
    request = replace(
        REQUEST,
        model="sd15:Q8_0",
        eta=0.5,
        clip_skip=2,
        mask_blur=4.0,
        control_strength=0.9,
        control_canny=True,
        sigmas=(14.6, 1.0, 0.0),
        loras=(("ink", 0.8), ("line", -1.0)),
        slg=SkipLayers(2.5, (7, 8), 0.01, 0.2),
        cache=Caching("easycache", 0.2, None, 0.9),
        hires=Hires(12, 6, 10, 0.6, "latent"),
        upscale=Upscale("x4plus", 24, 12),
    )
    facts = infotext.read(infotext.write(request, seed=2))
    old = infotext.read(plain)
    assert old.pop("Model") == "m"
    assert facts.items() >= old.items()
    assert {name: facts[name] for name in facts if name not in old} == {
        "Model": "sd15:Q8_0",
        "Eta": "0.5",
        "Clip skip": "2",
        "Mask blur": "4",
        "ControlNet weight": "0.9",
        "ControlNet module": "canny",
        "Sigmas": "14.6, 1, 0",
        "LoRA": "ink:0.8, line:-1",
        "SLG scale": "2.5",
        "SLG start": "0.01",
        "SLG end": "0.2",
        "SLG layers": "7, 8",
        "Cache": "easycache",
        "Cache options": "threshold=0.2, end=0.9",
        "Hires upscale": "1.5",
        "Hires steps": "10",
        "Hires upscaler": "latent",
        "Hires denoising strength": "0.6",
        "Postprocess upscaler": "x4plus",
        "Postprocess upscale by": "2",
    }


def test_parameters_texts() -> None:
    """Prompt and negative prompt may have lines; values may be quoted; a size has two numbers."""
    text = (
        "a cat,\nin a Negative prompt: hat\nNegative prompt: dark,\nblurry\n"
        'Steps: 20, Sampler: DPM++ 2M, Model: "a, \\"b\\": c", Size: 64x48, Hires-upscale: 2'
    )
    assert infotext.read(text) == {
        "Prompt": "a cat,\nin a Negative prompt: hat",
        "Negative prompt": "dark,\nblurry",
        "Steps": "20",
        "Sampler": "DPM++ 2M",
        "Model": 'a, "b": c',
        "Size-1": "64",
        "Size-2": "48",
        "Hires-upscale": "2",
    }


def test_texts_that_are_no_parameters() -> None:
    """Fewer than three values on the last line are a part of the prompt."""
    assert infotext.read(" ") == {}
    assert infotext.read("a: b, c")["Prompt"] == "a: b, c"


def test_a_last_line_too_long_for_parameters() -> None:
    """It is a part of the prompt: names and values of megabytes are nobody's parameters."""
    line = "a: b, c: d, e: f, " * 10_000
    began = time.monotonic()
    found = infotext.read("a cat\n" + line * 100)
    assert time.monotonic() - began < 2
    assert {*found} == {"Prompt", "Negative prompt"}
    assert found["Prompt"].startswith("a cat\na: b")


@pytest.mark.parametrize("text", ["a" * 1_000_000, 'a:"' * 300_000, 'a:"\\' * 250_000])
def test_long_texts_take_no_time(text: str) -> None:
    """A text from a stranger's file costs time in proportion to its length."""
    assert infotext.read(text)
