"""The models in the documents of other systems."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sdstream.core.catalog import Catalog
from sdstream.core.runtime_options import WTYPES
from sdstream.weights import llama_box

ROOT = Path(__file__).parents[3]
CATALOG = Catalog.parse((ROOT / "models.yaml").read_text())
DOCUMENT = (ROOT / "docs/models/catalog.md").read_text()

#: Xinference: model -> its values of gguf_quantization.
XINFERENCE = {
    "FLUX.1-dev": "F16 Q2_K Q3_K_S Q4_0 Q4_1 Q4_K_S Q5_0 Q5_1 Q5_K_S Q6_K Q8_0",
    "FLUX.1-schnell": "F16 Q2_K Q3_K_S Q4_0 Q4_1 Q4_K_S Q5_0 Q5_1 Q5_K_S Q6_K Q8_0",
    "sd3.5-medium": "F16 Q3_K_M Q3_K_S Q4_0 Q4_1 Q4_K_M Q4_K_S Q5_0 Q5_1 Q5_K_M Q5_K_S Q6_K Q8_0",
    "sd3.5-large": "F16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0",
    "sd3.5-large-turbo": "F16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0",
}
#: Xinference's default quantisation: model -> whether the denoiser has 4 bits
#: (transformer_nf4). The text encoder is always quantised (quantize_text_encoder).
XINFERENCE_DEFAULTS = {
    "FLUX.1-dev": False,
    "FLUX.1-schnell": False,
    "sd3-medium": False,
    "sd3.5-medium": False,
    "sd3.5-large": True,
    "sd3.5-large-turbo": True,
    "Qwen-Image": False,
}
#: GPUStack's model -> the entry of the catalogue; None if the runtime does not support it.
GPUSTACK = {
    "stable-diffusion-3.5-large-turbo": "sd3.5-large-turbo",
    "stable-diffusion-3.5-large": "sd3.5-large",
    "stable-diffusion-3.5-medium": "sd3.5-medium",
    "stable-diffusion-3-medium": "sd3-medium",
    "FLUX.1-mini": "FLUX.1-mini",
    "FLUX.1-lite": "FLUX.1-lite",
    "FLUX.1-dev": "FLUX.1-dev",
    "FLUX.1-schnell": "FLUX.1-schnell",
    "sdxl-turbo": "sdxl-turbo",
    "stable-diffusion-xl-refiner-1.0": None,
    "stable-diffusion-xl-base-1.0": "sdxl-base-1.0",
    "sd-turbo": "sd-turbo",
    "stable-diffusion-2-1": "stable-diffusion-2-1",
    "stable-diffusion-v1-5": "stable-diffusion-v1-5",
    "stable-diffusion-v1-4": "stable-diffusion-v1-4",
}
#: The models of Xinference's text-to-image API -> the entry of the catalogue; None if the runtime
#: does not support the model.
XINFERENCE_MODELS = {
    "sd-turbo": "sd-turbo",
    "sdxl-turbo": "sdxl-turbo",
    "stable-diffusion-v1.5": "stable-diffusion-v1-5",
    "stable-diffusion-xl-base-1.0": "sdxl-base-1.0",
    "sd3-medium": "sd3-medium",
    "sd3.5-medium": "sd3.5-medium",
    "sd3.5-large": "sd3.5-large",
    "sd3.5-large-turbo": "sd3.5-large-turbo",
    "FLUX.1-schnell": "FLUX.1-schnell",
    "FLUX.1-dev": "FLUX.1-dev",
    "Flux.1-Kontext-dev": "FLUX.1-Kontext-dev",
    "Kolors": None,
    "hunyuandit-v1.2": None,
    "hunyuandit-v1.2-distilled": None,
    "cogview4": None,
    "Qwen-Image": "Qwen-Image",
}
LISTED = {**GPUSTACK, **XINFERENCE_MODELS}
#: Other names of these models in requests of clients -> the entry.
NAMES = {
    "TencentARC/FLUX.1-mini": "FLUX.1-mini",
    "Freepik/FLUX.1-lite": "FLUX.1-lite",
    "black-forest-labs/FLUX.1-dev": "FLUX.1-dev",
    "stabilityai/stable-diffusion-3.5-large": "sd3.5-large",
    "CompVis/stable-diffusion-v1-4": "stable-diffusion-v1-4",
} | {name: entry for name, entry in LISTED.items() if entry is not None}


def described(model: str) -> dict[str, str]:
    """Return the quantisations that a model lacks in the document, with their substitutes."""
    rows = re.findall(r"^- (`\w+`|no type) for (.*?) of ([^:\n]*)", DOCUMENT, re.MULTILINE)
    return {
        quant: how
        for how, quants, models in rows
        if model in re.findall(r"[\w.-]+", models)
        for quant in re.findall(r"`(\w+)`", quants)
    }


@pytest.mark.parametrize("model", XINFERENCE)
def test_quantisations_of_xinference(model: str) -> None:
    """Each quantisation is in the catalogue, or the document contains a substitute."""
    have = {quant.upper() for quant in CATALOG.entries[model].quants or ()}
    lacking = {*XINFERENCE[model].split()} - have
    assert lacking == {*described(model)} - have
    for how in (described(model)[quant] for quant in lacking):
        assert how == "no type" or how.strip("`") in WTYPES


@pytest.mark.parametrize("model", XINFERENCE_DEFAULTS)
def test_quantisation_by_default(model: str) -> None:
    """The default files are quantised at least as strongly as Xinference's."""
    usual = CATALOG.entries[model].variants[0]
    files = {name: file.path.rpartition("/")[2] for name, file in usual.hub_files.items()}
    quant = re.compile(r"[-.]q([2-8])_", re.IGNORECASE)
    # sd3-medium is one file, in which the text encoders are quantised too.
    encoder = files.get("t5xxl") or files.get("llm") or files["model"]
    assert quant.search(encoder), f"{encoder} is not quantised"
    if XINFERENCE_DEFAULTS[model]:
        denoiser = quant.search(files.get("diffusion_model") or files["model"])
        assert denoiser is not None
        assert int(denoiser[1]) <= 5
    small = [v.quant for v in CATALOG.entries[model].variants if re.match("q[2-4]_", v.quant, re.I)]
    assert small, "transformer_nf4 has no counterpart"


