"""Names and shapes of the tensors of every architecture that the runtime has.

Sizes are those of the published models; where the runtime reads a size off the tensors, it is an
argument, so that a model can be made with fewer blocks or narrower ones. Shapes have the innermost
dimension first, as ggml counts them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

Shape = tuple[int, ...]


@dataclass
class Net:
    """Collects tensors; names are relative to ``at``."""

    tensors: dict[str, Shape] = field(default_factory=dict)
    prefix: str = ""

    def at(self, prefix: str) -> Net:
        """The same collection, further inside."""
        return Net(self.tensors, f"{self.prefix}{prefix}.")

    def add(self, name: str, *shape: int) -> None:
        """Any tensor."""
        self.tensors[self.prefix + name] = shape

    def linear(self, name: str, inner: int, outer: int, *, bias: bool = True) -> None:
        """A matrix and its bias."""
        self.add(f"{name}.weight", inner, outer)
        if bias:
            self.add(f"{name}.bias", outer)

    def conv(
        self, name: str, inner: int, outer: int, kernel: int = 3, *, bias: bool = True
    ) -> None:
        """A two-dimensional convolution."""
        self.add(f"{name}.weight", kernel, kernel, inner, outer)
        if bias:
            self.add(f"{name}.bias", outer)

    def norm(self, name: str, width: int) -> None:
        """A layer or group norm."""
        self.add(f"{name}.weight", width)
        self.add(f"{name}.bias", width)

    def rms(self, width: int, *names: str) -> None:
        """RMS norms, which have no bias."""
        for name in names:
            self.add(f"{name}.weight", width)


# --- autoencoders ---------------------------------------------------------------------------------


def vae(latents: int) -> Net:
    """The VAE of SD1, SD2, SDXL (4 channels), SD3, FLUX (16) and FLUX.2 (32)."""
    net = Net()
    if latents != 16:
        net.conv("quant_conv", 2 * latents, 2 * latents, 1)
        net.conv("post_quant_conv", latents, latents, 1)
    encoder, decoder = net.at("encoder"), net.at("decoder")
    encoder.conv("conv_in", 3, 128)
    width = 128
    for level, multiple in enumerate((1, 2, 4, 4)):
        for block in range(2):
            _resnet(encoder.at(f"down.{level}.block.{block}"), width, 128 * multiple)
            width = 128 * multiple
        if level < 3:
            encoder.conv(f"down.{level}.downsample.conv", width, width)
    _ends(encoder, 512, 2 * latents, width)
    decoder.conv("conv_in", latents, 512)
    for level, multiple in reversed([*enumerate((1, 2, 4, 4))]):
        for block in range(3):
            _resnet(decoder.at(f"up.{level}.block.{block}"), width, 128 * multiple)
            width = 128 * multiple
        if level > 0:
            decoder.conv(f"up.{level}.upsample.conv", width, width)
    _ends(decoder, 512, 3, width)
    return net


def _resnet(net: Net, inner: int, outer: int) -> None:
    net.norm("norm1", inner)
    net.conv("conv1", inner, outer)
    net.norm("norm2", outer)
    net.conv("conv2", outer, outer)
    if inner != outer:
        net.conv("nin_shortcut", inner, outer, 1)


def _ends(net: Net, middle: int, outer: int, last: int) -> None:
    for block in ("block_1", "block_2"):
        _resnet(net.at(f"mid.{block}"), middle, middle)
    net.norm("mid.attn_1.norm", middle)
    for name in ("q", "k", "v", "proj_out"):
        net.conv(f"mid.attn_1.{name}", middle, middle, 1)
    net.norm("norm_out", last)
    net.conv("conv_out", last, outer)


def tae(latents: int) -> Net:
    """The tiny autoencoder (TAESD and its kin)."""
    net = Net()
    encoder, decoder = net.at("encoder.layers"), net.at("decoder.layers")
    encoder.conv("0", 3, 64)
    _tiny_blocks(encoder, (1, 3, 4, 5, 7, 8, 9, 11, 12, 13))
    for index in (2, 6, 10):
        encoder.conv(str(index), 64, 64, bias=False)
    encoder.conv("14", 64, latents)
    decoder.conv("0", latents, 64)
    _tiny_blocks(decoder, (2, 3, 4, 7, 8, 9, 12, 13, 14, 17))
    for index in (6, 11, 16):
        decoder.conv(str(index), 64, 64, bias=False)
    decoder.conv("18", 64, 3)
    return net


def _tiny_blocks(net: Net, indices: Iterable[int]) -> None:
    for index in indices:
        for conv in ("conv.0", "conv.2", "conv.4"):
            net.conv(f"{index}.{conv}", 64, 64)


def wan_vae() -> Net:
    """The VAE of Wan 2.1, which Qwen-Image and Anima use."""
    net = Net()
    _conv3d(net, "conv1", 32, 32, (1, 1, 1))
    _conv3d(net, "conv2", 16, 16, (1, 1, 1))
    encoder, decoder = net.at("encoder"), net.at("decoder")
    widths = [96, 96, 192, 384, 384]
    _conv3d(encoder, "conv1", 3, 96)
    index = 0
    for level in range(4):
        for inner in (widths[level], widths[level + 1]):
            _residual(encoder.at(f"downsamples.{index}"), inner, widths[level + 1])
            index += 1
        if level < 3:
            resample = encoder.at(f"downsamples.{index}")
            resample.conv("resample.1", widths[level + 1], widths[level + 1])
            if level > 0:
                _conv3d(resample, "time_conv", widths[level + 1], widths[level + 1], (1, 1, 3))
            index += 1
    _wan_ends(encoder, 384, 384, 32)
    _conv3d(decoder, "conv1", 16, 384)
    index, widths = 0, [384, 384, 384, 192, 96]
    for level in range(4):
        first = widths[level] // 2 if level else widths[level]
        for inner in (first, widths[level + 1], widths[level + 1]):
            _residual(decoder.at(f"upsamples.{index}"), inner, widths[level + 1])
            index += 1
        if level < 3:
            resample = decoder.at(f"upsamples.{index}")
            resample.conv("resample.1", widths[level + 1], widths[level + 1] // 2)
            if level < 2:
                _conv3d(resample, "time_conv", widths[level + 1], 2 * widths[level + 1], (1, 1, 3))
            index += 1
    _wan_ends(decoder, 384, 96, 3)
    return net


def _conv3d(
    net: Net, name: str, inner: int, outer: int, kernel: tuple[int, int, int] = (3, 3, 3)
) -> None:
    """A convolution in space and time; ggml has no fifth dimension."""
    net.add(f"{name}.weight", *kernel, inner * outer)
    net.add(f"{name}.bias", outer)


def _residual(net: Net, inner: int, outer: int) -> None:
    net.add("residual.0.gamma", inner)
    _conv3d(net, "residual.2", inner, outer)
    net.add("residual.3.gamma", outer)
    _conv3d(net, "residual.6", outer, outer)
    if inner != outer:
        _conv3d(net, "shortcut", inner, outer, (1, 1, 1))


def _wan_ends(net: Net, middle: int, last: int, outer: int) -> None:
    for index in (0, 2):
        _residual(net.at(f"middle.{index}"), middle, middle)
    net.add("middle.1.norm.gamma", middle)
    net.conv("middle.1.to_qkv", middle, 3 * middle, 1)
    net.conv("middle.1.proj", middle, middle, 1)
    net.add("head.0.gamma", last)
    _conv3d(net, "head.2", last, outer)


# --- text encoders --------------------------------------------------------------------------------


def clip(width: int) -> Net:
    """CLIP-L (768), CLIP-H (1024) or CLIP-G (1280)."""
    net = Net().at("text_model")
    net.add("embeddings.token_embedding.weight", width, 49408)
    net.add("embeddings.position_embedding.weight", width, 77)
    for layer in range({768: 12, 1024: 24, 1280: 32}[width]):
        block = net.at(f"encoder.layers.{layer}")
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            block.linear(f"self_attn.{name}", width, width)
        block.norm("layer_norm1", width)
        block.norm("layer_norm2", width)
        block.linear("mlp.fc1", width, 4 * width)
        block.linear("mlp.fc2", 4 * width, width)
    net.norm("final_layer_norm", width)
    if width == 1280:
        net.add("text_projection", width, width)
    return net


def t5() -> Net:
    """T5-XXL, of which the runtime allows nothing smaller."""
    net = Net()
    net.add("shared.weight", 4096, 32128)
    for layer in range(24):
        block = net.at(f"encoder.block.{layer}")
        for name in "qkvo":
            block.linear(f"layer.0.SelfAttention.{name}", 4096, 4096, bias=False)
        for name, inner, outer in (
            ("wi_0", 4096, 10240),
            ("wi_1", 4096, 10240),
            ("wo", 10240, 4096),
        ):
            block.linear(f"layer.1.DenseReluDense.{name}", inner, outer, bias=False)
        block.rms(4096, "layer.0.layer_norm", "layer.1.layer_norm")
    net.add("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", 64, 32)
    net.rms(4096, "encoder.final_layer_norm")
    return net


@dataclass(frozen=True)
class LanguageModel:
    """What tells one language model from another; heads are 128 wide."""

    width: int
    layers: int
    vocabulary: int
    feed_forward: int
    heads: int = 32
    key_heads: int = 8
    bias: bool = False
    qk_norm: bool = True


def llm(of: LanguageModel) -> Net:
    """Qwen2.5, Qwen3 or Mistral, as transformers names its tensors."""
    net = Net().at("model")
    net.add("embed_tokens.weight", of.width, of.vocabulary)
    queries, keys = 128 * of.heads, 128 * of.key_heads
    for layer in range(of.layers):
        block = net.at(f"layers.{layer}")
        block.linear("self_attn.q_proj", of.width, queries, bias=of.bias)
        block.linear("self_attn.k_proj", of.width, keys, bias=of.bias)
        block.linear("self_attn.v_proj", of.width, keys, bias=of.bias)
        block.linear("self_attn.o_proj", queries, of.width, bias=False)
        if of.qk_norm:
            block.rms(128, "self_attn.q_norm", "self_attn.k_norm")
        for name in ("gate_proj", "up_proj"):
            block.linear(f"mlp.{name}", of.width, of.feed_forward, bias=False)
        block.linear("mlp.down_proj", of.feed_forward, of.width, bias=False)
        block.rms(of.width, "input_layernorm", "post_attention_layernorm")
    net.rms(of.width, "norm")
    return net


# --- UNets ----------------------------------------------------------------------------------------


def eyes() -> Net:
    """The vision tower of Qwen2.5-VL as llama.cpp has it, of which nothing may be smaller."""
    net = Net()
    for suffix in ("", ".1"):
        net.add(f"v.patch_embd.weight{suffix}", 14, 14, 3, 1280)
    for index in range(32):
        block = net.at(f"v.blk.{index}")
        for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
            block.linear(name, 1280, 1280)
        for name in ("ffn_gate", "ffn_up"):
            block.linear(name, 1280, 3420)
        block.linear("ffn_down", 3420, 1280)
        block.rms(1280, "ln1", "ln2")
    net.rms(1280, "v.post_ln")
    net.linear("mm.0", 5120, 5120)
    net.linear("mm.2", 5120, 3584)
    return net


def unet(family: str, channels: int = 4) -> Net:
    """Stable Diffusion 1, 2 or XL, whose sizes are fixed; 9 channels are an inpainting model."""
    net = Net()
    context, multiples, depths, flat = _UNETS[family]
    widths = _unet_input(net, family, channels)
    width = widths[-1]
    index = 0
    for level, multiple in reversed([*enumerate(multiples)]):
        for part in range(3):
            _unet_res(net.at(f"output_blocks.{index}.0"), width + widths.pop(), 320 * multiple)
            width = 320 * multiple
            _transformer(net.at(f"output_blocks.{index}.1"), width, depths[level], context, flat)
            if level and part == 2:
                after = 2 if depths[level] else 1
                net.conv(f"output_blocks.{index}.{after}.conv", width, width)
            index += 1
    net.norm("out.0", 320)
    net.conv("out.2", 320, 4)
    return net


def control_net(family: str) -> Net:
    """The half of a U-Net that reads, with a way out of each block and a way in for the picture."""
    net = Net()
    widths = _unet_input(net, family, 4)
    for index, width in enumerate(widths):
        net.conv(f"zero_convs.{index}.0", width, width, 1)
    net.conv("middle_block_out.0", widths[-1], widths[-1], 1)
    hint = (3, 16, 16, 32, 32, 96, 96, 256, 320)
    for index, (inner, outer) in enumerate(pairwise(hint)):
        net.conv(f"input_hint_block.{2 * index}", inner, outer)
    return net


#: Family -> width of its text, multiples of 320 of its levels, transformers of each, and whether
#: their first layer is a matrix rather than a convolution.
_UNETS: Final = {
    "sd1": (768, (1, 2, 4, 4), (1, 1, 1, 0), False),
    "sd2": (1024, (1, 2, 4, 4), (1, 1, 1, 0), True),
    "sdxl": (2048, (1, 2, 4), (0, 2, 10), True),
}


def _unet_input(net: Net, family: str, channels: int) -> list[int]:
    """The blocks up to the middle; returns the width after each."""
    context, multiples, depths, flat = _UNETS[family]
    net.linear("time_embed.0", 320, 1280)
    net.linear("time_embed.2", 1280, 1280)
    if family == "sdxl":
        net.linear("label_emb.0.0", 2816, 1280)
        net.linear("label_emb.0.2", 1280, 1280)
    net.conv("input_blocks.0.0", channels, 320)
    widths, width, index = [320], 320, 1
    for level, multiple in enumerate(multiples):
        for _ in range(2):
            _unet_res(net.at(f"input_blocks.{index}.0"), width, 320 * multiple)
            width = 320 * multiple
            _transformer(net.at(f"input_blocks.{index}.1"), width, depths[level], context, flat)
            widths.append(width)
            index += 1
        if level < len(multiples) - 1:
            net.conv(f"input_blocks.{index}.0.op", width, width)
            widths.append(width)
            index += 1
    _unet_res(net.at("middle_block.0"), width, width)
    _transformer(net.at("middle_block.1"), width, max(depths), context, flat)
    _unet_res(net.at("middle_block.2"), width, width)
    return widths


def _unet_res(net: Net, inner: int, outer: int) -> None:
    net.norm("in_layers.0", inner)
    net.conv("in_layers.2", inner, outer)
    net.linear("emb_layers.1", 1280, outer)
    net.norm("out_layers.0", outer)
    net.conv("out_layers.3", outer, outer)
    if inner != outer:
        net.conv("skip_connection", inner, outer, 1)


def _transformer(net: Net, width: int, depth: int, context: int, flat: bool) -> None:
    if not depth:
        return
    net.norm("norm", width)
    for name in ("proj_in", "proj_out"):
        if flat:
            net.linear(name, width, width)
        else:
            net.conv(name, width, width, 1)
    for index in range(depth):
        block = net.at(f"transformer_blocks.{index}")
        for name, keys in (("attn1", width), ("attn2", context)):
            block.linear(f"{name}.to_q", width, width, bias=False)
            block.linear(f"{name}.to_k", keys, width, bias=False)
            block.linear(f"{name}.to_v", keys, width, bias=False)
            block.linear(f"{name}.to_out.0", width, width)
        for name in ("norm1", "norm2", "norm3"):
            block.norm(name, width)
        block.linear("ff.net.0.proj", width, 8 * width)
        block.linear("ff.net.2", 4 * width, width)


# --- transformers ---------------------------------------------------------------------------------


def mmdit(depth: int, self_attention: int = 0, *, qk_norm: bool = True) -> Net:
    """Stable Diffusion 3 (24 blocks) and 3.5 (24 with ``self_attention``, or 38)."""
    net, width = Net(), 64 * depth
    side = 384 if self_attention else 192
    net.add("pos_embed", width, side * side)
    net.conv("x_embedder.proj", 16, width, 2)
    for name, inner in (("t_embedder", 256), ("y_embedder", 2048)):
        net.linear(f"{name}.mlp.0", inner, width)
        net.linear(f"{name}.mlp.2", width, width)
    net.linear("context_embedder", 4096, width)
    for index in range(depth):
        for stream in ("x_block", "context_block"):
            block = net.at(f"joint_blocks.{index}.{stream}")
            last = stream == "context_block" and index == depth - 1
            twice = stream == "x_block" and index < self_attention
            for name in ("attn", "attn2") if twice else ("attn",):
                block.linear(f"{name}.qkv", width, 3 * width)
                if not last:
                    block.linear(f"{name}.proj", width, width)
                if qk_norm:
                    block.rms(64, f"{name}.ln_q", f"{name}.ln_k")
            if not last:
                block.linear("mlp.fc1", width, 4 * width)
                block.linear("mlp.fc2", 4 * width, width)
            block.linear("adaLN_modulation.1", width, (2 if last else 9 if twice else 6) * width)
    net.linear("final_layer.linear", width, 64)
    net.linear("final_layer.adaLN_modulation.1", width, 2 * width)
    return net


def flux(
    double: int = 1,
    single: int = 1,
    *,
    width: int = 3072,
    channels: int = 64,
    guidance: bool = False,
) -> Net:
    """FLUX.1: schnell, or dev and Kontext with ``guidance``; more channels are Fill and its kin."""
    net = Net()
    net.linear("img_in", channels, width)
    net.linear("txt_in", 4096, width)
    for name, inner in (("time_in", 256), ("vector_in", 768), ("guidance_in", 256)):
        if guidance or name != "guidance_in":
            net.linear(f"{name}.in_layer", inner, width)
            net.linear(f"{name}.out_layer", width, width)
    _flux_blocks(net, double, single, width, modulated=True)
    net.linear("final_layer.linear", width, 64)
    net.linear("final_layer.adaLN_modulation.1", width, 2 * width)
    return net


def _flux_blocks(net: Net, double: int, single: int, width: int, *, modulated: bool) -> None:
    for index in range(double):
        for stream in ("img", "txt"):
            block = net.at(f"double_blocks.{index}")
            if modulated:
                block.linear(f"{stream}_mod.lin", width, 6 * width)
            _flux_attention(block.at(f"{stream}_attn"), width)
            block.linear(f"{stream}_mlp.0", width, 4 * width)
            block.linear(f"{stream}_mlp.2", 4 * width, width)
    for index in range(single):
        block = net.at(f"single_blocks.{index}")
        block.linear("linear1", width, 7 * width)
        block.linear("linear2", 5 * width, width)
        _flux_norms(block)
        if modulated:
            block.linear("modulation.lin", width, 3 * width)


def _flux_attention(net: Net, width: int, *, bias: bool = True) -> None:
    net.linear("qkv", width, 3 * width, bias=bias)
    net.linear("proj", width, width, bias=bias)
    _flux_norms(net)


def _flux_norms(net: Net) -> None:
    net.add("norm.query_norm.scale", 128)
    net.add("norm.key_norm.scale", 128)


def chroma(double: int = 1, single: int = 1, *, radiance: bool = False) -> Net:
    """Chroma, or Chroma1-Radiance, which draws pixels without an autoencoder."""
    net, width = Net(), 3072
    net.linear("txt_in", 4096, width)
    guide = net.at("distilled_guidance_layer")
    guide.linear("in_proj", 64, 5120)
    guide.linear("out_proj", 5120, width)
    for index in range(5):
        guide.add(f"norms.{index}.scale", 5120)
        guide.linear(f"layers.{index}.in_layer", 5120, 5120)
        guide.linear(f"layers.{index}.out_layer", 5120, 5120)
    _flux_blocks(net, double, single, width, modulated=False)
    if not radiance:
        net.linear("img_in", 64, width)
        net.linear("final_layer.linear", width, 64)
        return net
    net.conv("img_in_patch", 3, width, 16)
    net.linear("nerf_image_embedder.embedder.0", 67, 64)
    for index in range(4):
        net.linear(f"nerf_blocks.{index}.param_generator", width, 49152)
        net.add(f"nerf_blocks.{index}.norm.scale", 64)
    net.add("nerf_final_layer_conv.norm.scale", 64)
    net.conv("nerf_final_layer_conv.conv", 64, 3)
    return net


def flux2(double: int, single: int, *, width: int, text: int, guidance: bool) -> Net:
    """FLUX.2 dev (48 single blocks) or klein; ``text`` is thrice the language model's width."""
    net = Net()
    net.linear("img_in", 128, width, bias=False)
    net.linear("txt_in", text, width, bias=False)
    for name in ("time_in", "guidance_in") if guidance else ("time_in",):
        net.linear(f"{name}.in_layer", 256, width, bias=False)
        net.linear(f"{name}.out_layer", width, width, bias=False)
    for index in range(double):
        for stream in ("img", "txt"):
            block = net.at(f"double_blocks.{index}")
            _flux_attention(block.at(f"{stream}_attn"), width, bias=False)
            block.linear(f"{stream}_mlp.0", width, 6 * width, bias=False)
            block.linear(f"{stream}_mlp.2", 3 * width, width, bias=False)
    for index in range(single):
        block = net.at(f"single_blocks.{index}")
        block.linear("linear1", width, 9 * width, bias=False)
        block.linear("linear2", 4 * width, width, bias=False)
        _flux_norms(block)
    for name, count in (
        ("double_stream_modulation_img", 6),
        ("double_stream_modulation_txt", 6),
        ("single_stream_modulation", 3),
    ):
        net.linear(f"{name}.lin", width, count * width, bias=False)
    net.linear("final_layer.linear", width, 128, bias=False)
    net.linear("final_layer.adaLN_modulation.1", width, 2 * width, bias=False)
    return net


