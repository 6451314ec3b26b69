"""The runtime's Ovis-Image network in PyTorch: image network, text encoder, autoencoder.

Parameters have the names of the GGUF file, so an export needs no renaming.
`tests/embedded/test_twin.py` proves that small random weights generate the same image here and in
the runtime.

Shapes: B images, T text tokens, N image tokens (patches of 2x2 latent cells, so of 16x16 pixels),
H heads of 128, hidden size D.

Peculiarities of the runtime that this module reproduces:
 1. The second half of a single block's MLP input is the gate, not the first.
 2. The image network's RoPE rotates interleaved pairs; the text encoder's rotates the two halves.
 3. The modulation depends only on the time; guidance and pooled text do not exist.
 4. The decoder's input passes through 3 tanh(z / 3).
 5. Only a few of the text encoder's 32 query and 8 key heads are in use: query head 4j reads key
    head j. The other heads have zero weights and add exactly nothing, so this module leaves them
    out. `expand_text_encoder` adds them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from torch import Tensor, nn

HEAD_SIZE = 128
ROPE_AXES = (16, 56, 56)
"""Numbers of a head's features that rotate with (index, row, column)."""
IMAGE_ROPE_BASE = 1e4
TEXT_ROPE_BASE = 1e6
LATENT_CHANNELS = 16
PATCH_FEATURES = LATENT_CHANNELS * 4
LATENT_SCALE = 8
"""Pixels per latent cell, in each direction."""
NATIVE_QUERY_HEADS, NATIVE_KEY_HEADS = 32, 8
MASKED = -1e9


@dataclass(frozen=True)
class Shape:
    """Sizes of the network; the defaults are those of the shipped model."""

    hidden: int = 256
    double_blocks: int = 1
    single_blocks: int = 4
    text_width: int = 96
    text_heads: int = 4


class Norm(nn.Module):
    """RMSNorm, whose only parameter has the name that the GGUF file uses."""

    def __init__(self, width: int, parameter: str = "scale") -> None:
        super().__init__()
        self.parameter = parameter
        self.register_parameter(parameter, nn.Parameter(torch.ones(width)))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)
        return (wide * getattr(self, self.parameter)).to(x.dtype)


def layer_norm(x: Tensor) -> Tensor:
    """Normalise without parameters; the modulation provides scale and shift."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Normalise, scale and shift."""
    return layer_norm(x) * (1 + scale) + shift


