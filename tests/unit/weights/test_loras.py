"""Whether a LoRA fits a model, by names and shapes."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from sdstream.weights.loras import LoraUnfit, Shape, Weight, check_fit

QKV = "model.diffusion_model.double_blocks.0.img_attn.qkv.weight"
CONV = "model.diffusion_model.input_blocks.1.0.in_layers.2.weight"
BIAS = "model.diffusion_model.input_blocks.1.0.in_layers.2.bias"
JOINED = "cond_stage_model.1.transformer.text_model.encoder.layers.0.self_attn"
F16 = {
    QKV: Weight((256, 768)),
    CONV: Weight((3, 3, 64, 32)),
    BIAS: Weight((32,)),
    f"{JOINED}.in_proj.weight": Weight((1280, 3840)),
}
Q8 = {name: Weight(weight.shape, quantised=len(weight.shape) == 2) for name, weight in F16.items()}


FACTORISED = {
    f"lora.{QKV}.lokr_w1": (16, 16),
    f"lora.{QKV}.lokr_w2_a": (2, 48),
    f"lora.{QKV}.lokr_w2_b": (16, 2),
}


def lora(weight: str, inner: Shape, outer: Shape) -> dict[str, Shape]:
    """Return the shapes of a LoRA's two matrices and its alpha."""
    return {
        f"lora.{weight}.lora_down": inner,
        f"lora.{weight}.lora_up": outer,
        f"lora.{weight}.alpha": (1,),
    }


def check(tensors: Mapping[str, Shape], model: dict[str, Weight] = Q8) -> tuple[str, ...]:
    """Check the fit of a file whose tensor names are the runtime's."""
    return check_fit(tensors, tensors, model)


@pytest.mark.parametrize("model", [F16, Q8], ids=["f16", "q8_0"])
@pytest.mark.parametrize(
    "tensors",
    [
        lora(QKV, (256, 4), (4, 768)),
        lora(CONV, (3, 3, 64, 4), (1, 1, 4, 32)),
        {**lora(CONV, (1, 1, 64, 4), (1, 1, 4, 32)), f"lora.{CONV}.lora_mid": (3, 3, 4, 4)},
        {
            **lora(QKV, (256, 4), (4, 256)),
            **lora(f"{QKV}.1", (256, 8), (8, 256)),
            **lora(f"{QKV}.2", (256, 4), (4, 256)),
        },
        {
            **lora(f"{JOINED}.q_proj.weight", (1280, 4), (4, 1280)),
            **lora(f"{JOINED}.k_proj.weight", (1280, 4), (4, 1280)),
            **lora(f"{JOINED}.v_proj.weight", (1280, 4), (4, 1280)),
        },
        {f"lora.{BIAS}.diff": (32,)},
        {f"lora.{QKV}.lokr_w1": (16, 16), f"lora.{QKV}.lokr_w2": (16, 48)},
        {f"lora.{CONV}.lokr_w1": (4, 8), f"lora.{CONV}.lokr_w2": (3, 3, 16, 4)},
        {
            f"lora.{CONV}.lokr_w1": (4, 8),
            f"lora.{CONV}.lokr_w2_a": (2, 4),
            f"lora.{CONV}.lokr_w2_b": (144, 2),
        },
    ],
    ids=[
        "linear",
        "conv",
        "tucker",
        "three-in-one",
        "clip-g",
        "bias",
        "lokr",
        "lokr-conv",
        "lokr-conv-factorised",
    ],
)
def test_what_fits(tensors: dict[str, Shape], model: dict[str, Weight]) -> None:
    """A LoRA that fits gives no warning."""
    assert check(tensors, model) == ()


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (lora(QKV, (320, 4), (4, 768)), "is for another model: its matrix for"),
        (lora(QKV, (256, 4), (4, 1024)), "has 262144 elements, and the model's has 196608"),
        (lora(QKV, (256, 4), (4, 256)), "is for another model"),
        (lora(CONV, (1, 1, 64, 4), (1, 1, 4, 32)), "is for another model"),
        (lora("model.diffusion_model.none.weight", (4, 4), (4, 4)), "none of its 3 tensors"),
        (
            {
                "lora.base_model.model.unet.to_q.weight.lora_down": (4, 4),
                "lora.base_model.model.unet.to_q.weight.lora_up": (4, 4),
            },
            "none of its 2 tensors",
        ),
        (
            {f"lora.{QKV}.{part}": (4, 768) if part.endswith("a") else (256, 4)
             for part in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")},
            "contains a LoHa, which the runtime cannot apply to quantised weights",
        ),
        ({f"lora.{QKV}.diff": (256, 768)}, "contains a difference ('.diff')"),
        (
            {**lora(QKV, (256, 4), (4, 768)), f"lora.{QKV}.diff": (256, 768)},
            "contains a difference ('.diff')",
        ),
        (lora(QKV, (256, 8), (4, 1536)), "have different ranks, 4 and 8"),
        (lora(QKV, (256, 4), (768, 4)), "have different ranks, 768 and 4"),
        (lora(QKV, (1, 1, 256, 4), (1, 1, 4, 768)), "do not have 2 dimensions"),
        (lora(CONV, (576, 4), (4, 32)), "do not have 4 dimensions"),
        (FACTORISED, "contains a LoKr with factorised matrices"),
        (
            {f"lora.{QKV}.lokr_w1": (48, 16), f"lora.{QKV}.lokr_w2": (16, 16)},
            "is for another model: its LoKr",
        ),
        (
            {f"lora.{CONV}.lokr_w1": (4, 16), f"lora.{CONV}.lokr_w2": (3, 3, 8, 4)},
            "is for another model: its LoKr",
        ),
        (
            {f"lora.{CONV}.lokr_w1": (4, 8), f"lora.{CONV}.lokr_w2": (144, 4)},
            "do not have 4 dimensions",
        ),
        (
            {
                f"lora.{CONV}.lokr_w1_a": (2, 8),
                f"lora.{CONV}.lokr_w1_b": (4, 2),
                f"lora.{CONV}.lokr_w2": (3, 3, 16, 4),
            },
            "contains a LoKr with factorised matrices",
        ),
        ({f"lora.{QKV}.lora_down": (256, 4)}, "none of its 1 tensors"),
        ({"anything": (3,)}, "none of its 1 tensors"),
        ({f"lora.{CONV}.lora_up": (1, 1, 4, 32), f"lora.{CONV}.diff": (1,)}, "is for another"),
        ({f"lora.{CONV}.lora_up": (), f"lora.{CONV}.lora_down": ()}, "do not have 4 dimensions"),
    ],
)  # fmt: skip
def test_what_does_not(tensors: dict[str, Shape], words: str) -> None:
    """A LoRA that the runtime would crash on or ignore is rejected."""
    with pytest.raises(LoraUnfit) as caught:
        check(tensors)
    assert words in str(caught.value)