@pytest.mark.parametrize("title", LISTED)
def test_listed_models(title: str) -> None:
    """Each model is an entry, or the document contains the reason why not."""
    row = next(line for line in DOCUMENT.splitlines() if line.startswith("|") and title in line)
    entry = LISTED[title]
    if entry is None:
        assert "the runtime does not support" in row
    else:
        assert f"`{entry}`" in row
        assert entry in CATALOG.entries


@pytest.mark.parametrize("name", NAMES)
def test_the_names_of_their_clients(name: str) -> None:
    """A client that names a model as in these documents gets the catalogue's entry."""
    entry = NAMES[name]
    assert CATALOG.why_missing(name).startswith(
        f"The model '{name}' is in the catalogue but not downloaded: 'sdstream pull {name}'"
    )
    variant = CATALOG.variant(name)
    assert variant is not None
    assert variant.entry.id == entry


@pytest.mark.parametrize("name", [name for name, entry in LISTED.items() if entry is None])
def test_models_that_the_runtime_does_not_support(name: str) -> None:
    """The server and ``sdstream pull`` say why the catalogue does not have such a model."""
    for told in (CATALOG.why_missing(name), CATALOG.why_unknown(name)):
        assert told.startswith(f"The model '{name}' is not in the catalogue: the runtime does not")
        assert ("use 'sdxl-base-1.0'" in told) == ("refiner" in name)


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("OpenVINO/FLUX.1-schnell-int8-ov", "; use 'FLUX.1-schnell'."),
        ("openvino/stable-diffusion-v1-5-fp16-ov", "; use 'stable-diffusion-v1-5'."),
        ("OpenVINO/LCM_Dreamshaper_v7-int8-ov", "."),
        ("FLUX.1-dev-int4-ov", "; use 'FLUX.1-dev'."),
    ],
)
def test_models_of_openvino_model_server(name: str, instead: str) -> None:
    """Errors say that the runtime does not read OpenVINO IR, and name the same model here."""
    why = f"The model '{name}' is not in the catalogue: it is OpenVINO IR, which the runtime does "
    assert CATALOG.why_unknown(name) == f"{why}not read{instead}"
    assert CATALOG.why_missing(name).startswith(f"{why}not read{instead} 'sdstream serve --alias ")


@pytest.mark.parametrize("model", XINFERENCE)
def test_how_to_make_a_quantisation_that_is_not_published(model: str) -> None:
    """The error contains the command of the document, if the document has one."""
    for quant, how in described(model).items():
        told = CATALOG.why_unknown(f"{model}:{quant}")
        assert f"'{model}' has the quants " in told
        commands = re.findall(r"sdstream convert (\S+) FILE.gguf --type (\w+)", told)
        source, wtype = commands[0] if commands else ("", "no type")
        assert wtype == how.strip("`")
        assert not source or CATALOG.variant(source) is not None


@pytest.mark.parametrize("entry", llama_box.ENTRIES.values())
def test_what_replaces_a_model_of_llama_box(entry: str) -> None:
    """Errors about GPUStack's files name entries of the catalogue that are not GPUStack's."""
    assert "gpustack/" not in (CATALOG.entries[entry].page or "gpustack/")
