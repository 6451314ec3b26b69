"""The conversion of jobs and images to rows of the database, and back."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Final

from pydantic import TypeAdapter

from sdstream.core.errors import Reason
from sdstream.core.job import (
    Completed,
    ImageResult,
    Job,
    JobCancelled,
    JobFailed,
    JobStatus,
    Terms,
)
from sdstream.core.job_filter import JobFilter
from sdstream.core.options import OutputFormat
from sdstream.core.request import request_fields, request_of
from sdstream.storage.ports import Row

_TERMS: Final = TypeAdapter(Terms)
_UPLOADS: Final = TypeAdapter(dict[str, int])


def job_values(job: Job, *, has_inputs: bool) -> dict[str, object]:
    """Return the row of a new job, for the statement insert_job."""
    return {
        "id": job.id,
        "owner": job.terms.owner,
        "status": job.status.value,
        "request": json.dumps(request_fields(job.request)),
        "terms": json.dumps(_TERMS.dump_python(job.terms, mode="json")),
        "idempotency_key": job.terms.idempotency_key,
        "created": job.created,
        "has_inputs": has_inputs,
        "batch": job.terms.group,
        "uploads": json.dumps(job.uploads),
        "upload_bytes": sum(job.uploads.values()),
        "model": job.request.model,
        "folded_prompt": _folded(job.request.prompt),
    }


def search_values(row: Row) -> dict[str, object]:
    """Return the columns that searches use, for the statement set_search.

    Args:
        row: Id and request of a job; no search finds a job with a damaged request.
    """
    try:
        request = json.loads(row["request"])
        model, prompt = str(request["model"]), str(request["prompt"])
    except (ValueError, LookupError, TypeError, RecursionError):
        model, prompt = "", ""
    return {"id": row["id"], "model": model, "folded_prompt": _folded(prompt)}


def _folded(text: str) -> str:
    """Return a text for case-insensitive search, folded by Unicode's rules (ß becomes ss).

    It has no NUL characters, which PostgreSQL cannot store, and no unpaired surrogates, which no
    database can store.
    """
    return text.casefold().replace("\0", "\ufffd").encode(errors="replace").decode()


def filter_values(which: JobFilter) -> dict[str, object]:
    """Return the values of a filter, for the statement page."""
    return {
        "statuses": json.dumps([s.value for s in which.statuses]) if which.statuses else None,
        "batch": which.group,
        "favorite": which.favorite,
        "since": which.since,
        "until": which.until,
        "model": which.model,
        "words": json.dumps([_folded(word) for word in which.words]) if which.words else None,
    }


def image_values(job: str, output_format: OutputFormat, image: ImageResult) -> dict[str, object]:
    """Return the row of a finished image, for the statement insert_image."""
    return {
        "job": job,
        "number": image.index,
        "id": image.id,
        "format": output_format,
        "seed": image.seed,
        "bytes": image.size,
        "steps": image.steps,
        "encode_seconds": image.encode_seconds,
        "sample_seconds": image.sample_seconds,
        "decode_seconds": image.decode_seconds,
        "flagged": image.flagged,
    }


def job_of(row: Row, image_rows: Iterable[Row]) -> Job:
    """Return a job from its row and the rows of its images, without the image files."""
    request = request_of(json.loads(row["request"]))
    job = Job(row["id"], request, row["created"], _TERMS.validate_json(row["terms"]))
    job.status = JobStatus(row["status"])
    job.attempts, job.started, job.ended = row["attempts"], row["started"], row["ended"]
    job.ending = _ending_of(row)
    job.favorite = bool(row["favorite"])
    job.uploads = _UPLOADS.validate_json(row["uploads"])
    job.first_event = row["last_event"]
    images = [_image_of(image) for image in image_rows]
    job.images = {image.index: image for image in images}
    return job.retold(images) if job.terminal else job


def state_of(job: Job) -> dict[str, object]:
    """Return the changing values of a job's row: a copy, because the job continues to change."""
    ending = job.ending
    failed = ending if isinstance(ending, JobFailed | JobCancelled) else None
    return {
        "id": job.id,
        "request": json.dumps(request_fields(job.request)) if job.has_findings else None,
        "status": job.status.value,
        "started": job.started,
        "ended": job.ended,
        "attempts": job.attempts,
        "last_event": job.last_event,
        "reason": failed.reason.value if isinstance(failed, JobFailed) else None,
        "message": failed.message if failed else None,
    }


def _image_of(row: Row) -> ImageResult:
    return ImageResult(
        index=row["number"],
        seed=row["seed"],
        data=None,
        size=row["bytes"],
        steps=row["steps"],
        encode_seconds=row["encode_seconds"],
        sample_seconds=row["sample_seconds"],
        decode_seconds=row["decode_seconds"],
        id=row["id"],
        flagged=bool(row["flagged"]),
    )


def _ending_of(row: Row) -> Completed | JobFailed | JobCancelled | None:
    match JobStatus(row["status"]):
        case JobStatus.COMPLETED:
            return Completed()
        case JobStatus.FAILED:
            return JobFailed(Reason(row["reason"]), row["message"])
        case JobStatus.CANCELLED:
            return JobCancelled(row["message"])
        case _:
            return None
