"""The messages between the server and its worker process, and their binary encoding.

A frame is ``u32 header length | u32 blob length | header (JSON) | blob (raw pixels)`` with
little-endian lengths. Pixels are never encoded as JSON. The server sends commands and the worker
sends events. An event of a job contains the job's id, so that the server can drop a late event of
an earlier job.
"""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from sdstream.core.enums import DescribedEnum
from sdstream.core.pixels import Inputs, Pixels
from sdstream.core.request import GenerationRequest, request_fields, request_of
from sdstream.core.runtime_options import KERNELS_OFF

HEADER: Final = struct.Struct("<II")


class Phase(DescribedEnum):
    """A phase of the runtime's work; the watchdog has a time limit for each phase."""

    LOADING = "loading", "reading weights"
    ENCODING = "encoding", "the text encoder reads the prompt"
    SAMPLING = "sampling", "denoising, step by step"
    DECODING = "decoding", "the autoencoder turns the latent into pixels"
    UPSCALING = "upscaling", "an upscaler enlarges the image"


def counted_phase(request: GenerationRequest) -> Phase:
    """Return the phase whose steps count as the job's progress."""
    return Phase.SAMPLING if request.draws else Phase.UPSCALING


# --- commands: server to worker -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Load:
    """Load a model; the worker answers with Loaded or Failed.

    Attributes:
        model: Id in the catalogue.
        family: A key of model_families.FAMILIES.
        files: Component -> absolute path, or ``builtin:NAME``.
        cache_dir: Folder to which built-in models are written.
        runtime: The fields of model_spec.RuntimeOptions; ``kernels`` is never None.
        lora_dir: Folder of the LoRAs, or None.
        embedding_dir: Folder of the textual-inversion embeddings, or None.
        upscaler_dir: Folder of the upscalers, or None.
        device: Device on which the model computes; if empty, the runtime chooses.
    """

    model: str
    family: str
    files: dict[str, str]
    cache_dir: str
    runtime: dict[str, Any]
    lora_dir: str | None = None
    embedding_dir: str | None = None
    upscaler_dir: str | None = None
    device: str = ""


@dataclass(frozen=True, slots=True)
class Generate:
    """Generate a job's images; the last event of the job is Done, Cancelled or Failed.

    Attributes:
        first: Index of the first image to generate; an earlier try finished those before it.
    """

    job: str
    request: GenerationRequest
    inputs: Inputs = field(default_factory=Inputs)
    first: int = 0


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop the job as soon as the runtime can; ignored unless the worker runs this job."""

    job: str


@dataclass(frozen=True, slots=True)
class RequestPreview:
    """Send a Preview after the job's next step; ignored unless the worker runs this job."""

    job: str


