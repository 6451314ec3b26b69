"""Data folders that are damaged or that an earlier release wrote."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from sdstream.core.job import Completed, Job, JobStatus, Running, Terms
from sdstream.core.job_filter import JobFilter
from sdstream.core.pixels import Inputs
from sdstream.core.request import GenerationRequest
from sdstream.storage import job_rows
from sdstream.storage.job_store import JobStore
from sdstream.storage.ports import Row, StoreError
from sdstream.storage.sqlite import SqliteDatabase
from tests.support.stores import local_store

REQUEST = GenerationRequest("m", "a cat", "", 64, 64, 4, "euler", "default", 1.0, 7, 1)


def store_of(folder: Path) -> JobStore:
    """Create a store in which nothing expires."""
    return local_store(
        folder, ttl_seconds=1e9, max_bytes=2**30, min_free_bytes=0, clock=lambda: 1000.0
    )


def filled(folder: Path, count: int = 40) -> None:
    """Fill a folder with jobs. Every other job has ended, and job_1 has an Idempotency-Key."""

    async def fill() -> None:
        store = store_of(folder)
        store.open()
        for number in range(count):
            name = "mine" if number == 1 else None
            terms = Terms(owner="me", background=True, idempotency_key=name, fingerprint="f")
            job = Job(f"job_{number}", REQUEST, 1000.0 + number, terms)
            await store.add(job, Inputs())
            if number % 2:
                job.apply(Running(), 1000.0)
                job.status, job.ending, job.ended = JobStatus.COMPLETED, Completed(), 1001.0
                store.note_end(job)
        await store.close()

    asyncio.run(fill())


def no_header(path: Path) -> None:
    """Overwrite the first page."""
    path.write_bytes(b"garbage!" * 512 + path.read_bytes()[4096:])


def no_later_pages(path: Path) -> None:
    """Overwrite all pages except the first."""
    data = path.read_bytes()
    path.write_bytes(data[:4096] + b"\xa5" * (len(data) - 4096))


def cut_off(path: Path) -> None:
    """Remove the end of the file."""
    path.write_bytes(path.read_bytes()[:8192])


def empty(path: Path) -> None:
    """Empty the file, while images exist."""
    path.write_bytes(b"")
    (path.parent / "images" / "left.png").write_bytes(b"png")


def a_folder(path: Path) -> None:
    """Replace the file by a folder."""
    path.unlink()
    path.mkdir()


def no_column(path: Path) -> None:
    """Remove a column that the schema version requires."""
    with sqlite3.connect(path) as db:
        db.execute("ALTER TABLE jobs DROP COLUMN attempts")


def no_table(path: Path) -> None:
    """Remove a table that the schema version requires."""
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE deliveries")


DAMAGE = [no_header, no_later_pages, cut_off, empty, a_folder, no_column, no_table]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_damaged_database_is_told_in_a_sentence(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """The error is reported before any job is served and before any image is deleted."""
    filled(tmp_path)
    damage(tmp_path / "jobs.sqlite")
    images = sorted((tmp_path / "images").iterdir())
    with pytest.raises(StoreError) as caught:
        store_of(tmp_path).open()
    assert str(tmp_path) in str(caught.value) or "lacks" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted((tmp_path / "images").iterdir()) == images


def test_rows_of_an_earlier_release_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows without search columns are read in batches, each of which begins after the last."""
    filled(tmp_path, 5)
    with sqlite3.connect(tmp_path / "jobs.sqlite") as db:
        db.execute("UPDATE jobs SET folded_prompt = NULL WHERE number > 1")
    starts: list[object] = []
    read = SqliteDatabase.rows

    def rows(self: SqliteDatabase, statement: str, values: Mapping[str, object] = {}) -> list[Row]:
        if statement == self.statements.unsearchable:
            starts.append(values["after"])
        return [*read(self, statement, values)]

    monkeypatch.setattr(SqliteDatabase, "rows", rows)
    monkeypatch.setattr(job_rows, "_ROWS_AT_ONCE", 2)

    async def found() -> list[str]:
        store = store_of(tmp_path)
        store.open()
        await store.recover()
        page = await store.page("me", JobFilter(words=("CAT",)), limit=9, after=None)
        await store.close()
        return [job.id for job in page.jobs]

    assert asyncio.run(found()) == ["job_4", "job_3", "job_2", "job_1", "job_0"]
    assert starts == [0, 3, 5]


