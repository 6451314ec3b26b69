"""Rules that recognise the contents of weight files by the names and shapes of the tensors.

The rules follow ``get_sd_version`` of stable-diffusion.cpp, in the release that
stable-diffusion-cpp-python 0.4.7 contains, so that this module and the runtime always recognise the
same architecture. Variants of an architecture are distinguished as far as the tensors allow.
FLUX.1 Kontext has the tensors of FLUX.1 dev, and Qwen-Image-Edit has mostly those of Qwen-Image, so
each of these pairs is one architecture here.

Shapes begin with the innermost dimension, as in ggml.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from sdstream.core.model_families import FAMILIES
from sdstream.weights.llama_box import own_name

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


@dataclass(frozen=True)
class Architecture:
    """A diffusion model that the rules can recognise.

    Attributes:
        title: The model's common name, with the variant if the tensors show it.
        families: Families of models.yaml that generate with it.
        refused: Why the service cannot generate with it; empty if ``families`` is not empty.
        whole: The runtime reads UNet and text encoders only if they are in the same file.
        latents: Number of latent channels that the autoencoder must have; 0 if unknown.
        text_width: Tensor whose innermost dimension is the total width of ``states`` concatenated
            states of the language model.
        states: Number of these states.
    """

    title: str
    families: tuple[str, ...] = ()
    refused: str = ""
    whole: bool = False
    latents: int = 0
    text_width: str = ""
    states: int = 1

    @property
    def needs(self) -> tuple[str, ...]:
        """Components that the model requires in addition to the diffusion model."""
        return FAMILIES[self.families[0]].needs if self.families else ()


@dataclass(frozen=True)
class _Rule:
    """A rule that recognises an architecture.

    The rule fits if each text in ``has`` is part of a tensor's name, no text in ``lacks`` is, and
    the ``widths`` match. A text that begins with a line feed must be the beginning of a name. Each
    width consists of the end of a name, the index of a dimension, and its size.
    """

    result: Architecture
    has: tuple[str, ...]
    lacks: tuple[str, ...] = ()
    widths: tuple[tuple[str, int, int], ...] = ()

    def fits(self, text: str, shapes: Shapes) -> bool:
        return (
            all(part in text for part in self.has)
            and not any(part in text for part in self.lacks)
            and all(_width(shapes, end, side) == size for end, side, size in self.widths)
        )


def _width(shapes: Shapes, ending: str, dimension: int) -> int:
    """Return the size of a dimension of the first tensor whose name has this ending, or 0."""
    for name, shape in shapes.items():
        if name.endswith(ending):
            return shape[dimension] if dimension < len(shape) else 1
    return 0


def _video(title: str) -> Architecture:
    return Architecture(title, refused="it makes videos, and this service generates images")


def _unet(title: str, family: str) -> Architecture:
    return Architecture(title, (family,), whole=True, latents=4)


def _flux(title: str) -> Architecture:
    return Architecture(title, ("flux", "flux_kontext"), latents=16)


_CONTEXT: Final = "attn2.to_k.weight"
_INPUT: Final = "input_blocks.0.0.weight"
_NO_REFINER: Final = "the runtime has no refiner; 'sdxl-base-1.0' of the catalogue needs none"
_DIFFUSERS: Final = Architecture(
    "a diffusion model in the layout of diffusers",
    refused="the runtime reads the layout of the original checkpoint",
)

#: The first rule that fits applies. Rules match tensor names without the diffusion model's prefix.
_ARCHITECTURES: Final = (
    _Rule(
        Architecture("Chroma1-Radiance", ("chroma_radiance",)),
        ("\nnerf_final_layer_conv.",),
    ),
    _Rule(
        Architecture("Stable Diffusion 3.5 Large", ("sd3",), latents=16),
        ("\njoint_blocks.37.",),
    ),
    _Rule(
        Architecture("Stable Diffusion 3.5 Medium", ("sd3",), latents=16),
        ("\njoint_blocks.", ".x_block.attn2."),
    ),
    _Rule(
        Architecture("Stable Diffusion 3 Medium", ("sd3",), latents=16),
        ("\njoint_blocks.",),
    ),
    _Rule(
        Architecture("Qwen-Image", ("qwen_image", "qwen_image_edit"), text_width="txt_in.weight"),
        ("\ntransformer_blocks.0.img_mod.1.weight",),
    ),
    _Rule(
        Architecture("Anima", ("anima",)),
        ("llm_adapter.blocks.0.cross_attn.q_proj.weight",),
    ),
    _Rule(
        Architecture("Ovis-Image", ("ovis_image",), latents=16, text_width="txt_in.weight"),
        ("\ndouble_blocks.0.img_mlp.gate_proj.weight",),
    ),
    _Rule(
        Architecture("Lumina-Image 2", refused="the runtime mistakes it for Z-Image and fails"),
        ("\ncap_embedder.0.weight",),
        widths=(("cap_embedder.0.weight", 0, 2304),),
    ),
    _Rule(
        Architecture("Z-Image", ("z_image",), latents=16, text_width="cap_embedder.0.weight"),
        ("\ncap_embedder.0.weight",),
    ),
    _Rule(
        Architecture("ERNIE-Image", ("ernie_image",), latents=32, text_width="text_proj.weight"),
        ("\nlayers.0.adaLN_sa_ln.weight",),
    ),
    _Rule(_video("Wan"), ("\nblocks.0.cross_attn.norm_k.weight",)),
    _Rule(_video("Stable Video Diffusion"), ("\ninput_blocks.8.0.time_mixer.mix_factor",)),
    _Rule(
        Architecture("FLUX.2 dev", ("flux2",), latents=32, text_width="txt_in.weight", states=3),
        ("\ndouble_stream_modulation_img.lin.weight", "\nsingle_blocks.47."),
    ),
    _Rule(
        Architecture("FLUX.2 klein", ("flux2",), latents=32, text_width="txt_in.weight", states=3),
        ("\ndouble_stream_modulation_img.lin.weight",),
    ),
    _Rule(
        Architecture("Chroma", ("chroma",), latents=16),
        ("\ndouble_blocks.", "\ndistilled_guidance_layer.in_proj.weight"),
    ),
    _Rule(_flux("FLUX.1 Fill"), ("\ndouble_blocks.",), widths=(("img_in.weight", 0, 384),)),
    _Rule(
        _flux("FLUX.1 Canny or Depth"), ("\ndouble_blocks.",), widths=(("img_in.weight", 0, 128),)
    ),
    _Rule(_flux("Flex.2"), ("\ndouble_blocks.",), widths=(("img_in.weight", 0, 196),)),
    _Rule(_flux("FLUX.1 dev or Kontext"), ("\ndouble_blocks.", "\nguidance_in.")),
    _Rule(_flux("FLUX.1 schnell"), ("\ndouble_blocks.",)),
    _Rule(
        Architecture("SDXL refiner", refused=_NO_REFINER, whole=True, latents=4),
        ("\ninput_blocks.",),
        widths=((_CONTEXT, 0, 1280),),
    ),
    *(
        _Rule(
            _unet(f"{title}{variant}", family),
            ("\ninput_blocks.",),
            widths=((_CONTEXT, 0, context), *channels),
        )
        for title, family, context in (
            ("Stable Diffusion 1", "sd1", 768),
            ("Stable Diffusion 2", "sd2", 1024),
            ("Stable Diffusion XL", "sdxl", 2048),
        )
        for variant, channels in (
            (" for inpainting", ((_INPUT, 2, 9),)),
            (" for instructions (pix2pix)", ((_INPUT, 2, 8),)),
            ("", ()),
        )
    ),
    _Rule(_DIFFUSERS, ("\nsingle_transformer_blocks.0.",)),
    _Rule(_DIFFUSERS, ("\ntransformer_blocks.0.attn.add_q_proj.weight",)),
    _Rule(_DIFFUSERS, ("\ndown_blocks.0.resnets.0.",)),
)

#: Prefix of tensor names -> the component that they belong to, as in the runtime. The first prefix
#: that matches applies.
_PREFIXES: Final = (
    ("model.diffusion_model.", "diffusion_model"),
    ("diffusion_model.", "diffusion_model"),
    ("transformer.", "diffusion_model"),
    ("unet.", "diffusion_model"),
    ("first_stage_model.", "vae"),
    ("vae.", "vae"),
    ("tae.", "tae"),
    ("text_encoders.clip_l.", "clip_l"),
    ("text_encoders.clip_g.", "clip_g"),
    ("text_encoders.t5xxl.", "t5xxl"),
    ("text_encoders.llm.visual.", "llm_vision"),
    ("text_encoders.llm.", "llm"),
    ("cond_stage_model.1.", "clip_g"),
    ("cond_stage_model.transformer.vision_model.", "clip_vision"),
    ("cond_stage_model.", "clip_l"),
    ("conditioner.embedders.0.", "clip_l"),
    ("conditioner.embedders.1.", "clip_g"),
    ("te1.", "clip_l"),
    ("te2.", "clip_g"),
    ("te3.", "t5xxl"),
    ("te.1.", "clip_g"),
    ("te.", "clip_l"),
)

#: Prefixes of the text encoders of models with a UNet. The runtime does not read the text encoders
#: of other models under these prefixes.
_TEXT_OF_UNETS: Final = ("cond_stage_model.", "conditioner.embedders.")

#: Kinds of files that are not components of a model, each with texts. A file is of this kind if one
#: of the texts is part of a tensor's name.
_ADAPTERS: Final = (
    (
        "lora",
        (
            ".lora_down.", ".lora_up.", ".lora_A.", ".lora_B.", ".lora.down.", "_lora.down.",
            ".hada_w1_a", ".lokr_w1", ".diff\n", ".diff_b\n", "\nlora_unet_", "\nlora_te",
        ),
    ),
    (
        "control_net",
        (
            "\ncontrol_model.", "\ncontrolnet_cond_embedding.", "\ninput_hint_block.",
            "\nzero_convs.", "\ncontrolnet_blocks.", "\ncontrolnet_x_embedder.",
        ),
    ),
    ("ip_adapter", ("\nip_adapter.", "\nimage_proj.")),
    ("motion", (".motion_modules.",)),
    ("embedding", ("\nemb_params\n", "\nstring_to_param.")),
    ("upscaler", ("\nmodel.1.sub.0.RDB1.", "\nbody.0.rdb1.", "\nbody.0.weight\nbody.1.weight\n")),
)  # fmt: skip

#: Components whose tensors have no prefix if the file contains only this component.
_BARE: Final = (
    ("vae", ("\ndecoder.conv_in.weight\n", "\ndecoder.up_blocks.0.", "\ndecoder.middle.0.")),
    ("tae", ("\ndecoder.layers.0.weight\n", "\ndecoder.3.conv.0.weight\n")),
    ("clip", ("text_model.embeddings.token_embedding.", "\nmodel.token_embedding.weight\n")),
    ("t5xxl", ("\nencoder.block.0.layer.0.SelfAttention.q.", "\nenc.blk.0.attn_q.weight\n")),
    ("llm", ("\nblk.0.attn_q.", "\nblk.0.attn_qkv.", "layers.0.self_attn.q_proj.")),
    ("llm_vision", ("\nv.blk.0.", "\nv.patch_embd.weight\n")),
    ("clip_vision", ("\nvision_model.encoder.layers.0.",)),
)

TITLES: Final[Mapping[str, str]] = {
    "model": "a whole model",
    "parts": "a model without its diffusion model",
    "diffusion_model": "a diffusion model",
    "vae": "a VAE",
    "tae": "a tiny autoencoder (TAE)",
    "clip_l": "a CLIP-L text encoder",
    "clip_g": "a CLIP-G text encoder",
    "clip_h": "a CLIP-H text encoder",
    "t5xxl": "a T5 text encoder",
    "llm": "a language model",
    "llm_vision": "the vision part of a language model (mmproj)",
    "clip_vision": "a CLIP vision encoder",
    "lora": "a LoRA",
    "control_net": "a ControlNet",
    "ip_adapter": "an IP-Adapter",
    "motion": "a motion module (AnimateDiff)",
    "embedding": "an embedding (textual inversion)",
    "upscaler": "an upscaler (ESRGAN)",
    "unknown": "a file of an unknown kind",
}

#: End of a tensor's name in ControlNets that the runtime reads; ControlNets in the layout of
#: diffusers have other names.
_CONTROL_TEXT: Final = "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"

#: Name of a numbered layer of an ESRGAN network.
_LAYER: Final = re.compile(r"model\.(\d{1,3})\.(?:weight|bias)$")

#: Width of a CLIP text encoder -> its component.
_CLIP_WIDTHS: Final = {768: "clip_l", 1024: "clip_h", 1280: "clip_g"}
_TOKEN_ROWS: Final = ("embed_tokens.weight", "token_embd.weight")


@dataclass(frozen=True)
class Contents:
    """The contents of one file.

    Attributes:
        kind: A key of TITLES; "model" or "parts" if the file has several components.
        parts: Component -> the shapes of its tensors by names without prefix.
        bare: The tensors' names have no prefix of a component.
        renamed: The text encoders have the names that llama-box writes.
        architecture: Architecture of the diffusion model; None if it is missing or unknown.
    """

    kind: str
    parts: Mapping[str, Shapes] = field(default_factory=dict)
    architecture: Architecture | None = None
    bare: bool = True
    renamed: bool = False

    @property
    def title(self) -> str:
        """Description of the file, for a sentence that begins with "It is"."""
        return TITLES[self.kind]


def recognise(shapes: Shapes) -> Contents:
    """Return the contents of a file, recognised by the names and shapes of its tensors."""
    text = _joined(shapes)
    if _is_embedding(shapes):
        return Contents("embedding")
    for kind, marks in _ADAPTERS:
        if any(mark in text for mark in marks):
            return Contents(kind, {kind: shapes})
    parts = _prefixed(shapes)
    if parts:
        contents = _model(parts)
        if contents.architecture is None or contents.architecture.whole:
            return contents
        families = contents.architecture.families
        own = {own_name(name, families): shape for name, shape in shapes.items()}
        found = {n: s for n, s in own.items() if not n.startswith(_TEXT_OF_UNETS)}
        return replace(_model(_prefixed(found)), renamed=not own.keys() <= shapes.keys())
    architecture = _architecture(shapes)
    if architecture is not None:
        return Contents("diffusion_model", {"diffusion_model": shapes}, architecture)
    kind = next((kind for kind, marks in _BARE if any(m in text for m in marks)), "unknown")
    if kind == "clip":
        kind = _CLIP_WIDTHS.get(_width(shapes, "token_embedding.weight", 0), "unknown")
    return Contents(kind, {kind: shapes})


def _model(parts: Mapping[str, Shapes]) -> Contents:
    inner = parts.get("diffusion_model")
    kind = next(iter(parts)) if len(parts) == 1 else "model" if inner else "parts"
    return Contents(kind, parts, _architecture(inner) if inner else None, bare=False)


def _joined(shapes: Shapes) -> str:
    """Return all names as one text, with a line feed before and after each name."""
    return "\n" + "\n".join(shapes) + "\n"


def _is_embedding(shapes: Shapes) -> bool:
    """Return True for an embedding of SDXL: one tensor for each text encoder, named after it."""
    return set(shapes) <= {"clip_l", "clip_g"}


def _prefixed(shapes: Shapes) -> dict[str, dict[str, Shape]]:
    parts: dict[str, dict[str, Shape]] = {}
    for name, shape in shapes.items():
        part, inner = part_of(name)
        if part:
            parts.setdefault(part, {})[inner] = shape
    return parts


def part_of(name: str) -> tuple[str, str]:
    """Return the component of a tensor, and the tensor's name without the component's prefix.

    The component is empty if the name has no known prefix.
    """
    for prefix, part in _PREFIXES:
        if name.startswith(prefix):
            return part, name[len(prefix) :]
    return "", name


def _architecture(shapes: Shapes) -> Architecture | None:
    text = _joined(shapes)
    return next((rule.result for rule in _ARCHITECTURES if rule.fits(text, shapes)), None)


# --- upscalers ----------------------------------------------------------------------------------


def upscaler_factor(shapes: Shapes) -> int | None:
    """Return the factor of an ESRGAN upscaler, or None if the runtime cannot read it.

    The runtime reads networks from RGB to RGB with 64 features and 32 growth channels.
    """
    last = max((int(m[1]) for m in map(_LAYER.match, shapes) if m), default=None)
    if last is not None:  # older files have numbered layers
        factor = {4: 1, 7: 2, 10: 4}.get(last)
        first, grown = "model.0.weight", "model.1.sub.0.RDB1.conv1.0.weight"
    else:
        factor = 4 if "conv_up2.weight" in shapes else 2 if "conv_up1.weight" in shapes else 1
        first, grown = "conv_first.weight", "body.0.rdb1.conv1.weight"
    fits = shapes.get(first) == (3, 3, 3, 64) and shapes.get(grown) == (3, 3, 64, 32)
    return factor if fits else None


def upscaler_problem(shapes: Shapes) -> str:
    """Return the reason why the runtime cannot use an upscaler, as a predicate."""
    if any(name.startswith("upsampler.") for name in shapes) or _is_compact(shapes):
        return (
            "is a compact upscaler (SRVGGNet), and the runtime reads only ESRGAN networks with "
            "RRDB blocks, for example RealESRGAN_x4plus"
        )
    first = shapes.get("model.0.weight") or shapes.get("conv_first.weight") or (0, 0, 0, 0)
    if first[2] in (12, 48):
        return (
            "is an ESRGAN that folds pixels into channels (x2plus, x1), and the runtime reads only "
            "those with three input channels, for example RealESRGAN_x4plus"
        )
    return (
        "is an ESRGAN of a size that the runtime does not read; it reads those with 64 features "
        "and 32 growth channels"
    )


def _is_compact(shapes: Shapes) -> bool:
    return "body.0.weight" in shapes and "body.1.weight" in shapes


# --- properties that components must have in common -----------------------------------------------


def latent_channels(autoencoder: Shapes) -> int:
    """Return the number of latent channels of a VAE or TAE; 0 for autoencoders of videos."""
    return _width(autoencoder, "decoder.conv_in.weight", 2) or _width(
        autoencoder, "decoder.layers.0.weight", 2
    )


def has_encoder(autoencoder: Shapes) -> bool:
    """Return False for an autoencoder that can only decode."""
    return "\nencoder." in _joined(autoencoder)


def text_width(language_model: Shapes) -> int:
    """Return the embedding width of a language model; 0 if its token embeddings are missing."""
    return next(
        (shape[0] for name, shape in language_model.items() if name.endswith(_TOKEN_ROWS)), 0
    )


def sees(language_model: Shapes) -> bool:
    """Return True for a language model that contains its vision encoder."""
    return "\nvisual." in _joined(language_model)


def wanted_text_width(architecture: Architecture, diffusion_model: Shapes) -> int:
    """Return the width that the language model must have; 0 if there is no requirement."""
    if not architecture.text_width:
        return 0
    return _width(diffusion_model, architecture.text_width, 0) // architecture.states


def control_width(control_net: Shapes) -> int | None:
    """Return the width of a ControlNet's text input; None if the runtime cannot read the file."""
    return next(
        (shape[0] for name, shape in control_net.items() if name.endswith(_CONTROL_TEXT)), None
    )


def unet_text_width(diffusion_model: Shapes) -> int:
    """Return the width of a UNet's text input."""
    return next(
        (shape[0] for name, shape in diffusion_model.items() if name.endswith("attn2.to_k.weight")),
        0,
    )


def is_mangled(diffusion_model: Shapes) -> bool:
    """Return True for a FLUX model without norms; the runtime would divide by their width."""
    text = _joined(diffusion_model)
    norms = (
        "single_blocks.0.norm.key_norm.scale\n",
        "double_blocks.0.txt_attn.norm.key_norm.scale\n",
    )
    return "\ndouble_blocks." in text and not any(norm in text for norm in norms)


def missing(needs: Iterable[str], present: Iterable[str], *, tae: bool = False) -> tuple[str, ...]:
    """Return the components that a model still needs.

    Args:
        needs: Components that the architecture or the family requires.
        present: Components that exist.
        tae: The model uses a tiny autoencoder instead of the VAE.
    """
    there = set(present)
    wanted = ["tae" if tae and part == "vae" else part for part in needs]
    if "clip_h" in there:
        there.add("clip_l")
    return tuple(part for part in wanted if part not in there)
