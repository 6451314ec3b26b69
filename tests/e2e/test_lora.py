"""LoRAs of the operator's folder, with the built-in model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import yaml

from tests.support.pictures import from_base64
from tests.support.servers import ServerProcess, running_server
from tests.support.upscalers import write_tensors
from tests.support.weight_files import ALONE, BROKEN, write_safetensors

BODY: dict[str, Any] = {"prompt": "a red circle", "size": "64x64", "seed": 7, "sample_steps": 4}
LAYER = "diffusion_model.double_blocks.0.img_attn.qkv"
#: Format of the checksum that kohya-ss' scripts write.
CHECKSUM = "0123456789abcdef" * 4


def write_lora(path: Path, shapes: Mapping[str, tuple[int, ...]], checksum: str = "") -> None:
    """Write a file with these tensors of pseudo-random values and the trainer's checksum."""
    random = np.random.default_rng(1)
    tensors = {name: random.normal(size=shape) * 0.3 for name, shape in shapes.items()}
    metadata = {"sshs_model_hash": checksum} if checksum else None
    write_tensors(path, {name: values.astype("<f4") for name, values in tensors.items()}, metadata)


def pair(layer: str, inner: int = 256, outer: int = 768) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a LoRA of rank 4 for one layer."""
    return {f"{layer}.lora_A.weight": (4, inner), f"{layer}.lora_B.weight": (outer, 4)}


#: Files that do not fit the built-in model, which has q8_0 weights -> the tensors and the end of
#: the error message.
UNFIT: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "foreign": (
        pair("diffusion_model.no_such_block.7.attn"),
        "does not fit this model: none of its 2 tensors has the name of a weight of the model.",
    ),
    "other-sides": (
        pair(LAYER, inner=320),
        "is for another model: its matrix for "
        "'model.diffusion_model.double_blocks.0.img_attn.qkv.weight' has 245760 elements, and the "
        "model's has 196608.",
    ),
    "loha": (
        {
            f"{LAYER}.{part}": (768, 4) if part.endswith("a") else (4, 256)
            for part in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
        },
        "contains a LoHa, which the runtime cannot apply to quantised weights "
        "('model.diffusion_model.double_blocks.0.img_attn.qkv.weight'); use this LoRA with the "
        "f16 file of the model.",
    ),
    "difference": (
        {f"{LAYER}.diff": (768, 256)},
        "contains a difference ('.diff'), which the runtime cannot apply to quantised weights "
        "('model.diffusion_model.double_blocks.0.img_attn.qkv.weight'); use this LoRA with the "
        "f16 file of the model.",
    ),
    "kronecker": (
        {
            f"{LAYER}.lokr_w1": (16, 16),
            f"{LAYER}.lokr_w2_a": (48, 4),
            f"{LAYER}.lokr_w2_b": (4, 16),
        },
        "contains a LoKr with factorised matrices, which the runtime cannot apply to a quantised "
        "model ('model.diffusion_model.double_blocks.0.img_attn.qkv.weight'); use this LoRA with "
        "the f16 file of the model.",
    ),
    "two-ranks": (
        {f"{LAYER}.lora_A.weight": (8, 256), f"{LAYER}.lora_B.weight": (1536, 4)},
        "is damaged: its two matrices for "
        "'model.diffusion_model.double_blocks.0.img_attn.qkv.weight' have different ranks, 4 and "
        "8.",
    ),
    "convolution": (
        {f"{LAYER}.lora_A.weight": (4, 256, 1, 1), f"{LAYER}.lora_B.weight": (768, 4, 1, 1)},
        "has matrices for 'model.diffusion_model.double_blocks.0.img_attn.qkv.weight' that do not "
        "have 2 dimensions, which the runtime cannot apply to a quantised model; use this LoRA "
        "with the f16 file of the model.",
    ),
    "peft": (
        pair("base_model.model.transformer.double_blocks.0.img_attn.qkv"),
        "does not fit this model: the runtime does not read names with the prefix "
        "'base_model.model.', as PEFT saves them; remove that prefix from the names in the "
        "file.",
    ),
}


#: Files that are not LoRAs -> the reason.
UNUSABLE = {
    "garbage": "is text, not a model",
    "vae": "is a VAE with 16 latent channels, not a LoRA",
    "no-shape": "is damaged: tensor 'a.weight' has the shape [32, 0, 4]",
    "old": "is a Python pickle, which is a program: only safetensors and GGUF are read",
}


@pytest.fixture(scope="module")
def lora_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with LoRAs that fit, fit in part or do not fit, and with files that are not
    LoRAs."""
    folder = tmp_path_factory.mktemp("lora")
    loras = folder / "loras"
    loras.mkdir()
    write_lora(loras / "bent.safetensors", pair(LAYER), CHECKSUM)
    strange = pair("diffusion_model.no_such_block.7.attn")
    write_lora(loras / "in-part.safetensors", {**pair(LAYER), **strange})
    write_lora(loras / "dora.safetensors", {**pair(LAYER), f"{LAYER}.dora_scale": (768, 1)})
    spoiled = {name: np.full(shape, np.nan, "<f4") for name, shape in pair(LAYER).items()}
    write_tensors(loras / "nan.safetensors", spoiled)
    for name, (shapes, _) in UNFIT.items():
        write_lora(loras / f"{name}.safetensors", shapes)
    (loras / "garbage.safetensors").write_bytes(b"garbage" * 100)
    write_safetensors(loras / "vae.safetensors", ALONE["vae"])
    (loras / "no-shape.gguf").write_bytes(BROKEN["no-shape"][0])
    (loras / "old.pt").write_bytes(b"\x80\x02pickle")
    (loras / "notes.txt").write_text("no LoRA")
    (loras / "styles").mkdir()
    write_lora(loras / "styles" / "ink.safetensors", pair(LAYER))
    (loras / "styles" / "loop").symlink_to(loras)
    with running_server(folder, lora_dir=loras, lora_in_prompt=True) as server:
        yield server


