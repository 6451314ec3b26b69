"""Write the trained weights as one GGUF file for the runtime, compressed, with a model card.

`python -m scripts.embedded.export out/` writes model.gguf, model.gguf.xz and card.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf.quants import quantize
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from scripts.embedded import codec, draw, text
from scripts.embedded.shapes import SHAPES
from scripts.embedded.train import WEIGHTS_FILE
from scripts.embedded.twin import expand_text_encoder

QUANTISATIONS: dict[str, gguf.GGMLQuantizationType] = {
    "f16": gguf.GGMLQuantizationType.F16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
}

DIT, LLM, TAE = "model.diffusion_model.", "text_encoders.llm.model.", "tae."

Array = NDArray[np.float32]


def full_embeddings(table: Tensor, tokens: tuple[int, ...]) -> Array:
    """Spread the compact rows over the runtime's whole table; other tokens are zero."""
    full = np.zeros((text.TABLE_ROWS, table.shape[1]), np.float32)
    full[list(tokens)] = table[: len(tokens)].float().numpy()
    return full


def tensors(weights: dict[str, Tensor], tokens: tuple[int, ...]) -> dict[str, Array]:
    """Return every tensor of the GGUF by its name there."""

    def part(prefix: str) -> dict[str, Tensor]:
        return {
            k.removeprefix(prefix): v.float() for k, v in weights.items() if k.startswith(prefix)
        }

    llm = expand_text_encoder(part("llm."))
    named = {DIT + name: tensor.numpy() for name, tensor in part("dit.").items()}
    table = llm.pop("embed_tokens.weight")
    named[LLM + "embed_tokens.weight"] = full_embeddings(table, tokens)
    named |= {LLM + name: tensor.numpy() for name, tensor in llm.items()}
    matrix = weights["codec.matrix"].float().numpy()
    for name, array in codec.encoder_state(matrix).items():
        named[f"{TAE}encoder.layers.{name}"] = array
    for name, tensor in part("tae.decoder.").items():
        named[f"{TAE}decoder.layers.{name}"] = tensor.numpy()
    return named


def write_gguf(file: Path, named: dict[str, Array], kind: str) -> None:
    """Write a GGUF file; vectors stay f32, convolutions f16 (the runtime quantises neither)."""
    writer = gguf.GGUFWriter(file, "flux")
    for name, array in named.items():
        if array.ndim == 1:
            writer.add_tensor(name, array.astype(np.float32))
        elif array.ndim == 4 or kind == "f16":
            writer.add_tensor(name, array.astype(np.float16))
        else:
            packed = quantize(np.ascontiguousarray(array), QUANTISATIONS[kind])
            writer.add_tensor(name, packed, raw_dtype=QUANTISATIONS[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def sha256(file: Path) -> str:
    """Return a file's checksum in hexadecimal."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def card(model: Path, packed: Path, kind: str, notes: dict[str, str]) -> dict[str, object]:
    """Return what a reader should know of the model."""
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
        "recipe": "flow matching, Muon and AdamW, moving average; see scripts/embedded/README.md",
        "pictures_seen": int(notes.get("pictures", 0)),
        "quantisation": kind,
        "licence": "the project's own; drawn data, no third-party weights",
        "files": {
            file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)}
            for file in (model, packed)
        },
        "scores": None,
    }


def main() -> None:
    """Export weights."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", type=Path, default=WEIGHTS_FILE)
    parser.add_argument("--kind", choices=QUANTISATIONS, default="q8_0")
    parser.add_argument("--scores", type=Path, help="the judge's --json file, for the card")
    parser.add_argument("--no-pack", action="store_true", help="only the GGUF, for judging")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    model = options.folder / "model.gguf"
    with torch.no_grad():
        named = tensors(load_file(options.weights), text.Vocabulary.load().tokens)
    write_gguf(model, named, options.kind)
    if options.no_pack:
        return
    packed = model.with_suffix(".gguf.xz")
    packed.write_bytes(lzma.compress(model.read_bytes(), preset=9))
    with safe_open(options.weights, "pt") as file:
        content = card(model, packed, options.kind, dict(file.metadata() or {}))
    if options.scores:
        content["scores"] = json.loads(options.scores.read_text())
    (options.folder / "card.json").write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
