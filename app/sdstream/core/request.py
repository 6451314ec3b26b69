"""The request to the runtime, and the facts that it depends on: input images, files and limits."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from pydantic import TypeAdapter

from sdstream.core.options import DEFAULT_MAX_IMAGES, DEFAULT_MAX_STEPS, Options, OutputFormat
from sdstream.core.placement import Box, Placement
from sdstream.core.size import Size
from sdstream.core.vocabulary import Vocabulary

#: A value of ``previews``: a preview after each step.
EVERY_STEP: Final = -1

Safety = Literal["off", "refuse", "blank"]

#: Maximum width and height of each file format, in pixels.
LONGEST_SIDES: Final[Mapping[OutputFormat, int]] = {
    "png": 2**31 - 1,
    "jpeg": 65_500,
    "webp": 16_383,
}


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One job for the runtime, in which every value is concrete.

    Attributes:
        model: Id in the catalogue.
        prompt, negative_prompt: Unicode without NUL characters; the prompt has no LoRA tags.
        width, height: Pixels of the first pass.
        steps: Sampling steps of one image; 0 if the job only upscales an input image.
        sampler, schedule: Names of core.samplers.
        cfg_scale: Classifier-free guidance; with 1 the negative prompt has no effect.
        seed: Seed of the first image; image i has seed + i.
        n: Number of images.
        previews: Number of previews of one image, spread over its steps; EVERY_STEP for all steps.
        safety: ``refuse`` fails the job if the safety checker flags an image, ``blank`` replaces
            the image with a black one, and ``off`` does not check.
        quality: The value that the client sent, for the answer.
        output_format: File format of the images.
        output_compression: Quality of JPEG and WebP in percent.
        warnings: Sentences about options that have no effect or an unexpected one.
        options: Options of the runtime; with None the runtime or the model decides.
        input_images: Number of images that came with the request, for the count of tokens.
        second_pass: Size of the second pass (``hires_*``); None without one.
        upscaled: Size after the upscaler or after reducing; None without either.
        enlarged: The image is resized because the model does not generate the requested size.
        cut: Size to which the image is cropped around its middle; None without cropping.
        placement: Position of the generated image in the finished image; None if they are the same.
        references: Size at which the model receives each reference image.
        lora_hashes: Name of a LoRA -> SHA-256 of its weights, if known.
        kernels: CPU kernels of the worker that runs the job; empty until a worker has it.
        model_hash: SHA-256 of the checkpoint in hex; empty if unknown.
    """

    model: str
    prompt: str
    negative_prompt: str
    width: int
    height: int
    steps: int
    sampler: str
    schedule: str
    cfg_scale: float
    seed: int
    n: int
    previews: int = 0
    safety: Safety = "off"
    quality: str = "auto"
    output_format: OutputFormat = "png"
    output_compression: int = 100
    warnings: tuple[str, ...] = ()
    options: Options = field(default_factory=Options)
    input_images: int = 0
    second_pass: Size | None = None
    upscaled: Size | None = None
    enlarged: bool = False
    cut: Size | None = None
    placement: Placement | None = None
    references: tuple[Size, ...] = ()
    lora_hashes: Mapping[str, str] = field(default_factory=dict)
    kernels: str = ""
    model_hash: str = ""

    @property
    def size(self) -> Size:
        """Width and height of the first pass in pixels."""
        return Size(self.width, self.height)

    @property
    def draws(self) -> bool:
        """True if the model generates; False if the job only upscales an input image."""
        return self.steps > 0

    @property
    def generated_size(self) -> Size:
        """Width and height of the image that the model generates, before an upscaler."""
        return self.second_pass or self.size

    @property
    def asked_size(self) -> Size:
        """Width and height that a request must name to get this image again."""
        return self.output_size if self.enlarged else self.size

    @property
    def runtime_size(self) -> Size:
        """Width and height of the images after an upscaler, before cropping and placing."""
        return self.upscaled or self.generated_size

    @property
    def output_size(self) -> Size:
        """Width and height of the finished images."""
        if self.placement is not None:
            return self.placement.canvas
        return self.cut or self.runtime_size


_ADAPTER: Final = TypeAdapter(GenerationRequest)


def request_fields(request: GenerationRequest) -> dict[str, Any]:
    """Return a request as JSON values."""
    fields: dict[str, Any] = _ADAPTER.dump_python(request, mode="json", exclude_none=True)
    return fields


