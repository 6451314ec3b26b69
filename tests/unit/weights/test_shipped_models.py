"""The shipped models.yaml and the table in docs/models/catalog.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from sdstream.core.model_families import FAMILIES
from sdstream.core.size import Size

ROOT = Path(__file__).parents[3]
HUB = "https://huggingface.co/"

#: hf:OWNER/REPO[@REVISION]/PATH
LOCATION = re.compile(r"hf:([\w.-]+/[\w.-]+)(@[\w.-]+)?/[\w./-]*(\{quant\})?[\w./-]*")

#: Repositories of text encoders and autoencoders that several models share.
SHARED = {
    "Comfy-Org/Ovis-Image",
    "Comfy-Org/Qwen-Image_ComfyUI",
    "Comfy-Org/flux2-klein-4B",
    "Comfy-Org/stable-diffusion-3.5-fp8",
    "Comfy-Org/z_image_turbo",
    "city96/t5-v1_1-xxl-encoder-gguf",
    "comfyanonymous/flux_text_encoders",
    "mradermacher/Qwen2.5-VL-7B-Instruct-GGUF",
    "unsloth/Qwen3-4B-GGUF",
    "unsloth/Qwen3-4B-Instruct-2507-GGUF",
}

Entry = dict[str, Any]

ENTRIES: list[Entry] = yaml.safe_load((ROOT / "models.yaml").read_text())["models"]
PUBLISHED = [e for e in ENTRIES if not any(f.startswith("builtin:") for f in e["files"].values())]

each = pytest.mark.parametrize("entry", PUBLISHED, ids=[e["id"] for e in PUBLISHED])


def table() -> dict[str, list[str]]:
    """Return the rows of docs/models/catalog.md: id -> licence, gate and sizes."""
    lines = (ROOT / "docs/models/catalog.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:2] == "| "]
    return {row[1].strip("`"): row[2:] for row in rows if row[1].startswith("`")}


def sizes(quants: dict[str, float | None], name: str) -> str:
    """Format a quantisation as in the table."""
    size = quants[name]
    return f"`{name}` size unknown" if size is None else f"`{name}` {size:.2f}"


@each
def test_an_entry_says_what_it_costs(entry: Entry) -> None:
    """An entry has a page, a licence, the gate and sizes before anything is downloaded."""
    assert entry["page"].startswith(HUB)
    assert entry["license"]
    assert isinstance(entry["gated"], bool)
    assert entry["quants"]
    assert all(size is None or size > 0 for size in entry["quants"].values())


@each
def test_files_come_from_the_entrys_page_or_a_shared_repository(entry: Entry) -> None:
    """Every location is valid, and the first file is from the entry's page."""
    repositories = []
    for location in entry["files"].values():
        match = LOCATION.fullmatch(location)
        assert match, location
        repositories.append(match[1])
    assert repositories[0] == entry["page"].removeprefix(HUB)
    assert set(repositories[1:]) <= SHARED


@each
def test_the_quantisation_is_part_of_a_name(entry: Entry) -> None:
    """An entry with several quantisations has a file name for each."""
    varying = [location for location in entry["files"].values() if "{quant}" in location]
    assert varying or len(entry["quants"]) == 1


@each
def test_the_usual_quantisation_comes_first(entry: Entry) -> None:
    """The default quantisation is first, and the others follow from largest to smallest."""
    others = list(entry["quants"].values())[1:]
    assert others == sorted(others, reverse=True)


@each
def test_the_default_size_is_one_that_the_family_draws(entry: Entry) -> None:
    """The default size is within the entry's bounds and a multiple of the family's."""
    family = FAMILIES[entry["family"]]
    text = entry.get("defaults", {}).get("size")
    size = Size.parse(text) if text else family.size
    bounds = {"min": 64, "max": 2048} | entry.get("size", {})
    for side in size:
        assert bounds["min"] <= side <= bounds["max"]
        assert side % family.multiple == 0


@each
def test_a_family_gets_what_it_needs(entry: Entry) -> None:
    """A U-Net family has one file, and a separate diffusion model comes with its components.

    A model that contains its autoencoder has all text encoders inside, or all in files.
    """
    family, files = FAMILIES[entry["family"]], entry["files"]
    encoders = {*family.needs} - {"vae"}
    if family.unet:
        assert set(files) == {"model"}
    elif "diffusion_model" in files:
        assert set(family.needs) <= set(files)
    else:
        assert encoders & set(files) in (set(), encoders)


def test_ids_are_unique() -> None:
    """Ids differ even if case is ignored."""
    ids = [entry["id"].lower() for entry in ENTRIES]
    assert len(ids) == len(set(ids))


def test_the_table_has_every_entry_and_no_other() -> None:
    """The table and models.yaml contain the same entries."""
    assert set(table()) == {entry["id"] for entry in PUBLISHED}


@each
def test_the_table_says_what_the_entry_says(entry: Entry) -> None:
    """The table has the licence, the gate, and the default and smallest quantisations."""
    quants: dict[str, float | None] = entry["quants"]
    assert table()[entry["id"]] == [
        entry["license"],
        "yes" if entry["gated"] else "no",
        sizes(quants, next(iter(quants))),
        sizes(quants, min(quants, key=lambda name: quants[name] or 0.0)),
    ]
