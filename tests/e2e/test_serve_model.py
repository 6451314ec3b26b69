"""Pulled models, and weight files without an entry, on the real runtime."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

from tests.support.hub_server import FakeHub, fake_hub
from tests.support.servers import ServerProcess, running_server, wait_until
from tests.support.weight_files import BROKEN, UNFIT

REPO = "somebody/tiny-GGUF"
QUICK: dict[str, Any] = {"prompt": "a red circle", "size": "64x64", "sample_steps": 2, "seed": 5}
MODELS = f"""
default: embedded
models:
  - id: embedded
    family: ovis_image
    files: {{model: "builtin:drawings"}}
    defaults: {{size: 64x64, steps: 2, cfg_scale: 1.0}}
    runtime: {{tae: true}}
  - id: tiny
    family: ovis_image
    quants: {{Q8_0: 0.01, Q4_0: 0.01}}
    files: {{model: "hf:{REPO}/tiny-{{quant}}.gguf"}}
    defaults: {{size: 64x64, steps: 2, cfg_scale: 1.0}}
    runtime: {{tae: true}}
"""


@pytest.fixture
def hub(builtin_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with the built-in model as two quants, and the variables that select this hub."""
    data = builtin_file.read_bytes()
    with fake_hub({f"{REPO}/tiny-{quant}.gguf": data for quant in ("Q8_0", "Q4_0")}) as running:
        for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        (tmp_path / "models.yaml").write_text(MODELS)
        yield running


