"""The families of models that the runtime supports, and the properties of each family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from sdstream.core.size import Size


@dataclass(frozen=True)
class Family:
    """Properties of all models of one architecture.

    Attributes:
        title: Name for people.
        multiple: Width and height must be multiples of this number of pixels.
        flow: The models were trained by flow matching rather than noise prediction.
        distilled_guidance: The models support ``guidance`` (FLUX-dev and similar models).
        references: The models accept reference images, with or without an image to edit.
        needs: Components that a model requires besides the diffusion model; the runtime crashes if
            a text encoder is missing.
        size, steps, cfg_scale, sampler: Default values for the architecture.
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
        """True if the denoiser is a U-Net, False if it is a transformer."""
        return self.multiple == 64

    @property
    def prompt_characters(self) -> int:
        """Maximum length of a prompt in characters that is safe to encode.

        The runtime splits a prompt for CLIP into chunks and truncates it for T5 at 512 tokens. A
        language model attends from every token to every other token: 16,000 characters took 2.4 GB
        and 32,000 took 8.6 GB.
        """
        return 4_000 if "llm" in self.needs else 32_000


# The latent is an eighth of the image on each side. A U-Net halves it three times, so ``multiple``
# is 64. A transformer splits it into patches of 2 x 2, so ``multiple`` is 16.
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