def test_civitai_finds_a_lora_by_its_hash(lora_server: ServerProcess) -> None:
    """The parameters text contains the start of the trainer's checksum, and the list contains all
    of it."""
    answer = lora_server.post({**BODY, "lora": [{"id": "bent"}, {"id": "dora"}]})
    text = from_base64(answer.json()["data"][0]["b64_json"]).info["parameters"]
    assert f'Lora hashes: "bent: {CHECKSUM[:12]}"' in text
    listed = httpx2.get(f"{lora_server.url}/sdapi/v1/loras").json()
    known = {lora["name"]: lora["metadata"] for lora in listed}
    assert known["bent"] == {"sshs_model_hash": CHECKSUM}
    assert known["dora"] == {}


def drawn(server: ServerProcess, *loras: dict[str, Any]) -> str:
    """Generate an image with these LoRAs; return it in base64."""
    answer = server.post({**BODY, "lora": [*loras]} if loras else BODY)
    assert answer.status_code == 200, answer.text
    assert answer.json()["parameters"].get("lora", []) == [*loras]
    picture: str = answer.json()["data"][0]["b64_json"]
    return picture


def test_a_lora_acts_by_its_scale_and_leaves_nothing_behind(lora_server: ServerProcess) -> None:
    """The scale of a LoRA changes the image, and the LoRA does not affect the next request."""
    plain = drawn(lora_server)
    strong = drawn(lora_server, {"id": "bent", "scale": 1.0})
    weak = drawn(lora_server, {"id": "bent", "scale": 0.25})
    assert len({plain, strong, weak}) == 3
    assert drawn(lora_server) == plain
    assert drawn(lora_server, {"id": "bent", "scale": 1.0}) == strong


def test_lora_modes(tmp_path: Path) -> None:
    """A LoRA acts on quantised weights beside them; it is not merged into them."""
    (tmp_path / "loras").mkdir()
    write_lora(tmp_path / "loras" / "bent.safetensors", pair(LAYER))
    entries = [
        {
            "id": mode,
            "family": "ovis_image",
            "files": {"model": "builtin:drawings"},
            "size": {"min": 64, "max": 512},
            "defaults": {"size": "64x64", "cfg_scale": 1.0},
            "runtime": {"tae": True, "preview": "decode", "lora_mode": mode},
        }
        for mode in ("at_runtime", "immediately")
    ]
    (tmp_path / "models.yaml").write_text(yaml.safe_dump({"models": entries}))
    with running_server(
        tmp_path, models=tmp_path / "models.yaml", lora_dir=tmp_path / "loras"
    ) as server:
        body = {**BODY, "model": "at_runtime"}
        assert server.post(body).content != server.post({**body, "lora": [{"id": "bent"}]}).content
        answer = server.post({**BODY, "model": "immediately", "lora": [{"id": "bent"}]})
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert message.startswith("The LoRA 'bent' cannot be merged into quantised weights ('")
    assert message.endswith("omit 'lora_mode: immediately' in the model's entry in models.yaml.")


def test_the_list_of_loras(lora_server: ServerProcess, native_server: ServerProcess) -> None:
    """The list contains the names of LoRAs without paths and the unusable files; without a folder
    it is empty."""
    answer = httpx2.get(f"{lora_server.url}/v1/loras").json()
    data = answer["data"]
    fitting = ["bent", "dora", "in-part", "nan", "styles/ink"]
    assert [lora["id"] for lora in data] == sorted([*fitting, *UNFIT])
    assert answer["unusable"] == [
        {"file": "garbage.safetensors", "error": UNUSABLE["garbage"]},
        {"file": "no-shape.gguf", "error": UNUSABLE["no-shape"]},
        {"file": "old.pt", "error": UNUSABLE["old"]},
        {"file": "vae.safetensors", "error": UNUSABLE["vae"]},
    ]
    assert httpx2.get(f"{native_server.url}/v1/loras").json()["data"] == []
    listed = httpx2.get(f"{lora_server.url}/sdapi/v1/loras").json()
    assert [lora["name"] for lora in listed] == [lora["id"] for lora in data]
    assert httpx2.get(f"{native_server.url}/sdapi/v1/loras").json() == []


