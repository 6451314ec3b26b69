"""Writing and reading an image's parameters as text."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from sdstream.core import infotext
from sdstream.core.lora import LoraChoice
from sdstream.core.options import OPTIONS, Options
from sdstream.core.request import GenerationRequest

REQUEST = GenerationRequest("m", "a cat", "dog", 8, 4, 20, "euler_a", "karras", 7.5, 1, 2)


def test_parameters_in_automatic1111s_form() -> None:
    """The text is both prompts, then one line of values with the image's own seed."""
    lines = infotext.write(REQUEST, seed=2).splitlines()
    assert lines[:2] == ["a cat", "Negative prompt: dog"]
    assert lines[2].startswith("Steps: 20, Sampler: ")
    assert "CFG scale: 7.5, Seed: 2, Size: 8x4, Model: m" in lines[2]
    assert "Kernels" not in lines[2]


def test_the_kernels_are_a_fact_without_an_option() -> None:
    """The kernels are written before the version, and ignored when the text is read."""
    text = infotext.write(replace(REQUEST, kernels="avx2 f32"), seed=2)
    assert ", Kernels: avx2 f32, Version: " in text
    found = infotext.read_options(text)
    assert found == infotext.read_options(infotext.write(REQUEST, seed=2))
    assert found is not None
    assert found.unread == ()


def test_the_hash_of_the_checkpoint_is_as_long_as_civitai_looks_it_up() -> None:
    """The text contains ten characters of the SHA-256; reading it yields no option."""
    text = infotext.write(replace(REQUEST, model_hash="0123456789abcdef" * 4), seed=2)
    assert ", Model hash: 0123456789, Version: " in text
    assert infotext.read_options(text) == infotext.read_options(infotext.write(REQUEST, seed=2))


def test_every_option_is_in_the_text() -> None:
    """Each option has AUTOMATIC1111's name if one exists; ambiguous values are quoted."""
    plain = infotext.write(REQUEST, seed=2)
    request = replace(
        REQUEST,
        model="sd15:Q8_0",
        options=Options(
            eta=0.5,
            clip_skip=2,
            mask_blur=4.0,
            control_strength=0.9,
            control_canny=True,
            sigmas=(14.6, 1.0, 0.0),
            lora=(LoraChoice(id="ink", scale=0.8), LoraChoice(id="line", scale=-1.0)),
            slg_scale=2.5,
            slg_layers=(7, 8),
            slg_start=0.01,
            slg_end=0.2,
            cache_mode="easycache",
            cache_threshold=0.2,
            cache_end=0.9,
            cache_options={"decay": 0.5},
            hires_scale=1.5,
            hires_steps=10,
            hires_strength=0.6,
            hires_upscaler="latent",
            upscaler="x4plus",
            upscale=2.0,
        ),
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
        "Cache threshold": "0.2",
        "Cache end": "0.9",
        "Cache options": "decay=0.5",
        "Hires upscale": "1.5",
        "Hires steps": "10",
        "Hires upscaler": "latent",
        "Hires denoising strength": "0.6",
        "Postprocess upscaler": "x4plus",
        "Postprocess upscale by": "2",
    }


def test_an_upscale_has_no_values_of_a_generation() -> None:
    """The text names only the upscaler, so no steps, sampler or seed are read from it."""
    options = Options(upscaler="x4plus", upscale=2.0)
    request = replace(REQUEST, prompt="", negative_prompt="", steps=0, options=options)
    text = infotext.write(request, seed=0)
    assert text.startswith("Postprocess upscaler: x4plus, Postprocess upscale by: 2, Version: ")
    assert infotext.read(text)["Postprocess upscaler"] == "x4plus"
    assert infotext.read_options(text) is None


def test_hashes_of_loras() -> None:
    """Twelve characters of each hash are written in quotes, and read as no option."""
    hashes = {"styles/ink": "a" * 64, "line": "0123456789abcdef" * 4}
    text = infotext.write(replace(REQUEST, lora_hashes=hashes), seed=0)
    assert ', Lora hashes: "styles/ink: aaaaaaaaaaaa, line: 0123456789ab", Version: ' in text
    assert infotext.read_options(text) == infotext.read_options(infotext.write(REQUEST, seed=0))


def test_parameters_texts() -> None:
    """Prompts may have several lines, values may be quoted, and a size is two numbers."""
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
    """A last line with fewer than three values is part of the prompt."""
    assert infotext.read(" ") == {}
    assert infotext.read("a: b, c")["Prompt"] == "a: b, c"


def test_a_last_line_too_long_for_parameters() -> None:
    """A last line of megabytes is part of the prompt, and reading it is quick."""
    line = "a: b, c: d, e: f, " * 10_000
    began = time.process_time()
    found = infotext.read("a cat\n" + line * 100)
    assert time.process_time() - began < 2
    assert {*found} == {"Prompt", "Negative prompt"}
    assert found["Prompt"].startswith("a cat\na: b")


@pytest.mark.parametrize("text", ["a" * 1_000_000, 'a:"' * 300_000, 'a:"\\' * 250_000])
def test_long_texts_take_no_time(text: str) -> None:
    """The time to read a text is in proportion to its length."""
    assert infotext.read(text)