def image_rope(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosines and sines [B, 1, T, 64] for position ids [B, T, 3]."""
    angles = []
    for axis, width in enumerate(ROPE_AXES):
        steps = torch.arange(0, width, 2, dtype=torch.float32, device=ids.device)
        angles.append(ids[..., axis : axis + 1] * IMAGE_ROPE_BASE ** (-steps / width))
    angle = torch.cat(angles, -1)[:, None]
    return angle.cos(), angle.sin()


def turn_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate neighbouring features of [B, H, T, 128]."""
    first, second = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((first * cos - second * sin, first * sin + second * cos), -1)
    return turned.flatten(-2).to(x.dtype)


def turn_halves(x: Tensor, positions: Tensor) -> Tensor:
    """Rotate the halves of [B, H, T, 128] by text positions [B, T]."""
    steps = torch.arange(0, HEAD_SIZE, 2, dtype=torch.float32, device=x.device)
    angle = (positions.float()[..., None] * TEXT_ROPE_BASE ** (-steps / HEAD_SIZE))[:, None]
    cos, sin = angle.cos(), angle.sin()
    first, second = x.float().chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Compute attention over [B, H, T, 128] with a bias of the logits; return [B, T, H * 128]."""
    bias = None if bias is None else bias.to(q.dtype)
    out = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, attn_mask=bias)
    return out.transpose(1, 2).flatten(2)


class QKNorm(nn.Module):
    """Norms of queries and keys."""

    def __init__(self) -> None:
        super().__init__()
        self.query_norm, self.key_norm = Norm(HEAD_SIZE), Norm(HEAD_SIZE)

    def split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cut [B, T, 3 * D] into normalised queries and keys, and values, [B, H, T, 128] each."""
        q, k, v = qkv.unflatten(-1, (3, -1, HEAD_SIZE)).permute(2, 0, 3, 1, 4)
        return self.query_norm(q), self.key_norm(k), v


class Attention(nn.Module):
    """The projections of one stream of a double block."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
        self.norm = QKNorm()


class GatedMLP(nn.Module):
    """An MLP that computes down(silu(gate) * up)."""

    def __init__(self, width: int, inner: int, *, bias: bool) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=bias)
        self.up_proj = nn.Linear(width, inner, bias=bias)
        self.down_proj = nn.Linear(inner, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Modulation(nn.Module):
    """Shifts, scales and gates from the time vector."""

    def __init__(self, hidden: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.lin = nn.Linear(hidden, count * hidden)

    def forward(self, time: Tensor) -> tuple[Tensor, ...]:
        return self.lin(F.silu(time))[:, None].chunk(self.count, -1)


class DoubleBlock(nn.Module):
    """A block with separate weights for text and image, and attention over both."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.img_mod, self.txt_mod = Modulation(hidden, 6), Modulation(hidden, 6)
        self.img_attn, self.txt_attn = Attention(hidden), Attention(hidden)
        self.img_mlp = GatedMLP(hidden, 4 * hidden, bias=True)
        self.txt_mlp = GatedMLP(hidden, 4 * hidden, bias=True)

    def forward(
        self, img: Tensor, txt: Tensor, time: Tensor, rope: tuple[Tensor, Tensor], bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        img_mod, txt_mod = self.img_mod(time), self.txt_mod(time)
        of_img = self.img_attn.norm.split(self.img_attn.qkv(modulate(img, *img_mod[:2])))
        of_txt = self.txt_attn.norm.split(self.txt_attn.qkv(modulate(txt, *txt_mod[:2])))
        q, k, v = (torch.cat(pair, 2) for pair in zip(of_txt, of_img, strict=True))
        out = attend(turn_pairs(q, *rope), turn_pairs(k, *rope), v, bias)
        length = txt.shape[1]
        img = img + img_mod[2] * self.img_attn.proj(out[:, length:])
        img = img + img_mod[5] * self.img_mlp(modulate(img, *img_mod[3:5]))
        txt = txt + txt_mod[2] * self.txt_attn.proj(out[:, :length])
        txt = txt + txt_mod[5] * self.txt_mlp(modulate(txt, *txt_mod[3:5]))
        return img, txt


class SingleBlock(nn.Module):
    """A block of parallel attention and MLP over one sequence of text and image."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.widths = (3 * hidden, 8 * hidden)
        self.linear1 = nn.Linear(hidden, sum(self.widths))
        self.linear2 = nn.Linear(5 * hidden, hidden)
        self.norm = QKNorm()
        self.modulation = Modulation(hidden, 3)

    def forward(self, x: Tensor, time: Tensor, rope: tuple[Tensor, Tensor], bias: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(time)
        qkv, mlp = self.linear1(modulate(x, shift, scale)).split(self.widths, -1)
        q, k, v = self.norm.split(qkv)
        out = attend(turn_pairs(q, *rope), turn_pairs(k, *rope), v, bias)
        value, opening = mlp.chunk(2, -1)
        return x + gate * self.linear2(torch.cat((out, value * F.silu(opening)), -1))


class TimeEmbedder(nn.Module):
    """Maps sinusoids of the noise level through a small MLP."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.in_layer, self.out_layer = nn.Linear(256, hidden), nn.Linear(hidden, hidden)

    def forward(self, sigma: Tensor) -> Tensor:
        steps = torch.arange(128, dtype=torch.float32, device=sigma.device)
        angle = sigma.float()[:, None] * 1000 * torch.exp(-math.log(10000) * steps / 128)
        return self.out_layer(F.silu(self.in_layer(torch.cat((angle.cos(), angle.sin()), -1))))


class FinalLayer(nn.Module):
    """Maps hidden features to patches."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden, PATCH_FEATURES)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 2 * hidden))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(time)[:, None].chunk(2, -1)
        return self.linear(modulate(x, shift, scale))


class ImageNetwork(nn.Module):
    """The denoiser, which predicts noise - image from noisy latents and the encoded text."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        hidden = shape.hidden
        self.img_in = nn.Linear(PATCH_FEATURES, hidden)
        self.txt_in = nn.Linear(shape.text_width, hidden)
        self.txt_norm = Norm(shape.text_width)
        self.time_in = TimeEmbedder(hidden)
        self.double_blocks = nn.ModuleList(DoubleBlock(hidden) for _ in range(shape.double_blocks))
        self.single_blocks = nn.ModuleList(SingleBlock(hidden) for _ in range(shape.single_blocks))
        self.final_layer = FinalLayer(hidden)

    def forward(
        self, x: Tensor, sigma: Tensor, txt: Tensor, positions: Tensor, pad_bias: Tensor
    ) -> Tensor:
        """Return the velocity [B, 16, h, w].

        x [B, 16, h, w] noisy latents; sigma [B] noise levels 0..1; txt [B, T, text_width];
        positions [B, T] and pad_bias [B, T] as in text.TextBatch.
        """
        rows, columns = x.shape[2] // 2, x.shape[3] // 2
        rope = image_rope(position_ids(positions, rows, columns))
        bias = F.pad(pad_bias, (0, rows * columns))[:, None, None]
        time = self.time_in(sigma)
        img, txt = self.img_in(to_patches(x)), self.txt_in(self.txt_norm(txt))
        for double in self.double_blocks:
            img, txt = double(img, txt, time, rope, bias)
        both = torch.cat((txt, img), 1)
        for single in self.single_blocks:
            both = single(both, time, rope, bias)
        return from_patches(self.final_layer(both[:, txt.shape[1] :], time), rows, columns)


def to_patches(x: Tensor) -> Tensor:
    """Cut [B, 16, 2r, 2c] into [B, r * c, 64]; a feature's index is channel * 4 + dy * 2 + dx."""
    patches = x.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).permute(0, 2, 4, 1, 3, 5)
    return patches.flatten(3).flatten(1, 2)


def from_patches(x: Tensor, rows: int, columns: int) -> Tensor:
    """Undo to_patches."""
    cells = x.unflatten(2, (LATENT_CHANNELS, 2, 2)).unflatten(1, (rows, columns))
    return cells.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def position_ids(text_positions: Tensor, rows: int, columns: int) -> Tensor:
    """Return RoPE ids [B, T + N, 3]: (0, i, i) for text, (0, row, column) for patches."""
    text = torch.stack((torch.zeros_like(text_positions), text_positions, text_positions), -1)
    device = text_positions.device
    row = torch.arange(rows, device=device).repeat_interleave(columns)
    column = torch.arange(columns, device=device).repeat(rows)
    image = torch.stack((torch.zeros_like(row), row, column), -1)
    return torch.cat((text, image.expand(len(text), -1, -1)), 1).float()


class TextAttention(nn.Module):
    """Attention of the heads in use."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        inner = heads * HEAD_SIZE
        self.q_proj = nn.Linear(width, inner, bias=False)
        self.k_proj = nn.Linear(width, inner, bias=False)
        self.v_proj = nn.Linear(width, inner, bias=False)
        self.o_proj = nn.Linear(inner, width, bias=False)
        self.q_norm, self.k_norm = Norm(HEAD_SIZE, "weight"), Norm(HEAD_SIZE, "weight")

    def forward(self, x: Tensor, positions: Tensor, bias: Tensor) -> Tensor:
        q, k, v = (
            projection(x).unflatten(-1, (-1, HEAD_SIZE)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = turn_halves(self.q_norm(q), positions), turn_halves(self.k_norm(k), positions)
        return self.o_proj(attend(q, k, v, bias))


class TextLayer(nn.Module):
    """The one layer of the text encoder."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_attn = TextAttention(width, heads)
        self.mlp = GatedMLP(width, 2 * width, bias=False)
        self.input_layernorm = Norm(width, "weight")
        self.post_attention_layernorm = Norm(width, "weight")

    def forward(self, x: Tensor, positions: Tensor, bias: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), positions, bias)
        return x + self.mlp(self.post_attention_layernorm(x))


