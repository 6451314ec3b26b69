"""Jobs and their images on disk: what was accepted outlives the server.

One folder holds a SQLite database, ``images/`` with the finished files and ``inputs/`` with the
pictures of jobs that wait. Rows are written and read by one thread; commits (WAL) survive the
death of the process, and a power cut may cost the last moment. Order keeps the two in step: a
file is there before its row, and goes after it, so a crash leaves files without rows at worst,
which the next start deletes.

Jobs go with all of their images: some time after their end, and the oldest first when there are
too many bytes. A file that is being read stays readable to its end.
"""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import fcntl
import json
import logging
import secrets
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, ParamSpec, TextIO, TypeVar

from sdstream.core.delivery import Delivery
from sdstream.core.errors import Reason, StorageFull
from sdstream.core.job import (
    MAX_ATTEMPTS,
    Completed,
    ImageResult,
    Job,
    JobCancelled,
    JobFailed,
    JobStatus,
    Terms,
)
from sdstream.core.messages import Generate, encode, request_of, unframe
from sdstream.core.pixels import Inputs
from sdstream.core.queue import Priority
from sdstream.core.request import OutputFormat

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

#: Each brings the database one version further; only ever appended to.
_MIGRATIONS: Final = (
    """
    CREATE TABLE jobs (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        owner TEXT NOT NULL,
        status TEXT NOT NULL,
        request TEXT NOT NULL,
        terms TEXT NOT NULL,
        idempotency_key TEXT,
        created REAL NOT NULL,
        started REAL,
        ended REAL,
        attempts INTEGER NOT NULL,
        last_event INTEGER NOT NULL,
        reason TEXT,
        message TEXT
    ) STRICT;
    CREATE UNIQUE INDEX jobs_by_key ON jobs (owner, idempotency_key)
        WHERE idempotency_key IS NOT NULL;
    CREATE INDEX jobs_by_end ON jobs (ended) WHERE ended IS NOT NULL;
    CREATE TABLE images (
        job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
        number INTEGER NOT NULL,
        id TEXT UNIQUE,
        format TEXT NOT NULL,
        seed INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        steps INTEGER NOT NULL,
        encode_seconds REAL NOT NULL,
        sample_seconds REAL NOT NULL,
        decode_seconds REAL NOT NULL,
        flagged INTEGER NOT NULL,
        PRIMARY KEY (job, number)
    ) STRICT;
    CREATE TABLE deliveries (
        id TEXT NOT NULL PRIMARY KEY,
        url TEXT NOT NULL,
        payload BLOB NOT NULL,
        attempts INTEGER NOT NULL,
        next_at REAL NOT NULL
    ) STRICT;
    """,
    "ALTER TABLE jobs ADD COLUMN has_inputs INTEGER NOT NULL DEFAULT 0;",
)

_SET_STATE: Final = (
    "UPDATE jobs SET status = :status, started = :started, ended = :ended, attempts = :attempts,"
    " last_event = :last_event, reason = :reason, message = :message WHERE id = :id"
)

#: Room that events of a new life of the server leave for those of the one before: ids only grow.
_EVENTS_A_LIFE: Final = 1_000_000

#: SQLITE_FULL and SQLITE_IOERR.
_NO_ROOM: Final = (13, 10)


