"""The concrete request, and what deciding its values needs besides the parameters."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from pydantic import TypeAdapter

from sdstream.core.options import MAX_IMAGES, MAX_STEPS, Options, OutputFormat
from sdstream.core.placement import Box, Placement
from sdstream.core.size import Size
from sdstream.core.vocabulary import Vocabulary

#: As ``previews``: a preview after each step.
EVERY_STEP: Final = -1

Safety = Literal["off", "refuse", "blank"]

#: Longest side that a format has a number for, in pixels.
LONGEST_SIDES: Final[Mapping[OutputFormat, int]] = {
    "png": 2**31 - 1,
    "jpeg": 65_500,
    "webp": 16_383,
}


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One job for the runtime, every value concrete.

    Attributes:
        model: Id in the catalogue.
        prompt, negative_prompt: Unicode without NUL; LoRA tags are taken out.
        width, height: Pixels of the first pass.
        steps: Sampling steps of one image; 0 when an input image is only enlarged.
        sampler, schedule: Names of core.samplers.
        cfg_scale: Classifier-free guidance; 1 leaves the negative prompt out.
        seed: Of the first image; image i has seed + i.
        n: Images.
        previews: Previews of one image, spread over its steps; EVERY_STEP for all.
        safety: What happens to images that the safety checker flags; off asks none.
        quality: As the client gave it, for the answer.
        output_format: File format of the images.
        output_compression: Percent of quality for JPEG and WebP.
        warnings: Sentences on options that cannot act as given.
        options: The options of the runtime; None leaves one to the runtime or the model.
        input_images: Images that came with the request, for the count of tokens.
        second_pass: Pixels of the second pass (``hires_*``), None without one.
        upscaled: Pixels after the upscaler (``upscaler``) or after reducing, None without either.
        enlarged: The image is resized because the model does not generate the asked size.
        cut: Pixels of the finished image, when it is the middle of what the runtime makes.
        placement: Where the generated image lies in the finished one; None when it is that.
        references: Pixels of each reference image, as the model gets it.
        lora_hashes: Name of a LoRA -> SHA-256 of its weights, of those that have one.
        kernels: CPU kernels of the worker that generates it; empty before one does.
        model_hash: SHA-256 of the model's checkpoint in hex, empty if it is not known.
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
        """False when an input image is only enlarged."""
        return self.steps > 0

    @property
    def generated_size(self) -> Size:
        """Width and height of what the model generates, before an upscaler."""
        return self.second_pass or self.size

    @property
    def asked_size(self) -> Size:
        """Width and height that ask for this image again."""
        return self.output_size if self.enlarged else self.size

    @property
    def runtime_size(self) -> Size:
        """Width and height of the images that the runtime makes, after an upscaler."""
        return self.upscaled or self.generated_size

    @property
    def output_size(self) -> Size:
        """Width and height of the finished images."""
        if self.placement is not None:
            return self.placement.canvas
        return self.cut or self.runtime_size


_ADAPTER: Final = TypeAdapter(GenerationRequest)


def request_fields(request: GenerationRequest) -> dict[str, Any]:
    """Return a request as values of JSON."""
    fields: dict[str, Any] = _ADAPTER.dump_python(request, mode="json", exclude_none=True)
    return fields


def request_of(fields: Mapping[str, Any]) -> GenerationRequest:
    """Return the request of ``request_fields``, or of what an earlier release stored.

    Raises:
        ValueError: The fields are not a request.
    """
    return _ADAPTER.validate_python(fields if "options" in fields else _upgraded(fields))


def _upgraded(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Move the options of a request that was stored before they were one value."""
    old = dict(fields)
    slg, cache = old.pop("slg", None) or {}, old.pop("cache", None) or {}
    hires, upscale = old.pop("hires", None) or {}, old.pop("upscale", None) or {}
    options = {name: old.pop(name, None) for name in Options.model_fields}
    # These had a value in every request, also where they meant nothing.
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
    """What is known of the input images before they are fitted.

    Attributes:
        size: Of the first one, None without any.
        drawn_over: The first one is the starting point, not only a reference.
        masked: A mask came with it.
        painted: The smallest rectangle around what the mask opens, None when that is nothing.
        references: Sizes of the reference images.
        control: A control image came.
    """

    size: Size | None = None
    drawn_over: bool = False
    masked: bool = False
    painted: Box | None = None
    references: tuple[Size, ...] = ()
    control: bool = False


@dataclass(frozen=True, slots=True)
class Assets:
    """What the operator's folders add to the models, and what small models know.

    Attributes:
        loras: Names; those of files in subfolders begin with the folder.
        lora_hashes: Name -> SHA-256 of the weights, of those that have one.
        lora_in_prompt: ``<lora:name:scale>`` in a prompt counts.
        upscalers: Name -> how many times it enlarges.
        built_in: Those of them that come with the package.
        vocabularies: Location of a model's file -> the words that it was taught, for small models.
        unusable: "lora", "embedding" or "upscaler" -> file -> why it cannot be used, a predicate.
    """

    loras: Collection[str] = ()
    lora_hashes: Mapping[str, str] = field(default_factory=dict)
    lora_in_prompt: bool = False
    upscalers: Mapping[str, int] = field(default_factory=dict)
    built_in: Collection[str] = ()
    vocabularies: Mapping[str, Vocabulary] = field(default_factory=dict)
    unusable: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def hashes_of(self, loras: Iterable[str]) -> dict[str, str]:
        """Return name -> SHA-256 of the given LoRAs, without those that have none."""
        return {name: self.lora_hashes[name] for name in loras if name in self.lora_hashes}

    @property
    def only_upscaler(self) -> str | None:
        """The operator's only upscaler; without any, the only one of the package."""
        own = [name for name in self.upscalers if name not in self.built_in]
        names = own or [*self.upscalers]
        return names[0] if len(names) == 1 else None


NO_SOURCES: Final = Sources()
NO_ASSETS: Final = Assets()


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper bounds that the operator sets.

    Attributes:
        drawn: Width x height that the model generates.
        enlarged: Width x height of what an upscaler makes of it, before that is reduced.
        images: Of one request.
        steps: Of one pass.
    """

    drawn: int = 4_194_304
    enlarged: int = 16_777_216
    images: int = MAX_IMAGES
    steps: int = MAX_STEPS