@dataclass(frozen=True, slots=True)
class Share:
    """Divide a machine's CPU threads among its busy workers, from the next step on.

    Attributes:
        index: Index of this worker among the busy workers, from 0.
        workers: Number of busy workers.
    """

    index: int
    workers: int

    def threads(self, cores: int) -> int:
        """Return the number of threads of this worker: at least one.

        The first workers get one thread more if ``cores`` is not a multiple of ``workers``.
        """
        return max(1, -(-(cores - self.index) // self.workers))


@dataclass(frozen=True, slots=True)
class Stop:
    """Exit the process."""


# --- events: worker to server -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Loaded:
    """The model is ready.

    Attributes:
        seconds: Time that loading took.
        can_abort: The process can cancel a running job; otherwise the server must kill it.
        fast_kernels: The library was built with its matrix kernels (GGML_LLAMAFILE).
        on_cpu: The runtime computes on the CPU.
        embeddings: Words that select an embedding in prompts.
        kernels: CPU kernels in use, for example "avx512 f32 int8"; "off" if the runtime uses only
            its own.
        kernels_problem: Why the requested CPU kernels are not in use; empty without a problem.
        can_share: The worker can change its number of threads (Share) while it generates.
        device_name: Name of the processor or GPU, as its driver reports it; empty if unknown.
        gpu_free_bytes: Free memory of the GPU before the model was loaded; 0 on a CPU.
        gpu_used_bytes: Memory of the GPU that the model took.
    """

    seconds: float
    can_abort: bool
    fast_kernels: bool
    on_cpu: bool
    embeddings: tuple[str, ...] = ()
    kernels: str = KERNELS_OFF
    kernels_problem: str = ""
    can_share: bool = False
    device_name: str = ""
    gpu_free_bytes: int = 0
    gpu_used_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of the runtime with one image.

    Attributes:
        job: Job id.
        index: Index of the image in the job, from 0.
        phase: The current phase.
        step: Number of finished sampling steps, 0..steps; 0 while encoding.
        steps: Total number of sampling steps, as the runtime counts them.
    """

    job: str
    index: int
    phase: Phase
    step: int
    steps: int

    @property
    def share(self) -> float:
        """Finished share of the image, at least 0 and less than 1; decoding counts as a step."""
        return self.step / (self.steps + 1)


@dataclass(frozen=True, slots=True)
class Preview:
    """A small version of the image after a step, as RGB pixels: width x height x 3 bytes."""

    job: str
    index: int
    step: int
    width: int
    height: int
    blob: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ImageDrawn:
    """One image is ready as RGB pixels: width x height x 3 bytes, top row first.

    Attributes:
        seed: Seed of this image.
        encode_seconds, sample_seconds, decode_seconds: Time in each phase; upscaling counts as
            decoding.
        warnings: Sentences about options that had no effect, or about the image.
        conditions_computed, conditions_reused: Number of prompts that were encoded for the image,
            and of prompts whose encoding was cached by an earlier image; 0 if the runtime does not
            count them.
    """

    job: str
    index: int
    seed: int
    width: int
    height: int
    steps: int
    encode_seconds: float
    sample_seconds: float
    decode_seconds: float
    blob: bytes = field(repr=False)
    warnings: tuple[str, ...] = ()
    conditions_computed: int = 0
    conditions_reused: int = 0


@dataclass(frozen=True, slots=True)
class Done:
    """All images of the job are generated."""

    job: str


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The job stopped because a Cancel asked for it."""

    job: str


@dataclass(frozen=True, slots=True)
class Failed:
    """A job failed; without a ``job``, the model could not be loaded.

    Attributes:
        reason: A value of errors.Reason.
        message: One sentence without paths of the server.
    """

    job: str | None
    reason: str
    message: str


Command = Load | Generate | Cancel | RequestPreview | Share | Stop
Event = Loaded | Progress | Preview | ImageDrawn | Done | Cancelled | Failed
Message = Command | Event

_TYPES: Final = {
    cls.__name__: cls
    for cls in (
        Load, Generate, Cancel, RequestPreview, Share, Stop,
        Loaded, Progress, Preview, ImageDrawn, Done, Cancelled, Failed,
    )
}  # fmt: skip


def encode(message: Message) -> bytes:
    """Return the message as one frame for the socket."""
    # Not dataclasses.asdict: it deep-copies, and a blob may be megabytes.
    names = [f.name for f in dataclasses.fields(message)]
    fields = {name: getattr(message, name) for name in names if name != "blob"}
    blobs: list[bytes] = [message.blob] if isinstance(message, Preview | ImageDrawn) else []
    if isinstance(message, Generate):
        fields["request"] = request_fields(message.request)
        fields["inputs"], blobs = _pack(message.inputs)
    header = json.dumps({"type": type(message).__name__, **fields}).encode()
    size = sum(len(blob) for blob in blobs)
    return b"".join((HEADER.pack(len(header), size), header, *blobs))


class UnreadableJob(ValueError):
    """A job that cannot be read.

    Attributes:
        job: Id of the job.
    """

    def __init__(self, job: str) -> None:
        super().__init__(f"the request of the job {job} cannot be read")
        self.job = job


def decode(header: bytes, blob: bytes) -> Message:
    """Return the message of one frame.

    Raises:
        UnreadableJob: The header is a Generate whose request or images are not valid.
        ValueError: The header is not a message of this protocol.
    """
    try:
        fields = json.loads(header)
        cls: Any = _TYPES[fields.pop("type")]
        if cls is Generate:
            fields |= _job(fields, blob)
        elif cls is Loaded:
            fields["embeddings"] = tuple(fields["embeddings"])
        elif cls is Progress:
            fields["phase"] = Phase(fields["phase"])
        elif cls in (Preview, ImageDrawn):
            fields["blob"] = blob
            if cls is ImageDrawn:
                fields["warnings"] = tuple(fields["warnings"])
        message: Message = cls(**fields)
    except UnreadableJob:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not a message: {header[:200]!r}") from error
    return message


def _job(fields: Mapping[str, Any], blob: bytes) -> dict[str, Any]:
    try:
        return {
            "request": request_of(fields["request"]),
            "inputs": _unpack(fields["inputs"], blob),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise UnreadableJob(str(fields["job"])) from error


def unframe(frame: bytes) -> Message:
    """Return the message of one whole frame as ``encode`` returned it; raises ValueError."""
    if len(frame) < HEADER.size:
        raise ValueError("not a frame")
    header, blob = HEADER.unpack_from(frame)
    start = HEADER.size + header
    if len(frame) != start + blob:
        raise ValueError("a frame that was cut off")
    return decode(frame[HEADER.size : start], frame[start:])


def _pack(inputs: Inputs) -> tuple[dict[str, Any], list[bytes]]:
    """Return the shapes of the images for the header, and their pixels for the blob."""
    pictures = [inputs.image, inputs.mask, *inputs.references, inputs.control]
    canvas = [inputs.canvas, inputs.canvas_mask]
    if any(canvas):
        pictures += canvas
    shapes = [(p.width, p.height, len(p.data)) if p else None for p in pictures]
    fields = {"shapes": shapes, "controlled": True, "placed": any(canvas)}
    return fields, [p.data for p in pictures if p]


def _unpack(fields: dict[str, Any], blob: bytes) -> Inputs:
    pictures: list[Pixels | None] = []
    start = 0
    for shape in fields["shapes"]:
        if shape is None:
            pictures.append(None)
            continue
        width, height, length = shape
        pictures.append(Pixels(width, height, blob[start : start + length]))
        start += length
    canvas_mask = pictures.pop() if fields.get("placed") else None
    canvas = pictures.pop() if fields.get("placed") else None
    # Jobs that an older release stored have no entry for a control image.
    control = pictures.pop() if fields.get("controlled") else None
    image, mask, *references = pictures
    seen = tuple(p for p in references if p)
    return Inputs(image, mask, seen, control, canvas, canvas_mask)
