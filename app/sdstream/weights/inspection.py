"""Inspection of weight files before the runtime loads them.

``inspect`` describes a single file. ``check`` verifies that a model's files are complete and fit
together: the runtime only warns about a missing text encoder, and crashes at the first prompt.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from sdstream.core.errors import EngineError, Reason
from sdstream.core.model_families import FAMILIES
from sdstream.core.size import Size
from sdstream.core.text import shown
from sdstream.weights import architectures, folders, headers
from sdstream.weights.architectures import Architecture, Contents, Shapes
from sdstream.weights.headers import BadFile, Scalar, WeightFile
from sdstream.weights.llama_box import own_name, why_unread

#: Memory for decoding an image, without the weights, in bytes per pixel; no step needs more. The
#: values were measured on the CPU with the autoencoders of SD, SDXL and FLUX, and a tiny one.
_DRAWING_BYTES: Final = {"vae": 6_600, "tae": 2_000}

_WHOLE: Final = "the runtime reads it only with its text encoders in the same file, as 'model'"
#: Endings of the names of tensors that scale other tensors, as in FP8 files.
_SCALES: Final = (".scale_weight", ".weight_scale", ".weight_scale_inv", ".scale_inv")
_SHARD: Final = re.compile(r"-\d{5}-of-(\d{5})\.")
_METADATA: Final[Mapping[str, tuple[str, ...]]] = {
    "name": ("general.name", "modelspec.title", "ss_output_name"),
    "author": ("general.author", "general.organization", "modelspec.author"),
    "licence": ("general.license", "modelspec.license"),
    "architecture": ("general.architecture", "modelspec.architecture"),
    "base model": ("general.base_model.0.name", "ss_base_model_version"),
}


# --- one file -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Share:
    """The share of a component or a type in a file.

    Attributes:
        name: Name of the component or type.
        tensors, parameters: Number of tensors and of parameters.
        size: Size in the file, in bytes.
    """

    name: str
    tensors: int
    parameters: int
    size: int


@dataclass(frozen=True)
class Memory:
    """Estimated memory of a model.

    Attributes:
        weights: Bytes of the loaded weights.
        drawing: Maximum number of additional bytes while an image is generated.
        size: Image size of the estimate.
    """

    weights: int
    drawing: int
    size: str


@dataclass(frozen=True)
class Report:
    """The description of a file.

    Attributes:
        file: Name of the file.
        format: Format of the file, for example "GGUF 3".
        size: Size of the file in bytes.
        tensors: Number of tensors.
        parameters: Number of parameters.
        kind: "model", a component of models.yaml, or another kind of file such as "lora".
        what: A predicate that describes the file, such as "is a VAE".
        families: Families of models.yaml that can use the file.
        needs: Other components that the file needs.
        needs_patches: Only a runtime with the project's patches can read the file.
        parts: Components in the file, from the largest.
        types: Types of tensors, from the one with the most bytes.
        memory: Estimated memory; None if the file contains no usable diffusion model.
        metadata: Selected metadata of the file, by readable names.
    """

    file: str
    format: str
    size: int
    tensors: int
    parameters: int
    kind: str
    what: str
    families: tuple[str, ...]
    needs: tuple[str, ...]
    needs_patches: bool
    parts: tuple[Share, ...]
    types: tuple[Share, ...]
    memory: Memory | None
    metadata: Mapping[str, Scalar]

    def as_json(self) -> dict[str, Any]:
        """Return the report as values for JSON."""
        return asdict(self)


def inspect(path: Path) -> Report:
    """Return the description of a file.

    Raises:
        BadFile: The file cannot be used; the message contains the reason.
    """
    found = headers.read(path)
    problem = _unreadable(found, path.name)
    if problem:
        raise BadFile(problem)
    contents = architectures.recognise(found.shapes)
    return Report(
        file=path.name,
        format=found.format,
        size=found.size,
        tensors=len(found.tensors),
        parameters=sum(tensor.elements for tensor in found.tensors),
        kind=contents.kind,
        what=_what(contents, found),
        families=contents.architecture.families if contents.architecture else (),
        needs=_needs(contents),
        needs_patches=contents.renamed,
        parts=_shares(found, _part_names(contents, found)),
        types=_shares(found, [tensor.type for tensor in found.tensors]),
        memory=_memory(contents, found),
        metadata=_metadata(found),
    )


def _what(contents: Contents, found: WeightFile) -> str:
    architecture = contents.architecture
    if architecture is None:
        return f"is {contents.title}{_detail(contents, found)}"
    if architecture.refused:
        return f"is {architecture.title}, which cannot be used here: {architecture.refused}"
    if set(contents.parts) == {"diffusion_model"}:
        return f"is the diffusion model of {architecture.title} alone"
    return f"is {architecture.title}"


def _detail(contents: Contents, found: WeightFile) -> str:
    inside = contents.parts.get(contents.kind, {})
    name = shown(str(found.metadata.get("general.architecture", "")))
    match contents.kind:
        case "vae" | "tae":
            channels = architectures.latent_channels(inside)
            return f" with {channels} latent channels" if channels else " for videos or Qwen-Image"
        case "llm":
            width = f"{architectures.text_width(inside)} wide"
            return f" ({name}, {width})" if name else f" ({width})"
        case "diffusion_model" | "model" | "unknown" if contents.architecture is None:
            return f" (its architecture is named '{name}')" if name else ""
    return ""


def _needs(contents: Contents) -> tuple[str, ...]:
    if contents.architecture is None or contents.architecture.refused:
        return ()
    tae = "tae" in contents.parts and "vae" not in contents.parts
    return architectures.missing(contents.architecture.needs, contents.parts, tae=tae)


def _part_names(contents: Contents, found: WeightFile) -> list[str]:
    if contents.bare:
        return [contents.kind] * len(found.tensors)
    families = contents.architecture.families if contents.architecture else ()
    names = [own_name(tensor.name, families) for tensor in found.tensors]
    return [architectures.part_of(name)[0] or "other" for name in names]


def _shares(found: WeightFile, names: list[str]) -> tuple[Share, ...]:
    tensors: Counter[str] = Counter(names)
    parameters: Counter[str] = Counter()
    octets: Counter[str] = Counter()
    for name, tensor in zip(names, found.tensors, strict=True):
        parameters[name] += tensor.elements
        octets[name] += tensor.octets
    return tuple(
        Share(name, tensors[name], parameters[name], count) for name, count in octets.most_common()
    )


def _memory(contents: Contents, found: WeightFile) -> Memory | None:
    architecture = contents.architecture
    if architecture is None or not architecture.families:
        return None
    size: Size = FAMILIES[architecture.families[0]].size
    tiny = "tae" in contents.parts and "vae" not in contents.parts
    return Memory(
        weights=sum(tensor.loaded for tensor in found.tensors),
        drawing=size.width * size.height * _DRAWING_BYTES["tae" if tiny else "vae"],
        size=str(size),
    )


def _metadata(found: WeightFile) -> dict[str, Scalar]:
    known = found.metadata
    return {
        word: shown(str(known[key]))
        for word, keys in _METADATA.items()
        for key in [key for key in keys if key in known][:1]
    }


def _unreadable(found: WeightFile, name: str) -> str | None:
    """Return why the runtime cannot use an undamaged file, as a predicate; None if it can."""
    shards = found.metadata.get("split.count") or _pieces(name)
    if shards and shards != 1:
        return f"is one of {shards} pieces, and the runtime requires them in one file"
    names = [tensor.name for tensor in found.tensors]
    if any(".quant_state.bitsandbytes__" in name for name in names):
        return "is quantised by bitsandbytes (NF4), which the runtime does not read"
    scale = next((name for name in names if name.endswith(_SCALES)), None)
    if scale is not None:
        return (
            f"has scales besides its weights ('{shown(scale)}'), which the runtime does not apply, "
            "so that its images would be grey or white; use a file whose weights are not scaled"
        )
    return None


def _pieces(name: str) -> int:
    match = _SHARD.search(name)
    return int(match[1]) if match else 0


# --- the files of a model -------------------------------------------------------------------------


def check(
    files: Mapping[str, Path], family: str, *, tae: bool = False, renames: bool = True
) -> None:
    """Verify that the runtime can load the files of one model and generate with them.

    Args:
        files: Component of models.yaml -> file.
        family: Family of the model in models.yaml.
        tae: The model uses the tiny autoencoder in its model file.
        renames: The runtime can read text encoders with the names that llama-box writes.

    Raises:
        EngineError: A file cannot be used. The message names its component, but not its path.
    """
    known = {component: _known(component, path) for component, path in files.items()}
    base = "diffusion_model" if "diffusion_model" in known else "model"
    architecture = known[base].architecture
    if architecture is None:
        raise _bad(base, "contains a diffusion model that the runtime does not know")
    if architecture.refused:
        raise _bad(base, f"is {architecture.title}: {architecture.refused}")
    if family not in architecture.families:
        raise _unavailable(
            f"The weights are those of {architecture.title} but the family in the catalogue is "
            f"'{family}'; it should be '{architecture.families[0]}'."
        )
    for component, contents in known.items():
        if contents.renamed and not renames:
            raise _bad(component, why_unread(architecture.title))
    parts = _together(known)
    if architectures.is_mangled(parts["diffusion_model"]):
        raise _bad(base, "lacks the norms of its first blocks")
    tae = tae or "tae" in files
    _check_complete(architecture, FAMILIES[family].needs, known, parts, tae=tae)
    _check_widths(architecture, parts, tae=tae)


def read_lora(name: str, path: Path) -> WeightFile:
    """Return the header of a LoRA, without checking whether the LoRA fits a model.

    Raises:
        EngineError: The file cannot be used as a LoRA. The message names the LoRA.
    """
    try:
        found = headers.read(path)
        _expect(found, "lora")
    except BadFile as error:
        raise EngineError(Reason.LORA_UNUSABLE, f"The LoRA '{name}' {error}.") from None
    return found


#: Metadata key of a LoRA for a SHA-256 of its weights, as defined by the scripts of kohya-ss.
_TRAINERS_CHECKSUM: Final = "sshs_model_hash"
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Asset:
    """The result of examining a file in one of the operator's folders.

    Attributes:
        problem: Why the file cannot be used, as a predicate; None if it can be used.
        factor: Factor of an upscaler; None for other files.
        checksum: SHA-256 of a LoRA's weights in hex; None if the training program did not write it
            into the file.
    """

    problem: str | None = None
    factor: int | None = None
    checksum: str | None = None


def examine(path: Path, kind: str) -> Asset:
    """Examine a file of the folder for files of a kind: "lora", "embedding" or "upscaler"."""
    try:
        status = path.stat()
    except OSError as error:
        return Asset(f"cannot be read ({error.strerror})")
    other = folders.hider(path)
    if other is not None:
        return Asset(f"has the same name as {other.name}, which is used: rename one of them")
    return _examined(path, kind, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4096)
def _examined(path: Path, kind: str, _modified: int, _size: int) -> Asset:
    # The result is cached, because requests may list folders with hundreds of files.
    try:
        found = headers.read(path)
        _expect(found, kind)
    except BadFile as error:
        return Asset(str(error))
    factor = architectures.upscaler_factor(found.shapes) if kind == "upscaler" else None
    checksum = str(found.metadata.get(_TRAINERS_CHECKSUM, ""))
    return Asset(factor=factor, checksum=checksum if _SHA256.fullmatch(checksum) else None)


def _expect(found: WeightFile, kind: str) -> None:
    """Raise BadFile if a file is of another kind, or if the runtime cannot use its form."""
    contents = architectures.recognise(found.shapes)
    # Some LoRAs contain only differences, under the names of the weights that they change.
    kinds = ("lora", "unknown") if kind == "lora" else (kind,)
    if contents.kind not in kinds:
        raise BadFile(f"{_what(contents, found)}, not {architectures.TITLES[kind]}")
    if kind == "upscaler" and architectures.upscaler_factor(found.shapes) is None:
        raise BadFile(architectures.upscaler_problem(found.shapes))


def _known(component: str, path: Path) -> Contents:
    """Return the contents of a component's file.

    Raises:
        EngineError: The file is damaged, unusable, or not this component.
    """
    try:
        found = headers.read(path)
    except BadFile as error:
        raise _bad(component, str(error)) from None
    problem = _unreadable(found, path.name)
    if problem:
        raise _bad(component, problem)
    contents = architectures.recognise(found.shapes)
    if not _belongs(component, contents):
        raise _bad(component, _instead(component, contents, found))
    return contents


def _belongs(component: str, contents: Contents) -> bool:
    if component == "model":
        return not contents.bare and "diffusion_model" in contents.parts
    if component == "diffusion_model":
        return "diffusion_model" in contents.parts
    same = {"clip_l": ("clip_l", "clip_h")}.get(component, (component,))
    return len(contents.parts) == 1 and contents.kind in same


def _instead(component: str, contents: Contents, found: WeightFile) -> str:
    """Return the end of a sentence that names what a file is instead of the expected component."""
    architecture = contents.architecture
    if architecture is None:
        return f"{_what(contents, found)}, not {architectures.TITLES[component]}"
    if architecture.refused:
        return _what(contents, found)
    if component != "model":
        return f"{_what(contents, found)}, not {architectures.TITLES[component]} alone"
    if architecture.whole:
        return f"is the UNet of {architecture.title} alone: {_WHOLE}"
    return (
        f"{_what(contents, found)}: name it 'diffusion_model' in the catalogue, and besides it "
        f"{_listed(_needs(contents))}"
    )


def _together(known: Mapping[str, Contents]) -> dict[str, Shapes]:
    """Return component -> its tensors, from all files.

    A separate file of a component replaces the component in the model file.
    """
    parts = dict(known["model"].parts) if "model" in known else {}
    for component, contents in known.items():
        if component == "diffusion_model":
            parts[component] = contents.parts[component]
        elif component != "model":
            parts[component] = contents.parts[contents.kind]
    return parts


def _check_complete(
    architecture: Architecture,
    needs: tuple[str, ...],
    known: Mapping[str, Contents],
    parts: Mapping[str, Shapes],
    *,
    tae: bool,
) -> None:
    base = known.get("diffusion_model") or known["model"]
    present = {*parts}
    if architecture.whole:  # text encoders count only if they are in the UNet's file
        present = {"vae", "tae"} & present | {*base.parts}
    if architectures.sees(parts.get("llm", {})):
        present.add("llm_vision")
    lacking = architectures.missing(needs, present, tae=tae)
    if not lacking:
        return
    if architecture.whole and set(lacking) - {"vae", "tae"}:
        raise _unavailable(
            f"{_listed(lacking)} of {architecture.title} are not in the file of its UNet: {_WHOLE}."
        )
    if present == {"diffusion_model"}:
        raise _unavailable(
            f"This is the diffusion model of {architecture.title} alone: it needs "
            f"{_listed(lacking)}."
        )
    hint = (
        " ('runtime: {tae: true}' generates with its tae)"
        if lacking == ("vae",) and "tae" in parts
        else ""
    )
    raise _unavailable(f"{architecture.title} needs {_listed(lacking)}, which no file has{hint}.")


def _check_control(architecture: Architecture, parts: Mapping[str, Shapes]) -> None:
    control = parts.get("control_net")
    if control is None:
        return
    width, wanted = (
        architectures.control_width(control),
        architectures.unet_text_width(parts["diffusion_model"]),
    )
    if width is None:
        raise _bad("control_net", "is a ControlNet, but not in a format of the runtime")
    if width != wanted:
        raise _unavailable(
            f"The ControlNet is for another model: its text width is {width}, and that of "
            f"{architecture.title} is {wanted}."
        )


def _check_widths(architecture: Architecture, parts: Mapping[str, Shapes], *, tae: bool) -> None:
    """Raise EngineError for mismatches with which the runtime would crash in the first image."""
    wanted = architectures.wanted_text_width(architecture, parts["diffusion_model"])
    width = architectures.text_width(parts.get("llm", {}))
    if wanted and width != wanted:
        raise _unavailable(
            f"The language model is {width} wide and {architecture.title} requires one of {wanted}."
        )
    _check_control(architecture, parts)
    if "vae" not in architecture.needs:
        return
    autoencoder = "tae" if tae else "vae"
    channels = architectures.latent_channels(parts[autoencoder])
    if channels != architecture.latents:
        raise _unavailable(
            f"The {autoencoder} is not that of {architecture.title}: it has {channels} latent "
            f"channels, not {architecture.latents}."
        )
    if not architectures.has_encoder(parts[autoencoder]):
        raise _unavailable(f"The {autoencoder} can only decode: its encoder is missing.")


def _listed(components: tuple[str, ...]) -> str:
    *most, last = components
    return f"{', '.join(most)} and {last}" if most else last


def _bad(component: str, predicate: str) -> EngineError:
    return _unavailable(f"The file of '{component}' {predicate}.")


def _unavailable(sentence: str) -> EngineError:
    return EngineError(Reason.MODEL_UNAVAILABLE, sentence)
