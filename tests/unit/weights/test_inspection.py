"""Whether a model's files fit together, and what a single file contains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sdstream.core.errors import EngineError
from sdstream.weights.headers import BadFile
from sdstream.weights.inspection import check, inspect
from tests.support.weight_files import (
    ALONE,
    BROKEN,
    DIFFUSION,
    UNFIT,
    gguf,
    gguf_entry,
    gguf_string,
    gguf_tensor,
    prefixed,
    vae,
    write_safetensors,
)


@pytest.mark.parametrize("name", UNFIT)
def test_files_that_make_no_model(tmp_path: Path, name: str) -> None:
    """Files that would crash the runtime or give an obscure error are rejected before loading."""
    family, write, sentence = UNFIT[name]
    with pytest.raises(EngineError) as caught:
        check(write(tmp_path), family)
    assert sentence in caught.value.message
    assert caught.value.message.endswith(".")
    assert str(tmp_path) not in caught.value.message


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_named_by_their_component(tmp_path: Path, name: str) -> None:
    """The error names the component, not the server's folders."""
    raw, sentence = BROKEN[name]
    (tmp_path / "x").write_bytes(raw)
    with pytest.raises(EngineError) as caught:
        check({"vae": tmp_path / "x"}, "flux")
    assert caught.value.message.startswith(f"The file of 'vae' {sentence}")
    assert str(tmp_path) not in caught.value.message


def test_the_builtin_model_goes(builtin_file: Path) -> None:
    """The built-in model needs the option tae, as it has no VAE."""
    check({"model": builtin_file}, "ovis_image", tae=True)
    with pytest.raises(EngineError) as caught:
        check({"model": builtin_file}, "ovis_image")
    assert caught.value.message == (
        "Ovis-Image needs vae, which no file has ('runtime: {tae: true}' generates with its tae)."
    )


@pytest.mark.parametrize("family", ["flux", "flux_kontext"])
def test_parts_in_files_of_their_own(tmp_path: Path, family: str) -> None:
    """FLUX.1 dev and Kontext have the same tensors, so either family is accepted."""
    parts = {
        "diffusion_model": DIFFUSION["FLUX.1 dev or Kontext"],
        "clip_l": ALONE["clip_l"],
        "t5xxl": ALONE["t5xxl"],
        "vae": ALONE["vae"],
    }
    files = {name: write_safetensors(tmp_path / name, part) for name, part in parts.items()}
    check(files, family)


def test_a_checkpoint_with_another_vae(tmp_path: Path) -> None:
    """A separate VAE replaces the checkpoint's own and must fit."""
    shapes = {
        **prefixed("model.diffusion_model.", DIFFUSION["Stable Diffusion 1"]),
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (768, 8),
        **prefixed("first_stage_model.", vae(4)),
    }
    model = write_safetensors(tmp_path / "model", shapes)
    good = write_safetensors(tmp_path / "good", vae(4))
    bad = write_safetensors(tmp_path / "bad", vae(16))
    check({"model": model}, "sd1")
    check({"model": model, "vae": good}, "sd1")
    with pytest.raises(EngineError, match="it has 16 latent channels, not 4"):
        check({"model": model, "vae": bad}, "sd1")


def test_stable_diffusion_3_without_t5(tmp_path: Path) -> None:
    """SD3 needs only its CLIP encoders: in the model's file, or in files of their own."""
    clips = {
        **prefixed("text_encoders.clip_l.transformer.", ALONE["clip_l"]),
        **prefixed("text_encoders.clip_g.transformer.", ALONE["clip_g"]),
    }
    plain = {
        **prefixed("model.diffusion_model.", DIFFUSION["Stable Diffusion 3 Medium"]),
        **prefixed("first_stage_model.", vae(16)),
    }
    whole = write_safetensors(tmp_path / "whole", {**plain, **clips})
    check({"model": whole}, "sd3")
    assert inspect(whole).needs == ()
    files = {"model": write_safetensors(tmp_path / "plain", plain)}
    assert inspect(files["model"]).needs == ("clip_l", "clip_g")
    encoders = {
        name: write_safetensors(tmp_path / name, ALONE[name]) for name in ("clip_l", "clip_g")
    }
    check({**files, **encoders}, "sd3")