class TextEncoder(nn.Module):
    """Qwen3 with one layer and a compact vocabulary; the last row, for unknown tokens, is zeros."""

    head: Tensor

    def __init__(self, shape: Shape, tokens: int, head_rows: list[int]) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(tokens + 1, shape.text_width, padding_idx=tokens)
        self.layers = nn.ModuleList([TextLayer(shape.text_width, shape.text_heads)])
        self.norm = Norm(shape.text_width, "weight")
        self.register_buffer("head", torch.tensor(head_rows), persistent=False)

    def forward(self, ids: Tensor, positions: Tensor, counts: Tensor) -> Tensor:
        """Encode tokens [B, T] (text.TextBatch), after the template's head, to [B, T, width]."""
        size, dropped = len(ids), len(self.head)
        everything = torch.cat((self.head.expand(size, -1), ids), 1)
        start = torch.arange(dropped, device=ids.device)
        places = torch.cat((start.expand(size, -1), positions + dropped), 1)
        real = places < (counts + dropped)[:, None]
        seen = real[:, None, :] & (places[:, None, :] <= places[:, :, None])
        # A pad attends to the real tokens; no token attends to a pad.
        bias = torch.where(seen, 0.0, MASKED)[:, None]
        x = self.embed_tokens(everything)
        for layer in self.layers:
            x = layer(x, places, bias)
        return self.norm(x)[:, dropped:]