def request_of(fields: Mapping[str, Any]) -> GenerationRequest:
    """Return the request from the fields that this or an earlier release stored.

    Raises:
        ValueError: The fields are not a request.
    """
    return _ADAPTER.validate_python(fields if "options" in fields else _upgraded(fields))


def _upgraded(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a request that an earlier release stored, with its options in separate fields."""
    old = dict(fields)
    slg, cache = old.pop("slg", None) or {}, old.pop("cache", None) or {}
    hires, upscale = old.pop("hires", None) or {}, old.pop("upscale", None) or {}
    options = {name: old.pop(name, None) for name in Options.model_fields}
    # Old requests have a value for these options even where they had no effect.
    unset = {"mask_mode": "auto", "mask_blur": 0}
    if options["strength"] is None:
        unset["fit"] = options["fit"]
    if options["control_strength"] is None:
        unset["control_canny"] = options["control_canny"]
    options = {name: None if unset.get(name, ...) == v else v for name, v in options.items()}
    options |= {f"slg_{name}": value for name, value in slg.items()}
    options |= {f"cache_{name}": value for name, value in cache.items()}
    options["cache_options"] = dict(cache.get("options", ())) or None
    options["sigmas"] = options["sigmas"] or None
    options["lora"] = [{"id": i, "scale": scale} for i, scale in old.pop("loras", ())] or None
    if hires:
        old["second_pass"] = [hires.pop("width"), hires.pop("height")]
        options |= {f"hires_{name}": value for name, value in hires.items()}
        options["hires_scale"] = round(old["second_pass"][0] / old["width"], 4)
    if upscale:
        old["upscaled"] = [upscale["width"], upscale["height"]]
        before = old.get("second_pass", (old["width"],))[0]
        options |= {"upscaler": upscale["upscaler"], "upscale": round(upscale["width"] / before, 4)}
    return {**old, "options": {name: value for name, value in options.items() if value is not None}}


@dataclass(frozen=True, slots=True)
class Sources:
    """Facts about the input images before they are resized.

    Attributes:
        size: Size of the first image; None without input images.
        drawn_over: The first image is edited, not only a reference.
        masked: The request has a mask.
        painted: The smallest rectangle around the painted area of the mask; None if it is empty.
        references: Sizes of the reference images.
        control: The request has a control image.
    """

    size: Size | None = None
    drawn_over: bool = False
    masked: bool = False
    painted: Box | None = None
    references: tuple[Size, ...] = ()
    control: bool = False


@dataclass(frozen=True, slots=True)
class Assets:
    """The files in the operator's folders, and the vocabularies of small models.

    Attributes:
        loras: Names of the LoRAs; the name of a file in a subfolder begins with the folder.
        lora_hashes: Name of a LoRA -> SHA-256 of its weights, if known.
        lora_in_prompt: ``<lora:name:scale>`` in a prompt applies a LoRA.
        upscalers: Name of an upscaler -> factor by which it enlarges.
        built_in: Names of the upscalers that the package contains.
        vocabularies: Location of a small model's file -> words that the model was trained on.
        unusable: "lora", "embedding" or "upscaler" -> file -> why the file cannot be used, in words
            that follow "its file".
    """

    loras: Collection[str] = ()
    lora_hashes: Mapping[str, str] = field(default_factory=dict)
    lora_in_prompt: bool = False
    upscalers: Mapping[str, int] = field(default_factory=dict)
    built_in: Collection[str] = ()
    vocabularies: Mapping[str, Vocabulary] = field(default_factory=dict)
    unusable: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def hashes_of(self, loras: Iterable[str]) -> dict[str, str]:
        """Return name -> SHA-256 for the given LoRAs whose hash is known."""
        return {name: self.lora_hashes[name] for name in loras if name in self.lora_hashes}

    @property
    def only_upscaler(self) -> str | None:
        """The operator's upscaler if there is exactly one.

        If the operator has none, the package's upscaler if there is exactly one.
        """
        own = [name for name in self.upscalers if name not in self.built_in]
        names = own or [*self.upscalers]
        return names[0] if len(names) == 1 else None


NO_SOURCES: Final = Sources()
NO_ASSETS: Final = Assets()


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper bounds that the operator sets.

    Attributes:
        drawn: Width x height of an image that the model generates.
        enlarged: Width x height of an image after an upscaler, before it is reduced.
        images: Number of images of one request.
        steps: Number of steps of one pass.
    """

    drawn: int = 4_194_304
    enlarged: int = 16_777_216
    images: int = DEFAULT_MAX_IMAGES
    steps: int = DEFAULT_MAX_STEPS
