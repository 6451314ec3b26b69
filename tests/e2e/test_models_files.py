"""Damaged model files and invalid catalogues, with the real runtime."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from gguf import GGUFReader, GGUFWriter

from tests.support.servers import ServerProcess, running_server, wait_until
from tests.support.weight_files import BROKEN, UNFIT

QUICK: dict[str, Any] = {"prompt": "a red circle", "size": "64x64", "sample_steps": 2}

#: Damaged copies of the built-in model -> the text that the error must contain.
DAMAGES = {
    "half": "'model' ends in the middle of tensor 'text_encoders.llm.model.embed_tokens.weight'",
    "no-llm": "Ovis-Image needs llm, which no file has",
    "no-transformer": "'model' is a model without its diffusion model, not a whole model",
    "no-layer": "tensor 'text_encoders.llm.model.layers.0.mlp.up_proj.weight' not in model file.",
}
#: A selection of BROKEN; all of them would be too many for one server.
BROKEN_HERE = (
    "empty", "html", "git-lfs", "picture", "torch", "pickle", "zeros", "garbage", "header-cut",
    "data-cut", "future", "big-endian", "no-tensors", "many-tensors", "long-name", "long-list",
    "alignment-in-words", "huge-shape", "no-shape", "strange-type", "far-away", "endless-header",
    "deep-json", "wrong-length", "lying-header",
)  # fmt: skip
UNFIT_HERE = (
    "lora-as-model", "llm-as-model", "flux-as-model", "flux-alone", "flux-without-t5",
    "flux-without-norms", "swapped", "scaled-fp8", "narrow-llm", "unet-apart", "video",
)  # fmt: skip


def said_of(model: str) -> str:
    """Return the text that the error of a model must contain."""
    if model in BROKEN_HERE:
        return BROKEN[model][1]
    return UNFIT[model][2] if model in UNFIT_HERE else DAMAGES[model]


def entries(folder: Path, good: Path) -> list[dict[str, Any]]:
    """Return a catalogue's entries, one for each kind of damage."""
    (folder / "half").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    _copy_gguf(good, folder / "no-llm", lambda name: "llm" not in name)
    _copy_gguf(good, folder / "no-transformer", lambda name: "diffusion_model" not in name)
    _copy_gguf(good, folder / "no-layer", lambda name: "llm" not in name or "up_proj" not in name)
    found = [entry(name, model=folder / name) for name in DAMAGES]
    for name in BROKEN_HERE:
        (folder / name).write_bytes(BROKEN[name][0])
        found.append(entry(name, model=folder / name))
    for name in UNFIT_HERE:
        family, write, _ = UNFIT[name]
        (folder / f"{name}-parts").mkdir()
        found.append(entry(name, family, **write(folder / f"{name}-parts")))
    return found


def entry(name: str, family: str = "ovis_image", **files: Path) -> dict[str, Any]:
    """Return one entry of the catalogue."""
    return {
        "id": name,
        "family": family,
        "files": {component: str(path) for component, path in files.items()},
        "defaults": {"size": "64x64", "steps": 2, "cfg_scale": 1.0},
        "runtime": {"tae": family == "ovis_image" and "vae" not in files},
    }


def _copy_gguf(source: Path, target: Path, wanted: Any) -> None:
    writer = GGUFWriter(target, "flux")
    for tensor in GGUFReader(source).tensors:
        if wanted(tensor.name):
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def catalogue(folder: Path, models: list[dict[str, Any]], default: str) -> Path:
    """Write a models.yaml with these entries."""
    target = folder / "models.yaml"
    target.write_text(yaml.safe_dump({"default": default, "models": models}))
    return target


@pytest.fixture(scope="module")
def damaged_server(
    tmp_path_factory: pytest.TempPathFactory, builtin_file: Path
) -> Iterator[ServerProcess]:
    """A server whose catalogue contains damaged files; its default model lacks a layer, which is
    found only when the model is loaded."""
    folder = tmp_path_factory.mktemp("damaged")
    found = [*entries(folder, builtin_file), entry("good", model=builtin_file)]
    models = catalogue(folder, [*found, entry("late", model=folder / "empty")], "no-layer")
    with running_server(folder, models=models, wait=False) as server:
        wait_until(lambda: _state(server, "no-layer") == "failed", 30, "it goes on trying")
        yield server


def _state(server: ServerProcess, model: str) -> str:
    try:
        return str(httpx2.get(f"{server.url}/v1/models/{model}").json()["state"])
    except httpx2.TransportError:
        return ""


def test_a_damaged_default_model_is_told(damaged_server: ServerProcess) -> None:
    """The server keeps running and reports in /readyz and in the model's entry why it is not
    ready."""
    assert httpx2.get(f"{damaged_server.url}/livez").status_code == 200
    answer = httpx2.get(f"{damaged_server.url}/readyz")
    assert answer.status_code == 503
    assert (answer.json()["status"], answer.json()["model"]) == ("failed", "no-layer")
    assert DAMAGES["no-layer"] in answer.json()["message"]
    model = httpx2.get(f"{damaged_server.url}/v1/models/no-layer").json()
    assert DAMAGES["no-layer"] in model["error"]


