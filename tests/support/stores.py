"""Job stores for tests, with each kind of database and image store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Protocol

from sdstream.core.job import (
    Completed,
    ImageReady,
    ImageResult,
    Job,
    JobEvent,
    Queued,
    Running,
    Terms,
)
from sdstream.core.pixels import Inputs
from sdstream.core.request import GenerationRequest
from sdstream.service.webhooks import delivery_of
from sdstream.storage.files import ImageFolder
from sdstream.storage.job_store import JobStore
from sdstream.storage.ports import Database, ImageStore
from sdstream.storage.postgres import PostgresDatabase
from sdstream.storage.s3 import ImageBucket
from sdstream.storage.sqlite import SqliteDatabase
from tests.support.s3 import S3

REQUEST: Final = GenerationRequest(
    "m", "a red circle", "", 64, 32, 4, "euler", "default", 1.0, 2**62, 1,
    warnings=("careful",),
)  # fmt: skip
BACKGROUND: Final = Terms(background=True)
NOTHING: Final = Inputs()


#: Returns a fixture by its name.
Given = Callable[[str], Any]


class Place(Protocol):
    """The place where a service keeps its jobs and images between runs of its server."""

    def database(self) -> Database:
        """Return the database, not open."""

    def images(self) -> ImageStore:
        """Return the image store, not open."""

    def files(self, part: str) -> list[str]:
        """Return the names of the files in ``images``, ``uploads`` or ``inputs``, sorted."""

    def write(self, part: str, name: str, data: bytes) -> None:
        """Write a file that no row of the database names."""


class LocalPlace:
    """SQLite and a folder.

    Args:
        folder: Folder for the database and the images.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def database(self) -> Database:
        """Return SQLite."""
        return SqliteDatabase(self.folder)

    def images(self) -> ImageStore:
        """Return the folder."""
        return ImageFolder(self.folder)

    def files(self, part: str) -> list[str]:
        """Return the names of files."""
        top = self.folder / part
        return sorted(str(path.relative_to(top)) for path in top.rglob("*") if path.is_file())

    def write(self, part: str, name: str, data: bytes) -> None:
        """Write a file."""
        path = self.folder / part / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)


class PostgresPlace(LocalPlace):
    """PostgreSQL and a folder.

    Args:
        folder: Folder of the images.
        url: Address of the database.
    """

    def __init__(self, folder: Path, url: str) -> None:
        super().__init__(folder)
        self.url = url

    def database(self) -> Database:
        """Return PostgreSQL."""
        return PostgresDatabase(self.url)


class BucketPlace(LocalPlace):
    """SQLite and a bucket.

    Args:
        folder: Folder of the database.
        server: The server that has the bucket.
    """

    def __init__(self, folder: Path, server: S3) -> None:
        super().__init__(folder)
        self.server = server
        self.bucket = server.new()

    def images(self) -> ImageStore:
        """Return the bucket, below a prefix."""
        return ImageBucket(f"s3://{self.bucket}/some/prefix")

    def files(self, part: str) -> list[str]:
        """Return the names of objects."""
        start = f"some/prefix/{part}/"
        client = self.server.client()
        found = client.list_objects_v2(Bucket=self.bucket, Prefix=start)
        client.close()
        return sorted(item["Key"].removeprefix(start) for item in found.get("Contents", ()))

    def write(self, part: str, name: str, data: bytes) -> None:
        """Write an object."""
        client = self.server.client()
        client.put_object(Bucket=self.bucket, Key=f"some/prefix/{part}/{name}", Body=data)
        client.close()


#: Name of each tested combination -> a function that makes a new place from a folder and fixtures.
PLACES: Final[dict[str, Callable[[Path, Given], Place]]] = {
    "sqlite-folder": lambda folder, _: LocalPlace(folder),
    "postgres-folder": lambda folder, given: PostgresPlace(folder, given("postgres").new()),
    "sqlite-s3": lambda folder, given: BucketPlace(folder, given("s3")),
}


def store_at(place: Place, **settings: Any) -> JobStore:
    """Return the job store of a place, not open."""
    return JobStore(place.database(), place.images(), **settings)


def local_store(folder: Path, **settings: Any) -> JobStore:
    """Return a job store with SQLite and a folder, not open."""
    return store_at(LocalPlace(folder), **settings)


class Clock:
    """A clock of Unix seconds that changes only when a test sets it."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def opened(place: Place, clock: Clock, **changes: Any) -> AsyncIterator[JobStore]:
    """Open a store whose jobs expire after 60 seconds and may take 1,000 bytes."""
    limits = {"ttl_seconds": 60, "max_bytes": 1000, "min_free_bytes": 0, **changes}
    store = store_at(place, clock=clock, delivery_of=delivery_of, **limits)
    try:
        store.open()
        yield store
    finally:
        await store.close()


async def added(
    store: JobStore, clock: Clock, name: str, terms: Terms = BACKGROUND, inputs: Inputs = NOTHING
) -> Job:
    """Add a job to the store, which is then queued."""
    job = Job(name, REQUEST, clock(), terms)
    await store.add(job, inputs)
    job.apply(Queued(0), clock())
    return job


async def started(store: JobStore, clock: Clock, name: str, terms: Terms = BACKGROUND) -> Job:
    """Add a job that is running."""
    job = await added(store, clock, name, terms)
    job.apply(Running(), clock())
    await store.update(job)
    return job


async def done(
    store: JobStore, clock: Clock, name: str, data: bytes = b"png", terms: Terms = BACKGROUND
) -> Job:
    """Add a job that is completed and has an image."""
    job = await started(store, clock, name, terms)
    image = ImageResult(0, 7, data, len(data), 4, 1.0, 2.0, 3.0, store.put(data, "png"))
    job.apply(ImageReady(image), clock())
    store.note_image(job, image)
    end(store, clock, job, Completed())
    return job


def end(store: JobStore, clock: Clock, job: Job, ending: JobEvent) -> None:
    """End a job."""
    assert job.apply(ending, clock())
    store.note_end(job)


def run(
    place: Place, clock: Clock, body: Callable[[JobStore], Awaitable[None]], **changes: Any
) -> None:
    """Act as one run of a server: recover the store, then run the test's body."""

    async def life() -> None:
        async with opened(place, clock, **changes) as store:
            await store.recover()
            await body(store)

    asyncio.run(life())
