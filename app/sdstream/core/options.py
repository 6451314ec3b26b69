"""The options of a request, each defined in one place.

A field of ``ImageParams`` defines an option. Its type and bounds are those of the pydantic field,
and its ``Option`` contains the rest. An option needs only this field and the line that passes its
value to the runtime. Other parts of the project derive the following from the field:

- the aliases and neutral values of every dialect
- the checks of whether a model supports the option
- the JSON Schema of ``GET /v1/models/{id}`` and the OpenAPI document
- the text inside image files, and ``parameters`` of answers
- the tables of the documents

``Options`` contains the fields whose values go to the runtime unchanged. The concrete request
(core/request) has them as one value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from sdstream.core import option_texts, unsupported
from sdstream.core.lora import LoraChoice
from sdstream.core.model_spec import ModelSpec
from sdstream.core.samplers import CACHE_MODES, HIRES_UPSCALERS, SAMPLERS, SCHEDULES
from sdstream.core.validation import flags, no_boolean

#: Highest values of ``--max-images`` and ``--max-steps``, and the values without these settings.
MAX_IMAGES: Final = 100
MAX_STEPS: Final = 1000
DEFAULT_MAX_IMAGES: Final = 10
DEFAULT_MAX_STEPS: Final = 150
MAX_PROMPT_CHARACTERS: Final = 32_000
#: The runtime stores a seed as int64. Image i has seed + i, which must fit too.
LARGEST_SEED: Final = 2**63 - 1
MAX_SEED: Final = LARGEST_SEED - DEFAULT_MAX_IMAGES
#: Maximum width in pixels of a border and of the padding around a mask.
MAX_BORDER: Final = 4096

Quality = Literal["low", "medium", "high", "xhigh", "max", "standard", "hd", "auto"]
OutputFormat = Literal["png", "jpeg", "webp"]
MaskMode = Literal["auto", "alpha", "luminance", "opacity"]
Fit = Literal["crop", "stretch", "pad", "fill"]
ReferenceSize = Literal["auto", "original"]

#: The input that an option acts on; without this input the option has no effect.
Input = Literal["image", "image or control", "mask", "mask or border", "reference", "control"]


@dataclass(frozen=True, slots=True)
class Option:
    """The properties of an option besides its type and bounds.

    Attributes:
        aliases: Other names that clients send.
        infotext: Name in the parameters text of image files; None leaves the option out.
        flag_text: Text that stands for True in the parameters text.
        neutral: Values that mean "not given", as ``option_texts.comparable`` writes them.
        usual: Values that clients send to every model; a model that does not support the option
            ignores them instead of rejecting them.
        needs: Another option without which this one has no effect; the model's ``runtime`` may turn
            that option on.
        acts_on: The input without which the option has no effect.
        unsupported: Function that returns why a model ignores the option; None if the model
            supports it.
        listed: The option is listed in /v1/models/{id} and on the page.
    """

    aliases: tuple[str, ...] = ()
    infotext: str | None = None
    flag_text: str = "True"
    neutral: tuple[str, ...] = ()
    usual: tuple[object, ...] = ()
    needs: str | None = None
    acts_on: Input | None = None
    unsupported: Callable[[ModelSpec], str | None] = lambda _: None
    listed: bool = True


class Options(BaseModel):
    """The options whose values go to the runtime; None means "not given".

    In a concrete request (``GenerationRequest.options``) None means that the runtime or the model
    decides.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    guidance: Annotated[
        float | None,
        Option(
            aliases=("distilled_cfg_scale",),
            infotext="Distilled CFG Scale",
            usual=(3.5,),
            unsupported=unsupported.no_distilled_guidance,
        ),
    ] = Field(None, ge=0, le=30, description="Distilled guidance (FLUX-dev).")
    strength: Annotated[
        float | None,
        Option(aliases=("denoising_strength",), infotext="Denoising strength", acts_on="image"),
    ] = Field(
        None, ge=0, le=1, description="How much the input image changes: 0 keeps it, 1 ignores it."
    )
    fit: Annotated[Fit | None, Option(acts_on="image or control")] = Field(
        None,
        description="How an input image with another aspect ratio is fitted to the size: crop it, "
        "stretch it, pad it, or fill the border by extending the edges. Without a mask, pad "
        "generates only the border, and fill generates the whole image.",
    )
    mask_mode: Annotated[MaskMode | None, Option(acts_on="mask")] = Field(
        None,
        description="Where to generate: alpha is where the mask is transparent, luminance where it "
        "is white, opacity where it is opaque. auto means alpha if the mask has transparency. "
        "Without transparency, auto and opacity mean luminance.",
    )
    mask_blur: Annotated[
        float | None, Option(infotext="Mask blur", neutral=("0",), acts_on="mask or border")
    ] = Field(None, ge=0, le=64, description="Width of the mask's soft edge in pixels.")
    only_masked: Annotated[
        bool | None,
        Option(infotext="Inpaint area", flag_text="Only masked", acts_on="mask or border"),
    ] = Field(
        None,
        description="Generate only the part around the mask, scaled to the requested size, and "
        "put it back into the image, which keeps its own size.",
    )
    only_masked_padding: Annotated[
        int | None,
        Option(infotext="Masked area padding", needs="only_masked", acts_on="mask or border"),
    ] = Field(
        None, ge=0, le=MAX_BORDER, description="Pixels around the mask to include; 32 by default."
    )
    expand: Annotated[
        tuple[Annotated[int, Field(ge=0, le=MAX_BORDER)], ...] | None,
        Option(infotext="Outpainting", acts_on="image"),
    ] = Field(
        None,
        min_length=4,
        max_length=4,
        description="Border to generate around the unchanged image, in pixels: left, top, "
        "right, bottom, or one number for all sides.",
    )
    reference_size: Annotated[
        ReferenceSize | None, Option(acts_on="reference", unsupported=unsupported.no_references)
    ] = Field(
        None,
        description="Size of reference images for the model: about as many pixels as it "
        "generates (auto), or their own size (original).",
    )
    increase_ref_index: Annotated[
        bool | None,
        Option(
            neutral=("0", "off", "no"),
            acts_on="reference",
            unsupported=unsupported.no_reference_index,
        ),
    ] = Field(None, description="Give the reference images increasing indices, in their order.")
    img_cfg: Annotated[
        float | None,
        Option(
            aliases=("img_cfg_scale", "image_cfg_scale", "image_guidance_scale"),
            infotext="Image CFG scale",
            usual=(1.0,),
            unsupported=unsupported.no_image_guidance,
        ),
    ] = Field(
        None,
        ge=0,
        le=30,
        description="Guidance by the input image, for inpainting and InstructPix2Pix models.",
    )
    eta: Annotated[float | None, Option(infotext="Eta", usual=(0.0, 1.0))] = Field(
        None, ge=0, le=1, description="Noise between steps, for samplers that add noise."
    )
    clip_skip: Annotated[
        int | None,
        Option(
            infotext="Clip skip",
            neutral=("-1", "0"),
            usual=(1,),
            unsupported=unsupported.more_than_clip,
        ),
    ] = Field(
        None, ge=1, le=12, description="CLIP layer to use, counted from the end: 1 skips none."
    )
    shifted_timestep: Annotated[
        int | None,
        Option(
            infotext="Shifted timestep", neutral=("0",), unsupported=unsupported.no_shifted_timestep
        ),
    ] = Field(None, ge=1, le=1000, description="Timestep shift; NitroSD models need 250 or 500.")
    flow_shift: Annotated[
        float | None, Option(infotext="Shift", neutral=("0",), unsupported=unsupported.no_flow)
    ] = Field(None, gt=0, le=100, description="Shift of the noise levels of flow models.")
    sigmas: Annotated[
        tuple[Annotated[float, Field(ge=0, le=1000)], ...] | None, Option(infotext="Sigmas")
    ] = Field(
        None,
        min_length=2,
        max_length=MAX_STEPS + 1,
        description="Noise levels that fall to 0, instead of steps and schedule.",
    )
    vae_tiling: Annotated[bool | None, Option()] = Field(
        None, description="Decode in tiles, which needs less memory and more time."
    )
    vae_tile_size_x: Annotated[
        int | None, Option(needs="vae_tiling", unsupported=unsupported.no_autoencoder)
    ] = Field(
        None, ge=4, le=512, description="Width of a tile, in pixels of the latent; 32 by default."
    )
    vae_tile_size_y: Annotated[
        int | None, Option(needs="vae_tiling", unsupported=unsupported.no_autoencoder)
    ] = Field(
        None, ge=4, le=512, description="Height of a tile, in pixels of the latent; 32 by default."
    )
    vae_tile_overlap: Annotated[
        float | None, Option(needs="vae_tiling", unsupported=unsupported.no_autoencoder)
    ] = Field(
        None,
        ge=0,
        le=0.5,
        description="Share of a tile that the next tile overlaps; 0.5 by default.",
    )
    lora: Annotated[tuple[LoraChoice, ...] | None, Option(infotext="LoRA")] = Field(
        None, max_length=8, description="LoRAs of GET /v1/loras: [{id, scale}]."
    )
    slg_scale: Annotated[
        float | None, Option(infotext="SLG scale", unsupported=unsupported.no_layers_to_skip)
    ] = Field(
        None,
        ge=0,
        le=30,
        description="Strength of skip-layer guidance (SLG), which skips the layers in slg_layers.",
    )
    slg_start: Annotated[
        float | None,
        Option(infotext="SLG start", needs="slg_scale", unsupported=unsupported.no_layers_to_skip),
    ] = Field(None, ge=0, le=1, description="Share of the steps after which SLG begins.")
    slg_end: Annotated[
        float | None,
        Option(infotext="SLG end", needs="slg_scale", unsupported=unsupported.no_layers_to_skip),
    ] = Field(None, ge=0, le=1, description="Share of the steps after which SLG ends.")
    slg_layers: Annotated[
        tuple[Annotated[int, Field(ge=0, le=999)], ...] | None,
        Option(infotext="SLG layers", needs="slg_scale", unsupported=unsupported.no_layers_to_skip),
    ] = Field(
        None,
        min_length=1,
        max_length=64,
        description="Layers that SLG skips; 7, 8 and 9 by default.",
    )
    cache_mode: Annotated[
        str | None, Option(infotext="Cache", neutral=("disabled", "none", "off", "0"))
    ] = Field(
        None, description="Reuses work between similar steps: " + ", ".join(CACHE_MODES) + "."
    )
    cache_threshold: Annotated[
        float | None, Option(infotext="Cache threshold", needs="cache_mode")
    ] = Field(
        None,
        gt=0,
        le=10,
        description="Steps that differ less count as similar; higher is faster but less exact.",
    )
    cache_start: Annotated[float | None, Option(infotext="Cache start", needs="cache_mode")] = (
        Field(None, ge=0, le=1, description="Share of the steps after which the cache begins.")
    )
    cache_end: Annotated[float | None, Option(infotext="Cache end", needs="cache_mode")] = Field(
        None, ge=0, le=1, description="Share of the steps after which the cache ends."
    )
    cache_options: Annotated[
        dict[str, float] | None,
        Option(aliases=("cache_option",), infotext="Cache options", needs="cache_mode"),
    ] = Field(None, max_length=16, description='Parameters of the cache mode: {"warmup": 4}.')
    hires_scale: Annotated[float | None, Option(infotext="Hires upscale", neutral=("0", "1"))] = (
        Field(
            None,
            gt=1,
            le=4,
            description="Generate at the requested size, enlarge by this factor, generate again.",
        )
    )
    hires_steps: Annotated[
        int | None, Option(infotext="Hires steps", neutral=("0",), needs="hires_scale")
    ] = Field(
        None,
        ge=1,
        le=MAX_STEPS,
        description="Steps of the second pass; by default as many as the first.",
    )
    hires_strength: Annotated[
        float | None, Option(infotext="Hires denoising strength", needs="hires_scale")
    ] = Field(
        None, ge=0, le=1, description="How much the second pass changes the image; 0.7 by default."
    )
    hires_upscaler: Annotated[
        str | None, Option(infotext="Hires upscaler", needs="hires_scale")
    ] = Field(
        None,
        description="Upscaler before the second pass: "
        + ", ".join(HIRES_UPSCALERS)
        + ", or one of "
        "GET /v1/upscalers.",
    )
    upscaler: Annotated[str | None, Option(infotext="Postprocess upscaler")] = Field(
        None, description="Upscaler for the finished image: one of GET /v1/upscalers."
    )
    upscale: Annotated[
        float | None, Option(infotext="Postprocess upscale by", needs="upscaler")
    ] = Field(
        None, ge=0.05, le=100, description="Factor of the upscale; the upscaler's own by default."
    )
    control_strength: Annotated[
        float | None,
        Option(infotext="ControlNet weight", acts_on="control", unsupported=unsupported.no_control),
    ] = Field(
        None, ge=0, le=2, description="How strictly to follow the control image; 0.9 by default."
    )
    control_canny: Annotated[
        bool | None,
        Option(
            infotext="ControlNet module",
            flag_text="canny",
            neutral=("0", "off", "no"),
            acts_on="control",
            unsupported=unsupported.no_control,
        ),
    ] = Field(None, description="Make the control image from the edges of the given one (Canny).")

    @field_validator(*option_texts.READERS, mode="before")
    @classmethod
    def _text_in_a_form(cls, value: Any, info: ValidationInfo) -> Any:
        return option_texts.READERS[info.field_name or ""](value)

    @field_validator("expand", "only_masked", mode="after")
    @classmethod
    def _nothing_asked(cls, value: Any) -> Any:
        """Treat ``only_masked`` false, and a border of 0 on all sides, as not given."""
        return value if value is True or (value and any(value)) else None

    @field_validator("*", mode="before")
    @classmethod
    def _no_numbers_from_booleans(cls, value: Any, info: Any) -> Any:
        return value if info.field_name in flags(cls) else no_boolean(value)

    @property
    def cache_numbers(self) -> dict[str, float]:
        """The given parameters of the cache, by their names in samplers.CACHE_KNOBS."""
        own = {
            "threshold": self.cache_threshold,
            "start": self.cache_start,
            "end": self.cache_end,
        }
        given = {name: value for name, value in own.items() if value is not None}
        return {**given, **(self.cache_options or {})}

    def given(self) -> dict[str, Any]:
        """Return the options that are not None, as JSON values."""
        return self.model_dump(mode="json", exclude_none=True)