@pytest.mark.parametrize(
    ("name", "sentence"),
    [(name, f"The LoRA '{name}' {end}") for name, (_, end) in UNFIT.items()],
)
def test_a_lora_that_does_not_fit_is_said_so(
    lora_server: ServerProcess, name: str, sentence: str
) -> None:
    """A request for a LoRA that the runtime would ignore or crash on is rejected; the next one
    succeeds."""
    answer = lora_server.post({**BODY, "lora": [{"id": name}]})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (400, "invalid_request_error")
    assert (error["reason"], error["message"]) == ("lora_unusable", sentence)
    assert lora_server.post(BODY).status_code == 200


def test_a_lora_that_fits_in_part(lora_server: ServerProcess) -> None:
    """A warning in the response reports which part of a LoRA was not applied."""
    whole = drawn(lora_server, {"id": "bent"} | {"scale": 1.0})
    for name, sentence in {
        "in-part": "was applied in part: 2 of its 4 tensors fit this model.",
        "dora": "was applied without its 1 DoRA scales, which the runtime does not read.",
    }.items():
        answer = lora_server.post({**BODY, "n": 2, "lora": [{"id": name}]}).json()
        assert answer["warnings"] == [f"The LoRA '{name}' {sentence}"]
        assert len(answer["data"]) == 2
    assert lora_server.post({**BODY, "lora": [{"id": "bent"}]}).json().get("warnings") is None
    assert drawn(lora_server, {"id": "bent", "scale": 1.0}) == whole


def test_a_lora_of_values_that_are_not_numbers(lora_server: ServerProcess) -> None:
    """A warning explains why the image has no content."""
    answer = lora_server.post({**BODY, "lora": [{"id": "nan"}]}).json()
    assert answer["warnings"] == [
        f"The LoRA 'nan' is damaged: its tensor '{LAYER}.lora_A.weight' contains NaN or infinite "
        "values, so the image may have a single colour or no content."
    ]


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_file_that_is_no_lora(lora_server: ServerProcess, name: str) -> None:
    """The request is rejected with the reason."""
    answer = lora_server.post({**BODY, "lora": [{"id": name}]})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == (
        f"'lora': the LoRA '{name}' cannot be used; its file {UNUSABLE[name]}."
    )


def test_a_lora_in_a_subfolder(lora_server: ServerProcess) -> None:
    """A request may omit the folder of a LoRA's name; the response contains the full name."""
    whole = lora_server.post({**BODY, "lora": [{"id": "styles/ink"}]}).json()
    short = lora_server.post({**BODY, "lora": [{"id": "ink"}]}).json()
    assert whole["parameters"]["lora"] == [{"id": "styles/ink", "scale": 1.0}]
    assert short["parameters"] == whole["parameters"]
    assert short["data"][0]["b64_json"] == whole["data"][0]["b64_json"]


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
    """An unknown LoRA, a path, a duplicate or an invalid field is rejected."""
    answer = lora_server.post({**BODY, "lora": lora})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith("lora")


def test_in_the_prompt(lora_server: ServerProcess) -> None:
    """A LoRA in the prompt is applied and removed from the prompt, as in AUTOMATIC1111."""
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
    """An invalid LoRA in the prompt is rejected, and the error names the field prompt."""
    answer = lora_server.post({**BODY, "prompt": f"a circle {word}"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")


def test_not_in_the_prompt_unless_allowed(native_server: ServerProcess) -> None:
    """A LoRA in the prompt is rejected unless lora_in_prompt is set."""
    answer = native_server.post({**BODY, "prompt": "a circle <lora:bent:1>"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")
    assert "send LoRAs in 'lora'" in answer.json()["error"]["message"]


def test_in_a_form(lora_server: ServerProcess) -> None:
    """A form contains the LoRAs as JSON in a text field."""
    form = {"prompt": "a", "steps": "2", "size": "64x64", "lora": '[{"id": "bent", "scale": 0.5}]'}
    files = {"image": httpx2.get(_image_of(lora_server)).content}
    answer = httpx2.post(f"{lora_server.url}/v1/images/edits", data=form, files=files, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.json()["parameters"]["lora"] == [{"id": "bent", "scale": 0.5}]


def _image_of(server: ServerProcess) -> str:
    url: str = server.post({**BODY, "response_format": "url"}).json()["data"][0]["url"]
    return url
