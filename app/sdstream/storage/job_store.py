"""Jobs and their images: an accepted job survives a restart of the server.

A database (storage/ports.py) holds the rows, an image store the finished images and the input
images of waiting jobs. One thread reads and writes the rows; a commit survives a crash of the
process. A file is written before its row and deleted after it: a crash can only leave files without
rows, and the next start deletes these. A write that fails is retried until it succeeds
(storage/ledger.py).

A job is deleted with all of its images: some time after its end, or earlier if the images exceed
their limit, the oldest job first. A file that is being read stays readable to its end.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Final, NamedTuple

from sdstream.core.delivery import Delivery
from sdstream.core.errors import ImageServiceError, Reason, StorageFull, Unavailable
from sdstream.core.job import ImageResult, Job
from sdstream.core.job_filter import JobFilter
from sdstream.core.messages import Generate
from sdstream.core.options import OutputFormat
from sdstream.core.pixels import Inputs
from sdstream.storage.job_rows import JobRows, Page
from sdstream.storage.ledger import Ledger, fault_of
from sdstream.storage.ports import Database, ImageStore, StoreError, StoreUnreachable
from sdstream.storage.privacy import public_name, sealed, token_secret
from sdstream.storage.rows import state_of

logger = logging.getLogger(__name__)

#: Seconds after which a database counts as one that does not answer.
_ANSWER_SECONDS: Final = 5.0

#: Seconds between two reads of a database that cannot be read.
_PAUSE_SECONDS: Final = 0.5


NO_UPLOADS: Final[Mapping[str, bytes]] = MappingProxyType({})


class Room(NamedTuple):
    """Room for images, in bytes.

    Attributes:
        used: Size of the stored images.
        limit: Upper bound of that size.
        free: Free space of the disk; infinite if it is unknown.
    """

    used: int
    limit: int
    free: float


class JobStore:
    """Stores jobs and images; one server uses it at a time.

    Args:
        database: Stores the rows.
        images: Stores the files.
        ttl_seconds: Ended jobs are deleted after this time.
        max_bytes: Limit of the stored images; above it the oldest ended jobs are deleted.
        min_free_bytes: With less free space, new jobs are rejected.
        clock: Unix seconds, unaffected by changes of the system's clock.
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
        self._images = images
        self._min_free_bytes = min_free_bytes
        self._delivery_of = delivery_of
        self._rows = JobRows(
            database,
            images,
            ttl_seconds=ttl_seconds,
            max_bytes=max_bytes,
            clock=clock,
            delivery_of=delivery_of,
        )
        self._has_images = False
        self._ledger: Ledger
        self._secret: bytes

    def open(self) -> None:
        """Open the image store and the database; does nothing if they are open.

        Raises:
            StoreInUse: Another server uses the database.
            StoreError: The database or the image store cannot be read or written.
        """
        if self.is_open:
            return
        try:
            if not self._has_images:  # a standby server calls this repeatedly
                self._images.open()
                self._has_images = True
            secret = self._db.open(self._images)
        except OSError as error:
            kind = StoreUnreachable if isinstance(error, ConnectionError) else StoreError
            raise kind(f"the image store cannot be used: {error}") from None
        self._ledger = Ledger(self._db)
        self._secret = secret

    def owner_of(self, digest: str) -> str:
        """Return the owner for the digest of an API key; the store must be open."""
        return sealed(self._secret, digest)

    @property
    def is_open(self) -> bool:
        """True from ``open`` on."""
        return hasattr(self, "_secret")

    def token_secret(self) -> bytes:
        """Return the secret that signs tokens of URLs; the store must be open."""
        return token_secret(self._secret)

    @property
    def name(self) -> str:
        """A name of the database that all of its servers know; the store must be open."""
        return public_name(self._secret)

    @property
    def takeover(self) -> bool:
        """True when another server may take over while this one runs."""
        return self._db.takeover

    @property
    def cut_off(self) -> ImageServiceError | None:
        """The reason why another server may hold the rows; None while this server holds them."""
        fault = self._ledger.fault
        # With a full disk this server still holds the rows and can read them.
        return fault if self._db.takeover and isinstance(fault, Unavailable) else None

    @property
    def lost(self) -> str | None:
        """The reason why this server must stop, if another one has taken over; None otherwise."""
        return self._db.lost

    async def close(self) -> None:
        """Finish the waiting writes and close the database."""
        if self.is_open:
            await self._ledger.close(self._close)
        else:
            await asyncio.to_thread(self._close)

    # --- from the start of a job to its end -----------------------------------------------------

    async def recover(self) -> list[Job]:
        """Clean up after the previous run; return the jobs to run, oldest first.

        An unfinished background job fails only if the server crashed during its last attempt. Any
        other unfinished job fails, because the connection to its client is lost.

        Raises:
            StoreError: The image store lacks every image that the database names.
            Unavailable: The database or the image store cannot be read.
        """
        await self._ledger.write(self._rows.take_up)
        named, unfinished, uploads = await self._ledger.read(self._rows.named_files)
        try:
            # Not in the ledger's thread: its database session must not be idle for long.
            left = await asyncio.to_thread(self._images.sweep, named.keys(), unfinished, uploads)
        except OSError as error:
            logger.error("the image store cannot be read: %s", error)
            raise fault_of(error, self._db) from error
        if named and not left:
            # Most likely another image store was meant. Its jobs must not be deleted.
            raise StoreError(
                f"the image store lacks every image that the database names ({len(named)}); mount "
                "or restore it, choose another --images or --data-dir, or move the database away "
                "to start without its jobs"
            )
        gone = {named[name] for name in named.keys() - left}
        if gone:
            logger.warning(
                "jobs are deleted because the image store lacks images of them: %s",
                ", ".join(sorted(gone)),
            )
        return await self._ledger.write(self._rows.clear_up, gone)

    async def add(
        self, job: Job, inputs: Inputs, uploads: Mapping[str, bytes] = NO_UPLOADS
    ) -> None:
        """Store an accepted job, which is durable when this returns.

        Args:
            job: The job; this sets its ``uploads``.
            inputs: The images for the runtime.
            uploads: Name -> the file as uploaded.

        Raises:
            StorageFull: The disk is full, or has less free space than ``min_free_bytes``.
            Unavailable: The database or the image store cannot be written for another reason.
        """
        has_inputs = inputs != Inputs()
        try:
            if await asyncio.to_thread(self._free_bytes) < self._min_free_bytes:
                raise StorageFull("The server's disk is full.", reason=Reason.STORAGE_FULL)
            if has_inputs:
                order = Generate(job.id, job.request, inputs)
                # In another thread, because inputs may take a hundred megabytes.
                await asyncio.to_thread(self._images.put_inputs, order)
            if uploads:
                await asyncio.to_thread(self._images.put_uploads, job.id, uploads)
                job.uploads = {name: len(data) for name, data in uploads.items()}
        except OSError as error:
            logger.error("a job could not be stored: %s", error)
            await asyncio.to_thread(self._drop_files, job.id)
            raise fault_of(error, self._db) from None
        try:
            await self._ledger.write(self._rows.insert, job, has_inputs)
        except ImageServiceError:
            await asyncio.to_thread(self._drop_files, job.id)
            if job.id in self._rows.unsure:
                self._rows.unsure.remove(job.id)
                self._ledger.later(job.id, self._rows.delete, [job.id])
            raise

    def _drop_files(self, job_id: str) -> None:
        self._images.drop_inputs(job_id)
        self._images.drop_uploads(job_id)

    async def inputs(self, job: Job) -> Inputs:
        """Return the input images of a job; raises OSError or ValueError if they cannot be read."""
        while True:
            try:
                known = await self._ledger.look(self._rows.has_inputs, job.id)
                break
            except ImageServiceError:
                if not self._db.takeover:
                    raise
                # The job waits until this server can read the rows again.
                await asyncio.sleep(_PAUSE_SECONDS)
        # Rows of older releases do not record whether there is a file.
        if not known and not await asyncio.to_thread(self._images.has_inputs, job.id):
            return Inputs()
        return await asyncio.to_thread(self._images.get_inputs, job.id)

    async def update(self, job: Job) -> None:
        """Store the state of a job, and wait as ``written`` does."""
        self.note(job)
        await self.written(job)

    def note(self, job: Job) -> None:
        """Queue a write of the state of a job; later reads see it."""
        self._ledger.later(job.id, self._rows.update, state_of(job))

    def note_image(self, job: Job, image: ImageResult) -> None:
        """Queue a write that adds a finished image to its job; the file exists."""
        self._ledger.later(
            job.id, self._rows.insert_image, job.id, job.request.output_format, image
        )

    def note_end(self, job: Job) -> None:
        """Queue a write of a job's end and its webhook message; this also deletes expired jobs."""
        self._ledger.later(job.id, self._rows.finish, state_of(job), self._delivery_of(job))

    async def written(self, job: Job) -> None:
        """Wait until the queued writes of a job are committed.

        For a background job, which survives a restart, this waits until the writes succeed. For
        another job it also returns when writes fail, because no client requests that job after a
        restart. If another server may take over, it always waits until the writes succeed: the
        other server would end the job differently.
        """
        if job.terms.background or self._db.takeover:
            await self._ledger.written(job.id)
        else:
            with suppress(ImageServiceError):
                await self._ledger.settled(job.id)

    async def settled(self, job: Job) -> None:
        """Wait as ``written`` does, but raise when writes of a background job fail.

        Raises:
            StorageFull: The disk has no room.
            Unavailable: The database cannot be written for another reason.
        """
        if job.terms.background:
            await self._ledger.settled(job.id)
        else:
            await self.written(job)

    def is_written(self, job_id: str) -> bool:
        """Return whether no write of a job waits."""
        return self._ledger.is_written(job_id)

    async def fault(self) -> ImageServiceError | None:
        """Try a write; return why it failed, None if it succeeded."""
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                await self._ledger.write(self._db.touch)
        except ImageServiceError as fault:
            return fault
        except TimeoutError:
            return Unavailable(
                "The database does not respond; try again.",
                reason=Reason.STORAGE_UNAVAILABLE,
                retry_after=1,
            )
        return None

    # --- reads ----------------------------------------------------------------------------------

    async def get(self, job_id: str) -> Job | None:
        """Return a job without its image files, None if it does not exist."""
        job = await self._ledger.look(self._rows.one, job_id)
        # The row of an ended job is final; that of another job may lack queued writes.
        return job if job and job.terminal else await self._ledger.read(self._rows.one, job_id)

    async def job_by_idempotency_key(self, owner: str, idempotency_key: str) -> Job | None:
        """Return the job that an owner submitted with this key, None if it does not exist."""
        return await self._ledger.read(self._rows.job_by_idempotency_key, owner, idempotency_key)

    async def unname(self, job_id: str) -> None:
        """Remove the idempotency key of a job, so that another job can use the key."""
        await self._ledger.write(self._rows.change, (self._rows.sql.unname, {"id": job_id}))

    async def with_files(self, job: Job) -> Job:
        """Return an ended job with its image files; raises FileNotFoundError if one is deleted."""
        return await asyncio.to_thread(self._with_files, job)

    async def with_file(self, image: ImageResult, output_format: OutputFormat) -> ImageResult:
        """Return a finished image with its file; raises FileNotFoundError if it is deleted."""
        data = await asyncio.to_thread(self._file, image, output_format)
        return dataclasses.replace(image, data=data)

    async def page(self, owner: str, which: JobFilter, *, limit: int, after: str | None) -> Page:
        """Return a page of an owner's jobs, newest first.

        Args:
            owner: The owner of the jobs.
            which: The filter.
            limit: Most jobs of a page.
            after: Id of a job; the page begins with the next older one.
        """
        return await self._ledger.read(self._rows.page, owner, which, limit, after)

    async def image(self, image_id: str) -> tuple[bytes, OutputFormat] | None:
        """Return the bytes and the format of an image, None if it does not exist or expired."""
        row = await self._ledger.look(self._rows.image_row, image_id)
        row = row or await self._ledger.read(self._rows.image_row, image_id)
        if row is None:
            return None
        try:
            return await asyncio.to_thread(self._read, *row), row[1]
        except FileNotFoundError:
            return None

    def location(self, image: ImageResult, output_format: OutputFormat) -> str:
        """Return the path or address of a stored image, valid until its job expires."""
        assert image.id is not None
        return self._images.location(image.id, output_format)

    async def upload(self, job: Job, name: str) -> bytes | None:
        """Return a file that was uploaded with a job, None if it does not exist."""
        if name not in job.uploads:
            return None
        try:
            return await asyncio.to_thread(self._images.get_upload, job.id, name)
        except FileNotFoundError:
            return None

    async def delete(self, job_id: str) -> None:
        """Delete an ended job and its images."""
        await self._ledger.write(self._rows.delete, [job_id])

    async def mark(self, job_id: str, *, favorite: bool) -> None:
        """Mark a job as a favorite, which does not expire, or remove the mark.

        Raises:
            StorageFull: Favorites would exceed half of the limit of stored images.
        """
        await self._ledger.write(self._rows.mark, job_id, favorite)

    async def expire(self) -> None:
        """Delete jobs that are too old, and the oldest jobs above the limit."""
        await self._ledger.write(self._rows.expire)

    async def room(self) -> Room:
        """Return the room for images, in bytes."""
        free = await asyncio.to_thread(self._images.free_bytes)
        return Room(*self._rows.room, free)

    # --- webhooks -------------------------------------------------------------------------------

    async def deliveries(self, limit: int) -> list[Delivery]:
        """Return the webhook messages to post next, the earliest first."""
        return await self._ledger.read(self._rows.deliveries, limit)

    async def put_off(self, delivery: Delivery, next_at: float) -> None:
        """Queue a write that defers a message after a failed attempt."""
        values = {"id": delivery.id, "attempts": delivery.attempts + 1, "next_at": next_at}
        self._ledger.later(delivery.id, self._rows.change, (self._rows.sql.defer_delivery, values))

    async def settle(self, delivery: Delivery) -> None:
        """Queue a write that deletes a message: it was posted or given up."""
        change = (self._rows.sql.delete_delivery, {"id": delivery.id})
        self._ledger.later(delivery.id, self._rows.change, change)

    # --- in other threads -----------------------------------------------------------------------

    def put(self, data: bytes, output_format: OutputFormat) -> str:
        """Write an image, in any thread, and return its unguessable id. Raises OSError."""
        return self._images.put(data, output_format)

    def drop(self, image_id: str, output_format: OutputFormat) -> None:
        """Queue the deletion of an image that no job contains."""
        # In the order of the ledger, so that the deletion follows the writes queued before it.
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
        return self._read(image.id, output_format)

    def _read(self, image_id: str, output_format: OutputFormat) -> bytes:
        try:
            return self._images.get(image_id, output_format)
        except FileNotFoundError:
            raise
        except OSError as error:
            logger.error("an image cannot be read: %s", error)
            raise Unavailable(
                "The server cannot read its images; try again.",
                reason=Reason.STORAGE_UNAVAILABLE,
                retry_after=1,
            ) from None

    def _free_bytes(self) -> float:
        return min(self._db.free_bytes(), self._images.free_bytes())

    def _close(self) -> None:
        self._db.close()
        self._images.close()
