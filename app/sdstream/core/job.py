"""The states of one job, from its place in the queue to its images.

Only the table TRANSITIONS defines which event may follow which status. ``Job.apply`` accepts any
event. If the table does not allow the event, ``apply`` changes nothing and returns False, so that
late or repeated events (a worker's last frame, a second cancel) are harmless. The first terminal
event wins, and no event follows it.

::

    queued ──> loading ──> running ──> completed
     │  ^         │         │  │
     │  └─────────│─────────┘  │       (another try: see service/dispatch.py)
     └────────────┴────────────┴─────> failed | cancelled

A job keeps an append-only list of its events, and each reader keeps an index into that list. There
are no queues per client. A late reader replays the events, and a slow reader does not block others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from sdstream.core.enums import DescribedEnum
from sdstream.core.errors import (
    TEMPORARY_REASONS,
    GenerationFailed,
    ImageServiceError,
    InvalidRequest,
    JobWasCancelled,
    Reason,
    StorageFull,
    Unavailable,
)
from sdstream.core.messages import Phase, Progress, counted_phase
from sdstream.core.queue import Priority
from sdstream.core.request import GenerationRequest

#: Width and height in pixels of one image token: two latent pixels, each eight pixels wide.
TOKEN_PIXELS: Final = 16

#: More previews than OpenAI's stream sends for ten images, so that a slow reader misses none.
_KEPT_PREVIEWS: Final = 32

#: Maximum number of tries of a background job; a try ends if its worker or the server dies.
MAX_ATTEMPTS: Final = 2


class JobStatus(DescribedEnum):
    """The status of a job, each value with a line that explains it."""

    QUEUED = "queued", "waits for its turn"
    LOADING = "loading", "is next, its model is being loaded"
    RUNNING = "running", "the runtime works on it"
    COMPLETED = "completed", "all images are finished"
    FAILED = "failed", "ended without all of its images"
    CANCELLED = "cancelled", "was stopped on request"

    @property
    def terminal(self) -> bool:
        """True if no event can follow."""
        return not TRANSITIONS[self]


@dataclass(frozen=True, slots=True)
class Terms:
    """The owner of a job, and how the server handles the job; nothing here affects the images.

    Attributes:
        operation: Kind of the request.
        owner: Identifier of the client's API key; empty without keys.
        priority: Priority class in the queue.
        background: The job continues if its client disconnects or the server restarts.
        as_url, data_url, both: Form of the images in an answer that is not a stream
            (rendering.ResponseFormat).
        idempotency_key: The client's Idempotency-Key; None without one.
        fingerprint: Digest of the request, to tell a repeated request from a different one.
        webhook_url: Address to which the server reports the end of the job; None for no report.
        group: The client's name for jobs that belong together; None without one.
        base_url: Beginning of the links in the webhook message.
        traceparent: Span of the request (W3C Trace Context); empty without one.
    """

    operation: Literal["generation", "edit"] = "generation"
    owner: str = ""
    priority: Priority = Priority.NORMAL
    background: bool = False
    as_url: bool = False
    data_url: bool = False
    both: bool = False
    idempotency_key: str | None = None
    fingerprint: str = ""
    webhook_url: str | None = None
    group: str | None = None
    base_url: str = ""
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class ImageResult:
    """One finished image as a file.

    Attributes:
        index: Index of the image in the job, from 0.
        seed: Seed of the image.
        data: The encoded file; None if only the store has it.
        size: Size of the file in bytes.
        steps: Number of sampling steps.
        encode_seconds, sample_seconds, decode_seconds: The runtime's time in each phase.
        id: Key in the image store; None if the image was not stored.
        flagged: The safety checker flagged the image, and the file is a blank image.
    """

    index: int
    seed: int
    data: bytes | None = field(repr=False)
    size: int
    steps: int
    encode_seconds: float
    sample_seconds: float
    decode_seconds: float
    id: str | None = None
    flagged: bool = False

    @property
    def content(self) -> bytes:
        """The encoded file; only for an image whose ``data`` is loaded."""
        assert self.data is not None
        return self.data


# --- what can happen to a job -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Queued:
    """The job has this position in the queue; the job at position 0 is next."""

    position: int


@dataclass(frozen=True, slots=True)
class Requeued:
    """The job waits again, and its finished images stay.

    Attributes:
        counts: True if the interrupted attempt counts towards MAX_ATTEMPTS, as after the death of a
            worker. False if the server is shutting down or cannot reach the worker's machine.
    """

    counts: bool = True


@dataclass(frozen=True, slots=True)
class Loading:
    """The job is next and waits for its model."""


@dataclass(frozen=True, slots=True)
class Running:
    """The job was handed to the runtime."""


@dataclass(frozen=True, slots=True)
class PreviewReady:
    """A small version of the image after a step, as PNG."""

    index: int
    step: int
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ImageReady:
    """One image is finished."""

    image: ImageResult


@dataclass(frozen=True, slots=True)
class Completed:
    """The runtime reports that all images are generated."""


@dataclass(frozen=True, slots=True)
class JobFailed:
    """The job ended without all of its images."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class JobCancelled:
    """The job was stopped on request."""

    message: str


