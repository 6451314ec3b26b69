"""PostgreSQL: losing the session, regaining it, and losing the rows to another server."""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

from sdstream.core.errors import ImageServiceError, StorageFull, Unavailable
from sdstream.core.job import Job, JobCancelled, JobStatus, Terms
from sdstream.core.job_filter import JobFilter
from sdstream.storage.job_store import JobStore
from sdstream.storage.migrations import MIGRATIONS
from sdstream.storage.ports import StoreError, StoreInUse
from sdstream.storage.postgres import PostgresDatabase
from tests.support.postgres import Postgres
from tests.support.stores import (
    BACKGROUND,
    REQUEST,
    Clock,
    PostgresPlace,
    added,
    done,
    end,
    opened,
    run,
    started,
    store_at,
)

FOREGROUND = Terms(owner="me")


@pytest.fixture
def place(postgres: Postgres, tmp_path: Path) -> PostgresPlace:
    """An empty database and folder."""
    return PostgresPlace(tmp_path, postgres.new())


async def open_when_free(store: JobStore) -> None:
    """Open a store as soon as PostgreSQL has ended the session that held the lock."""
    async with asyncio.timeout(60):
        while not store.is_open:
            with suppress(StoreInUse):
                store.open()
            await asyncio.sleep(0.05)


async def wait_for_fault(store: JobStore) -> None:
    """Wait until the store has noticed that it cannot write."""
    async with asyncio.timeout(20):
        while not isinstance(await store.fault(), Unavailable):
            await asyncio.sleep(0.01)


def generation(postgres: Postgres, place: PostgresPlace) -> int:
    """Return how often a server has taken the rows."""
    ((number,),) = postgres.run(place.url, "SELECT generation FROM service")
    return int(number)


def test_a_lost_session_is_regained(postgres: Postgres, place: PostgresPlace, clock: Clock) -> None:
    """Unwritten changes are written in order by a new session that holds the lock again."""

    async def body(store: JobStore) -> None:
        job = await started(store, clock, "job_1")
        client = await started(store, clock, "job_2", FOREGROUND)
        first = postgres.terminate_lock(place.url)
        for one in (job, client):
            end(store, clock, one, JobCancelled("Enough."))
            assert not store.is_written(one.id)
            # Until it is written, another server could take over and give the job another end.
            await asyncio.wait_for(store.written(one), 20)
        assert await store.fault() is None
        assert store.lost is None
        assert postgres.lock_holder(place.url) not in (None, first)
        for name in ("job_1", "job_2"):
            known = await store.get(name)
            assert known is not None
            assert known.status is JobStatus.CANCELLED

    run(place, clock, body)
    assert generation(postgres, place) == 1


def test_another_server_took_over(postgres: Postgres, place: PostgresPlace, clock: Clock) -> None:
    """The first server no longer writes, and reports that another server took over."""

    async def body() -> None:
        async with opened(place, clock) as first:
            job = await started(first, clock, "job_1")
            store = store_at(place, ttl_seconds=60, max_bytes=1000, min_free_bytes=0, clock=clock)
            with pytest.raises(StoreInUse, match="--standby"):
                store.open()
            postgres.terminate_lock(place.url)
            await open_when_free(store)
            (again,) = await store.recover()
            assert (again.id, again.attempts) == ("job_1", 1)
            end(first, clock, job, JobCancelled("Enough."))
            with pytest.raises(ImageServiceError):
                await added(first, clock, "job_2")
            async with asyncio.timeout(20):
                while first.lost is None:
                    assert isinstance(await first.fault(), Unavailable)
                    await asyncio.sleep(0.1)
            assert "took over" in str(first.lost)
            assert not first.is_written("job_1")
            known = await store.get("job_1")
            assert known is not None
            assert known.status is JobStatus.QUEUED
            assert await store.get("job_2") is None
            await store.close()
        assert generation(postgres, place) == 2
        assert postgres.run(place.url, "SELECT id, status FROM jobs") == [("job_1", "queued")]

    asyncio.run(body())


def test_postgres_restarts(postgres: Postgres, place: PostgresPlace, clock: Clock) -> None:
    """Requests get an error during the restart, and no change is lost."""

    async def body(store: JobStore) -> None:
        job = await started(store, clock, "job_1")
        await asyncio.to_thread(postgres.stop, signal.SIGQUIT)
        end(store, clock, job, JobCancelled("Enough."))
        await wait_for_fault(store)
        for asked in (
            store.get("job_1"),
            store.page("me", JobFilter(), limit=1, after=None),
            store.image("nobody"),
            added(store, clock, "job_2"),
        ):
            with pytest.raises(Unavailable):
                await asked
        waiting = asyncio.create_task(store.inputs(Job("job_1", REQUEST, 0.0, BACKGROUND)))
        await asyncio.sleep(0.1)
        assert not waiting.done()  # the job waits until this server holds the rows again
        await asyncio.to_thread(postgres.start)
        await asyncio.wait_for(store.written(job), 30)
        await asyncio.wait_for(waiting, 30)
        known = await store.get("job_1")
        assert known is not None
        assert known.status is JobStatus.CANCELLED
        assert await store.get("job_2") is None

    try:
        run(place, clock, body)
    finally:
        postgres.stop()
        postgres.start()


