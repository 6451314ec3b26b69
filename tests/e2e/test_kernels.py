"""The CPU kernels generate the same images, and the server reports which kernels it uses."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import numpy as np
import pytest
import yaml

from sdstream.engine.kernels.build import supported
from sdstream.engine.kernels.choice import choose, processor
from sdstream.system import available_cores
from tests.support.kernel_check import best_name
from tests.support.pictures import from_base64
from tests.support.servers import ServerProcess, running_server

BODY: dict[str, Any] = {"prompt": "a red circle above a blue square", "size": "128x128"}

#: Largest mean difference of a channel to ggml without the kernels, of 255.
MOST_DIFFERENCE = 0.6

pytestmark = pytest.mark.skipif(
    not supported() or choose(*processor(), "auto", lambda: False) is None,
    reason="there are no kernels for this processor",
)


def entry(name: str, **runtime: Any) -> dict[str, Any]:
    """Return an entry with the built-in model under another name."""
    return {
        "id": name,
        "family": "ovis_image",
        "files": {"model": "builtin:drawings"},
        "defaults": {"steps": 12, "cfg_scale": 3.0, "size": "128x128"},
        "size": {"min": 64, "max": 1024},
        "runtime": {"tae": True, "preview": "decode", **runtime},
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with one model for each kind of kernels."""
    folder = tmp_path_factory.mktemp("kernels")
    kinds = {name: entry(name, kernels=name) for name in ("auto", "exact", "off")}
    others = [entry("one-thread", threads=1), entry("attention", flash_attn=True)]
    others.append({**entry("several"), "replicas": "auto"})
    models = {"models": [*kinds.values(), *others]}
    (folder / "models.yaml").write_text(yaml.safe_dump(models))
    with running_server(folder, models=folder / "models.yaml", memory_mb=4000) as running:
        yield running


def drawn(server: ServerProcess, model: str, seed: int = 7) -> np.ndarray:
    """Generate an image; return its pixels."""
    answer = server.post({**BODY, "model": model, "seed": seed})
    assert answer.status_code == 200, answer.text
    return np.asarray(from_base64(answer.json()["data"][0]["b64_json"]), int)


@pytest.mark.parametrize("model", ["auto", "exact", "attention"])
@pytest.mark.parametrize("seed", [7, 8])
def test_pictures_are_those_of_the_runtime(server: ServerProcess, model: str, seed: int) -> None:
    """Images differ from those without kernels by rounding only, and are reproducible."""
    picture = drawn(server, model, seed)
    assert abs(picture - drawn(server, "off", seed)).mean() <= MOST_DIFFERENCE
    assert (drawn(server, model, seed) == picture).all()


def test_threads_do_not_change_a_byte(server: ServerProcess) -> None:
    """One thread and all threads give the same image."""
    assert (drawn(server, "one-thread") == drawn(server, "auto")).all()


def test_several_workers_generate_the_same_images(server: ServerProcess) -> None:
    """Parallel workers generate the same images as a single worker, although their numbers of
    threads change with the running jobs."""
    alone = [drawn(server, "auto", seed) for seed in range(3)]
    drawn(server, "several")
    with ThreadPoolExecutor(3) as pool:
        together = [*pool.map(lambda seed: drawn(server, "several", seed), range(3))]
    assert all((one == other).all() for one, other in zip(alone, together, strict=True))
    starts = server.metric("sdstream_worker_starts_total", model="several")
    assert starts > 1 or available_cores() == 1


def test_what_is_in_use_is_reported(server: ServerProcess) -> None:
    """/v1/models, /metrics and the log report the kernels in use."""
    auto = best_name()
    exact = auto.split()[0] + " f32"
    for model, name in {"auto": auto, "exact": exact, "off": "off"}.items():
        drawn(server, model)
        shown = httpx2.get(f"{server.url}/v1/models/{model}", timeout=10).json()
        assert shown["kernels"] == name
        assert server.metric("sdstream_worker_kernels", model=model, kernels=name) == 1
        assert any(
            line.endswith(f"kernels: {name}") for line in server.log_lines(f"model {model} ")
        )


def test_a_cancel_takes_effect_inside_an_operation(server: ServerProcess) -> None:
    """A job of a large image is cancelled, its worker keeps running, and the next image is
    correct."""
    before = drawn(server, "auto")
    starts = server.metric("sdstream_worker_starts_total")
    large = {**BODY, "model": "auto", "size": "1024x1024", "seed": 1}
    for pause in (0.3, 1.0, 2.0):
        job = httpx2.post(
            f"{server.url}/v1/images/generations",
            json=large, headers={"Prefer": "respond-async"}, timeout=30,
        ).json()  # fmt: skip
        url = f"{server.url}/v1/jobs/{job['id']}"
        while httpx2.get(url, timeout=10).json()["status"] in ("queued", "loading"):
            time.sleep(0.02)
        time.sleep(pause)
        httpx2.post(f"{url}/cancel", timeout=10)
        while (ending := httpx2.get(url, timeout=10).json())["status"] == "running":
            time.sleep(0.02)
        assert ending["status"] == "cancelled", ending
    assert (drawn(server, "auto") == before).all()
    assert server.metric("sdstream_worker_starts_total") == starts