JobEvent = (
    Queued | Requeued | Loading | Running | Progress | PreviewReady | ImageReady
    | Completed | JobFailed | JobCancelled
)  # fmt: skip

_ENDINGS: Final[Mapping[type, JobStatus]] = {
    JobFailed: JobStatus.FAILED,
    JobCancelled: JobStatus.CANCELLED,
}

TRANSITIONS: Final[Mapping[JobStatus, Mapping[type, JobStatus]]] = {
    JobStatus.QUEUED: {
        Queued: JobStatus.QUEUED,
        Loading: JobStatus.LOADING,
        Running: JobStatus.RUNNING,
        **_ENDINGS,
    },
    JobStatus.LOADING: {Running: JobStatus.RUNNING, **_ENDINGS},
    JobStatus.RUNNING: {
        Progress: JobStatus.RUNNING,
        PreviewReady: JobStatus.RUNNING,
        ImageReady: JobStatus.RUNNING,
        Requeued: JobStatus.QUEUED,
        Completed: JobStatus.COMPLETED,
        **_ENDINGS,
    },
    JobStatus.COMPLETED: {},
    JobStatus.FAILED: {},
    JobStatus.CANCELLED: {},
}


@dataclass(frozen=True, slots=True)
class Entry:
    """An event and the time at which it was applied, in Unix seconds."""

    at: float
    event: JobEvent


@dataclass(frozen=True, slots=True)
class Usage:
    """The cost of a job: speeds as in llama-box, and numbers of tokens as in OpenAI's API.

    Attributes:
        generation_per_second: Sampling steps per second.
        time_per_generation_ms: Milliseconds of sampling and decoding per image.
        time_to_process_ms: Milliseconds from acceptance to the first sampling step. This includes
            the queue, the loading of the model and the encoding of the prompt.
        text_tokens: Words in the prompt; the runtime does not report the number of tokens.
        image_tokens: Patches of 16 x 16 pixels in the input images, at the size of the output.
        output_tokens: Number of patches of 16 x 16 pixels in the finished images.
    """

    generation_per_second: float
    time_per_generation_ms: float
    time_to_process_ms: float
    text_tokens: int
    image_tokens: int
    output_tokens: int


