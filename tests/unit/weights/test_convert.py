"""Checks of a conversion before the runtime runs."""

from __future__ import annotations

import fcntl
import shutil
import sys
import time
from pathlib import Path

import pytest

from sdstream.weights import convert as module
from sdstream.weights.convert import ConversionError, Order, convert, size_of
from tests.support.weight_files import ALONE, BROKEN, DIFFUSION, prefixed, vae, write_safetensors

SHAPES = {
    "model.diffusion_model.double_blocks.0.img_attn.qkv.weight": (256, 768),
    "model.diffusion_model.double_blocks.0.img_attn.qkv.bias": (768,),
    "model.diffusion_model.double_blocks.0.norm.weight": (256,),
    "model.diffusion_model.double_blocks.1.norm.weight": (256,),
    "model.diffusion_model.layers.0.weight": (256,),
    "model.diffusion_model.layers.2.weight": (256, 8),
    "model.diffusion_model.img_in.weight": (256, 8),
    "model.diffusion_model.odd.weight": (33, 8),
}


def refused(source: Path, target: Path, **options: object) -> str:
    """Return the error of a conversion, and assert that the target is unchanged."""
    before = target.read_bytes() if target.is_file() else None
    with pytest.raises(ConversionError) as caught:
        convert(Order(source, target, **{"wtype": "q8_0", **options}), lambda _: None)  # type: ignore[arg-type]
    assert (target.read_bytes() if target.is_file() else None) == before
    assert [path for path in target.parent.glob(".*") if ".part" in path.name] == []
    return str(caught.value)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small model file."""
    return write_safetensors(tmp_path / "source.safetensors", SHAPES)


def test_targets_that_will_not_do(source: Path, tmp_path: Path) -> None:
    """An unusable target is rejected before the source is read."""
    (tmp_path / "there.gguf").write_bytes(b"precious")
    (tmp_path / "folder.gguf").mkdir()
    assert "must end in" in refused(source, tmp_path / "x.bin")
    assert "does not exist" in refused(source, tmp_path / "no" / "x.gguf")
    assert "is a folder" in refused(source, tmp_path / "folder.gguf", force=True)
    assert "--force" in refused(source, tmp_path / "there.gguf")


@pytest.mark.parametrize("name", ["empty", "data-cut", "html", "torch"])
def test_sources_that_are_broken(tmp_path: Path, name: str) -> None:
    """The error is the one that inspect reports."""
    raw, sentence = BROKEN[name]
    (tmp_path / "source.gguf").write_bytes(raw)
    said = refused(tmp_path / "source.gguf", tmp_path / "x.gguf")
    assert said.startswith(f"source.gguf {sentence}")


@pytest.mark.parametrize(
    ("rules", "word"),
    [
        ("norm", "is not of the form PATTERN=TYPE"),
        ("=q8_0", "is not of the form PATTERN=TYPE"),
        ("norm=", "is not of the form PATTERN=TYPE"),
        ("norm=q8_1", "is not one of"),
        ("norm=q8_0,x=?", "'x=?' is not one of"),
        ("(norm=q8_0", "cannot be read"),
        ("(?=x)norm=q8_0", "is not one of"),
    ],
)
def test_rules_that_the_runtime_would_ignore(
    source: Path, tmp_path: Path, rules: str, word: str
) -> None:
    """An option without effect is rejected."""
    assert word in refused(source, tmp_path / "x.gguf", rules=rules)


def test_safetensors_hold_no_blocks(source: Path, tmp_path: Path) -> None:
    """The error names the type that safetensors does not support."""
    assert "safetensors cannot hold q8_0" in refused(source, tmp_path / "x.safetensors")


def test_integers_are_not_converted(tmp_path: Path) -> None:
    """Integer tensors are rejected, as the runtime would abort."""
    source = write_safetensors(tmp_path / "x", {**ALONE["vae"], "bn.count": (4,)}, "I32")
    said = refused(source, tmp_path / "x.gguf", wtype="f16")
    assert "contains integers" in said


def test_names_that_would_be_cut(tmp_path: Path) -> None:
    """A tensor name over ggml's limit of 127 bytes is rejected."""
    source = write_safetensors(tmp_path / "x", {**ALONE["vae"], "a" * 128: (4,)})
    assert "would cut the name" in refused(source, tmp_path / "x.gguf")


def test_a_vae_for_what_takes_none(source: Path, tmp_path: Path) -> None:
    """A VAE can only be added to a complete model that lacks one, and must be a VAE."""
    good = write_safetensors(tmp_path / "vae", vae(16))
    lora = write_safetensors(tmp_path / "lora", ALONE["lora"])
    bare = write_safetensors(tmp_path / "bare", DIFFUSION["FLUX.1 schnell"])
    text = "text_encoders.clip_l.transformer.text_model.embeddings.token_embedding.weight"
    lacking = write_safetensors(tmp_path / "lacking", {**SHAPES, text: (768, 8)})
    full = {**SHAPES, **prefixed("first_stage_model.", vae(16))}
    complete = write_safetensors(tmp_path / "complete", full)
    assert "not a complete model" in refused(bare, tmp_path / "x.gguf", vae=good)
    assert "not a complete model" in refused(complete, tmp_path / "x.gguf", vae=good)
    assert "lora is not a VAE" in refused(lacking, tmp_path / "x.gguf", vae=lora)


def test_no_room_on_the_disk(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is reported before the work starts, as the size is known."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1000))
    assert "x.gguf needs 1 MB and the disk has 1 MB free" in refused(source, tmp_path / "x.gguf")


def test_no_room_in_memory(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little memory is reported before the work starts, as the whole result must fit."""
    monkeypatch.setattr(module, "free_memory", lambda: 1000)
    assert "of memory" in refused(source, tmp_path / "x.gguf")


def test_two_writers(source: Path, tmp_path: Path) -> None:
    """A second writer is rejected, and the first one's file is kept."""
    part = tmp_path / ".x.part.gguf"
    with part.open("ab") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        with pytest.raises(ConversionError, match="is being written by another process"):
            convert(Order(source, tmp_path / "x.gguf", "q8_0"), lambda _: None)
        assert part.exists()


def test_a_fork_of_the_converter_holds_nobody_up(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that a crashed converter leaves behind does not delay the error."""
    converter = tmp_path / "converter"
    converter.write_text("#!/bin/sh\nsleep 20 &\nkill -ABRT $$\n")
    converter.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(converter))
    began = time.monotonic()
    assert "SIGABRT" in refused(source, tmp_path / "x.gguf")
    assert time.monotonic() - began < 15


def test_sizes_of_types() -> None:
    """Sizes of quantised types follow ggml's blocks."""
    assert (size_of(64, "f16"), size_of(64, "q8_0"), size_of(256, "q4_K")) == (128, 68, 144)