def ovis(double: int = 1, single: int = 1, *, width: int = 3072, text: int = 2048) -> Net:
    """Ovis-Image: FLUX with gated feed-forwards and a language model."""
    net = Net()
    net.linear("img_in", 64, width)
    net.linear("txt_in", text, width)
    net.add("txt_norm.scale", text)
    net.linear("time_in.in_layer", 256, width)
    net.linear("time_in.out_layer", width, width)
    for index in range(double):
        for stream in ("img", "txt"):
            block = net.at(f"double_blocks.{index}")
            block.linear(f"{stream}_mod.lin", width, 6 * width)
            _flux_attention(block.at(f"{stream}_attn"), width)
            for name in ("gate_proj", "up_proj"):
                block.linear(f"{stream}_mlp.{name}", width, 4 * width)
            block.linear(f"{stream}_mlp.down_proj", 4 * width, width)
    for index in range(single):
        block = net.at(f"single_blocks.{index}")
        block.linear("linear1", width, 11 * width)
        block.linear("linear2", 5 * width, width)
        _flux_norms(block)
        block.linear("modulation.lin", width, 3 * width)
    net.linear("final_layer.linear", width, 64)
    net.linear("final_layer.adaLN_modulation.1", width, 2 * width)
    return net


def qwen_image(layers: int) -> Net:
    """Qwen-Image and Qwen-Image-Edit."""
    net, width = Net(), 3072
    net.linear("time_text_embed.timestep_embedder.linear_1", 256, width)
    net.linear("time_text_embed.timestep_embedder.linear_2", width, width)
    net.rms(3584, "txt_norm")
    net.linear("img_in", 64, width)
    net.linear("txt_in", 3584, width)
    for index in range(layers):
        block = net.at(f"transformer_blocks.{index}")
        for stream in ("img", "txt"):
            block.linear(f"{stream}_mod.1", width, 6 * width)
            block.linear(f"{stream}_mlp.net.0.proj", width, 4 * width)
            block.linear(f"{stream}_mlp.net.2", 4 * width, width)
        attention = block.at("attn")
        for name in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj"):
            attention.linear(name, width, width)
        for name in ("to_out.0", "to_add_out"):
            attention.linear(name, width, width)
        attention.rms(128, "norm_q", "norm_k", "norm_added_q", "norm_added_k")
    net.linear("norm_out.linear", width, 2 * width)
    net.linear("proj_out", width, 64)
    return net


