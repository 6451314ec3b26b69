"""Export the trained weights as one GGUF file for the runtime, compressed, with a model card.

`python -m scripts.embedded.export out/ RUN.pt ...` puts the averages of runs into the shipped model
and writes model.gguf, model.gguf.xz and card.json. Without runs it writes the shipped model again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
from pathlib import Path

import torch

from scripts.embedded import draw, model_file, text, wording
from scripts.embedded.model_file import Model
from scripts.embedded.shapes import SHAPES
from scripts.embedded.train import START
from scripts.embedded.twin import Shape


def merge(model: Model, checkpoints: list[Path]) -> Model:
    """Return the model with the moving averages of training runs in place of its weights."""
    weights, pictures = dict(model.weights), model.pictures
    for checkpoint in checkpoints:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        weights |= state["average"]
        if any(name.startswith("dit.") for name in state["average"]):
            pictures = int(state["seen"])
    return Model(weights, pictures)


def sha256(file: Path) -> str:
    """Return a file's checksum in hexadecimal."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def card(model: Path, packed: Path, kind: str, pictures: int) -> dict[str, object]:
    """Return the content of the model card."""
    return {
        "name": "sdstream embedded",
        "what": "a tiny text-to-image model for flat drawings, so that a first picture needs no "
        "download; no photographs, no people",
        "architecture": "Ovis-Image: Flux blocks (hidden 256, 1 double + 4 single), one-layer "
        "Qwen3 text encoder of width 96, tiny autoencoder",
        "data": "pictures and captions drawn by scripts/embedded/draw.py; nothing was downloaded",
        "objects": list(SHAPES),
        "colours": list(draw.COLOURS),
        "words": draw.caption_words(),
        "names": {name: shape for shape in SHAPES for name in wording.names(shape)},
        "recipe": "flow matching, Muon and AdamW, moving average; see scripts/embedded/README.md",
        "pictures_seen": pictures,
        "quantisation": kind,
        "licence": "the project's own; drawn data, no third-party weights",
        "files": {
            file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)}
            for file in (model, packed)
        },
        "scores": None,
        "group_scores": None,
    }


def main() -> None:
    """Export weights."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    add = parser.add_argument
    add("folder", type=Path)
    add("checkpoints", type=Path, nargs="*", help="runs of `train`")
    add("--start", type=Path, default=START, help="the model they started from")
    add("--kind", choices=model_file.QUANTISATIONS, default="q8_0")
    add("--scores", type=Path, help="the judge's --json file, for the card")
    add("--group-scores", type=Path, help="the same with --kinds group")
    add("--no-pack", action="store_true", help="only the GGUF, for judging")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    file = options.folder / "model.gguf"
    tokens = text.Vocabulary.load().tokens
    model = merge(model_file.read(options.start, tokens, Shape()), options.checkpoints)
    model_file.write(file, model, options.kind, tokens)
    if options.no_pack:
        return
    packed = file.with_suffix(".gguf.xz")
    packed.write_bytes(lzma.compress(file.read_bytes(), preset=9))
    content = card(file, packed, options.kind, model.pictures)
    for key in ("scores", "group_scores"):
        if judged := getattr(options, key):
            content[key] = json.loads(judged.read_text())
    (options.folder / "card.json").write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
