"""The commands for model files."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from gguf import GGUFReader, dequantize
from PIL import Image, ImageChops, ImageStat

from sdstream.core.runtime_options import WTYPES
from sdstream.weights.headers import read
from tests.support.servers import wait_until
from tests.support.weight_files import ALONE, BROKEN, DIFFUSION, prefixed, vae, write_safetensors


def sdstream(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command; it must not print a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "sdstream", *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert "Traceback" not in done.stderr
    return done


# --- inspect ------------------------------------------------------------------------------------


def test_inspect_a_model(builtin_file: Path) -> None:
    """inspect prints the family, parts and types of a model as text."""
    said = sdstream("inspect", builtin_file)
    assert said.returncode == 0
    assert said.stdout.startswith(f"{builtin_file.name} is Ovis-Image.\n")
    for words in ("family", "ovis_image", "GGUF 3, 30.4 MB", "diffusion_model", "q8_0", "8.2 M"):
        assert words in said.stdout


def test_inspect_for_programs(builtin_file: Path) -> None:
    """--json prints one JSON object with sizes in bytes."""
    report = json.loads(sdstream("inspect", "--json", builtin_file).stdout)
    assert report["file"] == builtin_file.name
    assert report["size"] == builtin_file.stat().st_size
    assert report["families"] == ["ovis_image"]
    assert {part["name"] for part in report["parts"]} == {"diffusion_model", "llm", "tae"}


def test_inspect_says_what_else_is_needed(tmp_path: Path) -> None:
    """inspect lists the other files that a model needs, by their names in models.yaml."""
    path = write_safetensors(tmp_path / "flux.safetensors", DIFFUSION["FLUX.1 schnell"])
    said = sdstream("inspect", path).stdout
    assert "is the diffusion model of FLUX.1 schnell alone." in said
    assert "clip_l, t5xxl, vae" in said


@pytest.mark.parametrize("name", ["empty", "html", "data-cut", "torch"])
def test_inspect_a_broken_file(tmp_path: Path, name: str) -> None:
    """inspect reports a broken file with one error message and exit code 1, also with --json."""
    raw, sentence = BROKEN[name]
    path = tmp_path / "x.gguf"
    path.write_bytes(raw)
    said = sdstream("inspect", path)
    assert said.returncode == 1
    assert said.stderr.startswith(f"Error: x.gguf {sentence}")
    assert said.stdout == ""
    said = sdstream("inspect", "--json", path)
    assert said.returncode == 1
    assert json.loads(said.stdout)["error"].startswith(f"x.gguf {sentence}")


def test_inspect_takes_no_markup_from_files(tmp_path: Path) -> None:
    """Brackets and control characters in a file's metadata are shown as text, not interpreted."""
    words = {"modelspec.title": "[bold]a[/nonsense]\x1b[31m"}
    path = write_safetensors(tmp_path / "[red].safetensors", ALONE["vae"], metadata=words)
    said = sdstream("inspect", path)
    assert said.stdout.startswith("[red].safetensors is a VAE")
    assert "[bold]a[/nonsense]?[31m" in said.stdout


# --- convert ------------------------------------------------------------------------------------


def types_of(path: Path) -> dict[str, str]:
    """Return the type of each tensor by name."""
    return {tensor.name: tensor.type for tensor in read(path).tensors}


QKV = "model.diffusion_model.double_blocks.0.img_attn.qkv.weight"
NORM = "text_encoders.llm.model.layers.0.input_layernorm.weight"


