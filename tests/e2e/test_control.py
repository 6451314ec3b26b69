"""Options that only U-Nets support: a ControlNet, embeddings, clip_skip, and previews by a TAE.

The model is Stable Diffusion 1.5 at full shape with random weights. Its images are noise, so the
tests assert only that an option changes the image and does not affect later requests.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import webuiapi
import yaml
from PIL import Image, ImageDraw

from tests.conformance.shapes import control_net, tae
from tests.conformance.subjects import whole
from tests.conformance.write import write_gguf
from tests.support.servers import GENERATIONS, ServerProcess, running_server
from tests.support.upscalers import write_tensors

BODY: dict[str, Any] = {"prompt": "a red circle", "size": "64x64", "seed": 7, "sample_steps": 2}


def vectors(width: int, kind: str = "float32") -> dict[str, np.ndarray]:
    """Return an embedding of two vectors."""
    values = np.random.default_rng(5).normal(size=(2, width)).astype("float32")
    if kind == "uint16":  # bf16 is the upper half of a float32
        return {"emb_params": (values.view("uint32") >> 16).astype("uint16")}
    return {"emb_params": values.astype(kind)}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Stable Diffusion 1.5 with a ControlNet, a TAE for its previews, and five embeddings."""
    folder = tmp_path_factory.mktemp("sd1")
    files = {"model": whole("sd1")()["model"]}
    files |= {"control_net": control_net("sd1").tensors, "tae": tae(4).tensors}
    entry: dict[str, Any] = {"id": "sd1", "family": "sd1", "defaults": {"size": "64x64"}}
    entry["files"] = {name: str(folder / f"{name}.gguf") for name in files}
    entry["runtime"] = {"preview": "tae"}
    for name, shapes in files.items():
        write_gguf(Path(entry["files"][name]), shapes)
    (folder / "models.yaml").write_text(yaml.safe_dump({"models": [entry]}))
    embeddings = folder / "embeddings"
    embeddings.mkdir()
    write_tensors(embeddings / "Glimmer.safetensors", vectors(768))
    write_tensors(embeddings / "half.safetensors", vectors(768, "float16"))
    write_tensors(embeddings / "brain.safetensors", vectors(768, "uint16"))
    write_tensors(embeddings / "sd2only.safetensors", vectors(1024))
    (embeddings / "garbage.safetensors").write_bytes(b"garbage" * 100)
    with running_server(
        folder, models=folder / "models.yaml", embedding_dir=embeddings, cache_dir=folder / "cache"
    ) as running:
        yield running


def drawn(server: ServerProcess, **options: Any) -> np.ndarray:
    """Generate an image; return its pixels."""
    return pixels(server.post({**BODY, **options}))


def pixels(answer: httpx2.Response) -> np.ndarray:
    """Return the pixels of the first image of a response."""
    assert answer.status_code == 200, answer.text
    file = io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"]))
    return np.asarray(Image.open(file).convert("RGB"), int)


def controlled(server: ServerProcess, picture: bytes, **fields: str) -> httpx2.Response:
    """Send a generation with a control image."""
    form = {name: str(value) for name, value in {**BODY, **fields}.items()}
    files = {"control": ("control.png", picture, "image/png")}
    return httpx2.post(server.url + GENERATIONS, data=form, files=files, timeout=100)


def square(inset: int) -> bytes:
    """Return a PNG of a white square on black."""
    picture = Image.new("RGB", (64, 64))
    ImageDraw.Draw(picture).rectangle((inset, inset, 63 - inset, 63 - inset), fill="white")
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def test_a_control_picture_acts_and_leaves_nothing_behind(server: ServerProcess) -> None:
    """The control image, its strength and its edges change the result, but not later requests;
    strength 0 has no effect."""
    plain = drawn(server)
    small, large = (pixels(controlled(server, square(inset))) for inset in (24, 4))
    weak = pixels(controlled(server, square(4), control_strength="0.1"))
    none = pixels(controlled(server, square(4), control_strength="0"))
    canny = controlled(server, square(4), control_canny="true")
    told = canny.json()["parameters"]
    assert (told["control_strength"], told["control_canny"]) == (0.9, True)
    edges = pixels(canny)
    different = {picture.tobytes() for picture in (plain, small, large, weak, edges)}
    assert len(different) == 5
    assert abs(none - plain).max() <= 1
    assert (drawn(server) == plain).all()


