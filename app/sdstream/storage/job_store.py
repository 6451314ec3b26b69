"""Jobs and their images: what was accepted outlives the server.

A database (storage/ports.py) holds the rows, an image store the finished images and the input
images of waiting jobs. One thread writes and reads the rows; commits survive the death of the
process. Order keeps the two in step: a file is written before its row and deleted after it, so a
crash leaves files without rows at worst, which the next start deletes. A change that cannot be
written is tried again until it succeeds (storage/ledger.py).

Jobs go with all of their images: some time after their end, and the oldest first when there are
too many bytes. A file that is being read stays readable to its end.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import Final, NamedTuple

from sdstream.core.delivery import Delivery
from sdstream.core.errors import ImageServiceError, Reason, StorageFull
from sdstream.core.job import MAX_ATTEMPTS, ImageResult, Job, JobFailed, JobStatus
from sdstream.core.messages import Generate
from sdstream.core.options import OutputFormat
from sdstream.core.pixels import Inputs
from sdstream.storage.ledger import Ledger, fault_of
from sdstream.storage.ports import Change, Database, ImageStore, Row, StoreError, image_name
from sdstream.storage.privacy import sealed
from sdstream.storage.rows import image_values, job_of, job_values, state_of

logger = logging.getLogger(__name__)

#: Room that events of a new life of the server leave for those of the one before: ids only grow.
_EVENTS_A_LIFE: Final = 1_000_000

#: Beyond the number of every job.
_NEWEST: Final = 2**62


@dataclass(frozen=True, slots=True)
class Page:
    """Part of a list of jobs, newest first; ``more`` tells whether older ones follow."""

    jobs: list[Job]
    more: bool


class Room(NamedTuple):
    """Room for images, in bytes.

    Attributes:
        used: Size of the stored images.
        limit: Size that they may have.
        free: Free space where they lie; infinite where that is not known.
    """

    used: int
    limit: int
    free: float


class JobStore:
    """Keeps jobs and images, which belong to one server at a time.

    Args:
        database: Of the rows.
        images: Of the files.
        ttl_seconds: Ended jobs go after this.
        max_bytes: Room for images; the oldest ended jobs go until the rest fits.
        min_free_bytes: With less free space no job is taken.
        clock: Unix seconds that pass evenly, whatever is done to the system's clock.
        delivery_of: Builds the webhook message of a job that has ended, None for no webhook; it is
            stored in the transaction that stores the end.
    """

    def __init__(
        self,
        database: Database,
        images: ImageStore,
        *,
        ttl_seconds: float,
        max_bytes: int,
        min_free_bytes: int,
        clock: Callable[[], float],
        delivery_of: Callable[[Job], Delivery | None] = lambda _: None,
    ) -> None:
        self._db = database
        self._sql = database.statements
        self._images = images
        self._ttl = ttl_seconds
        self._max_bytes = max_bytes
        self._min_free_bytes = min_free_bytes
        self._clock = clock
        self._delivery_of = delivery_of
        self._bytes = 0
        #: When jobs ended, by ``clock``, the oldest first: their rows have the time of a clock
        #: that may have been set since.
        self._ends: dict[str, float] = {}
        #: Jobs whose rows cannot be read, of which the log was told.
        self._set_aside: set[str] = set()
        self._ledger: Ledger
        self._secret: bytes

    def open(self) -> None:
        """Take the database, once.

        Raises:
            StoreInUse: Another server has it.
            StoreError: It cannot be read or written.
        """
        if hasattr(self, "_secret"):
            return
        try:
            self._images.open()
            secret = self._db.open(self._images)
        except OSError as error:
            raise StoreError(f"the image store cannot be used: {error}") from None
        self._ledger = Ledger(self._db)
        self._secret = secret

    def owner_of(self, digest: str) -> str:
        """Return the owner that a digest of an API key stands for; the store is open."""
        return sealed(self._secret, digest)

    async def close(self) -> None:
        """Finish what is being written and give the database up."""
        await self._ledger.close(self._close)

    # --- a job's life ---------------------------------------------------------------------------

    async def recover(self) -> list[Job]:
        """Clear up after the life before; returns the jobs that are to be done, oldest first.

        A job that was running twice when the server died is given up, and so is every job that
        had a client waiting: that client is gone.
        """
        return await self._ledger.write(self._recover)

    async def add(self, job: Job, inputs: Inputs) -> None:
        """Keep an accepted job; once this returns it is not lost.

        Raises:
            StorageFull: The disk has no room.
            Unavailable: The database is locked, or the folder is gone.
        """
        has_inputs = inputs != Inputs()
        try:
            if await asyncio.to_thread(self._free_bytes) < self._min_free_bytes:
                raise StorageFull("The server's disk is full.", reason=Reason.STORAGE_FULL)
            if has_inputs:
                order = Generate(job.id, job.request, inputs)
                # Putting together a hundred megabytes takes its time too.
                await asyncio.to_thread(self._images.put_inputs, order)
        except OSError as error:
            logger.error("a job could not be kept: %s", error)
            raise fault_of(error, self._db) from None
        try:
            await self._ledger.write(self._insert, job, has_inputs)
        except ImageServiceError:
            self._images.drop_inputs(job.id)
            raise

    async def inputs(self, job: Job) -> Inputs:
        """The pictures that a job starts from; raises OSError and ValueError when they are gone."""
        # Rows from before the column was there say nothing of a file.
        known = await self._ledger.look(self._has_inputs, job.id)
        if not known and not await asyncio.to_thread(self._images.has_inputs, job.id):
            return Inputs()
        return await asyncio.to_thread(self._images.get_inputs, job.id)

    async def update(self, job: Job) -> None:
        """Write down where a job is now; see ``written`` for how long this waits."""
        self.note(job)
        await self.written(job)

    def note(self, job: Job) -> None:
        """Write down where a job is now, without waiting; later reads see it."""
        self._ledger.later(job.id, self._update, state_of(job))

    def note_image(self, job: Job, image: ImageResult) -> None:
        """Add a finished image, whose file is there, to its job, without waiting."""
        self._ledger.later(job.id, self._insert_image, job.id, job.request.output_format, image)

    def note_end(self, job: Job) -> None:
        """Write down a job's end and whom to tell of it, without waiting, and make room."""
        self._ledger.later(job.id, self._finish, state_of(job), self._delivery_of(job))

    async def written(self, job: Job) -> None:
        """Wait until all that was noted of a job is on the disk.

        A background job outlives the server, so this waits as long as it takes. Nobody comes back
        for another one after a restart: this returns when writes fail.
        """
        if job.terms.background:
            await self._ledger.written(job.id)
        else:
            with suppress(ImageServiceError):
                await self._ledger.settled(job.id)

    async def settled(self, job: Job) -> None:
        """As ``written``, but raise when writes fail and the job is one that outlives the server.

        Raises:
            StorageFull: The disk has no room.
            Unavailable: The database cannot be written for another reason.
        """
        if job.terms.background:
            await self._ledger.settled(job.id)
        else:
            await self.written(job)

    def is_written(self, job_id: str) -> bool:
        """True when nothing that was noted of a job waits to be written."""
        return self._ledger.is_written(job_id)

    async def fault(self) -> ImageServiceError | None:
        """Why nothing can be written now; None when a write was seen to succeed."""
        try:
            await self._ledger.write(self._db.touch)
        except ImageServiceError as fault:
            return fault
        return None

    # --- looking things up ----------------------------------------------------------------------

    async def get(self, job_id: str) -> Job | None:
        """A job without the files of its images, None when there is none."""
        job = await self._ledger.look(self._one, job_id)
        # What has ended is not changed any more; for all else the row may be behind.
        return job if job and job.terminal else await self._ledger.read(self._one, job_id)

    async def job_by_idempotency_key(self, owner: str, idempotency_key: str) -> Job | None:
        """The job that an owner gave this name."""
        return await self._ledger.read(self._job_by_idempotency_key, owner, idempotency_key)

    async def unname(self, job_id: str) -> None:
        """Free the name of a job for another one."""
        await self._ledger.write(self._change, (self._sql.unname, {"id": job_id}))

    async def with_files(self, job: Job) -> Job:
        """An ended job with its images' files; raises FileNotFoundError when they are gone."""
        return await asyncio.to_thread(self._with_files, job)

    async def with_file(self, image: ImageResult, output_format: OutputFormat) -> ImageResult:
        """A finished image with its file; raises FileNotFoundError when that is gone."""
        data = await asyncio.to_thread(self._file, image, output_format)
        return dataclasses.replace(image, data=data)

    async def page(
        self, owner: str, *, statuses: Sequence[JobStatus], limit: int, after: str | None
    ) -> Page:
        """An owner's jobs, newest first.

        Args:
            owner: Whose.
            statuses: Only these; none are all.
            limit: At most so many.
            after: Only what is older than this job.
        """
        return await self._ledger.read(self._page, owner, [s.value for s in statuses], limit, after)

    async def image(self, image_id: str) -> tuple[bytes, OutputFormat] | None:
        """A file and its format, None when it never was here or has expired."""
        row = await self._ledger.look(self._image_row, image_id)
        row = row or await self._ledger.read(self._image_row, image_id)
        if row is None:
            return None
        try:
            return await asyncio.to_thread(self._images.get, *row), row[1]
        except FileNotFoundError:
            return None

    def location(self, image: ImageResult, output_format: OutputFormat) -> str:
        """Return where a stored image is until its job expires: a path or an address."""
        assert image.id is not None
        return self._images.location(image.id, output_format)

    async def delete(self, job_id: str) -> None:
        """Delete an ended job and its images."""
        await self._ledger.write(self._delete, [job_id])

    async def expire(self) -> None:
        """Delete what is too old or too much."""
        await self._ledger.write(self._expire)

    # --- webhooks -------------------------------------------------------------------------------

    async def room(self) -> Room:
        """Return the room for images: used, allowed, and free on the disk."""
        free = await asyncio.to_thread(self._images.free_bytes)
        return Room(self._bytes, self._max_bytes, free)

    async def deliveries(self, limit: int) -> list[Delivery]:
        """Webhooks that are next, the most urgent first."""
        return await self._ledger.read(self._deliveries, limit)

    async def put_off(self, delivery: Delivery, next_at: float) -> None:
        """Note a try that failed."""
        values = {"id": delivery.id, "attempts": delivery.attempts + 1, "next_at": next_at}
        self._ledger.later(delivery.id, self._change, (self._sql.defer_delivery, values))

    async def settle(self, delivery: Delivery) -> None:
        """Note that nothing more is to be done for a webhook."""
        change = (self._sql.delete_delivery, {"id": delivery.id})
        self._ledger.later(delivery.id, self._change, change)

    # --- in other threads -----------------------------------------------------------------------

    def put(self, data: bytes, output_format: OutputFormat) -> str:
        """Write an image; returns its unguessable id. Raises OSError. Called in any thread."""
        return self._images.put(data, output_format)

    def drop(self, image_id: str, output_format: OutputFormat) -> None:
        """Delete the file of an image that belongs to no job after all."""
        # After the row of its job, so that a sweep and this never differ.
        self._ledger.later(image_id, self._images.drop, image_id, output_format)

    def _with_files(self, job: Job) -> Job:
        output_format = job.request.output_format
        return job.retold(
            dataclasses.replace(image, data=self._file(image, output_format))
            for image in job.images.values()
        )

    def _file(self, image: ImageResult, output_format: OutputFormat) -> bytes:
        if image.id is None:
            raise FileNotFoundError("the disk was full when this image was finished")
        return self._images.get(image.id, output_format)

    def _free_bytes(self) -> float:
        return min(self._db.free_bytes(), self._images.free_bytes())

    # --- in the store's thread ------------------------------------------------------------------

    def _recover(self) -> list[Job]:
        for job in self._unfinished():
            # Readers have seen more than was written down.
            job.first_event += _EVENTS_A_LIFE
            if given_up := _given_up(job):
                job.apply(given_up, self._clock())
                self._end(state_of(job), self._delivery_of(job))
            else:
                job.status = JobStatus.QUEUED
                self._update(state_of(job))
        now = self._clock()
        ended = self._db.rows(self._sql.ends)
        self._ends = {row["id"]: min(row["ended"], now) for row in ended}
        self._sweep()
        self._expire()
        return self._unfinished()

    def _unfinished(self) -> list[Job]:
        rows = self._db.rows(self._sql.unfinished)
        return [job for row in rows if (job := self._job(row))]

    def _sweep(self) -> None:
        """Delete files that no row knows, and rows whose files are gone."""
        known = {
            image_name(row["id"], row["format"]): row["job"]
            for row in self._db.rows(self._sql.image_files)
        }
        # Also of rows that cannot be read: another release may.
        unfinished = self._db.rows(self._sql.unfinished_ids)
        there = self._images.sweep(known, {row["id"] for row in unfinished})
        self._delete({known[name] for name in known.keys() - there})
        (total,) = self._db.rows(self._sql.image_bytes)
        self._bytes = total["bytes"]

    def _insert(self, job: Job, has_inputs: bool) -> None:
        self._change((self._sql.insert_job, job_values(job, has_inputs=has_inputs)))

    def _has_inputs(self, job_id: str) -> bool:
        return any(row["has_inputs"] for row in self._db.rows(self._sql.job, {"id": job_id}))

    def _update(self, state: dict[str, object]) -> None:
        self._change((self._sql.set_state, state))

    def _insert_image(self, job: str, output_format: OutputFormat, image: ImageResult) -> None:
        self._change((self._sql.insert_image, image_values(job, output_format, image)))
        self._bytes += image.size

    def _end(self, state: dict[str, object], message: Delivery | None) -> None:
        """The end and the message of it in one transaction: neither is there without the other."""
        told = [] if message is None else [dataclasses.asdict(message)]
        self._change(
            (self._sql.set_state, state),
            *((self._sql.insert_delivery, values) for values in told),
        )

    def _finish(self, state: dict[str, object], message: Delivery | None) -> None:
        self._end(state, message)
        self._ends[str(state["id"])] = self._clock()
        self._images.drop_inputs(str(state["id"]))
        try:
            self._expire()
        except self._db.errors as error:  # the end is written; the next one makes room
            logger.warning("expired jobs could not be deleted: %s", error)

    def _delete(self, ids: Iterable[str]) -> None:
        for job_id in ids:
            rows = self._db.rows(self._sql.images, {"job": job_id})
            self._change((self._sql.delete_job, {"id": job_id}))
            self._ends.pop(job_id, None)
            for row in rows:
                self._bytes -= row["bytes"]
                if row["id"] is not None:
                    self._images.drop(row["id"], row["format"])
            self._images.drop_inputs(job_id)

    def _expire(self) -> None:
        oldest = self._clock() - self._ttl
        self._delete(list(takewhile(lambda job: self._ends[job] < oldest, self._ends)))
        if self._bytes <= self._max_bytes:
            return
        for job in list(self._ends):
            if self._db.rows(self._sql.images, {"job": job}):
                self._delete([job])
            if self._bytes <= self._max_bytes:
                return

    def _one(self, job_id: str) -> Job | None:
        return next(map(self._job, self._db.rows(self._sql.job, {"id": job_id})), None)

    def _job_by_idempotency_key(self, owner: str, idempotency_key: str) -> Job | None:
        named = {"owner": owner, "idempotency_key": idempotency_key}
        for row in self._db.rows(self._sql.job_of_key, named):
            job = self._job(row)
            if job is None:  # else no job could ever have this name
                self._change((self._sql.unname, {"id": row["id"]}))
            return job
        return None

    def _page(self, owner: str, statuses: list[str], limit: int, after: str | None) -> Page:
        values = {"owner": owner, "any": not statuses, "statuses": json.dumps(statuses)}
        before = _NEWEST
        if after is not None:
            before = next((r["number"] for r in self._db.rows(self._sql.job, {"id": after})), 0)
        jobs: list[Job] = []
        while len(jobs) <= limit:
            # Rows that are set aside count for nothing: others take their place.
            wanted = limit + 1 - len(jobs)
            rows = self._db.rows(self._sql.page, {**values, "before": before, "limit": wanted})
            jobs += [job for row in rows if (job := self._job(row))]
            if len(rows) < wanted:
                break
            before = rows[-1]["number"]
        return Page(jobs[:limit], len(jobs) > limit)

    def _deliveries(self, limit: int) -> list[Delivery]:
        return [Delivery(**row) for row in self._db.rows(self._sql.deliveries, {"limit": limit})]

    def _change(self, *changes: Change) -> None:
        self._db.change(*changes)

    def _image_row(self, image_id: str) -> tuple[str, OutputFormat] | None:
        rows = self._db.rows(self._sql.image, {"id": image_id})
        return next(((row["id"], row["format"]) for row in rows), None)

    def _close(self) -> None:
        self._db.close()
        self._images.close()

    def _job(self, row: Row) -> Job | None:
        """The job of a row; None for a row that is damaged or of another release, which stays."""
        images = self._db.rows(self._sql.images, {"job": row["id"]})
        try:
            return job_of(row, images)
        except Exception as error:  # whatever a value raises that this release never wrote
            if row["id"] not in self._set_aside:
                self._set_aside.add(row["id"])
                told = f"{type(error).__name__}: {error}".splitlines()[0]
                logger.warning("job %s cannot be read and is set aside: %s", row["id"], told)
            return None


def _given_up(job: Job) -> JobFailed | None:
    """Why an unfinished job of the life before is not done again; None when it is."""
    if not job.terms.background:
        return JobFailed(Reason.INTERRUPTED, "The server stopped while the job was running.")
    if job.attempts >= MAX_ATTEMPTS and job.status is JobStatus.RUNNING:
        return JobFailed(
            Reason.INTERRUPTED, f"The server died during {MAX_ATTEMPTS} attempts at this job."
        )
    return None
