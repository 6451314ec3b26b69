"""Weight files for tests: small ones of every kind, and ones that are broken on purpose.

Shapes have the innermost dimension first. Weights are holes in sparse files and take no space.
"""

from __future__ import annotations

import gzip
import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from PIL import Image

Shapes = Mapping[str, tuple[int, ...]]

_BYTES: Final = {"F32": 4, "F16": 2, "F8_E4M3": 1, "U8": 1, "I32": 4}


def write_safetensors(
    path: Path, shapes: Shapes, dtype: str = "F16", metadata: Mapping[str, str] | None = None
) -> Path:
    """Write a complete safetensors file with these tensors."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, shape in shapes.items():
        begin = end
        size = _BYTES[dtype]
        for side in shape:
            size *= side
        end += size
        header[name] = {
            "dtype": dtype,
            "shape": list(reversed(shape)),
            "data_offsets": [begin, end],
        }
    return write_header(path, header, end)


def write_header(path: Path, header: object, data: int = 0) -> Path:
    """Write a safetensors file with any header, followed by this many bytes."""
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + data)
    return path


def prefixed(prefix: str, shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """The same tensors with a prefix, as in a complete model."""
    return {prefix + name: shape for name, shape in shapes.items()}


# --- kinds of weights -----------------------------------------------------------------------------

_FLUX: Final[Shapes] = {
    "img_in.weight": (64, 3072),
    "txt_in.weight": (4096, 3072),
    "double_blocks.0.txt_attn.norm.key_norm.scale": (128,),
    "double_blocks.0.img_attn.qkv.weight": (3072, 4),
    "single_blocks.0.linear1.weight": (3072, 4),
}
_SD3: Final[Shapes] = {
    "joint_blocks.0.x_block.attn.qkv.weight": (1536, 4),
    "joint_blocks.23.x_block.attn.qkv.weight": (1536, 4),
}
_FLUX2: Final[Shapes] = {
    "double_blocks.0.img_attn.qkv.weight": (6144, 4),
    "double_stream_modulation_img.lin.weight": (6144, 4),
    "txt_in.weight": (15360, 4),
    "single_blocks.0.norm.key_norm.scale": (128,),
}


def unet(context: int, channels: int = 4) -> Shapes:
    """The tensors by which a UNet is recognised."""
    return {
        "input_blocks.0.0.weight": (3, 3, channels, 320),
        "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (context, 4),
        "middle_block.1.proj_in.weight": (1, 1, 4, 4),
    }


#: Title of an architecture -> tensors of its diffusion model.
DIFFUSION: Final[Mapping[str, Shapes]] = {
    "Stable Diffusion 1": unet(768),
    "Stable Diffusion 1 for inpainting": unet(768, 9),
    "Stable Diffusion 1 for instructions (pix2pix)": unet(768, 8),
    "Stable Diffusion 2": unet(1024),
    "Stable Diffusion 2 for inpainting": unet(1024, 9),
    "Stable Diffusion XL": unet(2048),
    "SDXL refiner": unet(1280),
    "Stable Diffusion 3 Medium": _SD3,
    "Stable Diffusion 3.5 Medium": {**_SD3, "joint_blocks.0.x_block.attn2.qkv.weight": (1536, 4)},
    "Stable Diffusion 3.5 Large": {**_SD3, "joint_blocks.37.x_block.attn.ln_q.weight": (64,)},
    "FLUX.1 schnell": _FLUX,
    "FLUX.1 dev or Kontext": {**_FLUX, "guidance_in.in_layer.weight": (256, 3072)},
    "FLUX.1 Fill": {**_FLUX, "img_in.weight": (384, 3072)},
    "FLUX.1 Canny or Depth": {**_FLUX, "img_in.weight": (128, 3072)},
    "Flex.2": {**_FLUX, "img_in.weight": (196, 3072)},
    "Chroma": {**_FLUX, "distilled_guidance_layer.in_proj.weight": (64, 5120)},
    "Chroma1-Radiance": {**_FLUX, "nerf_final_layer_conv.conv.weight": (3, 3, 64, 3)},
    "FLUX.2 dev": {**_FLUX2, "single_blocks.47.linear1.weight": (6144, 4)},
    "FLUX.2 klein": _FLUX2,
    "Ovis-Image": {
        **_FLUX,
        "txt_in.weight": (2048, 3072),
        "double_blocks.0.img_mlp.gate_proj.weight": (3072, 4),
    },
    "Qwen-Image": {
        "transformer_blocks.0.img_mod.1.weight": (3072, 4),
        "txt_in.weight": (3584, 3072),
    },
    "Z-Image": {"cap_embedder.0.weight": (2560,), "layers.0.attention.qkv.weight": (3840, 4)},
    "Lumina-Image 2": {"cap_embedder.0.weight": (2304,)},
    "ERNIE-Image": {"layers.0.adaLN_sa_ln.weight": (4096,)},
    "Anima": {"net.llm_adapter.blocks.0.cross_attn.q_proj.weight": (1024, 4)},
    "Wan": {"blocks.0.cross_attn.norm_k.weight": (1536,)},
    "Stable Video Diffusion": {"input_blocks.8.0.time_mixer.mix_factor": (1,)},
    "a diffusion model in the layout of diffusers": {
        "single_transformer_blocks.0.attn.to_q.weight": (3072, 4)
    },
}


def vae(channels: int) -> Shapes:
    """The tensors by which a VAE is recognised."""
    return {
        "decoder.conv_in.weight": (3, 3, channels, 8),
        "encoder.conv_in.weight": (3, 3, 3, 8),
    }


#: Kind -> tensors of a separate file of that kind.
ALONE: Final[Mapping[str, Shapes]] = {
    "vae": vae(16),
    "tae": {"decoder.layers.0.weight": (3, 3, 16, 64), "encoder.layers.0.weight": (3, 3, 3, 64)},
    "clip_l": {"text_model.embeddings.token_embedding.weight": (768, 8)},
    "clip_g": {"text_model.embeddings.token_embedding.weight": (1280, 8)},
    "clip_h": {"model.token_embedding.weight": (1024, 8)},
    "t5xxl": {
        "shared.weight": (4096, 8),
        "encoder.block.0.layer.0.SelfAttention.q.weight": (4096, 8),
    },
    "llm": {
        "model.embed_tokens.weight": (2048, 8),
        "model.layers.0.self_attn.q_proj.weight": (2048, 8),
    },
    "llm_vision": {"v.blk.0.attn_q.weight": (8, 8)},
    "clip_vision": {"vision_model.encoder.layers.0.mlp.fc1.weight": (8, 8)},
    "lora": {
        "lora_unet_down_blocks_0.lora_down.weight": (8, 4),
        "lora_unet_down_blocks_0.lora_up.weight": (4, 8),
    },
    "control_net": {"control_model.input_hint_block.0.weight": (3, 3, 3, 16)},
    "ip_adapter": {"ip_adapter.1.to_k_ip.weight": (768, 8)},
    "motion": {"down_blocks.0.motion_modules.0.proj_in.weight": (8, 8)},
    "embedding": {"emb_params": (768, 4)},
    "upscaler": {"conv_first.weight": (3, 3, 3, 64), "body.0.rdb1.conv1.weight": (3, 3, 64, 32)},
    "unknown": {"something.weight": (8, 8)},
}


# --- broken files -------------------------------------------------------------------------------


def gguf_string(text: str) -> bytes:
    """A string in the format of GGUF."""
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def gguf_entry(key: str, kind: int, value: bytes) -> bytes:
    """One metadata entry."""
    return gguf_string(key) + struct.pack("<I", kind) + value


def gguf_tensor(
    name: str = "a.weight", shape: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0
) -> bytes:
    """One entry of the list of tensors."""
    sides = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return gguf_string(name) + sides + struct.pack("<IQ", kind, offset)


def gguf(
    *tensors: bytes, entries: tuple[bytes, ...] = (), version: int = 3, data: int = 128
) -> bytes:
    """A GGUF file with these entries, followed by zeros."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(entries))
    whole = head + b"".join(entries) + b"".join(tensors)
    return whole + bytes(-len(whole) % 32 + data)