class ImageParams(Options):
    """The parameters of one request as the client sent them, by their canonical names.

    None always means "not given".
    """

    prompt: Annotated[str, Option(listed=False)] = Field(
        max_length=MAX_PROMPT_CHARACTERS, description="What to generate."
    )
    negative_prompt: Annotated[str | None, Option(aliases=("negative_sampler",), listed=False)] = (
        Field(
            None,
            max_length=MAX_PROMPT_CHARACTERS,
            description="What to avoid; needs cfg_scale > 1.",
        )
    )
    model: Annotated[str | None, Option(infotext="Model", listed=False)] = Field(
        None, description='Id of a model; "default" or no value means the default model.'
    )
    n: Annotated[
        int | None, Option(aliases=("samples", "num_images", "num_images_per_prompt", "batch_size"))
    ] = Field(None, ge=1, le=MAX_IMAGES, description="Number of images; each has the next seed.")
    size: Annotated[str | None, Option(aliases=("image_size",), infotext="Size")] = Field(
        None, description='"WIDTHxHEIGHT" in pixels, or "auto".'
    )
    width: Annotated[int | None, Option()] = Field(
        None, ge=1, description="Width in pixels; with height, instead of size."
    )
    height: Annotated[int | None, Option()] = Field(
        None, ge=1, description="Height in pixels; with width, instead of size."
    )
    aspect_ratio: Annotated[str | None, Option()] = Field(
        None, description='Such as "16:9", instead of size; about as many pixels as the default.'
    )
    seed: Annotated[int | None, Option(aliases=("rng_seed",), infotext="Seed")] = Field(
        None, ge=-1, le=MAX_SEED, description="Seed of the first image; random if -1 or missing."
    )
    sample_steps: Annotated[
        int | None,
        Option(
            aliases=("steps", "step", "num_inference_steps", "sampling_steps"),
            infotext="Steps",
        ),
    ] = Field(None, ge=1, le=MAX_STEPS, description="Sampling steps.")
    sampler: Annotated[
        str | None,
        Option(
            aliases=("sample_method", "sampler_name"), infotext="Sampler", neutral=("n/a", "none")
        ),
    ] = Field(None, description="One of: " + ", ".join(SAMPLERS) + ".")
    schedule: Annotated[
        str | None,
        Option(
            aliases=("scheduler", "schedule_method"),
            infotext="Schedule type",
            neutral=("n/a", "none"),
        ),
    ] = Field(None, description="One of: " + ", ".join(SCHEDULES) + ".")
    cfg_scale: Annotated[
        float | None, Option(aliases=("guidance_scale",), infotext="CFG scale")
    ] = Field(None, ge=0, le=30, description="Classifier-free guidance.")
    quality: Annotated[Quality | None, Option()] = Field(
        None,
        description="Factor of the default steps: low is 0.5; high, xhigh, max and hd are 1.5.",
    )
    output_format: Annotated[OutputFormat | None, Option()] = Field(
        None, description="Format of the image file."
    )
    output_compression: Annotated[int | None, Option()] = Field(
        None, ge=0, le=100, description="Quality of JPEG and WebP in percent."
    )
    safety_check: Annotated[bool, Option()] = Field(
        False, description="Check each image; without a checker, the server rejects the request."
    )

    @field_validator("prompt", "negative_prompt")
    @classmethod
    def _text(cls, value: str | None) -> str | None:
        return value if value is None else option_texts.plain(value)

    def options(self) -> Options:
        """Return the options of the concrete request."""
        return Options.model_construct(
            **{name: getattr(self, name) for name in Options.model_fields}
        )


@cache
def params_schema() -> Mapping[str, Any]:
    """Return the JSON Schema of ``ImageParams``; it is cached because it takes time to create."""
    return ImageParams.model_json_schema()


def _option_of(metadata: list[Any]) -> Option:
    (option,) = (item for item in metadata if isinstance(item, Option))
    return option


#: Canonical name -> the option's properties besides its type. The order is that of the lists of
#: options: first the fields that only ``ImageParams`` has, then those of ``Options``.
OPTIONS: Final[Mapping[str, Option]] = {
    name: _option_of(ImageParams.model_fields[name].metadata)
    for name in sorted(ImageParams.model_fields, key=lambda name: name in Options.model_fields)
}

#: A client's spelling -> the canonical name.
ALIASES: Final[Mapping[str, str]] = {
    alias: name for name, option in OPTIONS.items() for alias in option.aliases
}


def is_neutral(name: str, value: object) -> bool:
    """Return whether a value of an option means "not given".

    Args:
        name: Canonical name.
        value: The value that the client sent.
    """
    return value is None or option_texts.comparable(value) in OPTIONS[name].neutral
