"""The life of one job, from its place in the queue to its images.

Rule: TRANSITIONS alone defines which event may follow which status. ``Job.apply``
is total: an event that the table does not allow changes nothing and returns False, so that late
or repeated events (a worker's last frame, a second cancel) are harmless. The first terminal
event wins; nothing follows it.

::

    queued ──> loading ──> running ──> completed
     │  ^         │         │  │
     │  └─────────│─────────┘  │       (another try: see service/dispatch.py)
     └────────────┴────────────┴─────> failed | cancelled

A job keeps an append-only list of what happened; a reader holds an index into it. There are no
queues per client: a late reader replays, a slow one blocks no other reader.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from sdstream.core.enums import DescribedEnum
from sdstream.core.errors import (
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

#: Pixels to a side of what is counted as one image token: two latent pixels of eight pixels each.
TOKEN_PIXELS: Final = 16

#: More than OpenAI's stream has of ten images, so that a slow reader of it misses none.
_KEPT_PREVIEWS: Final = 32

#: Tries of a background job; the death of its worker or of the server ends one.
MAX_ATTEMPTS: Final = 2


class JobStatus(DescribedEnum):
    """Where a job is; each value with its one line of meaning."""

    QUEUED = "queued", "waits for its turn"
    LOADING = "loading", "is next, its model is being loaded"
    RUNNING = "running", "the runtime works on it"
    COMPLETED = "completed", "all images are finished"
    FAILED = "failed", "ended without all of its images"
    CANCELLED = "cancelled", "was stopped on request"

    @property
    def terminal(self) -> bool:
        """True when nothing can follow."""
        return not TRANSITIONS[self]


@dataclass(frozen=True, slots=True)
class Terms:
    """The owner of a job and how it is kept; none of this changes the image.

    Attributes:
        operation: What the client called it.
        owner: Whose job it is: stands for an API key, empty without keys.
        priority: Its class in the queue.
        background: It continues without its client and outlives the server.
        as_url, data_url, both: How a plain answer has the images (rendering.ResponseFormat).
        idempotency_key: The client's name for this request, None without one.
        fingerprint: Digest of the request, to distinguish a repetition from another request.
        webhook_url: Where to post the end, None for nowhere.
        group: The client's name for jobs that belong together, None without one.
        base_url: What links begin with there.
        traceparent: Span of the request (W3C Trace Context), empty without one.
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
        index: Image of the job, from 0.
        seed: Seed of the image.
        data: The encoded file, None where only the store has it.
        size: Its bytes.
        steps: Sampling steps that the runtime took.
        encode_seconds, sample_seconds, decode_seconds: The runtime's time in each phase.
        id: Key in the image store, None when the image was not put there.
        flagged: The safety checker kept the image back, and the file is blank.
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
        """The encoded file of an image that has it at hand."""
        assert self.data is not None
        return self.data


# --- what can happen to a job -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Queued:
    """The job has this place in the queue; 0 is next."""

    position: int