def _zipped() -> bytes:
    file = BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    return file.getvalue()


def _picture() -> bytes:
    file = BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    return file.getvalue()


def _safetensors(header: object, data: int = 0) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data)


def _one(name: str = "a", **changes: object) -> object:
    return {name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


_DEEP: Final = b"{" * 100_000

#: Name -> bytes of a file, and a part of the error message for it.
BROKEN: Final[Mapping[str, tuple[bytes, str]]] = {
    "empty": (b"", "is empty"),
    "html": (
        b"\n<!DOCTYPE html><html><title>Sign in</title></html>",
        "is an HTML page, not a model: was the download behind a login?",
    ),
    "xml": (b'<?xml version="1.0"?><Error>AccessDenied</Error>', "is an HTML page"),
    "json": (b'{"msg": {"error": "not found"}}', "is text, not a model"),
    "text": ("Fünf Sätze ohne Sinn.\n".encode() * 50, "is text, not a model"),
    "git-lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "is a Git LFS pointer",
    ),
    "picture": (_picture(), "is a PNG image"),
    "gzip": (gzip.compress(b"x" * 100), "is a gzip archive: unpack it first"),
    "torch": (_zipped(), "is a PyTorch checkpoint"),
    "pickle": (pickle.dumps({"state_dict": {}}), "is a Python pickle"),
    "ggml": (b"tjgg" + bytes(100), "is in the GGML format that GGUF replaced"),
    "zeros": (bytes(10_000), "begins with nothing but zeros"),
    "garbage": (b"\x01\x90" * 5000, "is neither GGUF nor safetensors"),
    "tiny": (b"\x01\xff", "is neither GGUF nor safetensors"),
    # GGUF
    "magic-only": (b"GGUF", "is cut short: it ends within its header"),
    "header-cut": (gguf(gguf_tensor())[:40], "is cut short: it ends within its header"),
    "data-cut": (
        gguf(gguf_tensor("deep.weight"))[:-1],
        "ends in the middle of tensor 'deep.weight': 224 bytes are needed and there are 223",
    ),
    "future": (gguf(gguf_tensor(), version=4), "is a GGUF of version 4"),
    "first": (gguf(gguf_tensor(), version=1), "is a GGUF of version 1"),
    "big-endian": (
        b"GGUF" + struct.pack(">IQQ", 3, 1, 0) + bytes(100),
        "is a GGUF of a big-endian machine",
    ),
    "no-tensors": (gguf(), "contains no tensors"),
    "many-tensors": (
        b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0) + bytes(100),
        "is damaged: its header declares 1152921504606846976 tensors",
    ),
    "many-entries": (
        b"GGUF" + struct.pack("<IQQ", 3, 1, 2**63) + bytes(100),
        "is damaged: its header declares 9223372036854775808 metadata entries",
    ),
    "long-name": (
        b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 2**40) + bytes(100),
        "is damaged: the name of tensor 0 would be 1099511627776 bytes long",
    ),
    "long-list": (
        gguf(gguf_tensor(), entries=(gguf_entry("a", 9, struct.pack("<IQ", 4, 2**61)),)),
        "is cut short",
    ),
    "long-list-of-strings": (
        gguf(gguf_tensor(), entries=(gguf_entry("a", 9, struct.pack("<IQ", 8, 2**61)),)),
        "is cut short",
    ),
    "strange-entry": (
        gguf(gguf_tensor(), entries=(gguf_entry("a", 77, b""),)),
        "is damaged: the metadata entry 'a' has the unknown type 77",
    ),
    "strange-list": (
        gguf(gguf_tensor(), entries=(gguf_entry("a", 9, struct.pack("<IQ", 9, 1)),)),
        "is damaged: the list 'a' has the unknown type 9",
    ),
    "alignment": (
        gguf(gguf_tensor(), entries=(gguf_entry("general.alignment", 4, struct.pack("<I", 33)),)),
        "is damaged: its alignment is 33",
    ),
    "alignment-in-words": (
        gguf(gguf_tensor(), entries=(gguf_entry("general.alignment", 8, gguf_string("32")),)),
        "is damaged: its alignment is not a 32-bit number",
    ),
    "huge-shape": (
        gguf(gguf_tensor(shape=(2**32, 2**32, 2**32))),
        "is damaged: tensor 'a.weight' has the shape [4294967296, 4294967296, 4294967296]",
    ),
    "no-shape": (
        gguf(gguf_tensor(shape=(32, 0, 4))),
        "is damaged: tensor 'a.weight' has the shape [32, 0, 4]",
    ),
    "dimensions": (
        gguf(gguf_tensor(shape=(1,) * 9)),
        "is damaged: tensor 'a.weight' has 9 dimensions",
    ),
    "strange-type": (
        gguf(gguf_tensor(kind=99)),
        "has tensor 'a.weight' in type 99, which the runtime does not know",
    ),
    "odd-rows": (
        gguf(gguf_tensor(shape=(33,), kind=2)),
        "is damaged: tensor 'a.weight' has rows of 33, which q4_0 cannot hold",
    ),
    "far-away": (gguf(gguf_tensor(offset=2**60)), "ends in the middle of tensor 'a.weight'"),
    "twins": (gguf(gguf_tensor(), gguf_tensor()), "is damaged: it lists tensor 'a.weight' twice"),
    # safetensors
    "endless-header": (
        struct.pack("<Q", 2**62) + b"{}" * 64,
        "is damaged: its header would be 4611686018427387904 bytes long",
    ),
    "long-header": (
        struct.pack("<Q", 10**6) + b"{}" * 64,
        "is cut short: its header alone is 1000000 bytes long and the file has 136",
    ),
    "no-json": (struct.pack("<Q", 4) + b"{\0\0}" + bytes(8), "is damaged: its header is not JSON"),
    "deep-json": (
        struct.pack("<Q", len(_DEEP)) + _DEEP,
        "is damaged: its header is not JSON",
    ),
    "no-entries": (_safetensors({}), "contains no tensors"),
    "half-an-entry": (
        _safetensors({"a": {"dtype": "F32"}}),
        "is damaged: its entry of tensor 'a' is incomplete or wrong",
    ),
    "unread-type": (
        _safetensors(_one(dtype="I8")),
        "has tensor 'a' in type I8, which the runtime does not read",
    ),
    "wrong-length": (
        _safetensors(_one(data_offsets=[0, 99]), 99),
        "is damaged: tensor 'a' is given 99 bytes",
    ),
    "lying-shape": (
        _safetensors(_one(shape=[2**40, 2**40]), 8),
        "is damaged: tensor 'a' has the shape [1099511627776, 1099511627776]",
    ),
    "long-offsets": (
        _safetensors(_one(data_offsets=[0, 10**4299]), 8),
        "is damaged: its entry of tensor 'a' is incomplete or wrong",
    ),
    "boolean-offsets": (
        _safetensors(_one(data_offsets=[False, 8]), 8),
        "is damaged: its entry of tensor 'a' is incomplete or wrong",
    ),
    "long-shape": (
        _safetensors(_one(shape=[10**4299]), 8),
        "is damaged: tensor 'a' has the shape [1000",
    ),
    "empty-shape": (_safetensors(_one(shape=[2, 0]), 8), "is damaged: tensor 'a' has the shape"),
    "negative-shape": (_safetensors(_one(shape=[-2]), 8), "is damaged: tensor 'a' has the shape"),
    "many-sides": (_safetensors(_one(shape=[1] * 99), 8), "is damaged: tensor 'a' has 99 dim"),
    "half-a-character": (
        _safetensors(_one(name="\ud800"), 8),
        "is damaged: the name of its tensor '?' is not text",
    ),
    "zero-in-a-name": (
        _safetensors(_one(name="a\0b"), 8),
        "is damaged: the name of its tensor 'a?b' is not text",
    ),
    "lying-header": (
        _safetensors(_one(shape=[2**30], data_offsets=[0, 2**32]), 64),
        "ends in the middle of tensor 'a'",
    ),
}