def z_image() -> Net:
    """Z-Image, whose sizes are fixed."""
    net, width = Net(), 3840
    net.add("cap_pad_token", width)
    net.add("x_pad_token", width)
    net.linear("x_embedder", 64, width)
    net.linear("t_embedder.mlp.0", 256, 1024)
    net.linear("t_embedder.mlp.2", 1024, 256)
    net.rms(2560, "cap_embedder.0")
    net.linear("cap_embedder.1", 2560, width)
    for stack, count in (("noise_refiner", 2), ("context_refiner", 2), ("layers", 30)):
        for index in range(count):
            block = net.at(f"{stack}.{index}")
            block.linear("attention.qkv", width, 3 * width, bias=False)
            block.linear("attention.out", width, width, bias=False)
            block.rms(128, "attention.q_norm", "attention.k_norm")
            for name, inner, outer in (
                ("w1", width, 10240),
                ("w2", 10240, width),
                ("w3", width, 10240),
            ):
                block.linear(f"feed_forward.{name}", inner, outer, bias=False)
            block.rms(width, "attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2")
            if stack != "context_refiner":
                block.linear("adaLN_modulation.0", 256, 4 * width)
    net.linear("final_layer.linear", width, 64)
    net.linear("final_layer.adaLN_modulation.1", 256, width)
    return net