def test_control_on_edits_and_as_json(server: ServerProcess) -> None:
    """An edit accepts a control image as one more file; a control image in JSON is rejected."""
    form = {name: str(value) for name, value in BODY.items()}
    files = {"image": ("a.png", square(8)), "control": ("c.png", square(20))}
    url = f"{server.url}/v1/images/edits"
    both = httpx2.post(url, data=form, files=files, timeout=100)
    alone = httpx2.post(url, data=form, files={"image": files["image"]}, timeout=100)
    assert (pixels(both) != pixels(alone)).any()
    answer = server.post({**BODY, "control": "iVBORw0KGgo="})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "control")
    assert "uploaded file" in answer.json()["error"]["message"]


@pytest.mark.parametrize("option", ["control_strength", "control_canny"])
def test_its_options_need_a_control_picture(server: ServerProcess, option: str) -> None:
    """Options of the control image are rejected without a control image."""
    answer = server.post({**BODY, option: 1 if option == "control_strength" else True})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, option)


def test_webuiapis_units(server: ServerProcess) -> None:
    """webuiapi lists the ControlNet and generates the same image as the native route."""
    api = webuiapi.WebUIApi(baseurl=f"{server.url}/sdapi/v1", sampler="Euler a", steps=2)
    assert api.controlnet_model_list() == ["control_net"]
    assert api.controlnet_module_list() == ["none", "canny"]
    control = Image.open(io.BytesIO(square(4)))

    def follow(model: str) -> webuiapi.WebUIApiResult:
        unit = webuiapi.ControlNetUnit(image=control, weight=0.9, model=model)
        # The client's default is one dictionary for all calls, which would keep the unit.
        same = {"width": 64, "height": 64, "seed": 7, "cfg_scale": 7, "alwayson_scripts": {}}
        return api.txt2img(prompt=BODY["prompt"], controlnet_units=[unit], **same)

    native = controlled(server, square(4), sampler="euler_a", cfg_scale="7")
    assert (np.asarray(follow("control_net [0123abcd]").image) == pixels(native)).all()
    with pytest.raises(RuntimeError, match=r"is .*control_net.*, not .*depth"):
        follow("depth")


def test_a_model_without_one(native_server: ServerProcess) -> None:
    """A control image is rejected for a model without a ControlNet."""
    answer = controlled(native_server, square(8))
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "The model 'embedded' has no ControlNet."


def test_embeddings_are_words_of_the_prompt(server: ServerProcess) -> None:
    """Names of embeddings are case-insensitive, vectors may be f32, f16 or bf16, and files that do
    not fit the model are ignored with a message in the log."""
    model = httpx2.get(f"{server.url}/v1/models/sd1").json()
    assert model["embeddings"] == ["glimmer", "brain", "half"]
    plain = drawn(server)
    glimmer = drawn(server, prompt="a red circle, glimmer")
    assert (glimmer != plain).any()
    assert (drawn(server, prompt="a red circle, Glimmer") == glimmer).all()
    # The same values with less precision give nearly the same image.
    for word, tolerance in (("half", 2), ("brain", 24)):
        nearly = drawn(server, prompt=f"a red circle, {word}")
        assert 0 < abs(nearly - plain).mean() > 4 * abs(nearly - glimmer).mean(), word
        assert abs(nearly - glimmer).mean() < tolerance, word
    assert (drawn(server) == plain).all()
    log = server.log.read_text()
    assert "'sd2only' is ignored: it is 1024 wide and the model requires 768" in log
    assert "'garbage' is ignored: it is text, not a model" in log


