"""Weight files are read by their headers before the runtime sees them."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from app.embedded import materialise
from app.engine.engine import EngineError
from app.engine.weights import check, tensor_names


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model."""
    return materialise("builtin:drawings", tmp_path_factory.mktemp("model"))


def safetensors(path: Path, header: object, data: bytes = b"") -> Path:
    """Write a safetensors file with any header."""
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_the_builtin_model_is_whole(model: Path) -> None:
    """It has its text encoder and all that its header promises."""
    check({"model": model}, ("llm",))
    assert "model.diffusion_model.double_blocks.0.img_mlp.gate_proj.weight" in tensor_names(
        "model", model
    )


def test_a_missing_encoder_is_named(model: Path) -> None:
    """The runtime would take this and die on the first prompt."""
    with pytest.raises(EngineError, match="No weights of the T5 text encoder"):
        check({"model": model}, ("llm", "t5"))


@pytest.mark.parametrize("keep", [0, 3, 20, 1000, 12_000_000, -100])
def test_a_cut_file_is_found_out(model: Path, tmp_path: Path, keep: int) -> None:
    """Wherever the download stopped."""
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(model.read_bytes()[:keep])
    with pytest.raises(EngineError, match="'model' is"):
        check({"model": cut}, ("llm",))


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    """A picture is no model."""
    (tmp_path / "x.gguf").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    with pytest.raises(EngineError, match="neither GGUF nor safetensors"):
        check({"vae": tmp_path / "x.gguf"}, ())


def test_messages_hold_no_paths(tmp_path: Path) -> None:
    """Clients see the component's name, not the server's folders."""
    with pytest.raises(EngineError) as caught:
        check({"vae": tmp_path / "nothing.gguf"}, ())
    assert str(tmp_path) not in caught.value.message
    assert "'vae'" in caught.value.message


def test_a_good_safetensors_file(tmp_path: Path) -> None:
    """Its tensors are known by name."""
    header = {
        "__metadata__": {},
        "a.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
    }
    path = safetensors(tmp_path / "x.safetensors", header, bytes(4))
    assert tensor_names("vae", path) == {"a.weight"}


@pytest.mark.parametrize(
    "header", [{}, [], 7, {"a": 1}, {"a": {"data_offsets": [0, 99]}}, {"a": {"data_offsets": []}}]
)
def test_lying_safetensors_headers(tmp_path: Path, header: object) -> None:
    """A header that is not one, or promises more than there is."""
    path = safetensors(tmp_path / "x.safetensors", header, bytes(8))
    with pytest.raises(EngineError, match="'vae' is"):
        tensor_names("vae", path)


def test_a_header_longer_than_its_file(tmp_path: Path) -> None:
    """The length field alone can lie."""
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(EngineError, match="'vae' is damaged"):
        tensor_names("vae", tmp_path / "x.safetensors")