def test_a_report_of_the_builtin_model(builtin_file: Path) -> None:
    """Every tensor and byte is counted once by part and once by type."""
    report = inspect(builtin_file)
    assert (report.kind, report.what) == ("model", "is Ovis-Image")
    assert (report.families, report.needs) == (("ovis_image",), ())
    assert {share.name for share in report.parts} == {"llm", "diffusion_model", "tae"}
    for shares in (report.parts, report.types):
        assert sum(share.tensors for share in shares) == report.tensors == 220
        assert sum(share.parameters for share in shares) == report.parameters
        assert 0 < report.size - sum(share.size for share in shares) < 100_000
    assert report.types[0].name == "q8_0"
    assert report.memory is not None
    assert 30_000_000 < report.memory.weights < report.size
    json.dumps(report.as_json())


def test_a_report_of_a_part(tmp_path: Path) -> None:
    """The report names the architecture and the components that are missing."""
    metadata = {"modelspec.title": "A flux", "modelspec.license": "apache-2.0"}
    path = write_safetensors(tmp_path / "x", DIFFUSION["FLUX.1 schnell"], "F16", metadata)
    report = inspect(path)
    assert report.kind == "diffusion_model"
    assert report.what == "is the diffusion model of FLUX.1 schnell alone"
    assert report.needs == ("clip_l", "t5xxl", "vae")
    assert report.metadata == {"name": "A flux", "licence": "apache-2.0"}


def test_a_report_of_a_model_of_llama_box(tmp_path: Path) -> None:
    """The report says that the file needs a patched runtime. The check for any other runtime
    rejects the file and names the remedies."""
    encoder = "transformer.text_model.embeddings.token_embedding.weight"
    shapes = {
        **prefixed("model.diffusion_model.", DIFFUSION["Stable Diffusion 3 Medium"]),
        f"cond_stage_model.{encoder}": (768, 8),
        f"cond_stage_model.1.{encoder}": (1280, 8),
        **prefixed("first_stage_model.", vae(16)),
    }
    path = write_safetensors(tmp_path / "x", shapes)
    assert inspect(path).needs_patches
    assert inspect(path).needs == ()
    check({"model": path}, "sd3")
    with pytest.raises(EngineError) as caught:
        check({"model": path}, "sd3", renames=False)
    assert caught.value.message == (
        "The file of 'model' has the text encoders under the names of llama-box, which only a "
        "patched runtime reads; 'sdstream setup' installs one; the catalogue's 'sd3-medium' needs "
        "no patches."
    )


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("lora", "is a LoRA"),
        ("vae", "is a VAE with 16 latent channels"),
        ("llm", "is a language model (2048 wide)"),
        ("clip_g", "is a CLIP-G text encoder"),
        ("unknown", "is a file of an unknown kind"),
    ],
)
def test_a_report_of_what_is_no_model(tmp_path: Path, kind: str, what: str) -> None:
    """Files of other kinds are described without an error."""
    report = inspect(write_safetensors(tmp_path / "x", ALONE[kind]))
    assert (report.kind, report.what) == (kind, what)
    assert report.needs == ()
    assert report.memory is None


def test_a_language_model_says_its_name(tmp_path: Path) -> None:
    """The architecture's name is read from llama.cpp's metadata."""
    entry = gguf_entry("general.architecture", 8, gguf_string("qwen3"))
    tensors = gguf_tensor("blk.0.attn_q.weight"), gguf_tensor("token_embd.weight", (64, 2))
    (tmp_path / "x").write_bytes(gguf(*tensors, entries=(entry,), data=1000))
    assert inspect(tmp_path / "x").what == "is a language model (qwen3, 64 wide)"


def test_pieces(tmp_path: Path) -> None:
    """One piece of a split model is recognised by its file name or its metadata."""
    path = write_safetensors(tmp_path / "x-00001-of-00003.safetensors", ALONE["vae"])
    with pytest.raises(BadFile, match="is one of 3 pieces"):
        inspect(path)
    entry = gguf_entry("split.count", 2, b"\x05\x00")
    (tmp_path / "y").write_bytes(gguf(gguf_tensor(), entries=(entry,)))
    with pytest.raises(BadFile, match="is one of 5 pieces"):
        inspect(tmp_path / "y")
