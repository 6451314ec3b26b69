"""Tensor names of the runtime, read from the library itself."""

from __future__ import annotations

import platform

import pytest

from sdstream.engine.native.names import runtime_name, version_number
from sdstream.weights.llama_box import own_name
from tests.conformance.subjects import SUBJECTS, Subject

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="x86-64 alone has the calling convention"
)


@pytest.mark.parametrize(
    ("name", "version", "wanted"),
    [
        (
            "lora.transformer.transformer_blocks.0.attn.to_k.lora_A.weight",
            "Flux",
            "lora.model.diffusion_model.double_blocks.0.img_attn.qkv.weight.1.lora_down",
        ),
        (
            "lora.lora_te2_text_model_encoder_layers_0_self_attn_k_proj.lora_up.weight",
            "SDXL",
            "lora.cond_stage_model.1.transformer.text_model.encoder.layers.0.self_attn.k_proj"
            ".weight.lora_up",
        ),
        (
            "lora.diffusion_model.single_blocks.3.linear1.diff_b",
            "Ovis Image",
            "lora.model.diffusion_model.single_blocks.3.linear1.bias.diff",
        ),
        ("lora.nothing.known", "SD 1.x", "lora.nothing.known"),
        ("a", "SD 1.x", "a"),
    ],
)
def test_names(name: str, version: str, wanted: str) -> None:
    """Names of several kinds of models are converted, with the same result on every call."""
    number = version_number(version)
    assert runtime_name is not None
    assert number is not None
    for _ in range(1000):
        assert runtime_name(name, number) == wanted


@pytest.mark.parametrize(
    "subject", [s for s in SUBJECTS if "llama-box" in s.title], ids=lambda s: s.title
)
def test_names_of_llama_box(subject: Subject) -> None:
    """The patched runtime finds the text encoders under the names that llama-box writes, as the
    check of weight files expects."""
    number = version_number({"flux": "Flux", "sd3": "SD3.x"}[subject.family])
    assert runtime_name is not None
    assert number is not None
    names = [name for name in subject.parts()["model"] if name.startswith("cond_stage_model.")]
    assert len(names) > 400
    for name in names:
        usual = own_name(name, [subject.family])
        assert usual.startswith("text_encoders.")
        assert runtime_name(name, number) == runtime_name(usual, number)
    assert runtime_name(names[0], version_number("SD 1.x") or 0).startswith("cond_stage_model.")


def test_a_kind_that_is_not_known() -> None:
    """A kind of model that the runtime does not know has no number."""
    assert version_number("Flux.9") is None
