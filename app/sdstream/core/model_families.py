"""The families of models that the runtime knows, and what the models of one have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from sdstream.core.size import Size


@dataclass(frozen=True)
class Family:
    """What all models of one architecture have in common.

    Attributes:
        title: The name that people use.
        multiple: Width and height must be multiples of this many pixels.
        flow: Trained by flow matching rather than noise prediction.
        distilled_guidance: Takes ``guidance`` (FLUX-dev and its like).
        references: Takes reference images, with or without an image to edit.
        needs: Components besides the diffusion model whose weights must be there: the runtime dies
            without its text encoders.
        size, steps, cfg_scale, sampler: What the architecture is usually run with.
    """

    title: str
    multiple: int
    flow: bool
    needs: tuple[Literal["clip_l", "clip_g", "t5xxl", "llm", "llm_vision", "vae"], ...]
    size: Size
    steps: int
    cfg_scale: float
    distilled_guidance: bool = False
    references: bool = False
    sampler: str = "euler"

    @property
    def unet(self) -> bool:
        """The denoiser is a U-Net, whose sides are multiples of 64; else a transformer."""
        return self.multiple == 64

    @property
    def prompt_characters(self) -> int:
        """Longest prompt that is safe to encode.

        CLIP cuts a prompt into pieces and T5 is cut at 512 tokens, but a language model attends
        from every token to every other: 16,000 characters took 2.4 GB and 32,000 took 8.6 GB.
        """
        return 4_000 if "llm" in self.needs else 32_000


# A U-Net halves the latent three times, and the latent is an eighth of the image: 64. The
# transformers cut the latent into patches of two: 16.
FAMILIES: Final[Mapping[str, Family]] = {
    "sd1": Family("Stable Diffusion 1", 64, False, ("clip_l", "vae"), Size(512, 512), 20, 7.0),
    "sd2": Family("Stable Diffusion 2", 64, False, ("clip_l", "vae"), Size(768, 768), 20, 7.0),
    "sdxl": Family(
        "Stable Diffusion XL", 64, False, ("clip_l", "clip_g", "vae"), Size(1024, 1024), 25, 5.0
    ),
    "sd3": Family(
        "Stable Diffusion 3", 16, True, ("clip_l", "clip_g", "vae"), Size(1024, 1024), 20, 4.5
    ),
    "flux": Family("FLUX.1", 16, True, ("clip_l", "t5xxl", "vae"), Size(1024, 1024), 20, 1.0, True),
    "flux_kontext": Family(
        title="FLUX.1 Kontext",
        multiple=16,
        flow=True,
        needs=("clip_l", "t5xxl", "vae"),
        size=Size(1024, 1024),
        steps=20,
        cfg_scale=1.0,
        distilled_guidance=True,
        references=True,
    ),
    "chroma": Family("Chroma", 16, True, ("t5xxl", "vae"), Size(1024, 1024), 26, 4.0),
    "qwen_image": Family("Qwen-Image", 16, True, ("llm", "vae"), Size(1024, 1024), 20, 2.5),
    "qwen_image_edit": Family(
        title="Qwen-Image-Edit",
        multiple=16,
        flow=True,
        needs=("llm", "llm_vision", "vae"),
        size=Size(1024, 1024),
        steps=20,
        cfg_scale=2.5,
        references=True,
    ),
    "z_image": Family("Z-Image", 16, True, ("llm", "vae"), Size(1024, 1024), 8, 1.0),
    "ovis_image": Family("Ovis-Image", 16, True, ("llm", "vae"), Size(1024, 1024), 20, 5.0),
    "flux2": Family(
        "FLUX.2", 16, True, ("llm", "vae"), Size(1024, 1024), 20, 1.0, True, references=True
    ),
    "ernie_image": Family("ERNIE-Image", 16, True, ("llm", "vae"), Size(1024, 1024), 20, 5.0),
    "anima": Family("Anima", 16, True, ("llm", "vae"), Size(1024, 1024), 20, 6.0),
    "chroma_radiance": Family("Chroma1-Radiance", 16, True, ("t5xxl",), Size(1024, 1024), 26, 4.0),
}
