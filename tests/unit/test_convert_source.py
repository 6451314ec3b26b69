"""The source of ``sdstream convert``: a path, or a model of the catalogue."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from sdstream.cli import files
from sdstream.cli.main import main
from sdstream.weights.convert import ConversionError, Order

CATALOGUE = """
models:
  - {id: mine, family: sd1, files: {model: mine.safetensors}}
  - id: two
    family: sd1
    quants: {Q8_0: 1.5}
    files: {model: "hf:owner/two/two-{quant}.gguf"}
"""


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("mine", "converting {folder}/mine.safetensors"),
        ("two:Q8_0", "not downloaded: 'sdstream pull two:Q8_0' downloads it (1.5 GB)."),
        ("hf:owner/two/a.gguf", "owner/two/a.gguf is not downloaded"),
        ("nothing.gguf", "converting nothing.gguf"),
    ],
)
def test_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, words: str) -> None:
    """A name of the catalogue is the file of its diffusion model; a missing one says how to get
    it."""
    (tmp_path / "models.yaml").write_text(CATALOGUE)
    (tmp_path / "mine.safetensors").write_bytes(b"")
    monkeypatch.setenv("SDSTREAM_MODELS", str(tmp_path / "models.yaml"))
    monkeypatch.setenv("SDSTREAM_MODEL_DIR", str(tmp_path))

    def convert(order: Order, _report: object) -> None:
        raise ConversionError(f"converting {order.source}")

    monkeypatch.setattr(files, "convert", convert)
    result = CliRunner().invoke(main, ["convert", source, "out.gguf", "--type", "q4_K"])
    assert words.format(folder=tmp_path) in result.output
    assert result.exit_code != 0
