"""The smallest legal Ovis-Image model, with seeded random weights, as one GGUF file.

Text encoder (Qwen3), transformer (Flux blocks), classifier-free guidance and autoencoder are the
runtime's own; only the weights are untrained, so the pictures are coloured mosaics that follow
prompt, seed and options but mean nothing. The autoencoder is built by hand: its encoder takes
the mean of each block of 8 x 8 pixels, its decoder paints such blocks.

Widths that the runtime fixes: 128 per attention head, 32 query and 8 key heads in the text
encoder, 151,936 rows of tokens, 64 channels in the autoencoder and 16 in the latent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter
from gguf.quants import quantize

#: Raise it when the weights change: the cached file's name carries it.
VERSION: Final = 1

_HIDDEN: Final = 128  # one head of the transformer
_HEAD: Final = 128
_CONTEXT: Final = 64  # width of the text encoder
_VOCABULARY: Final = 151_936
_PATCH: Final = 64  # 16 latent channels x 2 x 2
_TIME: Final = 256  # width of the sinusoidal time embedding
_LATENT: Final = 16
_TAE: Final = 64

Array = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


def write(path: Path) -> None:
    """Write the model, about 13 MB, in about two seconds; the same bytes every time."""
    # The architecture field is not read by the runtime, which goes by tensor names.
    writer = GGUFWriter(path, "flux")
    _transformer(_Tensors(writer, "model.diffusion_model.", seed=0))
    _text_encoder(_Tensors(writer, "text_encoders.llm.model.", seed=1))
    _autoencoder(_Tensors(writer, "tae.", seed=2))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class _Tensors:
    """Adds tensors under one prefix, random ones from one seed."""

    def __init__(self, writer: GGUFWriter, prefix: str, seed: int) -> None:
        self._writer = writer
        self._prefix = prefix
        self._random = np.random.default_rng(seed)

    def random(self, name: str, rows: int, columns: int, kind: Type, scale: float = 1.0) -> None:
        """A matrix of normal values: [rows, columns], standard deviation ``scale``."""
        values = self._random.standard_normal((rows, columns), dtype=np.float32)
        self._add(name, values * np.float32(scale), kind)

    def linear(
        self, name: str, inputs: int, outputs: int, *, kind: Type = Type.F16, bias: bool = True
    ) -> None:
        """A layer that keeps the variance of its input."""
        self.random(f"{name}.weight", outputs, inputs, kind, 1 / np.sqrt(inputs))
        if bias:
            self.vector(f"{name}.bias", outputs, 0.0)

    def vector(self, name: str, size: int, value: float) -> None:
        """A constant vector in 32 bits."""
        self._add(name, np.full(size, value, np.float32), Type.F32)

    def convolution(self, name: str, weight: Array, bias: Array | None = None) -> None:
        """A convolution [out, in, 3, 3]; the runtime wants these in 16 bits."""
        self._add(f"{name}.weight", weight, Type.F16)
        if bias is not None:
            self._add(f"{name}.bias", bias, Type.F32)

    def _add(self, name: str, values: Array, kind: Type) -> None:
        name = self._prefix + name
        if kind is Type.F32:
            self._writer.add_tensor(name, values.astype(np.float32))
        elif kind is Type.F16:
            self._writer.add_tensor(name, values.astype(np.float16))
        else:
            self._writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)


def _transformer(t: _Tensors) -> None:
    hidden, mlp = _HIDDEN, 4 * _HIDDEN
    t.linear("img_in", _PATCH, hidden)
    t.linear("txt_in", _CONTEXT, hidden)
    t.vector("txt_norm.scale", _CONTEXT, 1.0)
    t.linear("time_in.in_layer", _TIME, hidden)
    t.linear("time_in.out_layer", hidden, hidden)
    for stream in ("img", "txt"):
        block = f"double_blocks.0.{stream}"
        t.linear(f"{block}_mod.lin", hidden, 6 * hidden)
        t.linear(f"{block}_attn.qkv", hidden, 3 * hidden)
        t.linear(f"{block}_attn.proj", hidden, hidden)
        t.vector(f"{block}_attn.norm.query_norm.scale", _HEAD, 1.0)
        t.vector(f"{block}_attn.norm.key_norm.scale", _HEAD, 1.0)
        # A gate_proj is how the runtime tells Ovis-Image from Flux.
        t.linear(f"{block}_mlp.gate_proj", hidden, mlp)
        t.linear(f"{block}_mlp.up_proj", hidden, mlp)
        t.linear(f"{block}_mlp.down_proj", mlp, hidden)
    t.linear("single_blocks.0.linear1", hidden, 3 * hidden + 2 * mlp)
    t.linear("single_blocks.0.linear2", hidden + mlp, hidden)
    t.vector("single_blocks.0.norm.query_norm.scale", _HEAD, 1.0)
    t.vector("single_blocks.0.norm.key_norm.scale", _HEAD, 1.0)
    t.linear("single_blocks.0.modulation.lin", hidden, 3 * hidden)
    t.linear("final_layer.linear", hidden, _PATCH)
    t.linear("final_layer.adaLN_modulation.1", hidden, 2 * hidden)


def _text_encoder(t: _Tensors) -> None:
    width = _CONTEXT
    t.random("embed_tokens.weight", _VOCABULARY, width, Type.Q4_0)
    layer = "layers.0"
    for name, inputs, outputs in (
        ("self_attn.q_proj", width, 32 * _HEAD),
        ("self_attn.k_proj", width, 8 * _HEAD),
        ("self_attn.v_proj", width, 8 * _HEAD),
        ("self_attn.o_proj", 32 * _HEAD, width),
        ("mlp.gate_proj", width, width),
        ("mlp.up_proj", width, width),
        ("mlp.down_proj", width, width),
    ):
        t.linear(f"{layer}.{name}", inputs, outputs, kind=Type.Q8_0, bias=False)
    t.vector(f"{layer}.self_attn.q_norm.weight", _HEAD, 1.0)
    t.vector(f"{layer}.self_attn.k_norm.weight", _HEAD, 1.0)
    t.vector(f"{layer}.input_layernorm.weight", width, 1.0)
    t.vector(f"{layer}.post_attention_layernorm.weight", width, 1.0)
    t.vector("norm.weight", width, 1.0)


def _autoencoder(t: _Tensors) -> None:
    """Block mean and its inverse in the shape of a TAESD: all residual blocks add nothing."""
    _encoder(t)
    _decoder(t)


def _encoder(t: _Tensors) -> None:
    zero = np.zeros(_TAE, np.float32)
    halve = np.zeros((_TAE, _TAE, 3, 3), np.float32)
    for colour in range(3):
        # Stride 2 with padding 1: these four taps are the 2 x 2 block.
        halve[colour, colour, 1:, 1:] = 0.25
    t.convolution("encoder.layers.0", _pass_rgb(_TAE, 3), zero)
    _idle_block(t, "encoder.layers.1")
    layer = 2
    for _ in range(3):
        t.convolution(f"encoder.layers.{layer}", halve)
        for block in range(layer + 1, layer + 4):
            _idle_block(t, f"encoder.layers.{block}")
        layer += 4
    # Colours 0..1 become latents around zero.
    centre = np.concatenate([np.full(3, -0.5), np.zeros(_LATENT - 3)]).astype(np.float32)
    t.convolution(f"encoder.layers.{layer}", _pass_rgb(_LATENT, _TAE), centre)


def _decoder(t: _Tensors) -> None:
    centre = np.zeros(_TAE, np.float32)
    centre[:3] = 0.5
    t.convolution("decoder.layers.0", _pass_rgb(_TAE, _LATENT), centre)
    layer = 2  # layer 1 is an activation
    for _ in range(3):
        for block in range(layer, layer + 3):
            _idle_block(t, f"decoder.layers.{block}")
        # layer + 3 doubles the size
        t.convolution(f"decoder.layers.{layer + 4}", _pass_rgb(_TAE, _TAE))
        layer += 5
    _idle_block(t, f"decoder.layers.{layer}")
    last = np.zeros(3, np.float32)
    t.convolution(f"decoder.layers.{layer + 1}", _pass_rgb(3, _TAE), last)


def _pass_rgb(outputs: int, inputs: int) -> Array:
    """A convolution that hands the first three channels through."""
    weight = np.zeros((outputs, inputs, 3, 3), np.float32)
    for colour in range(3):
        weight[colour, colour, 1, 1] = 1.0
    return weight


def _idle_block(t: _Tensors, name: str) -> None:
    weight, bias = np.zeros((_TAE, _TAE, 3, 3), np.float32), np.zeros(_TAE, np.float32)
    for convolution in ("conv.0", "conv.2", "conv.4"):
        t.convolution(f"{name}.{convolution}", weight, bias)
