"""Runtime options of an entry of models.yaml, with the built-in model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import yaml

from tests.support.pictures import from_base64
from tests.support.servers import ServerProcess, running_server

BODY: dict[str, Any] = {"prompt": "hills at sunset", "size": "128x128", "seed": 7}

ENTRIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "across": {"runtime": {"circular": "x"}},
    "around": {"runtime": {"circular": "both"}},
    "processor": {"device": "cpu"},
    "second-card": {"device": "cuda:1"},
    "other-noise": {"runtime": {"rng": "cpu"}},
    "moved": {"runtime": {"offload": True}},
    "smaller": {"runtime": {"wtype": "q4_0"}},
    "eight-bits": {"runtime": {"wtype": "q8_0"}},
    "unfused": {"runtime": {"diffusion_flash_attn": False}},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with one model under several names, each with other runtime options."""
    folder = tmp_path_factory.mktemp("options")
    models = []
    for name, options in ENTRIES.items():
        runtime = {"tae": True, "preview": "decode", **options.get("runtime", {})}
        files = {"model": "builtin:drawings"}
        entry = {"id": name, "family": "ovis_image", "files": files, **options}
        models.append({**entry, "runtime": runtime, "defaults": {"steps": 8, "cfg_scale": 3.0}})
        models[-1]["size"] = {"min": 64, "max": 512}
        models[-1]["defaults"]["size"] = "128x128"
    (folder / "models.yaml").write_text(yaml.safe_dump({"models": models}))
    with running_server(folder, models=folder / "models.yaml") as running:
        yield running


def drawn(server: ServerProcess, model: str) -> np.ndarray:
    """Generate an image; return its pixels."""
    answer = server.post({**BODY, "model": model})
    assert answer.status_code == 200, answer.text
    return np.asarray(from_base64(answer.json()["data"][0]["b64_json"]), int)


def test_circular_joins_the_sides(server: ServerProcess) -> None:
    """Images tiled side by side, or one below the other, show less of a seam."""
    seams = {}
    for model in ("plain", "across", "around"):
        pixels = drawn(server, model)
        rough = abs(np.diff(pixels, axis=1)).mean() + 1
        seams[model] = abs(pixels[:, 0] - pixels[:, -1]).mean() / rough
        seams[f"{model}, below"] = abs(pixels[0] - pixels[-1]).mean() / rough
    print(seams)
    assert seams["across"] < seams["plain"]
    assert seams["around, below"] < seams["plain, below"]


def test_the_generator_of_noise(server: ServerProcess) -> None:
    """Another generator gives another, reproducible image for the same seed."""
    assert (drawn(server, "other-noise") != drawn(server, "plain")).any()
    assert (drawn(server, "other-noise") == drawn(server, "other-noise")).all()


def test_the_launch_options_of_xinference(server: ServerProcess) -> None:
    """Offloaded weights give the same image (cpu_offload), and weights quantised while loading give
    nearly the same (transformer_nf4, quantize)."""
    plain = drawn(server, "plain")
    assert (drawn(server, "moved") == plain).all()
    differences = [abs(drawn(server, model) - plain).mean() for model in ("eight-bits", "smaller")]
    assert differences[0] < differences[1] < 40
    assert differences[1] > 0


def test_flash_attention_can_be_turned_off(server: ServerProcess) -> None:
    """The CPU kernels use flash attention by default, which rounds keys and values."""
    difference = abs(drawn(server, "unfused") - drawn(server, "plain")).mean()
    assert 0 < difference < 3


def test_a_device_of_its_own(server: ServerProcess) -> None:
    """The worker sees only its own device."""
    assert (drawn(server, "processor") == drawn(server, "plain")).all()
    seen = {
        path.read_bytes().partition(b"CUDA_VISIBLE_DEVICES=")[2].partition(b"\0")[0]
        for path in Path("/proc").glob("[0-9]*/environ")
        if _is_worker_of(path.parent, server.process.pid)
    }
    assert b"-1" in seen


def _is_worker_of(process: Path, parent: int) -> bool:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1]) == parent
    except OSError:
        return False


def test_a_device_that_is_not_there(server: ServerProcess) -> None:
    """A missing device is an error; the runtime does not fall back to the CPU."""
    answer = server.post({**BODY, "model": "second-card"})
    assert answer.status_code == 503
    sentence = "requires cuda:1, and the runtime found only the CPU"
    assert sentence in answer.json()["error"]["message"]
    assert sentence in httpx2.get(f"{server.url}/v1/models/second-card").json()["error"]
    assert (drawn(server, "plain") == drawn(server, "plain")).all()


def test_a_load_chooses_runtime_options(server: ServerProcess) -> None:
    """A load sets runtime options of the worker, until another load sets others."""
    load = f"{server.url}/v1/models/plain/load"
    before = drawn(server, "plain")
    assert not (before == drawn(server, "across")).all()
    answer = httpx2.post(load, json={"circular": "x"}, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.json()["runtime"]["circular"] == "x"
    assert answer.json()["runtime"]["tae"] is True
    assert (drawn(server, "plain") == drawn(server, "across")).all()
    assert httpx2.post(load, timeout=60).json()["runtime"]["circular"] == "x"
    assert httpx2.post(load, json={}, timeout=60).json()["runtime"]["circular"] == "none"
    assert (drawn(server, "plain") == before).all()


@pytest.mark.parametrize(
    ("body", "reason", "param", "words"),
    [
        ({"ofload": True}, "unknown_field", "ofload", "Did you mean 'offload'?"),
        ({"wtype": "q4_7"}, "invalid_value", "wtype", "unknown wtype 'q4_7'; available: f32, f16"),
        ({"threads": -1}, "invalid_value", "threads", "must be at least 0, not -1"),
        ({"preview": "tae"}, "invalid_value", None, "needs files.tae"),
        ([1], "invalid_json", None, ""),
    ],
)
def test_runtime_options_that_do_not_exist(
    server: ServerProcess, body: object, reason: str, param: str | None, words: str
) -> None:
    """An invalid option is rejected, and the model keeps its options."""
    answer = httpx2.post(f"{server.url}/v1/models/plain/load", json=body, timeout=60)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["reason"], error["param"]) == (reason, param)
    assert words in error["message"]
    found = httpx2.get(f"{server.url}/v1/models/plain").json()["runtime"]
    assert (found["offload"], found["wtype"], found["threads"]) == (False, None, 0)


def test_options_of_the_served_model(server: ServerProcess, tmp_path: Path) -> None:
    """serve -O sets options of the default model only, and a reload of models.yaml keeps them."""
    models = server.log.parent / "models.yaml"
    with running_server(tmp_path, models=models, runtime_options="circular=x,threads=1") as own:
        runtimes = {
            model["id"]: model["runtime"]
            for model in httpx2.get(f"{own.url}/v1/models").json()["data"]
        }
        assert (runtimes["plain"]["circular"], runtimes["plain"]["threads"]) == ("x", 1)
        assert runtimes["processor"]["circular"] == "none"
        assert (drawn(own, "plain") == drawn(server, "across")).all()
        assert httpx2.post(f"{own.url}/v1/models/reload", timeout=60).status_code == 200
        found = httpx2.get(f"{own.url}/v1/models/plain").json()["runtime"]
        assert found["circular"] == "x"