class StoreError(Exception):
    """The data folder cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class Page:
    """Part of a list of jobs, newest first; ``more`` tells whether older ones follow."""

    jobs: list[Job]
    more: bool


class JobStore:
    """Keeps jobs and images in one folder, which belongs to one server at a time.

    Args:
        folder: Made when it is not there.
        ttl_seconds: Ended jobs go after this.
        max_bytes: Room for images; the oldest ended jobs go until the rest fits.
        min_free_bytes: With less free space on the disk no job is taken.
        clock: Unix seconds.
        delivery_of: Builds the webhook message of a job that has ended, None for no webhook; it is
            stored in the transaction that stores the end.
    """

    def __init__(
        self,
        folder: Path,
        *,
        ttl_seconds: float,
        max_bytes: int,
        min_free_bytes: int,
        clock: Callable[[], float],
        delivery_of: Callable[[Job], Delivery | None] = lambda _: None,
    ) -> None:
        self._folder = folder
        self._images = folder / "images"
        self._inputs = folder / "inputs"
        self._ttl = ttl_seconds
        self._max_bytes = max_bytes
        self._min_free_bytes = min_free_bytes
        self._clock = clock
        self._delivery_of = delivery_of
        self._bytes = 0
        self._held = ExitStack()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._db: sqlite3.Connection

    def open(self) -> None:
        """Take the folder, once.

        Raises:
            StoreError: Another server has it, or it cannot be read or written.
        """
        if hasattr(self, "_db"):
            return
        try:
            for part in (self._images, self._inputs):
                part.mkdir(parents=True, exist_ok=True)
            with ExitStack() as opening:
                opening.enter_context(_locked(self._folder / "lock"))
                db = opening.enter_context(closing(_opened(self._folder / "jobs.sqlite")))
                _migrate(db)
                self._db, self._held = db, opening.pop_all()
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"the data folder {self._folder} cannot be used: {error}") from None

    async def close(self) -> None:
        """Finish what is being written and give the folder up."""
        await self._run(self._held.close)
        self._thread.shutdown()

    # --- a job's life ---------------------------------------------------------------------------

    async def recover(self) -> list[Job]:
        """Clear up after the life before; returns the jobs that are to be done, oldest first.

        A job that was running twice when the server died is given up, and so is every job that
        had a client waiting: that client is gone.
        """
        return await self._run(self._recover)

    async def add(self, job: Job, inputs: Inputs) -> None:
        """Keep an accepted job; once this returns it is not lost.

        Raises:
            StorageFull: The disk has no room.
        """
        disk = await asyncio.to_thread(shutil.disk_usage, self._images)
        if disk.free < self._min_free_bytes:
            raise _full()
        try:
            if inputs != Inputs():
                order = Generate(job.id, job.request, inputs)
                path = self._inputs / job.id
                # Putting together a hundred megabytes takes its time too.
                await asyncio.to_thread(lambda: _write(path, encode(order)))
            await self._run(self._insert, job, inputs != Inputs())
        except (OSError, sqlite3.Error) as error:
            (self._inputs / job.id).unlink(missing_ok=True)
            if not _is_no_room(error):
                raise
            logger.error("a job could not be kept: %s", error)
            raise _full() from None

    async def inputs(self, job: Job) -> Inputs:
        """The pictures that a job starts from; raises OSError and ValueError when they are gone."""
        path = self._inputs / job.id
        # Rows from before the column was there say nothing of a file.
        known = await self._run(self._has_inputs, job.id)
        if not known and not await asyncio.to_thread(path.exists):
            return Inputs()
        message = await asyncio.to_thread(lambda: unframe(path.read_bytes()))
        if not isinstance(message, Generate):
            raise ValueError(f"not the pictures of a job: {path.name}")
        return message.inputs

    async def update(self, job: Job) -> None:
        """Write down where a job is now."""
        await self._run(self._update, _state(job))

    def note(self, job: Job) -> None:
        """As ``update``, without waiting; later reads see it."""
        self._later(self._update, _state(job))

    def note_image(self, job: Job, image: ImageResult) -> None:
        """Add a finished image, whose file is there, to its job, without waiting."""
        self._later(self._insert_image, job.id, job.request.output_format, image)

    def note_end(self, job: Job) -> None:
        """Write down a job's end and whom to tell of it, without waiting, and make room."""
        self._later(self._finish, _state(job), self._delivery_of(job))

    # --- looking things up ----------------------------------------------------------------------

    async def get(self, job_id: str) -> Job | None:
        """A job without the files of its images, None when there is none."""
        return await self._run(self._one, job_id)

    async def named(self, owner: str, idempotency_key: str) -> Job | None:
        """The job that an owner gave this name."""
        return await self._run(self._named, owner, idempotency_key)

    async def unname(self, job_id: str) -> None:
        """Free the name of a job for another one."""
        await self._run(
            self._change, "UPDATE jobs SET idempotency_key = NULL WHERE id = ?", (job_id,)
        )

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
        return await self._run(self._page, owner, [s.value for s in statuses], limit, after)

    async def image(self, image_id: str) -> tuple[bytes, OutputFormat] | None:
        """A file and its format, None when it never was here or has expired."""
        row = await self._run(self._image_row, image_id)
        if row is None:
            return None
        try:
            return await asyncio.to_thread(self._path(*row).read_bytes), row[1]
        except FileNotFoundError:
            return None

    def path(self, image: ImageResult, output_format: OutputFormat) -> Path:
        """Return the path of a stored image's file, which exists until its job expires."""
        assert image.id is not None
        return self._path(image.id, output_format)

    async def delete(self, job_id: str) -> None:
        """Delete an ended job and its images."""
        await self._run(self._delete, [job_id])

    async def expire(self) -> None:
        """Delete what is too old or too much."""
        await self._run(self._expire)

    # --- webhooks -------------------------------------------------------------------------------

    async def deliveries(self, limit: int) -> list[Delivery]:
        """Webhooks that are next, the most urgent first."""
        return await self._run(self._deliveries, limit)

    async def put_off(self, delivery: Delivery, next_at: float) -> None:
        """Note a try that failed."""
        await self._run(
            self._change,
            "UPDATE deliveries SET attempts = attempts + 1, next_at = ? WHERE id = ?",
            (next_at, delivery.id),
        )

    async def settle(self, delivery: Delivery) -> None:
        """Note that nothing more is to be done for a webhook."""
        await self._run(self._change, "DELETE FROM deliveries WHERE id = ?", (delivery.id,))

    # --- in other threads -----------------------------------------------------------------------

    def put(self, data: bytes, output_format: OutputFormat) -> str:
        """Write an image; returns its unguessable id. Raises OSError. Called in any thread."""
        image_id = secrets.token_urlsafe(16)
        _write(self._path(image_id, output_format), data)
        return image_id

    def drop(self, image_id: str, output_format: OutputFormat) -> None:
        """Delete the file of an image that belongs to no job after all."""
        self._later(self._path(image_id, output_format).unlink, missing_ok=True)

    def _with_files(self, job: Job) -> Job:
        output_format = job.request.output_format
        return job.retold(
            dataclasses.replace(image, data=self._file(image, output_format))
            for image in job.images.values()
        )

    def _file(self, image: ImageResult, output_format: OutputFormat) -> bytes:
        if image.id is None:
            raise FileNotFoundError("the disk was full when this image was finished")
        return self._path(image.id, output_format).read_bytes()

    def _path(self, image_id: str, output_format: OutputFormat) -> Path:
        return self._images / f"{image_id}.{output_format}"

    # --- in the store's thread ------------------------------------------------------------------

    async def _run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, partial(work, *args, **kwargs))

    def _later(self, work: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        self._thread.submit(work, *args, **kwargs).add_done_callback(_log_failure)

    def _recover(self) -> list[Job]:
        for job in self._unfinished():
            # Readers have seen more than was written down.
            job.first_event += _EVENTS_A_LIFE
            if given_up := _given_up(job):
                job.apply(given_up, self._clock())
                self._end(_state(job), self._delivery_of(job))
            else:
                job.status = JobStatus.QUEUED
                self._update(_state(job))
        self._sweep()
        self._expire()
        return self._unfinished()

    def _unfinished(self) -> list[Job]:
        rows = self._db.execute("SELECT * FROM jobs WHERE ended IS NULL ORDER BY number")
        return [self._job(row) for row in rows.fetchall()]

    def _sweep(self) -> None:
        """Delete files that no row knows, and rows whose files are gone."""
        known = {
            self._path(row["id"], row["format"]).name: row["job"]
            for row in self._db.execute("SELECT * FROM images WHERE id IS NOT NULL")
        }
        there = {path.name for path in self._images.iterdir()}
        for name in there - known.keys():
            (self._images / name).unlink(missing_ok=True)
        self._delete({known[name] for name in known.keys() - there})
        unfinished = {job.id for job in self._unfinished()}
        for path in self._inputs.iterdir():
            if path.name not in unfinished:
                path.unlink(missing_ok=True)
        (self._bytes,) = self._db.execute("SELECT coalesce(sum(bytes), 0) FROM images").fetchone()

    def _insert(self, job: Job, has_inputs: bool) -> None:
        request, terms = dataclasses.asdict(job.request), dataclasses.asdict(job.terms)
        with self._db:
            self._db.execute(
                "INSERT INTO jobs (id, owner, status, request, terms, idempotency_key, created,"
                " attempts, last_event, has_inputs) VALUES (?, ?, ?, ?, ?, ?, ?, 0, 0, ?)",
                (
                    job.id, job.terms.owner, job.status.value, json.dumps(request),
                    json.dumps(terms), job.terms.idempotency_key, job.created, has_inputs,
                ),
            )  # fmt: skip

    def _has_inputs(self, job_id: str) -> bool:
        row = self._db.execute("SELECT has_inputs FROM jobs WHERE id = ?", (job_id,)).fetchone()
        return row is not None and bool(row["has_inputs"])

    def _update(self, state: dict[str, object]) -> None:
        with self._db:
            self._db.execute(_SET_STATE, state)

    def _insert_image(self, job: str, output_format: OutputFormat, image: ImageResult) -> None:
        with self._db:
            self._db.execute(
                "INSERT INTO images VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    job, image.index, image.id, output_format, image.seed, image.size, image.steps,
                    image.encode_seconds, image.sample_seconds, image.decode_seconds,
                    image.flagged,
                ),
            )  # fmt: skip
        self._bytes += image.size

    def _end(self, state: dict[str, object], message: Delivery | None) -> None:
        """The end and the message of it in one transaction: neither is there without the other."""
        with self._db:
            self._db.execute(_SET_STATE, state)
            if message is not None:
                self._db.execute(
                    "INSERT INTO deliveries VALUES (:id, :url, :payload, :attempts, :next_at)",
                    dataclasses.asdict(message),
                )

    def _finish(self, state: dict[str, object], message: Delivery | None) -> None:
        self._end(state, message)
        (self._inputs / str(state["id"])).unlink(missing_ok=True)
        self._expire()

    def _delete(self, ids: Iterable[str]) -> None:
        for job_id in ids:
            rows = self._db.execute("SELECT * FROM images WHERE job = ?", (job_id,)).fetchall()
            with self._db:
                self._db.execute("DELETE FROM jobs WHERE id = ?", (job_id,))
            for row in rows:
                self._bytes -= row["bytes"]
                if row["id"] is not None:
                    self._path(row["id"], row["format"]).unlink(missing_ok=True)
            (self._inputs / job_id).unlink(missing_ok=True)

    def _expire(self) -> None:
        oldest = self._clock() - self._ttl
        self._delete(
            row["id"]
            for row in self._db.execute("SELECT id FROM jobs WHERE ended < ?", (oldest,)).fetchall()
        )
        while self._bytes > self._max_bytes:
            row = self._db.execute(
                "SELECT jobs.id FROM jobs JOIN images ON job = jobs.id"
                " WHERE ended IS NOT NULL ORDER BY ended, jobs.number LIMIT 1"
            ).fetchone()
            if row is None:
                return
            self._delete([row["id"]])

    def _one(self, job_id: str) -> Job | None:
        row = self._db.execute("SELECT * FROM jobs WHERE id = ?", (job_id,)).fetchone()
        return None if row is None else self._job(row)

    def _named(self, owner: str, idempotency_key: str) -> Job | None:
        row = self._db.execute(
            "SELECT * FROM jobs WHERE owner = ? AND idempotency_key = ?", (owner, idempotency_key)
        ).fetchone()
        return None if row is None else self._job(row)

    def _page(self, owner: str, statuses: list[str], limit: int, after: str | None) -> Page:
        rows = self._db.execute(
            "SELECT * FROM jobs WHERE owner = :owner"
            " AND (:any OR status IN (SELECT value FROM json_each(:statuses)))"
            " AND (:after IS NULL OR number < (SELECT number FROM jobs WHERE id = :after))"
            " ORDER BY number DESC LIMIT :limit",
            {
                "owner": owner,
                "any": not statuses,
                "statuses": json.dumps(statuses),
                "after": after,
                "limit": limit + 1,
            },
        ).fetchall()
        return Page([self._job(row) for row in rows[:limit]], len(rows) > limit)

    def _deliveries(self, limit: int) -> list[Delivery]:
        rows = self._db.execute("SELECT * FROM deliveries ORDER BY next_at LIMIT ?", (limit,))
        return [Delivery(**dict(row)) for row in rows.fetchall()]

    def _change(self, statement: str, values: tuple[object, ...]) -> None:
        with self._db:
            self._db.execute(statement, values)

    def _image_row(self, image_id: str) -> tuple[str, OutputFormat] | None:
        row = self._db.execute("SELECT id, format FROM images WHERE id = ?", (image_id,)).fetchone()
        return None if row is None else (row["id"], row["format"])

    def _job(self, row: sqlite3.Row) -> Job:
        request = request_of(json.loads(row["request"]))
        job = Job(row["id"], request, row["created"], _terms_of(json.loads(row["terms"])))
        job.status = JobStatus(row["status"])
        job.attempts, job.started, job.ended = row["attempts"], row["started"], row["ended"]
        job.ending = _ending_of(row)
        job.first_event = row["last_event"]
        images = [
            _image_of(image)
            for image in self._db.execute(
                "SELECT * FROM images WHERE job = ? ORDER BY number", (job.id,)
            )
        ]
        job.images = {image.index: image for image in images}
        return job.retold(images) if job.terminal else job