#: A value for every option that is written to the text.
VALUES = {
    "sample_steps": 20, "sampler": "euler_a", "schedule": "karras", "cfg_scale": 7.5, "seed": 2,
    "size": "8x4", "model": "sd15:Q8_0", "guidance": 3.5, "strength": 0.75, "mask_blur": 4.0,
    "only_masked": True, "only_masked_padding": 16, "expand": [64, 0, 32, 0],
    "img_cfg": 1.5, "eta": 0.0, "clip_skip": 2, "shifted_timestep": 250, "flow_shift": 3.0,
    "sigmas": [14.5, 1.0, 0.0],
    "lora": [{"id": "ink, wet", "scale": 0.5}, {"id": "line", "scale": -1.0}], "slg_scale": 2.5,
    "slg_start": 0.0, "slg_end": 0.5, "slg_layers": [7, 8], "cache_mode": "easycache",
    "cache_threshold": 0.25, "cache_start": 0.25, "cache_end": 0.5, "cache_options": {"decay": 0.5},
    "hires_scale": 1.5, "hires_steps": 10, "hires_strength": 0.5, "hires_upscaler": "lanczos",
    "upscaler": "x4plus", "upscale": 2.0, "control_strength": 0.5, "control_canny": True,
}  # fmt: skip


def test_every_option_is_read_back() -> None:
    """Every option is read back by its API name with its type."""
    assert VALUES.keys() == {name for name, option in OPTIONS.items() if option.infotext}
    values = {**VALUES, "lora": [{"id": "ink", "scale": 0.5}, {"id": "line", "scale": -1.0}]}
    carried = {name: value for name, value in values.items() if name in Options.model_fields}
    del carried["strength"]  # absent when there is a second pass, see below
    request = replace(REQUEST, model="sd15:Q8_0", options=Options.model_validate(carried))
    found = infotext.read_options(infotext.write(request, seed=2))
    assert found is not None
    assert found.unread == ()
    for name in ("strength", "sample_steps", "schedule"):  # sigmas replace steps and schedule
        del values[name]
    assert found.options == {**values, "prompt": "a cat", "negative_prompt": "dog"}


@pytest.mark.parametrize(
    ("facts", "options", "unread"),
    [
        (
            "Sampler: DPM++ 2M Karras, Schedule type: Karras",
            {"sampler": "dpm++2m", "schedule": "karras"},
            (),
        ),
        (
            "Sampler: Euler a, Schedule type: Automatic",
            {"sampler": "euler_a", "schedule": "default"},
            (),
        ),
        ("Denoising strength: 0.5, Size: 8x4", {"strength": 0.5, "size": "8x4"}, ()),
        (
            "Denoising strength: 0.5, Hires upscale: 2, Hires upscaler: Latent (nearest-exact)",
            {"hires_scale": 2.0, "hires_strength": 0.5, "hires_upscaler": "latent-nearest-exact"},
            (),
        ),
        (
            'Model hash: abc, Lora hashes: "a: b, c: d", Version: v1.10, Model: "x, y", ENSD: 1',
            {"model": "x, y"},
            ("ENSD",),
        ),
        (
            "CFG scale: much, Clip skip: 99, ControlNet module: depth",
            {},
            ("CFG scale", "Clip skip", "ControlNet module"),
        ),
        (
            "Sampler: DPM++ SDE Karras, Schedule type: Beta, Cache: teacache, Size: 99999999x1",
            {},
            ("Sampler", "Schedule type", "Cache", "Size"),
        ),
        ("Size: 0x8, LoRA: ink, Sampler: Automatic", {"sampler": "Automatic"}, ("LoRA", "Size")),
        (
            'Hires upscale: 2, Hires upscaler: R-ESRGAN 4x+, LoRA: "a: b, c:0.5, d: -1e-05"',
            {
                "hires_scale": 2.0,
                "hires_upscaler": "R-ESRGAN 4x+",
                "lora": [{"id": "a: b, c", "scale": 0.5}, {"id": "d", "scale": -1e-05}],
            },
            (),
        ),
    ],
)
def test_texts_of_other_programs(facts: str, options: dict[str, object], unread: object) -> None:
    """AUTOMATIC1111's names are read; unknown or invalid values are listed as unread."""
    found = infotext.read_options(f"a cat\nSteps: 20, {facts}, Seed: 1")
    assert found is not None
    expected = {"prompt": "a cat", "negative_prompt": "", "sample_steps": 20, "seed": 1}
    assert (found.options, found.unread) == ({**expected, **options}, unread)


def test_prompts_that_look_like_facts() -> None:
    """Values are read from the last line only."""
    text = "a cat, Steps: none\nsecond line\nNegative prompt: dog\nSteps: 20, Seed: 1, CFG scale: 7"
    found = infotext.read_options(text)
    assert found is not None
    assert found.options == {
        "prompt": "a cat, Steps: none\nsecond line", "negative_prompt": "dog",
        "sample_steps": 20, "seed": 1, "cfg_scale": 7.0,
    }  # fmt: skip


def test_texts_without_options() -> None:
    """A text without steps yields no options."""
    assert infotext.read_options("a cat on a mat") is None


def test_older_names_of_samplers() -> None:
    """A sampler's name may include the schedule; a separate schedule takes precedence."""
    for name, schedule, options in (
        ("DPM++ 2M Karras", "", ("dpm++2m", "karras")),
        ("Euler a", "", ("euler_a", None)),
        ("DPM++ 2M Karras", ", Schedule type: Exponential", ("dpm++2m", "exponential")),
    ):
        found = infotext.read_options(
            f"a cat\nSteps: 20, Sampler: {name}{schedule}, CFG scale: 7, Seed: 1"
        )
        assert found is not None
        assert (found.options["sampler"], found.options.get("schedule")) == options
        assert found.unread == ()


@pytest.mark.parametrize("names", ["a, " * 20_000, "a:" * 30_000, ":1" * 30_000, "1" * 60_000])
def test_a_long_list_of_loras_takes_no_time(names: str) -> None:
    """The time to read the LoRAs of a text is in proportion to its length."""
    began = time.process_time()
    assert infotext.read_options(f'a\nSteps: 1, Seed: 1, CFG scale: 1, LoRA: "{names}"')
    assert time.process_time() - began < 2