@pytest.fixture(scope="module")
def loose_file(builtin_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model as safetensors in f16 and f32, as models are published."""
    header: dict[str, object] = {}
    data = bytearray()
    for tensor in GGUFReader(builtin_file).tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        kind = np.float32 if values.ndim == 1 or "img_in" in tensor.name else np.float16
        raw = values.astype(kind).tobytes()
        header[tensor.name] = {
            "dtype": "F32" if kind is np.float32 else "F16",
            "shape": [int(side) for side in reversed(tensor.shape)],
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    path = tmp_path_factory.mktemp("loose") / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize("wtype", WTYPES)
def test_convert_into_every_type(loose_file: Path, tmp_path: Path, wtype: str) -> None:
    """Weights get the requested type. Norms are never quantised, and some tensors stay f32."""
    target = tmp_path / "model.gguf"
    done = sdstream("convert", loose_file, target, "--type", wtype)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("model.gguf: ")
    types = types_of(target)
    assert {*types} == {*types_of(loose_file)}
    assert types[QKV] == wtype
    assert types[NORM] == (wtype if wtype in ("f32", "f16", "bf16") else "f32")
    assert types["model.diffusion_model.img_in.weight"] == "f32"


@pytest.fixture(scope="module", params=["loose", "builtin"])
def original(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Image.Image]:
    """A model file and an image that it generates."""
    file: Path = request.getfixturevalue(f"{request.param}_file")
    return file, drawn(tmp_path_factory.mktemp(request.param), file)


@pytest.mark.parametrize("wtype", ["f16", "q8_0", "q4_0"])
def test_what_was_converted_draws(
    original: tuple[Path, Image.Image], tmp_path: Path, wtype: str
) -> None:
    """A converted model generates nearly the same image as its source."""
    target = tmp_path / "model.gguf"
    origin, expected = original
    assert sdstream("convert", origin, target, "--type", wtype).returncode == 0
    found = drawn(tmp_path, target)
    difference = ImageStat.Stat(ImageChops.difference(expected, found))
    assert max(difference.mean) < 12
    assert max(ImageStat.Stat(found).stddev) > 20


def drawn(folder: Path, model: Path) -> Image.Image:
    """Generate an image with a model file of the built-in model's family."""
    entry = {
        "id": "converted",
        "family": "ovis_image",
        "files": {"model": str(model)},
        "defaults": {"size": "128x128", "steps": 8, "cfg_scale": 3.0},
        "runtime": {"tae": True},
    }
    catalogue = folder / f"{model.stem}.yaml"
    catalogue.write_text(yaml.safe_dump({"models": [entry]}))
    picture = folder / f"{model.stem}-{model.suffix[1:]}.png"
    environment = {
        **os.environ,
        "SDSTREAM_MODELS": str(catalogue),
        "SDSTREAM_DATA_DIR": str(folder),
    }
    # The prompt is specific, so that rounding errors do not change the content of the image.
    words = ["a red circle on a blue background", "--seed", "7", "-o", str(picture)]
    subprocess.run(
        [sys.executable, "-m", "sdstream", "generate", *words],
        env=environment,
        check=True,
        timeout=100,
    )
    return Image.open(picture)


def test_from_gguf_to_safetensors(loose_file: Path, tmp_path: Path) -> None:
    """The extension of the target's name decides the format."""
    target = tmp_path / "model.safetensors"
    done = sdstream("convert", loose_file, target, "--type", "bf16")
    assert done.returncode == 0, done.stderr
    assert read(target).format == "safetensors"
    assert types_of(target)[QKV] == "bf16"


def test_rules_decide_before_the_type(loose_file: Path, tmp_path: Path) -> None:
    """The first matching rule decides a tensor's type, even if that type is larger than --type."""
    target = tmp_path / "model.gguf"
    rules = r"double_blocks\.0\.img_attn=q8_0,double_blocks=f32,layernorm=f16"
    done = sdstream("convert", loose_file, target, "--type", "q4_0", "--tensor-type-rules", rules)
    assert done.returncode == 0, done.stderr
    types = types_of(target)
    assert types[QKV] == "q8_0"
    assert types[QKV.replace("qkv", "proj")] == "q8_0"
    assert types[QKV.replace("img", "txt")] == "f32"
    assert types[QKV.replace("double_blocks.0.img_attn.qkv", "single_blocks.0.linear1")] == "q4_0"
    assert types[NORM] == "f16"


def test_a_pattern_that_only_the_runtime_refuses(loose_file: Path, tmp_path: Path) -> None:
    """A pattern that is valid only in Python ends the converter process and is reported as an
    error."""
    done = sdstream(
        "convert", loose_file, tmp_path / "x.gguf", "--type", "q4_0",
        "--tensor-type-rules", "(?P<name>norm)=f16",
    )  # fmt: skip
    assert done.returncode == 1
    assert "Error: The runtime cannot parse a pattern of the rules" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == []


def test_a_vae_is_put_in(tmp_path: Path) -> None:
    """--vae adds a VAE under the tensor names that the runtime expects."""
    text = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
    unet = prefixed("model.diffusion_model.", DIFFUSION["Stable Diffusion 1"])
    source = write_safetensors(tmp_path / "source.safetensors", {**unet, text: (768, 8)})
    autoencoder = write_safetensors(tmp_path / "vae.safetensors", vae(4))
    target = tmp_path / "x.gguf"
    done = sdstream("convert", source, target, "--type", "q8_0", "--vae", autoencoder)
    assert done.returncode == 0, done.stderr
    report = json.loads(sdstream("inspect", "--json", target).stdout)
    assert {part["name"] for part in report["parts"]} == {"diffusion_model", "clip_l", "vae"}
    assert report["needs"] == []


def test_nothing_is_overwritten_without_force(builtin_file: Path, tmp_path: Path) -> None:
    """convert replaces an existing file only with --force."""
    target = tmp_path / "x.gguf"
    target.write_text("precious")
    done = sdstream("convert", builtin_file, target, "--type", "q4_0")
    assert done.returncode == 1
    assert target.read_text() == "precious"
    assert sdstream("convert", builtin_file, target, "--type", "q4_0", "--force").returncode == 0
    assert types_of(target)[QKV] == "q4_0"


@pytest.fixture
def long_work(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A conversion that takes a while, and its target."""
    shapes = prefixed("model.diffusion_model.", {f"x.{i}.weight": (4096, 2048) for i in range(40)})
    source = write_safetensors(tmp_path / "source.safetensors", shapes)
    target = tmp_path / "x.gguf"
    with subprocess.Popen(
        [sys.executable, "-m", "sdstream", "convert", source, target, "--type", "q2_K"],
        stderr=subprocess.PIPE,
        text=True,
    ) as work:
        wait_until(lambda: bool(children(work.pid)), 20, "no converter was started")
        time.sleep(1)
        yield work, target
        work.kill()


def children(pid: int) -> list[int]:
    """Return the child processes of a process."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(number) for number in found]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_killed_in_the_middle(
    long_work: tuple[subprocess.Popen[str], Path], number: signal.Signals
) -> None:
    """However the command is killed, no partial file and no process is left."""
    work, target = long_work
    (child,) = children(work.pid)
    assert target.with_name(".x.part.gguf").exists()
    work.send_signal(number)
    assert work.wait(20) != 0
    wait_until(lambda: not Path(f"/proc/{child}").exists(), 20, "the converter lives on")
    assert [path.name for path in target.parent.iterdir()] == ["source.safetensors"]


def test_the_converter_is_killed(long_work: tuple[subprocess.Popen[str], Path]) -> None:
    """A killed converter, as when memory runs out, is reported, and no file is left."""
    work, target = long_work
    (converter,) = children(work.pid)
    os.kill(converter, signal.SIGKILL)
    assert work.wait(20) == 1
    assert work.stderr is not None
    assert "Error: The converter ended with SIGKILL." in work.stderr.read()
    assert [path.name for path in target.parent.iterdir()] == ["source.safetensors"]