# --- complete files that do not make a model ----------------------------------------------------

Writer = Callable[[Path], dict[str, Path]]
_XL: Final = {
    **prefixed("model.diffusion_model.", DIFFUSION["Stable Diffusion XL"]),
    **prefixed("first_stage_model.", vae(4)),
}


def _files(**parts: tuple[Shapes, str] | Shapes) -> Writer:
    """Return a function that writes one file for each component."""

    def write(folder: Path) -> dict[str, Path]:
        return {
            name: write_safetensors(folder / f"{name}.safetensors", *_shapes_and_type(part))
            for name, part in parts.items()
        }

    return write


def _shapes_and_type(part: tuple[Shapes, str] | Shapes) -> tuple[Shapes, str]:
    return part if isinstance(part, tuple) else (part, "F16")


_FLUX_PARTS: Final[dict[str, tuple[Shapes, str] | Shapes]] = {
    "diffusion_model": DIFFUSION["FLUX.1 schnell"],
    "clip_l": ALONE["clip_l"],
    "t5xxl": ALONE["t5xxl"],
    "vae": ALONE["vae"],
}
_OVIS_PARTS: Final = {
    "diffusion_model": DIFFUSION["Ovis-Image"],
    "llm": ALONE["llm"],
    "vae": ALONE["vae"],
}
_NO_NORMS: Final = {k: v for k, v in _FLUX.items() if "norm" not in k}

