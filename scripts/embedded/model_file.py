"""Write the model as one GGUF file for the runtime, and read it back to continue training.

Training names its tensors `dit.*` (image network), `llm.*` (text encoder over the compact
vocabulary), `tae.decoder.*` and `codec.matrix`. `write(read(file))` gives the same bytes again.
"""

from __future__ import annotations

import lzma
import tempfile
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray
from torch import Tensor

from scripts.embedded import codec, text
from scripts.embedded.twin import Shape, contract_text_encoder, expand_text_encoder

QUANTISATIONS: dict[str, gguf.GGMLQuantizationType] = {
    "f16": gguf.GGMLQuantizationType.F16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
}

DIT, LLM = "model.diffusion_model.", "text_encoders.llm.model."
ENCODER, DECODER = "tae.encoder.layers.", "tae.decoder.layers."
TABLE = "embed_tokens.weight"

PICTURES = "sdstream.training.pictures"
"""Metadata key of the number of drawings that the network has seen."""

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Model:
    """The trained model.

    Attributes:
        weights: Tensors by their names in training.
        pictures: Number of drawings that the network has seen.
    """

    weights: dict[str, Tensor]
    pictures: int


def write(file: Path, model: Model, kind: str, tokens: tuple[int, ...]) -> None:
    """Write a GGUF file; vectors stay f32, convolutions f16 (the runtime quantises neither).

    Args:
        file: The file to write.
        model: The trained model.
        kind: A key of QUANTISATIONS, for the matrices.
        tokens: The vocabulary's token of each row of the embedding table.
    """
    writer = gguf.GGUFWriter(file, "flux")
    writer.add_uint64(PICTURES, model.pictures)
    for name, array in _native(model.weights, tokens).items():
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


def read(file: Path, tokens: tuple[int, ...], shape: Shape) -> Model:
    """Read a file of `write` as 32-bit floats; the file may be compressed (`.xz`).

    Rows of tokens that the file lacks are zeros. So is the last row, which is for unknown tokens.
    """
    if file.suffix == ".xz":
        with tempfile.TemporaryDirectory() as folder:
            unpacked = Path(folder, "model.gguf")
            unpacked.write_bytes(lzma.decompress(file.read_bytes()))
            return read(unpacked, tokens, shape)
    reader = gguf.GGUFReader(file)
    arrays = {t.name: torch.from_numpy(_dequantised(t)) for t in reader.tensors}

    def part(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}

    llm = contract_text_encoder(part(LLM), shape.text_heads)
    table = llm[TABLE]
    llm[TABLE] = torch.cat((table[list(tokens)], table.new_zeros(1, table.shape[1])))
    matrix = codec.matrix_of({name: tensor.numpy() for name, tensor in part(ENCODER).items()})
    weights = {f"dit.{name}": tensor for name, tensor in part(DIT).items()}
    weights |= {f"llm.{name}": tensor for name, tensor in llm.items()}
    weights |= {f"tae.decoder.{name}": tensor for name, tensor in part(DECODER).items()}
    weights["codec.matrix"] = torch.from_numpy(matrix)
    field = reader.get_field(PICTURES)
    return Model(weights, int(field.contents()) if field else 0)


def _native(weights: dict[str, Tensor], tokens: tuple[int, ...]) -> dict[str, Array]:
    """Return every tensor by its name in the file."""

    def part(prefix: str) -> dict[str, Tensor]:
        return {
            k.removeprefix(prefix): v.float() for k, v in weights.items() if k.startswith(prefix)
        }

    llm = expand_text_encoder(part("llm."))
    named = {DIT + name: tensor.numpy() for name, tensor in part("dit.").items()}
    table = llm.pop(TABLE)
    named[LLM + TABLE] = _full_embeddings(table, tokens)
    named |= {LLM + name: tensor.numpy() for name, tensor in llm.items()}
    # The file holds kernels as 16-bit floats. Only offsets of the rounded kernels cancel out.
    matrix = weights["codec.matrix"].half().float().numpy()
    named |= {ENCODER + name: array for name, array in codec.encoder_state(matrix).items()}
    named |= {DECODER + name: tensor.numpy() for name, tensor in part("tae.decoder.").items()}
    return named


def _full_embeddings(table: Tensor, tokens: tuple[int, ...]) -> Array:
    """Spread the compact rows over the runtime's whole table; other tokens are zero."""
    full = np.zeros((text.TABLE_ROWS, table.shape[1]), np.float32)
    full[list(tokens)] = table[: len(tokens)].float().numpy()
    return full


def _dequantised(tensor: gguf.ReaderTensor) -> Array:
    """Return a tensor's values in its own shape, outermost dimension first."""
    values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
    return values.reshape([int(side) for side in reversed(tensor.shape)]).copy()
