"""The table of options, LoRAs in prompts, and requests stored by earlier releases."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sdstream.core.ask import ParsedRequest
from sdstream.core.errors import InvalidRequest
from sdstream.core.options import OPTIONS, ImageParams
from sdstream.core.request import NO_ASSETS, Assets, request_fields, request_of
from sdstream.core.resolve_options import loras
from sdstream.core.size import Size

GOLDEN = Path(__file__).parents[2] / "golden"
ASSETS = Assets(loras=["x", "y"], lora_in_prompt=True)


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
    """LoRA tags are removed with the space before them; a prompt without tags is unchanged."""
    text, found = loras(ParsedRequest(ImageParams(prompt=prompt)), ASSETS)
    assert (text, [lora.id for lora in found]) == (left, chosen)


@pytest.mark.parametrize("text", [" " * 32_000, "<lora:" * 5_000, "<lora:x:" * 4_000])
def test_long_prompts_take_no_time(text: str) -> None:
    """The time to search a prompt for LoRA tags is in proportion to its length."""
    began = time.monotonic()
    for _ in range(10):
        with suppress(InvalidRequest):  # malformed tags
            assert loras(ParsedRequest(ImageParams(prompt=text)), NO_ASSETS) == (text, ())
    assert time.monotonic() - began < 2


def test_the_table_is_consistent() -> None:
    """Required options exist, and no two options share a spelling or an infotext name."""
    spellings = [*OPTIONS, *(alias for option in OPTIONS.values() for alias in option.aliases)]
    assert len(spellings) == len({*spellings})
    texts = [option.infotext for option in OPTIONS.values() if option.infotext]
    assert len(texts) == len({*texts})
    assert {option.needs for option in OPTIONS.values() if option.needs} <= OPTIONS.keys()


def test_a_stored_request_of_an_earlier_release() -> None:
    """A stored job keeps all its options."""
    fields = json.loads((GOLDEN / "request_nested_options.json").read_text())
    request = request_of(fields)
    assert request_of(json.loads(json.dumps(request_fields(request)))) == request
    assert request.second_pass == Size(768, 768)
    assert request.upscaled == Size(1536, 1536)
    assert request.options.given() == {
        "guidance": 3.5, "strength": 0.5, "fit": "pad", "mask_mode": "luminance", "mask_blur": 4.0,
        "eta": 0.25, "clip_skip": 2, "flow_shift": 3.0, "sigmas": [14.5, 0.0], "vae_tiling": True,
        "lora": [{"id": "ink", "scale": 0.5}],
        "slg_scale": 2.5, "slg_start": 0.01, "slg_end": 0.2, "slg_layers": [7, 8],
        "cache_mode": "easycache", "cache_threshold": 0.25, "cache_end": 0.5,
        "cache_options": {"decay": 0.5},
        "hires_scale": 1.5, "hires_steps": 10, "hires_strength": 0.5, "hires_upscaler": "latent",
        "upscaler": "x2", "upscale": 2.0, "control_strength": 0.5, "control_canny": True,
    }  # fmt: skip


def test_a_stored_request_without_further_options() -> None:
    """Defaults that earlier releases stored for requests without images are left out."""
    fields = json.loads((GOLDEN / "request_nested_options.json").read_text())
    plain: dict[str, Any] = {
        "strength": None,
        "fit": "crop",
        "mask_mode": "auto",
        "mask_blur": 0.0,
        "sigmas": [],
    }
    plain |= {"slg": None, "cache": None, "hires": None, "upscale": None, "loras": []}
    plain |= dict.fromkeys(("guidance", "eta", "clip_skip", "flow_shift", "vae_tiling"))
    request = request_of({**fields, **plain, "control_strength": None, "control_canny": False})
    assert request.options.given() == {}


@pytest.mark.parametrize("tag", ["<lora:ink:0.5:0.6>", "<lyco::1>", "<lora:ink"])
def test_tags_that_cannot_be_read(tag: str) -> None:
    """A malformed tag is rejected, as it would otherwise become part of the prompt."""
    with pytest.raises(InvalidRequest, match="cannot be read"):
        loras(ParsedRequest(ImageParams(prompt=f"a cat {tag}")), ASSETS)


def test_line_ends_of_prompts() -> None:
    """CRLF of a form becomes LF as in JSON, so that both give the same image."""
    params = ImageParams(prompt="one\r\ntwo", negative_prompt="three\r\n\nfour")
    assert (params.prompt, params.negative_prompt) == ("one\ntwo", "three\n\nfour")
