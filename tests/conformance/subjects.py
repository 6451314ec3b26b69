"""The models that are tried: one of each architecture, as small as the runtime lets it be.

Where the runtime takes a size from the tensors, there are fewer blocks than in the published model,
or narrower ones; the rest are at full size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from tests.conformance.shapes import (
    LanguageModel,
    Net,
    Shape,
    anima,
    chroma,
    clip,
    control_net,
    ernie,
    eyes,
    flux,
    flux2,
    llm,
    mmdit,
    ovis,
    qwen_image,
    t5,
    tae,
    unet,
    vae,
    wan_vae,
    z_image,
)

Parts = Mapping[str, Mapping[str, Shape]]


@dataclass(frozen=True)
class Subject:
    """One model.

    Attributes:
        title: The published model.
        family: Of models.yaml.
        parts: Makes the tensors of each file, by component.
        shape: What is smaller than published; empty when nothing is.
        quick: Small enough for the tests.
    """

    title: str
    family: str
    parts: Callable[[], Parts]
    shape: str = ""
    quick: bool = False
    runtime: Mapping[str, object] = field(default_factory=dict)


def whole(family: str, channels: int = 4, *, control: bool = False) -> Callable[[], Parts]:
    """UNet, text encoders and VAE in one file, which the runtime wants of these families.

    A ControlNet may be in another.
    """
    first = {"sd1": 768, "sd2": 1024, "sdxl": 768}[family]
    texts = {"cond_stage_model.transformer.": clip(first)}
    if family == "sdxl":
        texts = {
            "conditioner.embedders.0.transformer.": clip(768),
            "conditioner.embedders.1.transformer.": clip(1280),
        }
    nets = {
        "model.diffusion_model.": unet(family, channels),
        "first_stage_model.": vae(4),
        **texts,
    }
    others = {"control_net": control_net(family).tensors} if control else {}
    return lambda: {"model": _inside(nets), **others}


def _inside(nets: Mapping[str, Net]) -> dict[str, Shape]:
    return {
        prefix + name: shape for prefix, net in nets.items() for name, shape in net.tensors.items()
    }


def _as_llama_box(model: Net, *texts: Net) -> Callable[[], Parts]:
    """All parts in one file, the text encoders numbered, as in GPUStack's repositories."""
    prefixes = ("cond_stage_model.", "cond_stage_model.1.", "cond_stage_model.2.")
    names = [f"{prefix}transformer." for prefix in prefixes]
    nets = {"model.diffusion_model.": model, "first_stage_model.": vae(16)}
    nets |= dict(zip(names, texts, strict=False))
    return lambda: {"model": _inside(nets)}


def _apart(**nets: Net) -> Callable[[], Parts]:
    return lambda: {component: net.tensors for component, net in nets.items()}


_TEXT: Final = {"clip_l": clip(768), "t5xxl": t5()}
_ALL_TEXT: Final = {**_TEXT, "clip_g": clip(1280)}
_NARROW: Final = 256


def _qwen3(width: int, layers: int, feed_forward: int, heads: int = 32) -> Net:
    return llm(LanguageModel(width, layers, 151936, feed_forward, heads))


def _mistral(width: int, layers: int, feed_forward: int) -> Net:
    return llm(LanguageModel(width, layers, 131072, feed_forward, qk_norm=False))