def test_differences_over_plain_weights() -> None:
    """Forms that require plain weights are accepted if no weight is quantised."""
    loha = {
        f"lora.{QKV}.{part}": (4, 768) if part.endswith("a") else (256, 4)
        for part in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    }
    assert check(loha, F16) == ()
    assert check({f"lora.{QKV}.diff": (256, 768)}, F16) == ()
    assert check(lora(QKV, (256, 4), (4, 256)), F16) == ()
    assert check(lora(QKV, (1, 1, 256, 4), (1, 1, 4, 768)), F16) == ()
    assert check(FACTORISED, F16) == ()


def test_modes() -> None:
    """A LoRA is not merged into quantised weights, and is applied beside weights of any type."""
    fits = lora(QKV, (256, 4), (4, 768))
    for mode, model in (("auto", Q8), ("at_runtime", Q8), ("at_runtime", F16)):
        assert check_fit(fits, fits, model, mode) == ()
    assert check_fit(fits, fits, F16, "immediately") == ()
    with pytest.raises(LoraUnfit, match="cannot be merged into quantised weights"):
        check_fit(fits, fits, Q8, "immediately")
    padded = lora(QKV, (1, 1, 256, 4), (1, 1, 4, 768))
    assert check_fit(padded, padded, F16) == ()
    with pytest.raises(LoraUnfit, match="do not have 2 dimensions"):
        check_fit(padded, padded, F16, "at_runtime")


def test_parts() -> None:
    """A LoRA that fits in part gives a warning with both numbers."""
    fits = lora(QKV, (256, 4), (4, 768))
    strange = lora("model.diffusion_model.none.weight", (4, 4), (4, 4))
    assert check(fits | strange) == ("was applied in part: 3 of its 6 tensors fit this model",)
    second = lora(f"{QKV}.2", (256, 4), (4, 256))
    assert check(fits | second) == ("was applied in part: 3 of its 6 tensors fit this model",)
    dora = {**fits, f"lora.{QKV}.dora_scale": (768,)}
    assert check(dora) == (
        "was applied without its 1 DoRA scales, which the runtime does not read",
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("base_model.model.unet.a.lora_A.weight", "with the prefix 'base_model.model.'"),
        ("down_blocks.0.a.lora_A.weight", "with the prefix 'unet.'"),
    ],
)
def test_names_that_can_be_mended(name: str, words: str) -> None:
    """The error contains the remedy."""
    with pytest.raises(LoraUnfit) as caught:
        check_fit({f"lora.{name}": (4, 4)}, [name], Q8)
    assert words in str(caught.value)