def test_a_full_disk_cuts_nobody_off(
    place: PostgresPlace, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk, the server keeps its rows, and they can still be read."""

    def full(_database: PostgresDatabase, *_changes: object) -> None:
        raise psycopg.errors.DiskFull("no space left on device")

    async def body(store: JobStore) -> None:
        await store.written(await done(store, clock, "job_1"))
        with monkeypatch.context() as patch:
            patch.setattr(PostgresDatabase, "change", full)
            with pytest.raises(StorageFull):
                await added(store, clock, "job_2")
            assert store.cut_off is None
            assert await store.get("job_1") is not None

    run(place, clock, body)


def test_a_commit_without_a_confirmation(
    place: PostgresPlace, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job rejected because its commit was unconfirmed is removed again."""
    change = PostgresDatabase.change

    def unconfirmed(database: PostgresDatabase, *changes: object) -> None:
        change(database, *changes)  # type: ignore[arg-type]
        raise psycopg.OperationalError("the connection is lost")

    async def body(store: JobStore) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(PostgresDatabase, "change", unconfirmed)
            with pytest.raises(Unavailable):
                await added(store, clock, "job_1", Terms(owner="me", idempotency_key="mine"))
        async with asyncio.timeout(20):
            while await store.fault() is not None:
                await asyncio.sleep(0.05)
        assert await store.get("job_1") is None
        assert await store.job_by_idempotency_key("me", "mine") is None

    run(place, clock, body)


def test_an_image_is_written_twice(place: PostgresPlace, clock: Clock) -> None:
    """Writing a committed image again changes nothing."""

    async def body(store: JobStore) -> None:
        job = await done(store, clock, "job_1")
        store.note_image(job, job.images[0])
        store.note_end(job)
        await asyncio.wait_for(store.written(job), 20)
        known = await store.get("job_1")
        assert known is not None
        assert list(known.images) == [0]

    run(place, clock, body)


def test_a_silent_server_loses_the_lock(place: PostgresPlace, clock: Clock) -> None:
    """PostgreSQL ends the session of a server that is silent, for example stopped."""
    silent = PostgresDatabase(place.url, idle_seconds=1)
    place.images().open()
    silent.open(place.images())

    async def other() -> None:
        store = store_at(place, ttl_seconds=60, max_bytes=1000, min_free_bytes=0, clock=clock)
        await open_when_free(store)
        await store.close()

    asyncio.run(other())
    with pytest.raises((psycopg.Error, ConnectionError)):
        silent.touch()
    with pytest.raises(ConnectionError, match="took over"):
        silent.check()


def test_a_pooler_is_noticed(place: PostgresPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pooler is rejected, as it would share a session and its lock between servers."""
    monkeypatch.setattr(psycopg.ConnectionInfo, "backend_pid", property(lambda _: 1))
    with pytest.raises(StoreError, match="pooler"):
        PostgresDatabase(place.url).open(place.images())


def test_a_new_database_beside_old_images(place: PostgresPlace) -> None:
    """A new database with existing images is rejected, as a start would delete the images."""
    images = place.images()
    images.open()
    images.put(b"png", "png")
    with pytest.raises(StoreError, match="is new but the image store is not empty"):
        PostgresDatabase(place.url).open(images)
    assert len(place.files("images")) == 1


def test_rows_of_an_earlier_release_are_found(
    postgres: Postgres, place: PostgresPlace, clock: Clock
) -> None:
    """Rows of version 4 get the search columns; a damaged request is not found."""

    async def first(store: JobStore) -> None:
        for number in range(3):
            await added(store, clock, f"job_{number}", FOREGROUND)

    async def second(store: JobStore) -> None:
        which = JobFilter(words=("RED",), model="m")
        page = await store.page("me", which, limit=9, after=None)
        assert [job.id for job in page.jobs] == ["job_2", "job_0"]

    run(place, clock, first)
    for statement in (
        "ALTER TABLE jobs DROP COLUMN model, DROP COLUMN folded_prompt",
        "UPDATE service SET version = 4",
        "UPDATE jobs SET request = '{\"prompt\": \"red' WHERE id = 'job_1'",
    ):
        postgres.run(place.url, statement)
    run(place, clock, second)


def test_a_newer_release(postgres: Postgres, place: PostgresPlace, clock: Clock) -> None:
    """A database of a newer release is rejected."""

    async def body(_store: JobStore) -> None:
        pass

    run(place, clock, body)
    postgres.run(place.url, f"UPDATE service SET version = {len(MIGRATIONS) + 1}")
    with pytest.raises(StoreError, match="newer release"):
        PostgresDatabase(place.url).open(place.images())


@pytest.mark.parametrize(
    ("url", "words", "code"),
    [
        ("postgresql://me:hush@127.0.0.1:1/jobs", "127.0.0.1/jobs cannot be used", 1),
        ("postgresql://me:hush@127.0.0.1:1/jobs?colour=red", "is not a valid address", 78),
    ],
)
def test_addresses_that_lead_nowhere(tmp_path: Path, url: str, words: str, code: int) -> None:
    """The error is one line without the password; its exit code shows if a retry may help."""
    images = PostgresPlace(tmp_path, url).images()
    with pytest.raises(StoreError, match=words) as caught:
        PostgresDatabase(url).open(images)
    assert caught.value.exit_code == code
    assert "hush" not in str(caught.value)
    assert "\n" not in str(caught.value)