@pytest.mark.parametrize(
    ("location", "sentence"),
    [
        ("empty.gguf", "The default model 'mine' cannot be used. The file of 'model' is empty."),
        ("${NO_SUCH_FOLDER}/m.gguf", "the environment variable NO_SUCH_FOLDER is not set"),
        ("~/no-such-file.gguf", "no such file: /"),
    ],
)
def test_a_default_model_that_cannot_be_used_ends_the_start(
    tmp_path: Path, location: str, sentence: str
) -> None:
    """A default model with a wrong path or header ends the start with exit code 78 and a
    message."""
    (tmp_path / "empty.gguf").touch()
    models = catalogue(tmp_path, [entry("mine", model=Path(location))], "mine")
    command = [sys.executable, "-m", "sdstream", "serve", "--models", str(models), "--port", "0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=100, check=False)
    assert done.returncode == 78
    assert sentence in done.stderr.decode()


def test_variables_in_locations(
    tmp_path: Path, builtin_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """${NAME} in a path is expanded."""
    monkeypatch.setenv("WEIGHTS", str(builtin_file.parent))
    location = Path("${WEIGHTS}") / builtin_file.name
    models = catalogue(tmp_path, [entry("mine", model=location)], "mine")
    with running_server(tmp_path, models=models) as server:
        assert server.post(QUICK).status_code == 200


@pytest.mark.parametrize("model", [*DAMAGES, *BROKEN_HERE, *UNFIT_HERE])
def test_a_damaged_file_is_a_503(damaged_server: ServerProcess, model: str) -> None:
    """The response names the component and what is wrong with it, but not the file's path; the
    server keeps running."""
    for _ in range(2):  # the second response comes from the cached error
        answer = damaged_server.post({**QUICK, "model": model})
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) > 0
        error = answer.json()["error"]
        assert (error["type"], error["reason"]) == ("unavailable_error", "model_unavailable")
        assert said_of(model) in error["message"]
        assert "/" not in error["message"]
        assert ".gguf" not in error["message"]
    told = httpx2.get(f"{damaged_server.url}/v1/models/{model}").json()
    assert said_of(model) in told["error"]
    assert damaged_server.log_lines("died of") == []
    assert damaged_server.process.poll() is None
    assert httpx2.get(f"{damaged_server.url}/livez").status_code == 200
    assert _state(damaged_server, model) == "failed"


def test_the_good_one_among_them_draws(damaged_server: ServerProcess) -> None:
    """An intact model works beside damaged ones."""
    assert damaged_server.post({**QUICK, "model": "good"}).status_code == 200
    assert _state(damaged_server, "good") == "ready"


def test_one_request_for_a_damaged_model_does_not_end_readiness(
    builtin_file: Path, tmp_path: Path
) -> None:
    """A request for a damaged model makes the server unready only until the default model is loaded
    again, so that a load balancer keeps the server."""
    file = tmp_path / "empty.gguf"
    file.touch()
    found = [entry("good", model=builtin_file), entry("empty", model=file)]
    models = catalogue(tmp_path, found, "good")
    with running_server(tmp_path, models=models) as server:
        assert server.post({**QUICK, "model": "empty"}).status_code == 503
        server.wait_ready(6)


def test_a_stream_that_waits_for_a_damaged_model_hears_of_it(damaged_server: ServerProcess) -> None:
    """A stream that waits for the model to load ends with the error frames and [DONE]."""
    text = damaged_server.post({**QUICK, "model": "late", "stream": True}).text
    *_, line, data, done, rest = text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert line.startswith("error: {")
    assert json.loads(data.removeprefix("data: "))["error"]["reason"] == "model_unavailable"


# --- models.yaml --------------------------------------------------------------------------------

HEAD = "models:\n  - id: a\n    family: ovis_image\n"
WRONG = {
    "unknown key": (
        HEAD + "    files: {model: 'builtin:drawings'}\n    colour: red\n",
        5,
        "colour",
    ),
    "unknown family": ("models:\n  - id: a\n    family: x\n    files: {model: x}\n", 3, "family"),
    "missing file": (HEAD + "    files:\n      model: nowhere.gguf\n", 5, "no such file"),
    "unknown builtin": (HEAD + "    files:\n      model: builtin:x\n", 5, "built-in"),
    "no files": (HEAD, 2, "files"),
    "twice": (HEAD + "    family: flux\n", 4, "duplicate"),
    "no YAML": ("models: [\n", 2, ""),
    "empty": ("", 1, ""),
    "default unknown": ("default: b\n" + HEAD + "    files: {model: x}\n", 1, "b"),
}


@pytest.mark.parametrize(("text", "line", "word"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_catalogue_names_its_line(tmp_path: Path, text: str, line: int, word: str) -> None:
    """The server exits with 78, and the error contains the number of the line."""
    models = tmp_path / "models.yaml"
    models.write_text(text)
    result = _serve("--models", str(models), "--data-dir", str(tmp_path))
    assert result.returncode == 78
    assert "Traceback" not in result.stderr
    assert f"line {line}: " in result.stderr
    assert word in result.stderr


def test_no_catalogue_at_all(tmp_path: Path) -> None:
    """The server also exits with 78 if models.yaml does not exist or is not text."""
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name in ("nowhere.yaml", "binary"):
        assert _serve("--models", str(tmp_path / name)).returncode == 78


def _serve(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sdstream", "serve", *flags],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )
