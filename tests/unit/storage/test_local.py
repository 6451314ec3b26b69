"""SQLite and an image folder: full disks, missing folders, permissions, and earlier releases."""

from __future__ import annotations

import asyncio
import hashlib
import os
import resource
import shutil
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest

from sdstream.core.errors import StorageFull, Unavailable
from sdstream.core.job import Completed, ImageReady, ImageResult, JobStatus, Terms
from sdstream.core.job_filter import JobFilter
from sdstream.core.pixels import Inputs, Pixels
from sdstream.storage.job_store import JobStore
from sdstream.storage.ports import Row, StoreError
from sdstream.storage.sqlite import SqliteDatabase
from tests.support.stores import (
    Clock,
    LocalPlace,
    added,
    done,
    end,
    local_store,
    opened,
    run,
    started,
)


def test_a_full_disk_takes_no_job(tmp_path: Path, clock: Clock) -> None:
    """A job is rejected if the free space is too small or the database full; ended jobs stay."""

    async def body(store: JobStore) -> None:
        await done(store, clock, "before")
        database = cast(SqliteDatabase, store._db)
        (page,) = database.rows("PRAGMA page_count")
        database.rows(f"PRAGMA max_page_count = {page['page_count']}")

        async def fill() -> None:
            for number in range(200):
                await added(store, clock, f"job_{number}")

        with pytest.raises(StorageFull):
            await fill()
        assert await store.get("before") is not None

    run(LocalPlace(tmp_path / "a"), clock, body)

    async def refusing(store: JobStore) -> None:
        with pytest.raises(StorageFull):
            await added(store, clock, "job", inputs=Inputs(Pixels(1, 1, b"abc")))
        assert list((tmp_path / "b" / "inputs").iterdir()) == []

    run(LocalPlace(tmp_path / "b"), clock, refusing, min_free_bytes=2**60)


def test_a_full_disk_delays_and_loses_nothing(tmp_path: Path, clock: Clock) -> None:
    """Changes are written in order once there is room; until then, stale data is never served."""
    terms = Terms(background=True, owner="me", webhook_url="http://h.example/")

    async def body(store: JobStore) -> None:
        old = await done(store, clock, "old", terms=terms)
        running = await started(store, clock, "running", terms)
        client = await started(store, clock, "client", Terms(owner="me"))
        with full():
            image = ImageResult(0, 7, b"x", 1, 4, 1.0, 2.0, 3.0, store.put(b"x", "png"))
            running.apply(ImageReady(image), clock())
            store.note_image(running, image)
            end(store, clock, running, Completed())
            end(store, clock, client, Completed())
            await store.written(client)  # its client already has the image
            for told in (
                store.settled(running),
                store.get("running"),
                store.page("me", JobFilter(), limit=9, after=None),
                store.job_by_idempotency_key("me", "key"),
                store.delete("old"),
                store.deliveries(9),
                added(store, clock, "new"),
            ):
                with pytest.raises(StorageFull):
                    await told
            assert isinstance(await store.fault(), StorageFull)
            assert not store.is_written("running")
            assert await store.image(str(old.images[0].id)) == (b"png", "png")
            assert await store.get("old") is not None
        await asyncio.wait_for(store.written(running), 10)
        assert [d.id for d in await store.deliveries(9)] == ["msg_old", "msg_running"]
        assert await store.fault() is None
        known = await store.get("running")
        assert known is not None
        assert (known.status, list(known.images)) == (JobStatus.COMPLETED, [0])
        assert await store.get("new") is None
        await store.delete("old")
        assert await store.get("old") is None

    run(LocalPlace(tmp_path), clock, body, max_bytes=10_000)


def test_what_waits_is_written_at_the_end(tmp_path: Path, clock: Clock) -> None:
    """Unwritten changes are tried once more when the server stops."""

    async def first() -> None:
        async with opened(LocalPlace(tmp_path), clock) as store:
            job = await started(store, clock, "job", Terms())
            with full():
                end(store, clock, job, Completed())
                await store.written(job)
                assert not store.is_written("job")

    async def second(store: JobStore) -> None:
        job = await store.get("job")
        assert job is not None
        assert job.ended is not None

    asyncio.run(first())
    run(LocalPlace(tmp_path), clock, second)


@pytest.mark.parametrize("again", [False, True])
def test_a_folder_that_is_gone(tmp_path: Path, clock: Clock, again: bool) -> None:
    """The store reports the missing or replaced folder, as SQLite would write to the old one."""
    folder = tmp_path / "data"

    async def body(store: JobStore) -> None:
        job = await started(store, clock, "job", Terms())
        folder.rename(tmp_path / "elsewhere")
        if again:
            shutil.copytree(tmp_path / "elsewhere", folder)
        end(store, clock, job, Completed())
        with pytest.raises(Unavailable):
            await added(store, clock, "other")
        assert isinstance(await store.fault(), Unavailable)
        shutil.rmtree(folder, ignore_errors=True)
        (tmp_path / "elsewhere").rename(folder)

    run(LocalPlace(folder), clock, body)


@contextmanager
def full() -> Iterator[None]:
    """Limit files of this process to one page, as on a full disk."""
    usual, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (usual, most))


def test_nobody_else_reads_a_data_folder(tmp_path: Path, clock: Clock) -> None:
    """Only the server's user can read its folders and files, including existing ones."""
    folder = tmp_path / "data"
    inputs = Inputs(Pixels(2, 1, b"abcdef"))

    async def first(store: JobStore) -> None:
        await done(store, clock, "job")
        await added(store, clock, "waiting", inputs=inputs)

    async def second(store: JobStore) -> None:
        job = await done(store, clock, "another")
        await store.written(job)
        assert _modes(folder) == {"folder": {0o700}, "file": {0o600}}

    before = os.umask(0o022)
    try:
        run(LocalPlace(folder), clock, first)
        assert _modes(folder) == {"folder": {0o700}, "file": {0o600}}
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        run(LocalPlace(folder), clock, second)
        (folder / "notes").write_text("somebody else's")
        (folder / "notes").chmod(0o755)
        asyncio.run(only_opened(folder, clock))
        assert (folder / "notes").stat().st_mode & 0o777 == 0o755
    finally:
        os.umask(before)


async def only_opened(folder: Path, clock: Clock) -> None:
    """Open and close a store."""
    async with opened(LocalPlace(folder), clock):
        pass


def _modes(folder: Path) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {"folder": set(), "file": set()}
    for path in {folder, *folder.rglob("*")} - {folder / "notes"}:
        found["folder" if path.is_dir() else "file"].add(path.stat().st_mode & 0o777)
    return found


def test_owners_of_old_jobs_are_sealed(tmp_path: Path, clock: Clock) -> None:
    """Key digests of an earlier release are replaced, and the jobs keep their owners."""
    digest = hashlib.sha256(b"key-a").hexdigest()[:32]
    script = (Path(__file__).parents[2] / "golden" / "jobs_v1.sql").read_text()
    mine = script.replace("'job_1',''", f"'job_1','{digest}'")
    with sqlite3.connect(tmp_path / "jobs.sqlite") as old:
        old.executescript(mine.replace('"owner": ""', f'"owner": "{digest}"'))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "image_1.png").write_bytes(b"png")

    async def body(store: JobStore) -> None:
        owner = store.owner_of(digest)
        page = await store.page(owner, JobFilter(), limit=9, after=None)
        assert [(job.id, job.terms.owner) for job in page.jobs] == [("job_1", owner)]
        assert store.owner_of("") == ""

    run(LocalPlace(tmp_path), clock, body)
    run(LocalPlace(tmp_path), clock, body)
    kept = b"".join(path.read_bytes() for path in tmp_path.glob("jobs.sqlite*"))
    assert digest.encode() not in kept


def test_a_secret_that_is_damaged(tmp_path: Path, clock: Clock) -> None:
    """A damaged secret is an error, as a new one would separate every job from its owner."""
    (tmp_path / "secret").write_bytes(b"short")
    store = local_store(tmp_path, ttl_seconds=1, max_bytes=1, min_free_bytes=0, clock=clock)
    with pytest.raises(StoreError, match="damaged"):
        store.open()


def test_one_folder_has_one_server(tmp_path: Path, clock: Clock) -> None:
    """A second server on the same folder gets an error with the remedy."""

    async def body(_store: JobStore) -> None:
        with pytest.raises(StoreError, match=r"in use by another server.*--data-dir"):
            async with opened(LocalPlace(tmp_path), clock):
                pass

    run(LocalPlace(tmp_path), clock, body)


def test_folders_that_cannot_be_used(tmp_path: Path, clock: Clock) -> None:
    """A file, an invalid database and one of a later release are rejected."""
    (tmp_path / "file").write_text("")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "jobs.sqlite").write_bytes(b"no database" * 100)
    (tmp_path / "later").mkdir()
    with sqlite3.connect(tmp_path / "later" / "jobs.sqlite") as later:
        later.execute("PRAGMA user_version = 99")
    for name, words in (("file", "cannot be used"), ("broken", "cannot"), ("later", "newer")):
        limits = {"ttl_seconds": 1, "max_bytes": 1, "min_free_bytes": 0}
        store = local_store(tmp_path / name, clock=clock, **limits)
        with pytest.raises(StoreError, match=words):
            store.open()


def test_the_first_schema_is_still_read(tmp_path: Path, clock: Clock) -> None:
    """A database of schema version 1 is migrated, and its jobs can be read."""
    (tmp_path / "images").mkdir(parents=True)
    script = (Path(__file__).parents[2] / "golden" / "jobs_v1.sql").read_text()
    with sqlite3.connect(tmp_path / "jobs.sqlite") as old:
        old.executescript(script)
    (tmp_path / "images" / "image_1.png").write_bytes(b"png")

    async def body(store: JobStore) -> None:
        job = await store.get("job_1")
        assert job is not None
        assert job.status is JobStatus.COMPLETED
        assert job.request.prompt == "a red circle"
        assert await store.image("image_1") == (b"png", "png")
        which = JobFilter(words=("RED",), model=job.request.model)
        page = await store.page(job.terms.owner, which, limit=1, after=None)
        assert [found.id for found in page.jobs] == ["job_1"]

    run(LocalPlace(tmp_path), clock, body)


def test_the_size_of_a_job_is_queried_once(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The size of a job is queried only when it is deleted to make room."""
    queried: list[object] = []
    rows = SqliteDatabase.rows

    def counted(
        self: SqliteDatabase, statement: str, values: Mapping[str, object] = {}
    ) -> Sequence[Row]:
        if statement == self.statements.job_bytes:
            queried.append(values["id"])
        return rows(self, statement, values)

    monkeypatch.setattr(SqliteDatabase, "rows", counted)

    async def body(store: JobStore) -> None:
        for number in range(4):
            await done(store, clock, f"job_{number}", b"x" * 400)
        await store.expire()
        assert await store.get("job_1") is None
        assert await store.get("job_2") is not None
        assert queried == ["job_0", "job_1"]

    run(LocalPlace(tmp_path), clock, body)