SUBJECTS: Final = (
    Subject("Stable Diffusion 1.5", "sd1", whole("sd1", control=True)),
    Subject("Stable Diffusion 1.5 inpainting", "sd1", whole("sd1", 9)),
    Subject("Stable Diffusion 2.1", "sd2", whole("sd2")),
    Subject("Stable Diffusion XL", "sdxl", whole("sdxl")),
    Subject(
        "Stable Diffusion 3 Medium",
        "sd3",
        _apart(diffusion_model=mmdit(24, qk_norm=False), vae=vae(16), **_ALL_TEXT),
    ),
    Subject(
        "Stable Diffusion 3.5 Medium",
        "sd3",
        _apart(diffusion_model=mmdit(24, 13), vae=vae(16), clip_l=clip(768), clip_g=clip(1280)),
        "without T5",
    ),
    Subject(
        "Stable Diffusion 3.5 Large",
        "sd3",
        _apart(diffusion_model=mmdit(38), vae=vae(16), clip_l=clip(768), clip_g=clip(1280)),
        "without T5",
    ),
    Subject(
        "FLUX.1 schnell",
        "flux",
        _apart(diffusion_model=flux(2, 2), vae=vae(16), **_TEXT),
        "2 + 2 of 19 + 38 blocks",
    ),
    Subject(
        "FLUX.1 dev",
        "flux",
        _apart(diffusion_model=flux(2, 2, guidance=True), vae=vae(16), **_TEXT),
        "2 + 2 of 19 + 38 blocks",
    ),
    Subject(
        "FLUX.1 schnell in one file of llama-box",
        "flux",
        _as_llama_box(flux(2, 2), clip(768), t5()),
        "2 + 2 of 19 + 38 blocks",
    ),
    Subject(
        "Stable Diffusion 3 Medium in one file of llama-box",
        "sd3",
        _as_llama_box(mmdit(24, qk_norm=False), clip(768), clip(1280), t5()),
    ),
    Subject(
        "Stable Diffusion 3.5 Medium in one file of llama-box",
        "sd3",
        _as_llama_box(mmdit(24, 13), clip(768), clip(1280)),
        "without T5",
    ),
    Subject(
        "FLUX.1 Fill",
        "flux",
        _apart(diffusion_model=flux(1, 1, guidance=True, channels=384), vae=vae(16), **_TEXT),
        "1 + 1 of 19 + 38 blocks",
    ),
    Subject(
        "FLUX.1 Kontext",
        "flux_kontext",
        _apart(diffusion_model=flux(2, 2, guidance=True), vae=vae(16), **_TEXT),
        "2 + 2 of 19 + 38 blocks",
    ),
    Subject(
        "Chroma",
        "chroma",
        _apart(diffusion_model=chroma(2, 2), vae=vae(16), t5xxl=t5()),
        "2 + 2 of 19 + 38 blocks",
    ),
    Subject(
        "Chroma1-Radiance",
        "chroma_radiance",
        _apart(diffusion_model=chroma(2, 2, radiance=True), t5xxl=t5()),
        "2 + 2 of 19 + 38 blocks",
    ),
    Subject(
        "FLUX.2 dev",
        "flux2",
        _apart(
            diffusion_model=flux2(8, 48, width=_NARROW, text=3 * _NARROW, guidance=True),
            llm=_mistral(_NARROW, 31, _NARROW),
            vae=vae(32),
        ),
        "256 of 6144 wide, language model 256 of 5120",
        quick=True,
    ),
    Subject(
        "FLUX.2 klein 4B",
        "flux2",
        _apart(
            diffusion_model=flux2(5, 20, width=3072, text=7680, guidance=False),
            llm=_qwen3(2560, 36, 9728),
            vae=vae(32),
        ),
    ),
    Subject(
        "Qwen-Image",
        "qwen_image",
        _apart(
            diffusion_model=qwen_image(4),
            llm=llm(LanguageModel(3584, 4, 152064, 18944, 28, 4, bias=True, qk_norm=False)),
            vae=wan_vae(),
        ),
        "4 of 60 blocks, language model 4 of 28",
    ),
    Subject(
        "Qwen-Image-Edit",
        "qwen_image_edit",
        _apart(
            diffusion_model=qwen_image(4),
            llm=llm(LanguageModel(3584, 4, 152064, 18944, 28, 4, bias=True, qk_norm=False)),
            llm_vision=eyes(),
            vae=wan_vae(),
        ),
        "4 of 60 blocks, language model 4 of 28",
        runtime={"zero_cond_t": True},
    ),
    Subject(
        "Z-Image",
        "z_image",
        _apart(diffusion_model=z_image(), llm=_qwen3(2560, 4, 9728), vae=vae(16)),
        "language model 4 of 36 blocks",
    ),
    Subject(
        "Ovis-Image",
        "ovis_image",
        _apart(diffusion_model=ovis(2, 2), llm=_qwen3(2048, 28, 6144, 16), vae=vae(16)),
        "2 + 2 of 6 + 27 blocks",
    ),
    Subject(
        "Ovis-Image with a tiny autoencoder",
        "ovis_image",
        _apart(
            diffusion_model=ovis(width=_NARROW, text=64),
            llm=_qwen3(64, 1, 64),
            tae=tae(16),
        ),
        "256 of 3072 wide",
        quick=True,
    ),
    Subject(
        "ERNIE-Image",
        "ernie_image",
        _apart(
            diffusion_model=ernie(2, width=_NARROW, text=_NARROW, feed_forward=512),
            llm=_mistral(_NARROW, 26, _NARROW),
            vae=vae(32),
        ),
        "2 of 36 blocks, 256 of 4096 wide",
        quick=True,
    ),
    Subject(
        "Anima",
        "anima",
        _apart(diffusion_model=anima(4), llm=_qwen3(1024, 28, 3072, 16), vae=wan_vae()),
        "4 of 28 blocks",
    ),
)
