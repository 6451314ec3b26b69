"""The life of one job, from its place in the queue to its pictures.

Rule: TRANSITIONS is the only place that says which event may follow which status. ``Job.apply``
is total: an event that the table does not allow changes nothing and returns False, so that late
or repeated events (a worker's last frame, a second cancel) are harmless. The first terminal
event wins; nothing follows it.

::

    queued ──> loading ──> running ──> completed
       │          │           │
       └──────────┴───────────┴──────> failed | cancelled

A job keeps an append-only list of what happened; a reader holds an index into it. There are no
queues per client: a late reader replays, a slow one blocks nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from app.core.errors import (
    GenerationFailed,
    ImageServiceError,
    InvalidRequest,
    JobWasCancelled,
    Reason,
    Unavailable,
)
from app.core.messages import Phase, Progress
from app.core.request import GenerationRequest
from app.core.words import Word

#: Pixels to a side of what is counted as one image token: two latent pixels of eight pixels each.
TOKEN_PIXELS: Final = 16


class JobStatus(Word):
    """Where a job is; each value with its one line of meaning."""

    QUEUED = "queued", "waits for its turn"
    LOADING = "loading", "is next, its model is being loaded"
    RUNNING = "running", "the runtime works on it"
    COMPLETED = "completed", "all images are there"
    FAILED = "failed", "ended without all of its images"
    CANCELLED = "cancelled", "was stopped on request"

    @property
    def terminal(self) -> bool:
        """True when nothing can follow."""
        return not TRANSITIONS[self]


@dataclass(frozen=True, slots=True)
class ImageResult:
    """One finished image as a file.

    Attributes:
        index: Image of the job, from 0.
        seed: What it was drawn with.
        data: The encoded file.
        steps: Sampling steps that the runtime took.
        encode_seconds, sample_seconds, decode_seconds: The runtime's time in each phase.
        id: Key in the image store, None when the image was not put there.
        flagged: The safety checker kept the image back, and the file is blank.
    """

    index: int
    seed: int
    data: bytes = field(repr=False)
    steps: int
    encode_seconds: float
    sample_seconds: float
    decode_seconds: float
    id: str | None = None
    flagged: bool = False


# --- what can happen to a job -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Queued:
    """The job has this place in the queue; 0 is next."""

    position: int


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
    """The runtime says that it has drawn all."""


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
    Queued | Loading | Running | Progress | PreviewReady | ImageReady
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
        text_tokens: Words of the prompt (the runtime does not tell its encoder's tokens).
        output_tokens: Patches of 16 x 16 pixels in all images.
    """

    generation_per_second: float
    time_per_generation_ms: float
    time_to_process_ms: float
    text_tokens: int
    output_tokens: int


class Job:
    """One accepted request and everything that happened to it.

    Attributes:
        id: Unguessable.
        request: What is drawn.
        created: Unix seconds of acceptance.
        status: Where it is.
        queue_position: Jobs before it while queued.
        entries: What happened, oldest first; only ever appended to.
        images: Finished images by index.
        progress: The newest progress of the image being drawn.
        ending: The event that ended it, None before.
    """

    def __init__(self, job_id: str, request: GenerationRequest, created: float) -> None:
        self.id = job_id
        self.request = request
        self.created = created
        self.status = JobStatus.QUEUED
        self.queue_position = 0
        self.entries: list[Entry] = []
        self.images: dict[int, ImageResult] = {}
        self.progress: Progress | None = None
        self.ending: Completed | JobFailed | JobCancelled | None = None
        self._started: float | None = None

    @property
    def terminal(self) -> bool:
        """True when the job has ended."""
        return self.status.terminal

    def apply(self, event: JobEvent, at: float) -> bool:
        """Take up an event; False when it is not allowed now or says nothing new.

        Args:
            event: What happened.
            at: Unix seconds.
        """
        if isinstance(event, Completed) and len(self.images) < self.request.n:
            missing = self.request.n - len(self.images)
            event = JobFailed(Reason.GENERATION_FAILED, f"The runtime left {missing} images out.")
        status = TRANSITIONS[self.status].get(type(event))
        if status is None or self._is_stale(event):
            return False
        self._note(event, at)
        self.status = status
        self.entries.append(Entry(at, event))
        return True

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
            case Loading():
                self.queue_position = 0
            case Running():
                self.queue_position = 0
                self._started = at
            case Progress():
                self.progress = event
            case ImageReady(image):
                self.images[image.index] = image
            case Completed() | JobFailed() | JobCancelled():
                self.ending = event

    def error(self) -> ImageServiceError | None:
        """What to tell a client whose job ended without all of its images."""
        match self.ending:
            case JobFailed(Reason.SHUTTING_DOWN | Reason.MODEL_UNAVAILABLE as reason, message):
                return Unavailable(message, reason=reason, retry_after=10)
            case JobFailed(Reason.CONTENT_POLICY_VIOLATION as reason, message):
                return InvalidRequest(message, reason=reason)
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
        waited = (self._started or self.created) - self.created
        first = self.images.get(0)
        patches = (self.request.width // TOKEN_PIXELS) * (self.request.height // TOKEN_PIXELS)
        return Usage(
            generation_per_second=round(steps / sampling, 3) if sampling else 0.0,
            time_per_generation_ms=round(1000 * drawing / max(1, len(done)), 1),
            time_to_process_ms=round(1000 * (waited + (first.encode_seconds if first else 0.0)), 1),
            text_tokens=len(self.request.prompt.split()),
            output_tokens=patches * len(done),
        )


_PHASE_ORDER: Final = {phase: order for order, phase in enumerate(Phase)}


def _reached(progress: Progress) -> tuple[int, int, int]:
    return progress.index, _PHASE_ORDER[progress.phase], progress.step