def expand_text_encoder(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put the heads in use at their places in the runtime, among heads of zeros."""
    out = dict(state)
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        key = f"layers.0.self_attn.{name}.weight"
        by_head = state[key].T if name == "o_proj" else state[key]
        stride = 4 if name in ("q_proj", "o_proj") else 1
        heads = NATIVE_QUERY_HEADS if stride == 4 else NATIVE_KEY_HEADS
        full = by_head.new_zeros(heads, HEAD_SIZE, by_head.shape[1])
        live = by_head.unflatten(0, (-1, HEAD_SIZE))
        full[: stride * len(live) : stride] = live
        flat = full.flatten(0, 1)
        out[key] = flat.T.contiguous() if name == "o_proj" else flat
    return out


def contract_text_encoder(state: dict[str, Tensor], heads: int) -> dict[str, Tensor]:
    """Take the heads in use from their places in the runtime: undo `expand_text_encoder`."""
    out = dict(state)
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        key = f"layers.0.self_attn.{name}.weight"
        full = state[key].T if name == "o_proj" else state[key]
        stride = 4 if name in ("q_proj", "o_proj") else 1
        by_head = full.unflatten(0, (-1, HEAD_SIZE))[: stride * heads : stride].flatten(0, 1)
        out[key] = (by_head.T if name == "o_proj" else by_head).contiguous()
    return out


class DecoderBlock(nn.Module):
    """Three convolutions with a residual connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()

        def convolve() -> nn.Conv2d:
            return nn.Conv2d(channels, channels, 3, padding=1)

        self.conv = nn.Sequential(convolve(), nn.ReLU(), convolve(), nn.ReLU(), convolve())

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x) + x)


class Decoder(nn.Sequential):
    """The tiny autoencoder's decoder, from latents [B, 16, h, w] to pixels 0..1 [B, 3, 8h, 8w]."""

    def __init__(self, channels: int = 64) -> None:
        layers: list[nn.Module] = [nn.Conv2d(LATENT_CHANNELS, channels, 3, padding=1), nn.ReLU()]
        for _ in range(3):
            layers += [DecoderBlock(channels) for _ in range(3)]
            layers += [nn.Upsample(scale_factor=2)]
            layers += [nn.Conv2d(channels, channels, 3, padding=1, bias=False)]
        layers += [DecoderBlock(channels), nn.Conv2d(channels, 3, 3, padding=1)]
        super().__init__(*layers)

    def forward(self, latents: Tensor) -> Tensor:
        return super().forward(3 * torch.tanh(latents / 3))