def test_clip_skip_acts(server: ServerProcess) -> None:
    """clip_skip changes the image of its request only."""
    plain = drawn(server)
    assert (drawn(server, clip_skip=2) != plain).any()
    assert (drawn(server) == plain).all()


def test_automatic1111s_clients_have_both(server: ServerProcess) -> None:
    """AUTOMATIC1111's routes list the embeddings and set clip_skip for one or all later
    requests."""
    routes = f"{server.url}/sdapi/v1"
    listed = httpx2.get(f"{routes}/embeddings").json()
    assert list(listed["loaded"]) == ["glimmer", "brain", "half"]

    def picture(clip_skip: int, **body: Any) -> np.ndarray:
        """Generate with txt2img; check the clip_skip that the response reports."""
        same = {"prompt": BODY["prompt"], "seed": 7, "steps": 2, "width": 64, "height": 64}
        answer = httpx2.post(f"{routes}/txt2img", json={**same, **body}, timeout=100).json()
        assert json.loads(answer["info"])["clip_skip"] == clip_skip
        image = Image.open(io.BytesIO(base64.b64decode(answer["images"][0])))
        assert ("Clip skip: 2" in image.info["parameters"]) == (clip_skip == 2)
        return np.asarray(image)

    name = "CLIP_stop_at_last_layers"
    plain = picture(1)
    skipped = picture(2, override_settings={name: 2})
    assert (skipped != plain).any()
    httpx2.post(f"{routes}/options", json={name: 2}).raise_for_status()
    assert httpx2.get(f"{routes}/options").json()[name] == 2
    assert (picture(2) == skipped).all()
    assert (picture(1, override_settings={name: 1}) == plain).all()
    httpx2.post(f"{routes}/options", json={name: 1}).raise_for_status()
    assert (picture(1) == plain).all()


def test_previews_of_a_tiny_autoencoder(server: ServerProcess) -> None:
    """Previews by a TAE have the size of the image; those by a projection have an eighth of it."""
    body = {**BODY, "sample_steps": 3, "stream": True, "stream_options": {"preview": True}}
    sizes = set()
    with httpx2.stream("POST", server.url + GENERATIONS, json=body, timeout=100) as answer:
        for line in answer.iter_lines():
            if '"preview":true' in line:
                data = json.loads(line.removeprefix("data: "))["data"][0]["b64_json"]
                sizes.add(Image.open(io.BytesIO(base64.b64decode(data))).size)
    assert sizes == {(64, 64)}


def test_the_device_of_a_model(native_server: ServerProcess) -> None:
    """A loaded model reports the name of the processor that it uses."""
    model = httpx2.get(f"{native_server.url}/v1/models/embedded").json()
    assert model["device"] == "cpu"
    processor = Path("/proc/cpuinfo").read_text()
    if "model name" in processor:  # some ARM kernels name no processor
        assert model["device_name"]
        assert model["device_name"] in processor


def test_the_options_of_a_model(server: ServerProcess, native_server: ServerProcess) -> None:
    """A model lists the options that it supports, with their bounds and defaults."""
    unet = httpx2.get(f"{server.url}/v1/models/sd1").json()["options"]
    transformer = httpx2.get(f"{native_server.url}/v1/models/embedded").json()["options"]
    only = {"clip_skip", "control_strength", "control_canny"}
    assert only <= unet.keys()
    assert not only & transformer.keys()
    assert {"flow_shift", "slg_scale", "slg_layers"} <= transformer.keys() - unet.keys()
    assert not {"lora", "guidance", "prompt", "previews"} & unet.keys()
    assert unet["width"]["multipleOf"] == 64
    assert transformer["width"] == {
        "type": "integer",
        "description": "Width in pixels; with height, instead of size.",
        "minimum": 16,
        "maximum": 1536,
        "multipleOf": 1,
        "default": 128,
    }
    assert "ays" in unet["schedule"]["enum"]
    assert "ays" not in transformer["schedule"]["enum"]
    assert transformer["cfg_scale"] == {
        "type": "number",
        "description": "Classifier-free guidance.",
        "minimum": 0,
        "maximum": 30,
        "default": 2.0,
    }