class Job:
    """One accepted request and all events of its job.

    Attributes:
        id: Identifier that clients cannot guess.
        request: The concrete request.
        created: Unix time in seconds at which the server accepted the job.
        terms: The owner of the job, and how the server handles it.
        status: Current status.
        queue_position: Number of jobs before this one while it is queued.
        attempts: Number of tries: how often a worker received the job.
        started, ended: Unix times in seconds of the newest start and of the end; None before.
        entries: The events, oldest first. The list is append-only, but older previews lose their
            pixels.
        first_event: Number of events before ``entries``, for example from an earlier run of the
            server; entry i is event ``first_event + i + 1``.
        images: Finished images by index.
        progress: The newest progress of the image that is being generated.
        ending: The event that ended the job; None before.
        has_findings: Warnings, kernels or the hash of the model were added to the request.
        favorite: The owner marked the job, so it does not expire.
        uploads: Stored files that came with the request: name -> size in bytes.
    """

    def __init__(
        self, job_id: str, request: GenerationRequest, created: float, terms: Terms = Terms()
    ) -> None:
        self.id = job_id
        self.request = request
        self.created = created
        self.terms = terms
        self.status = JobStatus.QUEUED
        self.queue_position = 0
        self.attempts = 0
        self.started: float | None = None
        self.ended: float | None = None
        self.entries: list[Entry] = []
        self.first_event = 0
        self.images: dict[int, ImageResult] = {}
        self.progress: Progress | None = None
        self.ending: Completed | JobFailed | JobCancelled | None = None
        self.has_findings = False
        self.favorite = False
        self.uploads: dict[str, int] = {}
        self._previews: deque[int] = deque()
        self._first_step: tuple[int, float] | None = None
        self._newest_step: tuple[int, float] | None = None

    def retold(self, images: Iterable[ImageResult]) -> Job:
        """Return a copy of this ended job whose entries are only these images and the end."""
        assert self.ending is not None
        assert self.ended is not None
        job = Job(self.id, self.request, self.created, self.terms)
        job.attempts, job.started = self.attempts, self.started
        job.favorite, job.uploads = self.favorite, self.uploads
        job.status = JobStatus.RUNNING
        for event in (*map(ImageReady, images), self.ending):
            job.apply(event, self.ended)
        job.first_event = self.last_event - len(job.entries)
        return job

    @property
    def last_event(self) -> int:
        """Number of the newest entry."""
        return self.first_event + len(self.entries)

    @property
    def terminal(self) -> bool:
        """True if the job has ended."""
        return self.status.terminal

    def apply(self, event: JobEvent, at: float) -> bool:
        """Apply an event; return False if it is not allowed now or changes nothing.

        Args:
            event: The event.
            at: Unix time of the event in seconds.
        """
        if isinstance(event, Completed) and len(self.images) < self.request.n:
            missing = self.request.n - len(self.images)
            event = JobFailed(
                Reason.GENERATION_FAILED,
                f"{missing} images are missing: the runtime did not return them.",
            )
        status = TRANSITIONS[self.status].get(type(event))
        if status is None or self._is_stale(event):
            return False
        self._note(event, at)
        self.status = status
        self.entries.append(Entry(at, event))
        if isinstance(event, PreviewReady):
            self._forget_previews()
        return True

    def warn(self, sentences: Iterable[str]) -> None:
        """Add warnings of the engine to the request, each sentence once."""
        known = self.request.warnings
        found = tuple(sentence for sentence in sentences if sentence not in known)
        if found:
            self.request = replace(self.request, warnings=(*known, *found))
            self.has_findings = True

    def generated_with(self, *, kernels: str, model_hash: str) -> None:
        """Record the CPU kernels of the worker that runs the job and the hash of its model."""
        request = replace(self.request, kernels=kernels, model_hash=model_hash)
        if request != self.request:
            self.request = request
            self.has_findings = True

    def _forget_previews(self) -> None:
        """Discard the pixels of old previews, because a job may have 1,500 previews."""
        self._previews.append(len(self.entries) - 1)
        if len(self._previews) > _KEPT_PREVIEWS:
            oldest = self._previews.popleft()
            entry = self.entries[oldest]
            self.entries[oldest] = Entry(entry.at, _without_file(entry.event))

    def _is_stale(self, event: JobEvent) -> bool:
        match event:
            case Queued(position):
                return bool(self.entries) and position == self.queue_position
            case ImageReady(image):
                return image.index in self.images or not 0 <= image.index < self.request.n
            case Progress() if self.progress is not None:
                # heun, dpm2 and res_2s report step 0 twice
                return _reached(event) <= _reached(self.progress)
            case _:
                return False

    def _note(self, event: JobEvent, at: float) -> None:
        match event:
            case Queued(position):
                self.queue_position = position
            case Requeued(counts):
                self.attempts -= not counts
                self.progress = self._first_step = self._newest_step = None
            case Loading():
                self.queue_position = 0
            case Running():
                self.queue_position = 0
                self.attempts += 1
                self.started = at
            case Progress():
                self._note_progress(event, at)
            case ImageReady(image):
                self.images[image.index] = image
            case Completed() | JobFailed() | JobCancelled():
                self.ending, self.ended = event, at

    def _note_progress(self, progress: Progress, at: float) -> None:
        if self.progress is None or self.progress.index != progress.index:
            self._first_step = self._newest_step = None
        self.progress = progress
        if progress.phase is counted_phase(self.request) and progress.step:
            self._newest_step = (progress.step, at)
            self._first_step = self._first_step or self._newest_step

    @property
    def steps_per_second(self) -> float | None:
        """Speed of the image being generated; None before its second step."""
        if self._first_step is None or self._newest_step is None:
            return None
        (first, began), (newest, now) = self._first_step, self._newest_step
        return (newest - first) / (now - began) if newest > first and now > began else None

    @property
    def percent(self) -> float:
        """Finished share of the whole job in percent; 100 only if the job is completed."""
        if self.status is JobStatus.COMPLETED:
            return 100.0
        done = float(len(self.images))
        current = self.progress
        if current is not None and current.index not in self.images:
            done += current.share
        return round(min(99.99, 100 * done / self.request.n), 2)

    def without_files(self) -> Job:
        """Return a copy without files and previews for later readers; the store has the files."""
        copy = Job(self.id, self.request, self.created, self.terms)
        copy.__dict__.update(self.__dict__)
        copy.images = {index: replace(image, data=None) for index, image in self.images.items()}
        copy.entries = [Entry(entry.at, _without_file(entry.event)) for entry in self.entries]
        return copy

    def error(self) -> ImageServiceError | None:
        """Return the error for a job that ended without all of its images; None for other jobs."""
        match self.ending:
            case JobFailed(reason, message) if reason in TEMPORARY_REASONS:
                return Unavailable(message, reason=reason, retry_after=10)
            case JobFailed(Reason.CONTENT_POLICY_VIOLATION | Reason.LORA_UNUSABLE as why, message):
                return InvalidRequest(message, reason=why)
            case JobFailed(Reason.STORAGE_FULL as reason, message):
                return StorageFull(message, reason=reason)
            case JobFailed(reason, message):
                return GenerationFailed(message, reason=reason)
            case JobCancelled(message):
                return JobWasCancelled(message, reason=Reason.CANCELLED)
            case _:
                return None

    def usage(self) -> Usage:
        """Return the cost of the finished images."""
        done = list(self.images.values())
        steps = sum(image.steps for image in done)
        sampling = sum(image.sample_seconds for image in done)
        drawing = sampling + sum(image.decode_seconds for image in done)
        waited = (self.started or self.created) - self.created
        first = self.images.get(0)
        size = self.request.output_size
        patches = (size.width // TOKEN_PIXELS) * (size.height // TOKEN_PIXELS)
        return Usage(
            generation_per_second=round(steps / sampling, 3) if sampling else 0.0,
            time_per_generation_ms=round(1000 * drawing / max(1, len(done)), 1),
            time_to_process_ms=round(1000 * (waited + (first.encode_seconds if first else 0.0)), 1),
            text_tokens=len(self.request.prompt.split()),
            image_tokens=patches * self.request.input_images,
            output_tokens=patches * len(done),
        )


def _without_file(event: JobEvent) -> JobEvent:
    match event:
        case ImageReady(image):
            return ImageReady(replace(image, data=None))
        case PreviewReady():
            return replace(event, data=b"")
        case _:
            return event


_PHASE_ORDER: Final = {phase: order for order, phase in enumerate(Phase)}


def _reached(progress: Progress) -> tuple[int, int, int]:
    return progress.index, _PHASE_ORDER[progress.phase], progress.step
