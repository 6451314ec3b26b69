"""The runtime options of a model: how the native library runs it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Final, Literal

from pydantic import Field

from sdstream.core.catalog_yaml import Part
from sdstream.core.model_families import FAMILIES
from sdstream.core.validation import one_of

#: CPU kernels of a worker: the fastest, those that compute in f32, or only the runtime's own.
Kernels = Literal["auto", "exact", "off"]
KERNELS_OFF: Final = "off"

WTYPES: Final = (
    "f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0",
    "q2_K", "q3_K", "q4_K", "q5_K", "q6_K",
)  # fmt: skip

#: Families that support the options of Chroma.
_CHROMA: Final = ("chroma", "chroma_radiance")


def masks_attention(family: str, chroma_dit_mask: bool | None) -> bool:
    """Return whether the diffusion model masks its attention.

    The runtime's flash attention reads such a mask wrongly, and beyond its end.
    """
    return family in _CHROMA and chroma_dit_mask is not False


class RuntimeOptions(Part):
    """How the native library runs the model.

    Attributes:
        threads: Number of CPU threads; 0 means one for each core that this process may use.
        flash_attn: Use flash attention. It is faster on GPUs and with the CPU kernels, and 1.8-2x
            slower with the runtime's own kernels on the CPU. None turns it on for the diffusion
            model if the kernels "auto" are in use, except for Chroma with ``chroma_dit_mask``.
        conv_direct: Use direct convolutions, which need less memory. With the CPU kernels they are
            always on.
        offload: Keep the weights in main memory and move them to the GPU as needed.
        wtype: Convert the weights to this type while loading.
        tae: Decode with the tiny autoencoder that the model file contains.
        vae_tiling: Decode in tiles, which needs less memory and is slower.
        preview: How the runtime makes previews between the steps. "projection" projects the latent,
            which costs almost nothing but works for published autoencoders only. "tae" uses the
            tiny autoencoder in ``files.tae``, and the VAE still decodes the result. "decode" uses
            the same decoder as for the result.
        zero_cond_t: Use timestep 0 for the tokens of reference images, as Qwen-Image-Edit 2511 was
            trained.
        circular: Axes along which opposite edges of an image match, so that copies of it tile.
        kernels: CPU kernels. "auto" is the fastest (products in bf16 and 8 bits if the CPU has fast
            instructions for them), "exact" computes in f32, and "off" uses only the runtime's own.
            None means the server's setting.
        diffusion_flash_attn: Use flash attention in the diffusion model only; None means the value
            of ``flash_attn``, which includes the diffusion model.
        clip_on_cpu, vae_on_cpu, control_net_on_cpu: Compute this part on the CPU even if there is
            a GPU.
        max_vram: Gigabytes (2^30 bytes) of GPU memory for one computation; the runtime splits a
            larger one into parts. 0 means no limit. It requires ``offload``, and has no effect on
            the CPU.
        lora_mode: "immediately" merges LoRAs into the weights, which makes each step faster.
            "at_runtime" applies them beside the weights, as is necessary if these are quantised.
            "auto" chooses by the type of the weights.
        prediction: What a U-Net was trained to predict: noise, velocity, or velocity as in EDM;
            None detects it from the weights.
        rng: Generator of the initial noise: CUDA's, as in AUTOMATIC1111 on a GPU, or the CPU's, as
            in diffusers and ComfyUI.
        sdxl_vae_scale: Scale the convolutions of the VAE in ``files.vae``, since SDXL's original
            weights overflow in f16. The runtime always scales the VAE of a whole checkpoint.
        chroma_dit_mask, chroma_t5_mask: Mask the padding in Chroma's diffusion model and in its
            text encoder; None means the value that Chroma was trained with. The mask of the
            diffusion model excludes flash attention.
        chroma_t5_mask_pad: Number of padding tokens that are not masked.
    """

    threads: int = Field(0, ge=0, le=1024)
    flash_attn: bool | None = None
    conv_direct: bool = False
    offload: bool = False
    wtype: Annotated[str, one_of(WTYPES, "wtype")] | None = None
    tae: bool = False
    vae_tiling: bool = False
    preview: Literal["projection", "tae", "decode"] = "projection"
    zero_cond_t: bool = False
    circular: Literal["none", "x", "y", "both"] = "none"
    kernels: Kernels | None = None
    diffusion_flash_attn: bool | None = None
    clip_on_cpu: bool = False
    vae_on_cpu: bool = False
    control_net_on_cpu: bool = False
    max_vram: float = Field(0.0, ge=0, le=4096, allow_inf_nan=False)
    lora_mode: Literal["auto", "immediately", "at_runtime"] = "auto"
    prediction: Literal["eps", "v", "edm_v"] | None = None
    rng: Literal["cuda", "cpu"] = "cuda"
    sdxl_vae_scale: bool = False
    chroma_dit_mask: bool | None = None
    chroma_t5_mask: bool | None = None
    chroma_t5_mask_pad: int | None = Field(None, ge=0, le=512)

    def problems(self, family: str) -> Iterator[tuple[str, str]]:
        """Yield (option, problem) for options that a family ignores or that exclude each other."""
        for option, use in self._of_other_families(family):
            yield option, f"it is for {use}, not for the family '{family}'"
        if self.max_vram and not self.offload:
            yield (
                "max_vram",
                "it has no effect without 'offload: true': the runtime splits a computation only "
                "if it keeps the weights in main memory",
            )
        if self.flash_attn and self.diffusion_flash_attn is False:
            yield (
                "diffusion_flash_attn",
                "false has no effect with 'flash_attn: true', which includes the diffusion model; "
                "omit flash_attn",
            )
        for option in ("flash_attn", "diffusion_flash_attn"):
            if getattr(self, option) and masks_attention(family, self.chroma_dit_mask):
                yield (
                    option,
                    "the images of Chroma are wrong with flash attention and its mask; omit this "
                    "option, or set 'chroma_dit_mask: false'",
                )

    def _of_other_families(self, family: str) -> Iterator[tuple[str, str]]:
        """Yield (option, what it is for) for each option that a family ignores."""
        unet = FAMILIES[family].unet
        if self.prediction is not None and not unet:
            yield "prediction", "models with a U-Net"
        if self.sdxl_vae_scale and family != "sdxl":
            yield "sdxl_vae_scale", "SDXL"
        if self.zero_cond_t and family != "qwen_image_edit":
            yield "zero_cond_t", "Qwen-Image-Edit"
        for name in ("chroma_dit_mask", "chroma_t5_mask", "chroma_t5_mask_pad"):
            if getattr(self, name) is not None and family not in _CHROMA:
                yield name, "Chroma"


class RuntimeOptionError(ValueError):
    """A runtime option is unknown, or the model cannot run with its value.

    Attributes:
        name: Name of the option; empty if the error is about several options.
    """

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.name = name
