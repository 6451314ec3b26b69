"""LoRAs of the operator's folder, on the embedded model."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from tests.support.servers import ServerProcess, running_server
from tests.support.weight_files import ALONE, BROKEN, write_safetensors

BODY: dict[str, Any] = {"prompt": "a red circle", "size": "64x64", "seed": 7, "sample_steps": 4}
LAYER = "diffusion_model.double_blocks.0.img_attn.qkv"


def write_lora(path: Path, layer: str) -> None:
    """A LoRA of rank 4 for one layer of 256 to 768, drawn from a seed."""
    random = np.random.default_rng(1)
    tensors = {
        f"{layer}.lora_A.weight": random.normal(size=(4, 256)) * 0.3,
        f"{layer}.lora_B.weight": random.normal(size=(768, 4)) * 0.3,
    }
    header, data = {}, b""
    for name, values in tensors.items():
        raw = values.astype("<f4").tobytes()
        place = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": "F32", "shape": values.shape, "data_offsets": place}
        data += raw
    head = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + data)


@pytest.fixture(scope="module")
def lora_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with one LoRA that fits, one that does not, and some that are none."""
    folder = tmp_path_factory.mktemp("lora")
    loras = folder / "loras"
    loras.mkdir()
    write_lora(loras / "bent.safetensors", LAYER)
    write_lora(loras / "foreign.safetensors", "diffusion_model.no_such_block.7.attn")
    (loras / "garbage.safetensors").write_bytes(b"garbage" * 100)
    write_safetensors(loras / "vae.safetensors", ALONE["vae"])
    (loras / "no-shape.gguf").write_bytes(BROKEN["no-shape"][0])
    (loras / "notes.txt").write_text("no LoRA")
    with running_server(folder, lora_dir=loras, lora_in_prompt=True) as server:
        yield server


def drawn(server: ServerProcess, *loras: dict[str, Any]) -> str:
    """The picture in base64, with these LoRAs."""
    answer = server.post({**BODY, "lora": [*loras]} if loras else BODY)
    assert answer.status_code == 200, answer.text
    assert answer.json()["parameters"].get("lora", []) == [*loras]
    picture: str = answer.json()["data"][0]["b64_json"]
    return picture


def test_a_lora_acts_by_its_scale_and_leaves_nothing_behind(lora_server: ServerProcess) -> None:
    """Each scale is a picture of its own, and the next request is as if it never was."""
    plain = drawn(lora_server)
    strong = drawn(lora_server, {"id": "bent", "scale": 1.0})
    weak = drawn(lora_server, {"id": "bent", "scale": 0.25})
    assert len({plain, strong, weak}) == 3
    assert drawn(lora_server) == plain
    assert drawn(lora_server, {"id": "bent", "scale": 1.0}) == strong


def test_the_list_of_loras(lora_server: ServerProcess, native_server: ServerProcess) -> None:
    """Names without paths; without a folder there are none."""
    data = httpx2.get(f"{lora_server.url}/v1/loras").json()["data"]
    assert [lora["id"] for lora in data] == ["bent", "foreign", "garbage", "no-shape", "vae"]
    assert httpx2.get(f"{native_server.url}/v1/loras").json()["data"] == []
    listed = httpx2.get(f"{lora_server.url}/sdapi/v1/loras").json()
    assert [lora["name"] for lora in listed] == [lora["id"] for lora in data]
    assert httpx2.get(f"{native_server.url}/sdapi/v1/loras").json() == []


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("foreign", "A LoRA of the request does not fit this model."),
        ("garbage", "The LoRA 'garbage' is text, not a model."),
        ("vae", "The LoRA 'vae' is a VAE with 16 latent channels, not a LoRA."),
        ("no-shape", "The LoRA 'no-shape' is damaged: tensor 'a.weight' has the shape [32, 0, 4]."),
    ],
)
def test_a_lora_that_does_not_fit_is_said_so(
    lora_server: ServerProcess, name: str, sentence: str
) -> None:
    """The runtime would draw without it, or die; here the job fails, and the next does not."""
    answer = lora_server.post({**BODY, "lora": [{"id": name}]})
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == sentence
    assert lora_server.post(BODY).status_code == 200


@pytest.mark.parametrize(
    "lora",
    [
        [{"id": "nobody"}],
        [{"id": "../loras/bent"}],
        [{"id": "bent.txt"}],
        [{"id": ""}],
        [{"id": "bent"}, {"id": "bent"}],
        [{"id": "bent", "scale": 11}],
        [{"id": "bent", "path": "/etc/passwd"}],
        "bent",
    ],
)
def test_bad_choices(lora_server: ServerProcess, lora: Any) -> None:
    """Never a path, and never in silence."""
    answer = lora_server.post({**BODY, "lora": lora})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith("lora")


def test_in_the_prompt(lora_server: ServerProcess) -> None:
    """As AUTOMATIC1111 has it: the word is gone from the prompt, and the LoRA acts."""
    named = drawn(lora_server, {"id": "bent", "scale": 0.5})
    for prompt in ("a red circle <lora:bent:0.5>", "<lora:bent:0.5>a red circle"):
        answer = lora_server.post({**BODY, "prompt": prompt}).json()
        assert answer["data"][0]["b64_json"] == named
        assert answer["parameters"]["prompt"] == "a red circle"
        assert answer["parameters"]["lora"] == [{"id": "bent", "scale": 0.5}]
    api = {"prompt": "a <lora:bent>", "width": 64, "height": 64, "steps": 2}
    answer = httpx2.post(f"{lora_server.url}/sdapi/v1/txt2img", json=api, timeout=60)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    "word",
    [
        "<lora:nobody:1>",
        "<lora:bent:much>",
        "<lora:bent:1><lora:bent>",
        "<lora:/etc/passwd:1>",
        "<lora:../loras/bent>",
    ],
)
def test_bad_words_in_the_prompt(lora_server: ServerProcess, word: str) -> None:
    """They are options, and name the prompt."""
    answer = lora_server.post({**BODY, "prompt": f"a circle {word}"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")


def test_not_in_the_prompt_unless_allowed(native_server: ServerProcess) -> None:
    """Else it would be drawn as a word."""
    answer = native_server.post({**BODY, "prompt": "a circle <lora:bent:1>"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")
    assert "send LoRAs in 'lora'" in answer.json()["error"]["message"]


def test_in_a_form(lora_server: ServerProcess) -> None:
    """As JSON in a text field, and in the query of an EventSource."""
    form = {"prompt": "a", "steps": "2", "size": "64x64", "lora": '[{"id": "bent", "scale": 0.5}]'}
    files = {"image": httpx2.get(_image_of(lora_server)).content}
    answer = httpx2.post(f"{lora_server.url}/v1/images/edits", data=form, files=files, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.json()["parameters"]["lora"] == [{"id": "bent", "scale": 0.5}]


def _image_of(server: ServerProcess) -> str:
    url: str = server.post({**BODY, "response_format": "url"}).json()["data"][0]["url"]
    return url
