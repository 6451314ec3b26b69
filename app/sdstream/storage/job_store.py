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
from sdstream.storage.ports import Database, ImageStore, StoreError
from sdstream.storage.privacy import sealed, token_secret
from sdstream.storage.rows import state_of

logger = logging.getLogger(__name__)

#: A database that answers later than this counts as one that does not.
_ANSWER_SECONDS: Final = 5.0

#: Between two looks at a database that cannot be read.
_PAUSE_SECONDS: Final = 0.5


NO_UPLOADS: Final[Mapping[str, bytes]] = MappingProxyType({})


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
        """Take the database, once.

        Raises:
            StoreInUse: Another server has it.
            StoreError: It cannot be read or written.
        """
        if self.is_open:
            return
        try:
            if not self._has_images:  # a server that stands by comes here again and again
                self._images.open()
                self._has_images = True
            secret = self._db.open(self._images)
        except OSError as error:
            raise StoreError(f"the image store cannot be used: {error}") from None
        self._ledger = Ledger(self._db)
        self._secret = secret

    def owner_of(self, digest: str) -> str:
        """Return the owner that a digest of an API key stands for; the store is open."""
        return sealed(self._secret, digest)

    @property
    def is_open(self) -> bool:
        """True from ``open`` on."""
        return hasattr(self, "_secret")

    def token_secret(self) -> bytes:
        """Return the secret that tokens of URLs are signed with; the store is open."""
        return token_secret(self._secret)

    @property
    def takeover(self) -> bool:
        """True when another server may take over while this one runs."""
        return self._db.takeover

    @property
    def cut_off(self) -> ImageServiceError | None:
        """Why another server may have the rows at this moment; None while this one has them."""
        fault = self._ledger.fault
        # With a full disk this server has the rows, and reads them.
        return fault if self._db.takeover and isinstance(fault, Unavailable) else None

    @property
    def lost(self) -> str | None:
        """Why this server must end: another one has taken over. None as a rule."""
        return self._db.lost

    async def close(self) -> None:
        """Finish what is being written and give the database up."""
        if self.is_open:
            await self._ledger.close(self._close)
        else:
            await asyncio.to_thread(self._close)

    # --- a job's life ---------------------------------------------------------------------------

    async def recover(self) -> list[Job]:
        """Clear up after the life before; returns the jobs that are to be done, oldest first.

        A job that was running twice when the server died is given up, and so is every job that
        had a client waiting: that client is gone.
        """
        await self._ledger.write(self._rows.take_up)
        named, unfinished, uploads = await self._ledger.read(self._rows.named_files)
        try:
            # Not in the ledger's thread, whose session must not be silent for long.
            left = await asyncio.to_thread(self._images.sweep, named, unfinished, uploads)
        except OSError as error:
            logger.error("the image store cannot be read: %s", error)
            raise fault_of(error, self._db) from None
        gone = {named[name] for name in named.keys() - left}
        return await self._ledger.write(self._rows.clear_up, gone)

    async def add(
        self, job: Job, inputs: Inputs, uploads: Mapping[str, bytes] = NO_UPLOADS
    ) -> None:
        """Keep an accepted job; once this returns it is not lost.

        Args:
            job: Its ``uploads`` are set.
            inputs: The images for the runtime.
            uploads: Name -> the file as it was uploaded.

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
            if uploads:
                await asyncio.to_thread(self._images.put_uploads, job.id, uploads)
                job.uploads = {name: len(data) for name, data in uploads.items()}
        except OSError as error:
            logger.error("a job could not be kept: %s", error)
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
        """The pictures that a job starts from; raises OSError and ValueError when they are gone."""
        while True:
            try:
                known = await self._ledger.look(self._rows.has_inputs, job.id)
                break
            except ImageServiceError:
                if not self._db.takeover:
                    raise
                # The job does not begin before this server has the rows again.
                await asyncio.sleep(_PAUSE_SECONDS)
        # Rows from before the column was there say nothing of a file.
        if not known and not await asyncio.to_thread(self._images.has_inputs, job.id):
            return Inputs()
        return await asyncio.to_thread(self._images.get_inputs, job.id)

    async def update(self, job: Job) -> None:
        """Write down where a job is now; see ``written`` for how long this waits."""
        self.note(job)
        await self.written(job)

    def note(self, job: Job) -> None:
        """Write down where a job is now, without waiting; later reads see it."""
        self._ledger.later(job.id, self._rows.update, state_of(job))

    def note_image(self, job: Job, image: ImageResult) -> None:
        """Add a finished image, whose file is there, to its job, without waiting."""
        self._ledger.later(
            job.id, self._rows.insert_image, job.id, job.request.output_format, image
        )

    def note_end(self, job: Job) -> None:
        """Write down a job's end and whom to tell of it, without waiting, and make room."""
        self._ledger.later(job.id, self._rows.finish, state_of(job), self._delivery_of(job))

    async def written(self, job: Job) -> None:
        """Wait until all that was noted of a job is on the disk.

        A background job outlives the server, so this waits as long as it takes. No client comes
        back for another one after a restart: this returns when writes fail, unless another server
        may be about to take over, which would end the job in another way.
        """
        if job.terms.background or self._db.takeover:
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
            async with asyncio.timeout(_ANSWER_SECONDS):
                await self._ledger.write(self._db.touch)
        except ImageServiceError as fault:
            return fault
        except TimeoutError:
            return Unavailable(
                "The database does not answer; try again.",
                reason=Reason.STORAGE_UNAVAILABLE,
                retry_after=1,
            )
        return None

    # --- looking things up ----------------------------------------------------------------------

    async def get(self, job_id: str) -> Job | None:
        """A job without the files of its images, None when there is none."""
        job = await self._ledger.look(self._rows.one, job_id)
        # What has ended is not changed any more; for all else the row may be behind.
        return job if job and job.terminal else await self._ledger.read(self._rows.one, job_id)

    async def job_by_idempotency_key(self, owner: str, idempotency_key: str) -> Job | None:
        """The job that an owner gave this name."""
        return await self._ledger.read(self._rows.job_by_idempotency_key, owner, idempotency_key)

    async def unname(self, job_id: str) -> None:
        """Free the name of a job for another one."""
        await self._ledger.write(self._rows.change, (self._rows.sql.unname, {"id": job_id}))

    async def with_files(self, job: Job) -> Job:
        """An ended job with its images' files; raises FileNotFoundError when they are gone."""
        return await asyncio.to_thread(self._with_files, job)

    async def with_file(self, image: ImageResult, output_format: OutputFormat) -> ImageResult:
        """A finished image with its file; raises FileNotFoundError when that is gone."""
        data = await asyncio.to_thread(self._file, image, output_format)
        return dataclasses.replace(image, data=data)

    async def page(self, owner: str, which: JobFilter, *, limit: int, after: str | None) -> Page:
        """An owner's jobs, newest first.

        Args:
            owner: Whose.
            which: Only these.
            limit: At most so many.
            after: Only what is older than this job.
        """
        return await self._ledger.read(self._rows.page, owner, which, limit, after)

    async def image(self, image_id: str) -> tuple[bytes, OutputFormat] | None:
        """A file and its format, None when it never was here or has expired."""
        row = await self._ledger.look(self._rows.image_row, image_id)
        row = row or await self._ledger.read(self._rows.image_row, image_id)
        if row is None:
            return None
        try:
            return await asyncio.to_thread(self._read, *row), row[1]
        except FileNotFoundError:
            return None

    def location(self, image: ImageResult, output_format: OutputFormat) -> str:
        """Return where a stored image is until its job expires: a path or an address."""
        assert image.id is not None
        return self._images.location(image.id, output_format)

    async def upload(self, job: Job, name: str) -> bytes | None:
        """Return a file that was uploaded with a job, None when there is none."""
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
        """Make a job a favorite, which does not expire, or an ordinary job again.

        Raises:
            StorageFull: Favorites would take more than half of the room for images.
        """
        await self._ledger.write(self._rows.mark, job_id, favorite)

    async def expire(self) -> None:
        """Delete what is too old or too much."""
        await self._ledger.write(self._rows.expire)

    async def room(self) -> Room:
        """Return the room for images: used, allowed, and free on the disk."""
        free = await asyncio.to_thread(self._images.free_bytes)
        return Room(*self._rows.room, free)

    # --- webhooks -------------------------------------------------------------------------------

    async def deliveries(self, limit: int) -> list[Delivery]:
        """Webhooks that are next, the most urgent first."""
        return await self._ledger.read(self._rows.deliveries, limit)

    async def put_off(self, delivery: Delivery, next_at: float) -> None:
        """Note a try that failed."""
        values = {"id": delivery.id, "attempts": delivery.attempts + 1, "next_at": next_at}
        self._ledger.later(delivery.id, self._rows.change, (self._rows.sql.defer_delivery, values))

    async def settle(self, delivery: Delivery) -> None:
        """Note that nothing more is to be done for a webhook."""
        change = (self._rows.sql.delete_delivery, {"id": delivery.id})
        self._ledger.later(delivery.id, self._rows.change, change)

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
