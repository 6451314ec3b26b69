"""Options of the runtime beside size, steps and sampler: LoRAs in the prompt."""

from __future__ import annotations

import time

import pytest

from sdstream.core.powers import loras
from sdstream.core.request import NO_EXTRAS, Draft, Extras

EXTRAS = Extras(loras=["x", "y"], lora_in_prompt=True)


@pytest.mark.parametrize(
    ("prompt", "left", "chosen"),
    [
        ("a red circle <lora:x:1>", "a red circle", ["x"]),
        ("<lora:x:0.5>a red circle", "a red circle", ["x"]),
        ("a red <lora:x> circle", "a red circle", ["x"]),
        ("a red \t<lora:x>  <lora:y:2>, circle", "a red, circle", ["x", "y"]),
        ("a  red\n\ncircle ", "a  red\n\ncircle ", []),
    ],
)
def test_loras_leave_the_prompt(prompt: str, left: str, chosen: list[str]) -> None:
    """With the space before them; a prompt without any stays as it is."""
    text, found = loras(Draft(prompt=prompt), EXTRAS)
    assert (text, [name for name, _ in found]) == (left, chosen)


@pytest.mark.parametrize("text", [" " * 32_000, "<lora:" * 5_000, "<lora:x:" * 4_000])
def test_long_prompts_take_no_time(text: str) -> None:
    """Every prompt is looked through for LoRAs, in time in proportion to its length."""
    began = time.monotonic()
    for _ in range(10):
        assert loras(Draft(prompt=text), NO_EXTRAS) == (text, ())
    assert time.monotonic() - began < 2