def ernie(layers: int, *, width: int = 4096, text: int = 3072, feed_forward: int = 12288) -> Net:
    """ERNIE-Image."""
    net = Net()
    net.conv("x_embedder.proj", 128, width, 1)
    net.linear("text_proj", text, width, bias=False)
    net.linear("time_embedding.linear_1", width, width)
    net.linear("time_embedding.linear_2", width, width)
    net.linear("adaLN_modulation.1", width, 6 * width)
    for index in range(layers):
        block = net.at(f"layers.{index}")
        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            block.linear(f"self_attention.{name}", width, width, bias=False)
        block.rms(128, "self_attention.norm_q", "self_attention.norm_k")
        for name in ("gate_proj", "up_proj"):
            block.linear(f"mlp.{name}", width, feed_forward, bias=False)
        block.linear("mlp.linear_fc2", feed_forward, width, bias=False)
        block.rms(width, "adaLN_sa_ln", "adaLN_mlp_ln")
    net.linear("final_norm.linear", width, 2 * width)
    net.linear("final_linear", width, 128)
    return net


def anima(layers: int) -> Net:
    """Anima, with its adapter between language model and transformer."""
    net, width = Net().at("net"), 2048
    net.linear("x_embedder.proj.1", 68, width, bias=False)
    net.linear("t_embedder.1.linear_1", width, width, bias=False)
    net.linear("t_embedder.1.linear_2", width, 3 * width, bias=False)
    net.rms(width, "t_embedding_norm")
    for index in range(layers):
        block = net.at(f"blocks.{index}")
        for name in ("self_attn", "cross_attn", "mlp"):
            block.linear(f"adaln_modulation_{name}.1", width, 256, bias=False)
            block.linear(f"adaln_modulation_{name}.2", 256, 3 * width, bias=False)
        _anima_attention(block.at("self_attn"), width, width, 128, "output_proj")
        _anima_attention(block.at("cross_attn"), width, 1024, 128, "output_proj")
        block.linear("mlp.layer1", width, 4 * width, bias=False)
        block.linear("mlp.layer2", 4 * width, width, bias=False)
    net.linear("final_layer.adaln_modulation.1", width, 256, bias=False)
    net.linear("final_layer.adaln_modulation.2", 256, 2 * width, bias=False)
    net.linear("final_layer.linear", width, 64, bias=False)
    adapter = net.at("llm_adapter")
    adapter.add("embed.weight", 1024, 32128)
    for index in range(6):
        block = adapter.at(f"blocks.{index}")
        block.rms(1024, "norm_self_attn", "norm_cross_attn", "norm_mlp")
        for name in ("self_attn", "cross_attn"):
            _anima_attention(block.at(name), 1024, 1024, 64, "o_proj")
        block.linear("mlp.0", 1024, 4096)
        block.linear("mlp.2", 4096, 1024)
    adapter.linear("out_proj", 1024, 1024)
    adapter.rms(1024, "norm")
    return net


def _anima_attention(net: Net, width: int, keys: int, head: int, out: str) -> None:
    net.linear("q_proj", width, width, bias=False)
    net.linear("k_proj", keys, width, bias=False)
    net.linear("v_proj", keys, width, bias=False)
    net.linear(out, width, width, bias=False)
    net.rms(head, "q_norm", "k_norm")


def lora(diffusion_model: Mapping[str, Shape], rank: int = 4) -> Net:
    """A LoRA for every matrix of a diffusion model's attention."""
    net = Net().at("diffusion_model")
    for name, shape in diffusion_model.items():
        if len(shape) == 2 and "att" in name and name.endswith(".weight"):
            inner, outer = shape
            matrix = name.removesuffix(".weight")
            net.add(f"{matrix}.lora_A.weight", inner, rank)
            net.add(f"{matrix}.lora_B.weight", rank, outer)
    return net
