"""Results and progress notifications of MCP tools."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from sdstream.core.errors import ImageServiceError
from sdstream.core.job import Entry, ImageResult, Job, JobStatus, Loading, Queued, Requeued, Running
from sdstream.core.messages import Progress
from sdstream.core.model_options import defaults_of, sizes_of
from sdstream.core.model_spec import ModelSpec
from sdstream.core.request import Limits
from sdstream.dialects.jobs import job_fields
from sdstream.dialects.mcp.arguments import Content
from sdstream.dialects.rendering import JsonObject, compact, error_fields

#: Fields of a job that a result contains, except the images.
_JOB_KEYS: Final = (
    *("status", "model", "queue_position", "progress", "step", "steps", "eta_seconds"),
    *("parameters", "warnings", "error"),
)
#: Limit on the bytes of all images in one result. In base64 and with the other fields, they are a
#: little less than a mebibyte, which is the limit of common clients.
_MAX_CONTENT: Final = 700_000
#: The least increase in percent from one notification to the next, because MCP requires one.
_NUDGE: Final = 0.01

#: Returns the URL of an image, None if the image was not stored.
Link = Callable[[Job, ImageResult], str | None]


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of a tool.

    Attributes:
        content: Content blocks in MCP's JSON.
        structured: The same content as an object; None for a job, because some clients would show
            the object and not the images.
        is_error: The tool failed.
    """

    content: list[JsonObject]
    structured: JsonObject | None = None
    is_error: bool = False


def view_bytes(job: Job, content: Content) -> int | None:
    """Return the size in bytes to which a result reduces each image, None for full images.

    Args:
        job: A completed job.
        content: The form of the images in the result.
    """
    total = sum(image.size for image in job.images.values())
    reduces = content == "auto" and total > _MAX_CONTENT
    return _MAX_CONTENT // len(job.images) if reduces else None


def job_answer(
    job: Job,
    seconds_left: float | None,
    link: Link,
    content: Content = "auto",
    views: Mapping[int, bytes] = MappingProxyType({}),
) -> Answer:
    """Return the result for a job, with the images if the job is completed.

    Args:
        job: The job. If it is completed and not only links are returned, its image files must be
            loaded.
        seconds_left: Seconds until the end of the job, None if unknown.
        link: Returns the URL of an image.
        content: The form of the images in the result.
        views: Index of an image -> a reduced WebP, which replaces the image.
    """
    fields = job_fields(job, "", seconds_left)
    known = {name: fields[name] for name in _JOB_KEYS if fields[name] not in (None, [])}
    images = [image for _, image in sorted(job.images.items())]
    complete = job.status is JobStatus.COMPLETED
    if not complete:
        return Answer([_text({"job": job.id, **known})])
    described = [_described(job, image, link) for image in images]
    blocks = [_text({"job": job.id, **known, "images": described, **_note(views)})]
    for image in images:
        address = link(job, image)
        if content != "url":
            blocks.append(_image(job, image, views.get(image.index)))
        if content != "b64_json" and address is not None:
            blocks.append(_link(job, image, address))
    return Answer(blocks)


def cancel_answer(job: Job, outcome: str) -> Answer:
    """Return the result of a cancellation: "done", "stopping" or "already_ended"."""
    return _object({"job": job.id, "status": job.status.value, "cancel": outcome})


def models_answer(models: list[tuple[ModelSpec, str]], default: str, limits: Limits) -> Answer:
    """Return the list of models.

    Args:
        models: The models, each with its state.
        default: Id of the default model.
        limits: Limits of the server.
    """
    return _object({"models": [_model(spec, state, default, limits) for spec, state in models]})


def error_answer(error: ImageServiceError) -> Answer:
    """Return the result of a tool that failed with an error of the service."""
    block = {"type": "text", "text": error.message}
    return Answer([block], {"error": error_fields(error)}, is_error=True)


@dataclass(slots=True)
class ProgressReports:
    """Turns the entries of a job into progress notifications with increasing percentages.

    Attributes:
        job: The job.
    """

    job: Job
    _percent: float = field(default=-_NUDGE, init=False)
    _message: str = field(default="", init=False)

    def report(self, entry: Entry | None) -> tuple[float, str] | None:
        """Return percent and message for an entry; None if there is nothing to report.

        Args:
            entry: The new entry; None repeats the last message as a keep-alive.
        """
        message, percent = self._message, 0.0
        match entry.event if entry else None:
            case None:
                pass
            case Queued(position):
                message = f"Queued, {position} before it"
            case Requeued():
                message = "Queued again"
            case Loading():
                message = "Loading the model"
            case Running():
                message = "Running"
            case Progress(index=index, step=step, steps=steps) as at if step:
                percent = 100 * (index + at.share) / self.job.request.n
                which = f"Image {index + 1} of {self.job.request.n}, s" if self._several else "S"
                message = f"{which}tep {step} of {steps}"
            case _:
                return None
        if entry is not None and message == self._message:
            return None
        self._message = message
        self._percent = min(99.99, max(round(percent, 2), round(self._percent + _NUDGE, 2)))
        return self._percent, message

    @property
    def _several(self) -> bool:
        return self.job.request.n > 1


def _described(job: Job, image: ImageResult, link: Link) -> JsonObject:
    size = job.request.output_size
    fields: JsonObject = {
        "id": f"{job.id}/{image.index}",
        "seed": image.seed,
        "width": size.width,
        "height": size.height,
        "format": job.request.output_format,
        "bytes": image.size,
        "url": link(job, image),
    }
    return {**fields, "flagged": True} if image.flagged else fields


def _model(spec: ModelSpec, state: str, default: str, limits: Limits) -> JsonObject:
    return {
        "id": spec.id,
        "description": spec.description,
        "family": spec.family,
        "default": spec.id == default,
        "state": state,
        "defaults": defaults_of(spec, limits),
        "size": sizes_of(spec),
        "reference_images": spec.traits.references,
        "control": spec.files.control_net is not None,
    }


def _object(fields: JsonObject) -> Answer:
    return Answer([_text(fields)], fields)


def _text(fields: JsonObject) -> JsonObject:
    return {"type": "text", "text": compact(fields).decode()}


def _note(views: Mapping[int, bytes]) -> JsonObject:
    """Return a note for the client if the images in the result are reduced."""
    if not views:
        return {}
    return {
        "note": "The images in this result are reduced to the size limit of MCP clients; the ids "
        "and links refer to the originals."
    }


def _image(job: Job, image: ImageResult, view: bytes | None) -> JsonObject:
    kind = job.request.output_format if view is None else "webp"
    data = base64.b64encode(view or image.content).decode()
    return {"type": "image", "data": data, "mimeType": f"image/{kind}"}


def _link(job: Job, image: ImageResult, address: str) -> JsonObject:
    return {
        "type": "resource_link",
        "uri": address,
        "name": f"{job.id}/{image.index}",
        "mimeType": f"image/{job.request.output_format}",
        "size": image.size,
    }
