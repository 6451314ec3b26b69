"""Reading of weight files' headers before the runtime loads them."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdstream.weights import embedded
from sdstream.weights.headers import BadFile, Tensor, read
from tests.support.weight_files import (
    BROKEN,
    gguf,
    gguf_entry,
    gguf_string,
    gguf_tensor,
    write_header,
    write_safetensors,
)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_gets_a_sentence(tmp_path: Path, name: str) -> None:
    """Each kind of damage has its own message."""
    raw, sentence = BROKEN[name]
    (tmp_path / "x").write_bytes(raw)
    with pytest.raises(BadFile) as caught:
        read(tmp_path / "x")
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_costs_no_memory(tmp_path: Path, name: str) -> None:
    """Little memory is allocated, whatever sizes the file claims."""
    (tmp_path / "x").write_bytes(BROKEN[name][0])
    tracemalloc.start()
    try:
        with pytest.raises(BadFile):
            read(tmp_path / "x")
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()


def test_what_is_no_file(tmp_path: Path) -> None:
    """Folders, pipes and missing files are rejected without waiting for a pipe."""
    os.mkfifo(tmp_path / "pipe")
    for name, sentence in (
        (".", "is a folder"),
        ("pipe", "is not a regular file"),
        ("nothing", "cannot be read (No such file or directory)"),
    ):
        with pytest.raises(BadFile) as caught:
            read(tmp_path / name)
        assert str(caught.value).startswith(sentence)


def test_a_file_without_permission(tmp_path: Path) -> None:
    """The error contains the system's reason; a run as root switches to another user."""
    (tmp_path / "x").write_bytes(b"GGUF")
    (tmp_path / "x").chmod(0)
    if os.geteuid() != 0:
        with pytest.raises(BadFile, match=r"cannot be read \(Permission denied\)"):
            read(tmp_path / "x")
        return
    program = (
        "import os, pathlib, sys; from sdstream.weights.headers import read\n"
        "os.chdir(sys.argv[1]); os.seteuid(65534)\n"
        "read(pathlib.Path('x'))"
    )
    tried = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert "BadFile: cannot be read (Permission denied)" in tried.stderr


def test_the_builtin_model_is_read_as_the_gguf_package_reads_it(builtin_file: Path) -> None:
    """Names, types, shapes and offsets equal those that the gguf package reads."""
    expected = [
        (t.name, t.tensor_type.name.lower(), tuple(map(int, t.shape)), t.data_offset, t.n_bytes)
        for t in GGUFReader(builtin_file).tensors
    ]
    found = read(builtin_file)
    assert [(t.name, t.type, t.shape, t.offset, t.octets) for t in found.tensors] == expected
    card = json.loads(Path(embedded.__file__).with_name("drawings.json").read_text())
    assert found.metadata == {
        "general.architecture": "flux",
        "sdstream.training.pictures": card["pictures_seen"],
    }


def test_every_kind_of_metadata(tmp_path: Path) -> None:
    """Numbers and short texts are kept; lists and long texts are skipped."""
    writer = GGUFWriter(tmp_path / "x.gguf", "test")
    writer.add_uint8("a", 1)
    writer.add_int64("b", -(2**40))
    writer.add_float64("c", 0.5)
    writer.add_bool("d", val=True)
    writer.add_array("e", ["word"] * 50_000)
    writer.add_array("f", list(range(400_000)))
    writer.add_string("g", "x" * 100_000)
    writer.add_string("h", "end")
    writer.add_tensor("w", np.ones((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read(tmp_path / "x.gguf")
    assert found.metadata == {
        "general.architecture": "test", "a": 1, "b": -(2**40), "c": 0.5, "d": True, "h": "end"
    }  # fmt: skip
    assert found.shapes == {"w": (32, 4)}


def test_types_have_the_runtimes_names(tmp_path: Path) -> None:
    """Types have the same names as in models.yaml."""
    kinds = {GGMLQuantizationType.Q4_K: "q4_K", GGMLQuantizationType.IQ2_XXS: "iq2_xxs"}
    tensors = [gguf_tensor(name, (256,), kind) for kind, name in kinds.items()]
    (tmp_path / "x").write_bytes(gguf(*tensors, data=1000))
    assert [t.type for t in read(tmp_path / "x").tensors] == list(kinds.values())


def test_alignment_moves_the_data(tmp_path: Path) -> None:
    """Data begins at the next multiple of the file's alignment."""
    entry = gguf_entry("general.alignment", 4, struct.pack("<I", 256))
    raw = gguf(gguf_tensor(), entries=(entry,), data=0)
    (tmp_path / "x").write_bytes(raw + bytes(512 - len(raw)))
    assert read(tmp_path / "x").tensors[0].offset == 256


def test_a_good_safetensors_file(tmp_path: Path) -> None:
    """Shapes are reversed, and eight-bit floats count with the size that the runtime uses."""
    path = write_safetensors(tmp_path / "x", {"a": (4, 2)}, "F8_E4M3", {"modelspec.title": "T"})
    found = read(path)
    start = path.stat().st_size - 8
    assert found.tensors == (Tensor("a", "f8_e4m3", (4, 2), start, 8, 16),)
    assert found.metadata == {"modelspec.title": "T"}


@pytest.mark.parametrize("length", range(0x50, 0x150))
def test_a_header_of_any_length(tmp_path: Path, length: int) -> None:
    """A header is read even if its length byte equals the first byte of another format."""
    entry = {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    bare = write_header(tmp_path / "x", entry).stat().st_size - 8
    entry["a" * (1 + length - bare)] = entry.pop("a")
    if length >= bare:
        assert len(read(write_header(tmp_path / "x", entry, 4)).tensors) == 1


def test_thousands_of_tensors_and_a_vocabulary(tmp_path: Path) -> None:
    """A header of thousands of tensors and a long vocabulary is read."""
    words = b"".join(gguf_string(f"word {i}") for i in range(150_000))
    entry = gguf_entry("tokens", 9, struct.pack("<IQ", 8, 150_000) + words)
    tensors = [gguf_tensor(f"blk.{i}.attn_q.weight") for i in range(2000)]
    (tmp_path / "x").write_bytes(gguf(*tensors, entries=(entry,)))
    assert len(read(tmp_path / "x").tensors) == 2000


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_change_of_a_header_ends_in_a_sentence_or_in_tensors(
    tmp_path: Path, data: st.DataObject
) -> None:
    """Changed bytes give tensors or a BadFile."""
    entry = gguf_entry("general.name", 8, gguf_string("x"))
    raw = bytearray(gguf(gguf_tensor("a"), gguf_tensor("b", (32, 2)), entries=(entry,), data=400))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(4, 160))] = data.draw(st.integers(0, 255))
    (tmp_path / "x").write_bytes(raw)
    try:
        count, said = len(read(tmp_path / "x").tensors), "is"
    except BadFile as error:
        count, said = 1, str(error).split()[0]
    assert count
    assert said in {"is", "has", "ends", "holds"}
