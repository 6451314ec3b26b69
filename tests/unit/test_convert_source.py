"""The files of ``sdstream convert`` and ``inspect``: a path, or a model of the catalogue."""

from __future__ import annotations

import json
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


def prepare(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the catalogue and an empty file of one of its models."""
    (folder / "models.yaml").write_text(CATALOGUE)
    (folder / "mine.safetensors").write_bytes(b"")
    monkeypatch.setenv("SDSTREAM_MODELS", str(folder / "models.yaml"))
    monkeypatch.setenv("SDSTREAM_MODEL_DIR", str(folder))


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
    prepare(tmp_path, monkeypatch)

    def convert(order: Order, _report: object) -> None:
        raise ConversionError(f"converting {order.source}")

    monkeypatch.setattr(files, "convert", convert)
    result = CliRunner().invoke(main, ["convert", source, "out.gguf", "--type", "q4_K"])
    assert words.format(folder=tmp_path) in result.output
    assert result.exit_code != 0


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("mine", "mine.safetensors is empty."),
        ("two:q8_0", "not downloaded: 'sdstream pull two:q8_0' downloads it (1.5 GB)."),
        (
            "hf:owner/two/a.gguf",
            "is not downloaded; 'sdstream pull hf:owner/two/a.gguf' downloads it.",
        ),
        (
            "ms:owner/two/a.gguf",
            "is not downloaded; 'sdstream pull ms:owner/two/a.gguf' downloads it.",
        ),
        (
            "https://huggingface.co/o/r/blob/main/a.gguf",
            "'sdstream pull hf:o/r/a.gguf' downloads it.",
        ),
        ("nothing.gguf", "nothing.gguf cannot be read (No such file or directory)."),
    ],
)
def test_what_cannot_be_inspected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, words: str
) -> None:
    """inspect takes the same names, and ends with exit code 1 and the remedy."""
    prepare(tmp_path, monkeypatch)
    result = CliRunner().invoke(main, ["inspect", file])
    assert result.exit_code == 1
    assert words in result.output
    told = CliRunner().invoke(main, ["inspect", "--json", file])
    assert told.exit_code == 1
    assert f"Error: {json.loads(told.output)['error']}\n" == result.output


def test_a_downloaded_file_is_inspected(
    builtin_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address of a downloaded file, or the name of its model, is enough."""
    prepare(tmp_path, monkeypatch)
    repository = tmp_path / "models--owner--two"
    pointer = repository / "snapshots" / ("0" * 40) / "two-Q8_0.gguf"
    pointer.parent.mkdir(parents=True)
    pointer.symlink_to(builtin_file)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    for name in ("hf:owner/two/two-Q8_0.gguf", "two", "two:Q8_0"):
        result = CliRunner().invoke(main, ["inspect", name])
        assert result.output.startswith("two-Q8_0.gguf is Ovis-Image.\n"), result.output
