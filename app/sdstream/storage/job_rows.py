"""The rows of jobs and images, and their expiry: the part of the job store that uses the database.

All methods of JobRows run in the thread of the ledger (storage/ledger.py). Errors of the database
propagate to the caller.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

from sdstream.core.delivery import Delivery
from sdstream.core.errors import Reason, StorageFull
from sdstream.core.job import MAX_ATTEMPTS, ImageResult, Job, JobFailed, JobStatus
from sdstream.core.job_filter import JobFilter
from sdstream.core.options import OutputFormat
from sdstream.storage.ports import Change, Database, ImageStore, Row, image_name
from sdstream.storage.rows import (
    filter_values,
    image_values,
    job_of,
    job_values,
    search_values,
    state_of,
)

logger = logging.getLogger(__name__)

#: Added to the event ids of a recovered job, so that they exceed those of the previous run.
_EVENTS_A_RUN: Final = 1_000_000

#: Rows of an earlier release that are updated in one transaction.
_ROWS_AT_ONCE: Final = 500

#: Greater than the number of every job.
_NEWEST: Final = 2**62


@dataclass(frozen=True, slots=True)
class Page:
    """Part of a list of jobs, newest first; ``more`` is true when older ones follow."""

    jobs: list[Job]
    more: bool


class JobRows:
    """Reads and writes the rows of one database, and deletes the files of deleted jobs.

    Args:
        database: Holds the rows; open before the first call.
        images: Holds the files.
        ttl_seconds, max_bytes, clock, delivery_of: See JobStore.
    """

    def __init__(
        self,
        database: Database,
        images: ImageStore,
        *,
        ttl_seconds: float,
        max_bytes: int,
        clock: Callable[[], float],
        delivery_of: Callable[[Job], Delivery | None],
    ) -> None:
        self._db = database
        self.sql = database.statements
        self._images = images
        self._ttl = ttl_seconds
        self._max_bytes = max_bytes
        self._clock = clock
        self._delivery_of = delivery_of
        self._bytes = 0
        #: Job -> time of its end by ``clock``, the oldest first. The times in the rows depend on
        #: the system's clock, which may have been set since.
        self._ends: dict[str, float] = {}
        #: Jobs whose rows cannot be read and that were logged.
        self._set_aside: set[str] = set()
        #: Jobs that were rejected because a write failed, and that may have a row all the same.
        self.unsure: set[str] = set()

    def take_up(self) -> None:
        """Fail the unfinished jobs that cannot be retried, and set the others to queued.

        Rows of earlier releases get the columns that searches use.
        """
        self._make_searchable()
        for job in self._unfinished():
            # Readers may have seen events with higher ids than the row contains.
            job.first_event += _EVENTS_A_RUN
            if given_up := _given_up(job):
                job.apply(given_up, self._clock())
                self._end(state_of(job), self._delivery_of(job))
            else:
                job.status = JobStatus.QUEUED
                self.update(state_of(job))

    def _make_searchable(self) -> None:
        values = {"after": 0, "limit": _ROWS_AT_ONCE}
        while rows := self._db.rows(self.sql.unsearchable, values):
            self.change(*((self.sql.set_search, search_values(row)) for row in rows))
            # These rows have no index: without ``after``, each query would read all earlier rows.
            values["after"] = rows[-1]["number"]

    @property
    def room(self) -> tuple[int, int]:
        """Bytes of all images and uploads, and their limit."""
        return self._bytes, self._max_bytes

    def named_files(self) -> tuple[dict[str, str], set[str], set[str]]:
        """Return image file -> job, the jobs that need input images, and the jobs with uploads."""
        named = {
            image_name(row["id"], row["format"]): row["job"]
            for row in self._db.rows(self.sql.image_files)
        }
        # Include jobs whose rows cannot be read: another release may be able to read them.
        unfinished = {row["id"] for row in self._db.rows(self.sql.unfinished_ids)}
        return named, unfinished, {row["id"] for row in self._db.rows(self.sql.with_uploads)}

    def clear_up(self, gone: set[str]) -> list[Job]:
        """Delete expired jobs and those in ``gone``; return the unfinished jobs.

        Args:
            gone: Jobs that lack the file of an image.
        """
        now = self._clock()
        ended = self._db.rows(self.sql.ends)
        self._ends = {row["id"]: min(row["ended"], now) for row in ended}
        self.delete(gone)
        (total,) = self._db.rows(self.sql.all_bytes)
        self._bytes = total["bytes"]
        self.expire()
        return self._unfinished()

    def _unfinished(self) -> list[Job]:
        rows = self._db.rows(self.sql.unfinished)
        return [job for row in rows if (job := self._job(row))]

    def insert(self, job: Job, has_inputs: bool) -> None:
        try:
            self.change((self.sql.insert_job, job_values(job, has_inputs=has_inputs)))
            self._bytes += sum(job.uploads.values())
        except self._db.errors:
            if self._db.takeover:
                # The session may have ended between the commit and its confirmation.
                self.unsure.add(job.id)
            raise

    def has_inputs(self, job_id: str) -> bool:
        return any(row["has_inputs"] for row in self._db.rows(self.sql.job, {"id": job_id}))

    def update(self, state: dict[str, object]) -> None:
        self.change((self.sql.set_state, state))

    def insert_image(self, job: str, output_format: OutputFormat, image: ImageResult) -> None:
        self.change((self.sql.insert_image, image_values(job, output_format, image)))
        self._bytes += image.size

    def _end(self, state: dict[str, object], message: Delivery | None) -> None:
        """Write the end of a job and its webhook message in one transaction."""
        told = [] if message is None else [dataclasses.asdict(message)]
        self.change(
            (self.sql.set_state, state),
            *((self.sql.insert_delivery, values) for values in told),
        )

    def finish(self, state: dict[str, object], message: Delivery | None) -> None:
        self._end(state, message)
        job = str(state["id"])
        if not self._is_favorite(job):
            self._ends[job] = self._clock()
        self._images.drop_inputs(job)
        try:
            self.expire()
        except self._db.errors as error:  # this end is written; the next end retries the deletion
            logger.warning("expired jobs could not be deleted: %s", error)

    def delete(self, ids: Iterable[str]) -> None:
        for job_id in ids:
            self._delete(job_id, self._bytes_of(job_id))

    def _delete(self, job_id: str, size: int) -> None:
        """Delete a job and its files, which take ``size`` bytes."""
        rows = self._db.rows(self.sql.images, {"job": job_id})
        self.change((self.sql.delete_job, {"id": job_id}))
        self._bytes -= size
        self._ends.pop(job_id, None)
        for row in rows:
            if row["id"] is not None:
                self._images.drop(row["id"], row["format"])
        self._images.drop_inputs(job_id)
        self._images.drop_uploads(job_id)

    def _bytes_of(self, job_id: str) -> int:
        """Return the bytes of a job's images and uploads."""
        return sum(row["bytes"] for row in self._db.rows(self.sql.job_bytes, {"id": job_id}))

    def mark(self, job_id: str, favorite: bool) -> None:
        """Mark a job as a favorite, which does not expire, or remove the mark.

        Raises:
            StorageFull: Favorites would take more than half of the space for images. Without this
                limit, they could leave no space for new images.
        """
        if self._is_favorite(job_id) == favorite:
            return
        if favorite:
            (total,) = self._db.rows(self.sql.favorite_bytes, {"id": job_id})
            if total["bytes"] > self._max_bytes / 2:
                raise StorageFull(
                    f"Favorites would use {total['bytes']} of {self._max_bytes} bytes for images; "
                    "the limit is half. Unmark a favorite, or raise the server's limit.",
                    reason=Reason.STORAGE_FULL,
                )
        self.change((self.sql.mark, {"id": job_id, "favorite": favorite}))
        if favorite:
            self._ends.pop(job_id, None)
        elif any(row["ended"] is not None for row in self._db.rows(self.sql.job, {"id": job_id})):
            self._ends[job_id] = self._clock()  # its age is counted from now

    def _is_favorite(self, job_id: str) -> bool:
        return any(row["favorite"] for row in self._db.rows(self.sql.job, {"id": job_id}))

    def expire(self) -> None:
        oldest = self._clock() - self._ttl
        self.delete(list(takewhile(lambda job: self._ends[job] < oldest, self._ends)))
        if self._bytes <= self._max_bytes:
            return
        # The newest is kept even if it alone exceeds the limit: its client has not fetched it yet.
        *others, newest = self._ends or ("",)
        for job in others:
            if size := self._bytes_of(job):
                self._delete(job, size)
            if self._bytes <= self._max_bytes:
                return
        if self._bytes_of(newest) > self._max_bytes:
            logger.warning(
                "job %s exceeds the limit for stored images (%d bytes); raise --image-store-mb",
                newest,
                self._max_bytes,
            )

    def one(self, job_id: str) -> Job | None:
        return next(map(self._job, self._db.rows(self.sql.job, {"id": job_id})), None)

    def job_by_idempotency_key(self, owner: str, idempotency_key: str) -> Job | None:
        named = {"owner": owner, "idempotency_key": idempotency_key}
        for row in self._db.rows(self.sql.job_of_key, named):
            job = self._job(row)
            if job is None:  # without this, no job could ever use this key
                self.change((self.sql.unname, {"id": row["id"]}))
            return job
        return None

    def page(self, owner: str, which: JobFilter, limit: int, after: str | None) -> Page:
        values = {"owner": owner, **filter_values(which)}
        before = _NEWEST
        if after is not None:
            before = next((r["number"] for r in self._db.rows(self.sql.job, {"id": after})), 0)
        jobs: list[Job] = []
        while len(jobs) <= limit:
            # Rows that cannot be read are not counted: the page is filled with further rows.
            wanted = limit + 1 - len(jobs)
            rows = self._db.rows(self.sql.page, {**values, "before": before, "limit": wanted})
            jobs += [job for row in rows if (job := self._job(row))]
            if len(rows) < wanted:
                break
            before = rows[-1]["number"]
        return Page(jobs[:limit], len(jobs) > limit)

    def deliveries(self, limit: int) -> list[Delivery]:
        return [Delivery(**row) for row in self._db.rows(self.sql.deliveries, {"limit": limit})]

    def change(self, *changes: Change) -> None:
        self._db.change(*changes)

    def image_row(self, image_id: str) -> tuple[str, OutputFormat] | None:
        rows = self._db.rows(self.sql.image, {"id": image_id})
        return next(((row["id"], row["format"]) for row in rows), None)

    def _job(self, row: Row) -> Job | None:
        """Return the job of a row; None if it is damaged or of another release. The row is kept."""
        images = self._db.rows(self.sql.images, {"job": row["id"]})
        try:
            return job_of(row, images)
        except Exception as error:  # a value that this release never wrote may raise anything
            if row["id"] not in self._set_aside:
                self._set_aside.add(row["id"])
                told = f"{type(error).__name__}: {error}".splitlines()[0]
                logger.warning("job %s cannot be read and is set aside: %s", row["id"], told)
            return None


def _given_up(job: Job) -> JobFailed | None:
    """Return why an unfinished job of the previous run fails; None if it is retried."""
    if not job.terms.background:
        return JobFailed(Reason.INTERRUPTED, "The server stopped while the job was running.")
    if job.attempts >= MAX_ATTEMPTS and job.status is JobStatus.RUNNING:
        return JobFailed(
            Reason.INTERRUPTED, f"The server crashed during {MAX_ATTEMPTS} attempts at this job."
        )
    return None
