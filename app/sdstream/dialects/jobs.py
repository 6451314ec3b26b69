"""The JSON of jobs, and their history as server-sent events for EventSource.

Each event has a number and a name:

- The number increases with each event, also across restarts of the server.
- The name is queued, progress, preview, image, completed, failed or cancelled. It is never error,
  because the browser would call onerror.

The data of an event that changes the state contains keys of the job's JSON, so a client updates
its copy with ``Object.assign(job, data)``. The snapshot that begins a new stream and the last event
contain the whole job. An image is a link and a preview is a data URL; both can be the src of an img
element.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from sdstream.core.job import (
    Completed,
    Entry,
    ImageReady,
    ImageResult,
    Job,
    JobCancelled,
    JobFailed,
    JobStatus,
    Loading,
    PreviewReady,
    Queued,
    Requeued,
    Running,
)
from sdstream.core.messages import Progress
from sdstream.dialects.rendering import (
    JsonObject,
    compact,
    error_fields,
    image_url,
    parameters,
    usage_fields,
)

#: Milliseconds after which a browser reconnects.
RETRY: Final = b"retry: 2000\n\n"
PING: Final = b": ping\n\n"

_SNAPSHOT_NAMES: Final = {
    JobStatus.QUEUED: "queued",
    JobStatus.LOADING: "progress",
    JobStatus.RUNNING: "progress",
    JobStatus.COMPLETED: "completed",
    JobStatus.FAILED: "failed",
    JobStatus.CANCELLED: "cancelled",
}


def job_fields(job: Job, base_url: str, eta: float | None) -> JsonObject:
    """Return a job as a JSON object.

    Args:
        job: The job.
        base_url: Prefix of every link, without a slash at the end.
        eta: Seconds until the end of the job, None if unknown.
    """
    error = job.error()
    own = f"{base_url}/v1/jobs/{job.id}"
    return {
        "id": job.id,
        "object": "image.job",
        "status": job.status.value,
        "operation": job.terms.operation,
        "model": job.request.model,
        "priority": job.terms.priority.value,
        "background": job.terms.background,
        "group": job.terms.group,
        "favorite": job.favorite,
        "queue_position": job.queue_position if job.status is JobStatus.QUEUED else None,
        **_standing(job, eta),
        "attempts": job.attempts,
        "created": job.created,
        "started": job.started,
        "ended": job.ended,
        "output_format": job.request.output_format,
        "parameters": parameters(job.request),
        "warnings": list(job.request.warnings),
        "inputs": [
            {"name": name, "url": f"{own}/inputs/{name}", "bytes": size}
            for name, size in job.uploads.items()
        ],
        "images": [_image(job, image, base_url) for _, image in sorted(job.images.items())],
        "usage": usage_fields(job.usage()) if job.status is JobStatus.COMPLETED else None,
        "error": error_fields(error) if error else None,
        "status_url": own,
        "events_url": f"{own}/events",
        "result_url": f"{own}/result",
        "cancel_url": f"{own}/cancel",
    }


def ending_message(job: Job) -> bytes:
    """Return the body of the webhook that reports a job's end."""
    assert job.ended is not None
    ended = datetime.fromtimestamp(job.ended, UTC).isoformat()
    data = job_fields(job, job.terms.base_url, None)
    return compact({"type": f"image.job.{job.status.value}", "timestamp": ended, "data": data})


def _standing(job: Job, eta: float | None) -> JsonObject:
    current = job.progress
    return {
        "progress": job.percent,
        "index": current.index if current else 0,
        "step": current.step if current else 0,
        "steps": current.steps if current else job.request.steps,
        **_pace(job, eta),
    }


def _pace(job: Job, eta: float | None) -> JsonObject:
    speed = job.steps_per_second
    return {
        "steps_per_second": None if speed is None else round(speed, 3),
        "eta_seconds": None if eta is None else round(eta, 1),
    }


def _image(job: Job, image: ImageResult, base_url: str) -> JsonObject:
    return {
        "index": image.index,
        "seed": image.seed,
        "url": image_url(base_url, image),
        "format": job.request.output_format,
        "width": job.request.output_size.width,
        "height": job.request.output_size.height,
        "bytes": image.size,
        "flagged": image.flagged,
    }


@dataclass(frozen=True, slots=True)
class JobEvents:
    """Renders a job's entries as named events.

    Attributes:
        job: The job.
        base_url: Prefix of every link.
        eta: Returns the seconds until the end of the job; called for each event that contains them.
        id_prefix: Prefix of the number of each event.
    """

    job: Job
    base_url: str
    eta: Callable[[], float | None]
    id_prefix: str = ""

    def snapshot(self) -> bytes:
        """Return an event with the whole job as it is now, numbered as the newest entry."""
        return self._event(self.job.last_event, _SNAPSHOT_NAMES[self.job.status], self._whole())

    def event(self, number: int, entry: Entry) -> bytes | None:
        """Return the event of an entry, None if the entry is not reported.

        Args:
            number: Number of the event.
            entry: The entry of the job.
        """
        match entry.event:
            case Queued(position):
                # A client that reads only the events receives the warnings here.
                noted = (
                    {"warnings": [*self.job.request.warnings]} if self.job.request.warnings else {}
                )
                return self._moving(number, JobStatus.QUEUED, {"queue_position": position, **noted})
            case Requeued():
                again = self._starting_again(number)
                return self._moving(number, JobStatus.QUEUED, {"queue_position": 0, **again})
            case Loading():
                return self._moving(number, JobStatus.LOADING, {"queue_position": None})
            case Running():
                return self._moving(number, JobStatus.RUNNING, {"queue_position": None})
            case Progress() as progress:
                return self._moving(number, JobStatus.RUNNING, self._reached(progress))
            case PreviewReady(index=index, step=step, data=data) if data:
                url = "data:image/png;base64," + base64.b64encode(data).decode()
                return self._event(number, "preview", {"index": index, "step": step, "url": url})
            case ImageReady(image):
                return self._event(number, "image", _image(self.job, image, self.base_url))
            case Completed() | JobFailed() | JobCancelled():
                return self._event(number, _SNAPSHOT_NAMES[self.job.status], self._whole())
            case _:
                return None

    def _reached(self, progress: Progress) -> JsonObject:
        # Use the entry, not the job: a client that reconnects receives past events in order.
        done = progress.index + progress.share
        return {
            "progress": round(100 * done / self.job.request.n, 2),
            "index": progress.index,
            "step": progress.step,
            "steps": progress.steps,
        }

    def _starting_again(self, number: int) -> JsonObject:
        later = self.job.entries[number - self.job.first_event :]
        images = len(self.job.images) - sum(isinstance(e.event, ImageReady) for e in later)
        return {
            "progress": round(min(99.99, 100 * images / self.job.request.n), 2),
            "index": 0,
            "step": 0,
            "steps": self.job.request.steps,
        }

    def _moving(self, number: int, status: JobStatus, data: JsonObject) -> bytes:
        data = {"status": status.value, **data, **_pace(self.job, self.eta())}
        return self._event(number, _SNAPSHOT_NAMES[status], data)

    def _whole(self) -> JsonObject:
        return job_fields(self.job, self.base_url, self.eta())

    def _event(self, number: int, name: str, data: dict[str, Any]) -> bytes:
        head = f"id: {self.id_prefix}{number}\nevent: {name}\ndata: ".encode()
        known = {"id": self.job.id, "status": JobStatus.RUNNING.value}
        return head + compact({**known, **data}) + b"\n\n"