def sdstream(*arguments: str, folder: Path, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Run a command until it ends, with the catalogue and the cache of a folder."""
    chosen = {
        "models": folder / "models.yaml",
        "data_dir": folder / "data",
        "model_dir": folder / "hub",
        "cache_dir": folder / "cache",
        **settings,
    }
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SDSTREAM_")}
    result = subprocess.run(
        [sys.executable, "-m", "sdstream", *arguments],
        check=False,
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment | {f"SDSTREAM_{k.upper()}": str(v) for k, v in chosen.items()},
        timeout=60,
    )
    assert "Traceback" not in result.stderr
    return result


def ids(server: ServerProcess) -> dict[str, bool]:
    """Return the models of a server, and whether each is the default."""
    data = httpx2.get(f"{server.url}/v1/models").json()["data"]
    return {model["id"]: model["default"] for model in data}


def test_a_model_from_the_hub_to_a_picture(hub: FakeHub, tmp_path: Path) -> None:
    """`serve --model X:QUANT --pull` downloads, loads and generates. Another quant that is pulled
    while the server runs is available at once. Both can be removed."""
    models = tmp_path / "models.yaml"
    with running_server(tmp_path, models=models, model="tiny:Q4_0", pull=True) as server:
        assert len(hub.downloads()) == 1
        assert ids(server) == {"embedded": False, "tiny:Q4_0": True}
        for body in (QUICK, {**QUICK, "model": "tiny"}, {**QUICK, "model": "tiny:q4_0"}):
            answer = server.post(body)
            assert (answer.status_code, answer.json()["model"]) == (200, "tiny:Q4_0")
        absent = server.post({**QUICK, "model": "tiny:Q8_0"})
        assert absent.status_code == 404
        error = absent.json()["error"]
        assert (error["reason"], error["param"]) == ("model_not_found", "model")
        assert "'sdstream pull tiny:Q8_0' downloads it (0.01 GB)" in error["message"]

        assert sdstream("pull", "tiny:Q8_0", folder=tmp_path).returncode == 0
        assert server.post({**QUICK, "model": "tiny:Q8_0"}).status_code == 200
        assert "tiny:Q8_0" in ids(server)
        assert httpx2.get(f"{server.url}/v1/models/tiny").json()["id"] == "tiny:Q8_0"

        assert sdstream("rm", "tiny", folder=tmp_path).returncode == 0
        assert [*ids(server)] == ["embedded"]
    assert not (tmp_path / "hub" / "models--somebody--tiny-GGUF").exists()
    with running_server(tmp_path, models=models) as server:
        assert ids(server) == {"embedded": True}


def test_a_default_that_is_not_here(hub: FakeHub, tmp_path: Path) -> None:
    """Without --pull, a missing model ends the start; the error contains the command that downloads
    it, and no request is sent to the hub."""
    result = sdstream("serve", "--model", "tiny", folder=tmp_path)
    assert result.returncode == 78
    assert "'sdstream pull tiny' downloads it (0.01 GB)" in result.stderr
    assert hub.asked == []


def test_the_default_in_other_letters(hub: FakeHub, tmp_path: Path) -> None:
    """Model names are case-insensitive, and the error for a misspelt name suggests the right
    one."""
    wrong = sdstream("serve", "--model", "tinny", "--pull", folder=tmp_path)
    assert wrong.returncode == 78
    assert wrong.stderr == (
        "Error: The model 'tinny' is not in the catalogue; did you mean tiny?\n"
    )
    models = tmp_path / "models.yaml"
    with running_server(tmp_path, models=models, model="TINY", pull=True) as server:
        assert ids(server) == {"embedded": False, "tiny:Q8_0": True}
        answer = server.post({**QUICK, "model": "Tiny"})
        assert (answer.status_code, answer.json()["model"]) == (200, "tiny:Q8_0")


def test_a_default_that_cannot_be_pulled(hub: FakeHub, tmp_path: Path) -> None:
    """--pull fails with the error message of `sdstream pull`."""
    hub.files = {f"{REPO}/other.gguf": b"x"}
    result = sdstream("serve", "--model", "tiny", "--pull", folder=tmp_path)
    assert result.returncode == 1
    assert "has no file tiny-Q8_0.gguf" in result.stderr


def test_a_weight_file_without_an_entry(builtin_file: Path, tmp_path: Path) -> None:
    """The file determines the family, and its model is the default beside the catalogue's
    models."""
    file = tmp_path / "My drawings (2).gguf"
    file.symlink_to(builtin_file)
    with running_server(tmp_path, model=file) as server:
        answer = server.post(QUICK)
        assert (answer.status_code, answer.json()["model"]) == (200, "My-drawings-2")
        assert ids(server) == {"embedded": False, "My-drawings-2": True}
        told = httpx2.get(f"{server.url}/v1/models/My-drawings-2").json()
        assert (told["family"], told["state"]) == ("ovis_image", "ready")
        assert server.post({**QUICK, "model": "embedded"}).status_code == 200


def test_the_hash_of_a_checkpoint(builtin_file: Path, tmp_path: Path) -> None:
    """The hash of the built-in model is known at once, and that of another file after it was
    read."""
    file = tmp_path / "mine.gguf"
    shutil.copyfile(builtin_file, file)
    expected = hashlib.sha256(builtin_file.read_bytes()).hexdigest()

    def hashes(server: ServerProcess) -> dict[str, str | None]:
        listed = httpx2.get(f"{server.url}/sdapi/v1/sd-models").json()
        return {model["title"]: model["sha256"] for model in listed}

    with running_server(tmp_path, model=file) as server:
        assert hashes(server)["embedded"] == expected
        wait_until(lambda: hashes(server)["mine"] == expected, 60, "no hash of the file")
        options = httpx2.get(f"{server.url}/sdapi/v1/options").json()
        assert options["sd_checkpoint_hash"] == expected
        assert httpx2.post(f"{server.url}/sdapi/v1/options", json=options).status_code == 200
        body = {"prompt": "a red circle", "steps": 1, "width": 64, "height": 64}
        answer = httpx2.post(f"{server.url}/sdapi/v1/txt2img", json=body, timeout=60).json()
        assert json.loads(answer["info"])["sd_model_hash"] == expected[:10]
        assert f"Model hash: {expected[:10]}" in json.loads(answer["info"])["infotexts"][0]


def test_generate_with_a_weight_file(builtin_file: Path, tmp_path: Path) -> None:
    """Without a server, --model accepts a file too."""
    (tmp_path / "models.yaml").write_text(MODELS)
    result = sdstream(
        *("generate", "a red circle", "-m", str(builtin_file), "-s", "64x64", "--steps", "2"),
        folder=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    with Image.open(io.BytesIO((tmp_path / "image.png").read_bytes())) as image:
        assert image.size == (64, 64)
        assert f"Model: {builtin_file.stem}" in image.info["parameters"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("half", "ends in the middle of tensor"),
        ("empty", "is empty"),
        ("flux-alone", "needs clip_l, t5xxl"),
        ("unet-apart", "UNet"),
        ("video", "makes videos, and this service generates images.\n"),
        ("refiner", "the runtime has no refiner; 'sdxl-base-1.0' of the catalogue needs none.\n"),
        ("lora-as-model", "LoRA"),
        ("nowhere.gguf", "--model: no such file: nowhere.gguf."),
        ("nothing", "'nothing' is not in the catalogue; 'sdstream models --all' lists all models."),
    ],
)
def test_a_weight_file_that_cannot_be_served(
    tmp_path: Path, builtin_file: Path, name: str, words: str
) -> None:
    """Damaged files, parts of models and unknown names end the start with an error message."""
    (tmp_path / "models.yaml").write_text(MODELS)
    path = tmp_path / name
    if name == "half":
        path.write_bytes(builtin_file.read_bytes()[:5_000_000])
    elif name in BROKEN:
        path.write_bytes(BROKEN[name][0])
    elif name in UNFIT:
        files = UNFIT[name][1](tmp_path)
        path = files.get("model") or files["diffusion_model"]
    else:
        path = Path(name)
    result = sdstream("serve", "--model", str(path), folder=tmp_path)
    assert result.returncode == 78
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1