@pytest.mark.parametrize("name", ["lock", "secret", "images", "inputs"])
def test_a_file_where_a_folder_should_be_and_the_reverse(tmp_path: Path, name: str) -> None:
    """A file in place of a folder, or the reverse, is a one-line error."""
    filled(tmp_path, 1)
    path = tmp_path / name
    if path.is_dir():
        path.rmdir()
        path.write_text("")
    else:
        path.unlink()
        path.mkdir()
    with pytest.raises(StoreError, match="cannot be used"):
        store_of(tmp_path).open()


def test_a_damaged_log_of_writes_loses_what_it_had_at_most(tmp_path: Path) -> None:
    """SQLite ignores invalid frames of the log, and the rest of the database is readable."""
    filled(tmp_path)
    (tmp_path / "jobs.sqlite-wal").write_bytes(b"\x5a" * 9000)

    async def body(store: JobStore) -> None:
        assert await store.get("job_1") is not None

    with_store(tmp_path, body)


def with_store(folder: Path, body: Callable[[JobStore], object]) -> None:
    """Open a store, recover its jobs, run the body, and close the store."""

    async def run() -> None:
        store = store_of(folder)
        store.open()
        await store.recover()
        result = body(store)
        assert asyncio.iscoroutine(result)
        await result
        await store.close()

    asyncio.run(run())


CHANGES = {
    "status": "UPDATE jobs SET status = 'painting' WHERE id = 'job_0'",
    "reason": "UPDATE jobs SET status = 'failed', reason = 'boredom', ended = 5 WHERE id = 'job_0'",
    "request": "UPDATE jobs SET request = '{\"model\": ' WHERE id = 'job_0'",
    "request_kind": "UPDATE jobs SET request = '[]' WHERE id = 'job_0'",
    "terms": "UPDATE jobs SET terms = '{\"priority\": \"royal\"}' WHERE id = 'job_0'",
    "end": "UPDATE jobs SET status = 'completed' WHERE id = 'job_0'",
    "text": "UPDATE jobs SET request = CAST(x'ff00fe' AS TEXT) WHERE id = 'job_0'",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_row_that_cannot_be_read_is_set_aside(
    tmp_path: Path, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The other jobs are available, the log names the row once, and the row is kept."""
    filled(tmp_path)
    with sqlite3.connect(tmp_path / "jobs.sqlite") as db:
        db.execute(CHANGES[change])
    (tmp_path / "inputs" / "job_0").write_bytes(b"pictures")
    unfinished = change != "reason"

    async def body(store: JobStore) -> None:
        assert await store.get("job_0") is None
        assert (await store.get("job_2")) is not None
        page = await store.page("me", JobFilter(), limit=39, after=None)
        assert ([job.id for job in page.jobs][-1], len(page.jobs), page.more) == (
            "job_1",
            39,
            False,
        )

    with caplog.at_level(logging.WARNING):
        with_store(tmp_path, body)
    told = [record.message for record in caplog.records if "job_0" in record.message]
    assert len(told) == 1
    assert "set aside" in told[0]
    assert (tmp_path / "inputs" / "job_0").exists() == unfinished
    with sqlite3.connect(tmp_path / "jobs.sqlite") as db:
        assert db.execute("SELECT count(*) FROM jobs WHERE id = 'job_0'").fetchone() == (1,)


def test_the_name_of_a_row_that_cannot_be_read_is_free(tmp_path: Path) -> None:
    """The Idempotency-Key of an unreadable row can be used for a new job."""
    filled(tmp_path)
    with sqlite3.connect(tmp_path / "jobs.sqlite") as db:
        db.execute("UPDATE jobs SET status = 'painting' WHERE id = 'job_1'")

    async def body(store: JobStore) -> None:
        assert await store.job_by_idempotency_key("me", "mine") is None
        terms = Terms(owner="me", background=True, idempotency_key="mine", fingerprint="f")
        await store.add(Job("job_new", REQUEST, 1.0, terms), Inputs())
        found = await store.job_by_idempotency_key("me", "mine")
        assert found is not None
        assert found.id == "job_new"

    with_store(tmp_path, body)