def _locked(path: Path) -> TextIO:
    """The open lock file of a folder; raises StoreError when another process has it."""
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise StoreError(
            f"the data folder {path.parent} is in use by another server; "
            "give this one its own with --data-dir"
        ) from None
    return file


def _opened(path: Path) -> sqlite3.Connection:
    # Made here and used in the store's thread, one after the other.
    db = sqlite3.connect(path, check_same_thread=False)
    db.row_factory = sqlite3.Row
    return db


def _migrate(db: sqlite3.Connection) -> None:
    """Bring a database to the newest version; raises StoreError when it is beyond that."""
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("PRAGMA foreign_keys = ON")
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > len(_MIGRATIONS):
        raise StoreError("the data folder was written by a newer release of this program")
    for number, script in enumerate(_MIGRATIONS[version:], start=version + 1):
        # One transaction with its version: a crash in the middle leaves the old one.
        db.executescript(f"BEGIN; {script} PRAGMA user_version = {number}; COMMIT;")


def _write(path: Path, data: bytes) -> None:
    """Write a whole file or none."""
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as part:
        try:
            part.write(data)
            part.flush()
            Path(part.name).replace(path)
        except OSError:
            Path(part.name).unlink(missing_ok=True)
            raise


def _full() -> StorageFull:
    return StorageFull("The server's disk is full.", reason=Reason.STORAGE_FULL)