#: Name -> the family in the catalogue, the writer of the files, and a part of the error message.
UNFIT: Final[Mapping[str, tuple[str, Writer, str]]] = {
    **{
        f"{kind}-as-model": ("sd1", _files(model=ALONE[kind]), sentence)
        for kind, sentence in (
            ("lora", "'model' is a LoRA, not a whole model"),
            ("control_net", "'model' is a ControlNet, not a whole model"),
            ("embedding", "'model' is an embedding (textual inversion), not a whole model"),
            ("upscaler", "'model' is an upscaler (ESRGAN), not a whole model"),
            ("llm", "'model' is a language model (2048 wide), not a whole model"),
            ("vae", "'model' is a VAE with 16 latent channels, not a whole model"),
            ("unknown", "'model' is a file of an unknown kind, not a whole model"),
        )
    },
    "flux-as-model": (
        "flux",
        _files(model=DIFFUSION["FLUX.1 schnell"]),
        "'model' is the diffusion model of FLUX.1 schnell alone: name it 'diffusion_model' in the "
        "catalogue, and besides it clip_l, t5xxl and vae.",
    ),
    "flux-alone": (
        "flux",
        _files(diffusion_model=DIFFUSION["FLUX.1 schnell"]),
        "This is the diffusion model of FLUX.1 schnell alone: it needs clip_l, t5xxl and vae.",
    ),
    "flux-without-t5": (
        "flux",
        _files(**{name: part for name, part in _FLUX_PARTS.items() if name != "t5xxl"}),
        "FLUX.1 schnell needs t5xxl, which no file has.",
    ),
    "flux-without-norms": (
        "flux",
        _files(**{**_FLUX_PARTS, "diffusion_model": _NO_NORMS}),
        "'diffusion_model' lacks the norms of its first blocks.",
    ),
    "swapped": (
        "flux",
        _files(**{**_FLUX_PARTS, "clip_l": ALONE["t5xxl"], "t5xxl": ALONE["clip_l"]}),
        "'clip_l' is a T5 text encoder, not a CLIP-L text encoder.",
    ),
    "vae-of-sd1": (
        "flux",
        _files(**{**_FLUX_PARTS, "vae": vae(4)}),
        "The vae is not that of FLUX.1 schnell: it has 4 latent channels, not 16.",
    ),
    "vae-decoder": (
        "flux",
        _files(**{**_FLUX_PARTS, "vae": {"decoder.conv_in.weight": (3, 3, 16, 8)}}),
        "The vae can only decode: its encoder is missing.",
    ),
    "vae-is-a-model": (
        "flux",
        _files(**{**_FLUX_PARTS, "vae": _XL}),
        "'vae' is Stable Diffusion XL, not a VAE alone.",
    ),
    "scaled-fp8": (
        "flux",
        _files(
            **{
                **_FLUX_PARTS,
                "t5xxl": (
                    {**ALONE["t5xxl"], "encoder.block.0.layer.0.SelfAttention.q.scale_weight": ()},
                    "F8_E4M3",
                ),
            }
        ),
        "'t5xxl' has scales besides its weights ('encoder.block.0.layer.0.SelfAttention.q.scale_",
    ),
    "scales-left-over": (
        "sdxl",
        _files(model={**_XL, "model.diffusion_model.out.2.weight_scale_inv": ()}),
        "'model' has scales besides its weights ('model.diffusion_model.out.2.weight_scale_inv')",
    ),
    "nf4": (
        "flux",
        _files(
            diffusion_model=(
                {**_FLUX, "img_in.weight.quant_state.bitsandbytes__nf4": (80,)},
                "U8",
            )
        ),
        "'diffusion_model' is quantised by bitsandbytes (NF4)",
    ),
    "wrong-family": (
        "sdxl",
        _files(**_FLUX_PARTS),
        "The weights are those of FLUX.1 schnell but the family in the catalogue is 'sdxl'; it "
        "should be 'flux'.",
    ),
    "narrow-llm": (
        "ovis_image",
        _files(
            **{
                **_OVIS_PARTS,
                "llm": {**ALONE["llm"], "model.embed_tokens.weight": (2560, 8)},
            }
        ),
        "The language model is 2560 wide and Ovis-Image requires one of 2048.",
    ),
    "unet-alone": (
        "sd1",
        _files(model=DIFFUSION["Stable Diffusion 1"]),
        "'model' is the UNet of Stable Diffusion 1 alone: the runtime reads it only with its text "
        "encoders in the same file",
    ),
    "unet-apart": (
        "sdxl",
        _files(
            diffusion_model=DIFFUSION["Stable Diffusion XL"],
            clip_l=ALONE["clip_l"],
            clip_g=ALONE["clip_g"],
            vae=vae(4),
        ),
        "clip_l and clip_g of Stable Diffusion XL are not in the file of its UNet",
    ),
    "no-encoders": (
        "sdxl",
        _files(model=_XL),
        "clip_l and clip_g of Stable Diffusion XL are not in the file of its UNet",
    ),
    "refiner": (
        "sdxl",
        _files(model=prefixed("model.diffusion_model.", DIFFUSION["SDXL refiner"])),
        "'model' is SDXL refiner: the runtime has no refiner; 'sdxl-base-1.0' of the catalogue "
        "needs none.",
    ),
    "video": (
        "flux",
        _files(diffusion_model=DIFFUSION["Wan"]),
        "'diffusion_model' is Wan: it makes videos, and this service generates images.",
    ),
    "diffusers": (
        "flux",
        _files(model=DIFFUSION["a diffusion model in the layout of diffusers"]),
        "'model' is a diffusion model in the layout of diffusers",
    ),
    "strange-model": (
        "flux",
        _files(model={"model.diffusion_model.something.weight": (8, 8)}),
        "'model' contains a diffusion model that the runtime does not know.",
    ),
}