@dataclass(frozen=True, slots=True)
class Requeued:
    """The job waits again; finished images stay.

    Attributes:
        counts: The try was one: the worker died. Else the server was told to stop, or the worker's
            machine went out of reach.
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
    """A small PNG of how the image looks after a step."""

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
    """An event with the time it was taken up, in Unix seconds."""

    at: float
    event: JobEvent


@dataclass(frozen=True, slots=True)
class Usage:
    """What a job cost, for both families of clients.

    Attributes:
        generation_per_second: Sampling steps per second.
        time_per_generation_ms: Milliseconds of sampling and decoding per image.
        time_to_process_ms: Milliseconds from acceptance to the first sampling step: the queue,
            the loading of the model and the reading of the prompt.
        text_tokens: Words of the prompt (the runtime does not report its encoder's tokens).
        image_tokens: Patches of 16 x 16 pixels in the input images, at the size of the output.
        output_tokens: Patches of 16 x 16 pixels in all images.
    """

    generation_per_second: float
    time_per_generation_ms: float
    time_to_process_ms: float
    text_tokens: int
    image_tokens: int
    output_tokens: int


class Job:
    """One accepted request and everything that happened to it.

    Attributes:
        id: Unguessable.
        request: What is generated.
        created: Unix seconds of acceptance.
        terms: Its owner, and how it is kept.
        status: Its present status.
        queue_position: Jobs before it while queued.
        attempts: How often the runtime was given the job.
        started, ended: Unix seconds of the newest start and of the end, None before.
        entries: What happened, oldest first; only ever appended to, and all but the newest previews
            lose their pixels.
        first_event: Number of events before ``entries`` begins, in an earlier run of
            the server; entry i is event ``first_event + i + 1``.
        images: Finished images by index.
        progress: The newest progress of the image being generated.
        ending: The event that ended it, None before.
        has_findings: Generating added to the request: warnings, kernels, or the model's hash.
        favorite: The owner marked it, and it does not expire.
        uploads: Files that came with the request and are kept: name -> bytes.
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
        """This ended job with these images; its entries report only them and its end."""
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
        """True when the job has ended."""
        return self.status.terminal

    def apply(self, event: JobEvent, at: float) -> bool:
        """Apply an event; return False if it is not allowed now or changes nothing.

        Args:
            event: What happened.
            at: Unix seconds.
        """
        if isinstance(event, Completed) and len(self.images) < self.request.n:
            missing = self.request.n - len(self.images)
            event = JobFailed(
                Reason.GENERATION_FAILED, f"The runtime returned {missing} images too few."
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
        """Add what the engine found to the request's warnings; each sentence once."""
        known = self.request.warnings
        found = tuple(sentence for sentence in sentences if sentence not in known)
        if found:
            self.request = replace(self.request, warnings=(*known, *found))
            self.has_findings = True

    def generated_with(self, *, kernels: str, model_hash: str) -> None:
        """Note the CPU kernels of the worker that generates it, and the hash of its checkpoint."""
        request = replace(self.request, kernels=kernels, model_hash=model_hash)
        if request != self.request:
            self.request = request
            self.has_findings = True

    def _forget_previews(self) -> None:
        """Keep the pixels of the newest previews only, since a job may have 1,500 of them."""
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
        """Share of the whole work that is done, 100 only at the end."""
        if self.status is JobStatus.COMPLETED:
            return 100.0
        done = float(len(self.images))
        current = self.progress
        if current is not None and current.index not in self.images:
            done += current.share
        return round(min(99.99, 100 * done / self.request.n), 2)

    def without_files(self) -> Job:
        """A copy for later readers that holds no file and no preview; the store has the files."""
        copy = Job(self.id, self.request, self.created, self.terms)
        copy.__dict__.update(self.__dict__)
        copy.images = {index: replace(image, data=None) for index, image in self.images.items()}
        copy.entries = [Entry(entry.at, _without_file(entry.event)) for entry in self.entries]
        return copy

    def error(self) -> ImageServiceError | None:
        """Return the error for a client whose job ended without all of its images."""
        match self.ending:
            case JobFailed(
                Reason.SHUTTING_DOWN | Reason.MODEL_UNAVAILABLE | Reason.WORKER_LOST as reason,
                message,
            ):
                return Unavailable(message, reason=reason, retry_after=10)
            case JobFailed(Reason.CONTENT_POLICY_VIOLATION as reason, message):
                return InvalidRequest(message, reason=reason)
            case JobFailed(Reason.STORAGE_FULL as reason, message):
                return StorageFull(message, reason=reason)
            case JobFailed(reason, message):
                return GenerationFailed(message, reason=reason)
            case JobCancelled(message):
                return JobWasCancelled(message, reason=Reason.CANCELLED)
            case _:
                return None

    def usage(self) -> Usage:
        """The cost of the images that are finished."""
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