def _is_no_room(error: Exception) -> bool:
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", 0) & 0xFF in _NO_ROOM
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _log_failure(future: Future[object]) -> None:
    if not future.cancelled() and future.exception() is not None:
        logger.error("the job store could not write", exc_info=future.exception())


def _given_up(job: Job) -> JobFailed | None:
    """Why an unfinished job of the life before is not done again; None when it is."""
    if not job.terms.background:
        return JobFailed(Reason.INTERRUPTED, "The server stopped in the middle of the job.")
    if job.attempts >= MAX_ATTEMPTS and job.status is JobStatus.RUNNING:
        return JobFailed(
            Reason.INTERRUPTED, f"The server died in {MAX_ATTEMPTS} attempts at this job."
        )
    return None


def _state(job: Job) -> dict[str, object]:
    """What changes in a job's row; taken at once, since the job goes on."""
    ending = job.ending
    failed = ending if isinstance(ending, JobFailed | JobCancelled) else None
    return {
        "id": job.id,
        "status": job.status.value,
        "started": job.started,
        "ended": job.ended,
        "attempts": job.attempts,
        "last_event": job.last_event,
        "reason": failed.reason.value if isinstance(failed, JobFailed) else None,
        "message": failed.message if failed else None,
    }


def _terms_of(fields: dict[str, object]) -> Terms:
    return Terms(**{**fields, "priority": Priority(str(fields["priority"]))})  # type: ignore[arg-type]


def _image_of(row: sqlite3.Row) -> ImageResult:
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


def _ending_of(row: sqlite3.Row) -> Completed | JobFailed | JobCancelled | None:
    match JobStatus(row["status"]):
        case JobStatus.COMPLETED:
            return Completed()
        case JobStatus.FAILED:
            return JobFailed(Reason(row["reason"]), row["message"])
        case JobStatus.CANCELLED:
            return JobCancelled(row["message"])
        case _:
            return None
