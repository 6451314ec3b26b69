"""Recognition of weights by the names and shapes of their tensors."""

from __future__ import annotations

import pytest

from sdstream.core.model_families import FAMILIES
from sdstream.weights.architectures import Contents, missing, recognise
from tests.support.weight_files import ALONE, DIFFUSION, prefixed, vae


@pytest.mark.parametrize("title", DIFFUSION)
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_every_architecture_is_told_from_the_others(title: str, prefix: str) -> None:
    """An architecture is recognised in its own file and inside a whole model."""
    architecture = recognise(prefixed(prefix, DIFFUSION[title])).architecture
    assert architecture is not None
    assert architecture.title == title


@pytest.mark.parametrize("kind", ALONE)
def test_every_kind_of_file(kind: str) -> None:
    """Components and adapters are recognised by their own tensor names."""
    contents = recognise(ALONE[kind])
    assert contents.kind == kind
    assert contents.architecture is None


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_an_architecture(family: str) -> None:
    """Every family of the catalogue has an architecture that is recognised."""
    found = [recognise(shapes).architecture for shapes in DIFFUSION.values()]
    assert any(family in a.families for a in found if a)


@pytest.mark.parametrize("title", DIFFUSION)
def test_an_architecture_has_a_family_or_a_reason(title: str) -> None:
    """An architecture has either families or a reason why it is not supported."""
    architecture = recognise(DIFFUSION[title]).architecture
    assert architecture is not None
    assert bool(architecture.families) != bool(architecture.refused)


def whole(title: str, encoders: tuple[str, ...], channels: int) -> Contents:
    """Recognise a checkpoint with these parts in one file."""
    return recognise(
        {
            **prefixed("model.diffusion_model.", DIFFUSION[title]),
            **prefixed("first_stage_model.", vae(channels)),
            **{f"{encoder}token_embedding.weight": (768, 8) for encoder in encoders},
        }
    )


def test_a_whole_checkpoint() -> None:
    """The parts of a checkpoint are recognised by their prefixes."""
    contents = whole("Stable Diffusion 1", ("cond_stage_model.transformer.text_model.",), 4)
    assert contents.kind == "model"
    assert {*contents.parts} == {"diffusion_model", "vae", "clip_l"}
    assert contents.architecture is not None
    assert missing(contents.architecture.needs, contents.parts) == ()


def test_text_encoders_where_the_runtime_does_not_look() -> None:
    """Text encoders under names that the runtime does not use are reported as missing."""
    elsewhere = ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.transformer.")
    contents = whole("Stable Diffusion 3 Medium", elsewhere, 16)
    assert {*contents.parts} == {"diffusion_model", "vae"}
    assert contents.architecture is not None
    assert missing(contents.architecture.needs, contents.parts) == ("clip_l", "clip_g")
    known = ("text_encoders.clip_l.", "text_encoders.clip_g.")
    contents = whole("Stable Diffusion 3 Medium", known, 16)
    assert {*contents.parts} == {"diffusion_model", "vae", "clip_l", "clip_g"}


@pytest.mark.parametrize(
    ("title", "encoders"),
    [
        ("Stable Diffusion 3 Medium", ("clip_l", "clip_g", "t5xxl")),
        ("Stable Diffusion 3.5 Large", ("clip_l", "clip_g", "t5xxl")),
        ("FLUX.1 dev or Kontext", ("clip_l", "t5xxl")),
        ("FLUX.1 schnell", ("clip_l", "t5xxl")),
    ],
)
def test_text_encoders_under_the_names_of_llama_box(title: str, encoders: tuple[str, ...]) -> None:
    """GPUStack's models number their text encoders in the family's order."""
    prefixes = ("cond_stage_model.", "cond_stage_model.1.", "cond_stage_model.2.")
    named = [f"{prefix}transformer." for prefix in prefixes[: len(encoders)]]
    contents = whole(title, tuple(named), 16)
    assert {*contents.parts} == {"diffusion_model", "vae", *encoders}
    assert contents.renamed
    assert contents.architecture is not None
    assert missing(contents.architecture.needs, contents.parts) == ()
    assert not whole(title, ("text_encoders.clip_l.transformer.",), 16).renamed


def test_what_a_checkpoint_lacks() -> None:
    """Missing components are listed in the order of the family's components."""
    contents = whole("Stable Diffusion XL", ("conditioner.embedders.0.transformer.",), 4)
    assert contents.architecture is not None
    assert missing(contents.architecture.needs, contents.parts) == ("clip_g",)
    assert missing(contents.architecture.needs, ["clip_l"]) == ("clip_g", "vae")


def test_a_tiny_autoencoder_stands_in_for_the_vae() -> None:
    """With the option tae, the tiny autoencoder is required instead of the VAE."""
    architecture = recognise(DIFFUSION["Ovis-Image"]).architecture
    assert architecture is not None
    assert missing(architecture.needs, ["llm", "vae"], tae=True) == ("tae",)
    assert missing(architecture.needs, ["llm", "tae"], tae=True) == ()
    assert missing(architecture.needs, ["llm", "tae"], tae=False) == ("vae",)
