"""Jobs and images on disk: restarts, age, bytes, orphans, migrations."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import os
import resource
import shutil
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from sdstream.core.errors import Reason, StorageFull, Unavailable
from sdstream.core.job import (
    Completed,
    ImageReady,
    ImageResult,
    Job,
    JobCancelled,
    JobEvent,
    JobFailed,
    JobStatus,
    Queued,
    Requeued,
    Running,
    Terms,
)
from sdstream.core.pixels import Inputs, Pixels
from sdstream.core.queue import Priority
from sdstream.core.request import GenerationRequest
from sdstream.service.webhooks import delivery_of
from sdstream.storage.job_store import JobStore
from sdstream.storage.schema import StoreError

Body = Callable[[JobStore], Awaitable[None]]

REQUEST = GenerationRequest(
    "m", "a red circle", "", 64, 32, 4, "euler", "default", 1.0, 2**62, 1,
    warnings=("careful",),
)  # fmt: skip
BACKGROUND = Terms(background=True)
NOTHING = Inputs()


class Clock:
    """Unix seconds that stand still until moved."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """A clock of this test."""
    return Clock()


@asynccontextmanager
async def opened(folder: Path, clock: Clock, **changes: Any) -> AsyncIterator[JobStore]:
    """A store whose jobs live for 60 seconds and have room for 1,000 bytes."""
    limits = {"ttl_seconds": 60, "max_bytes": 1000, "min_free_bytes": 0, **changes}
    store = JobStore(folder, clock=clock, delivery_of=delivery_of, **limits)
    store.open()
    try:
        yield store
    finally:
        await store.close()


async def added(
    store: JobStore, clock: Clock, name: str, terms: Terms = BACKGROUND, inputs: Inputs = NOTHING
) -> Job:
    """A job that was accepted."""
    job = Job(name, REQUEST, clock(), terms)
    await store.add(job, inputs)
    job.apply(Queued(0), clock())
    return job


async def started(store: JobStore, clock: Clock, name: str, terms: Terms = BACKGROUND) -> Job:
    """A job that the runtime has."""
    job = await added(store, clock, name, terms)
    job.apply(Running(), clock())
    await store.update(job)
    return job


async def done(
    store: JobStore, clock: Clock, name: str, data: bytes = b"png", terms: Terms = BACKGROUND
) -> Job:
    """A job that has its image."""
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


def files(folder: Path) -> list[str]:
    """What lies in the folder of images."""
    return sorted(path.name for path in (folder / "images").iterdir())


def run(folder: Path, clock: Clock, body: Body, **changes: Any) -> None:
    """One life of a server: recover, then do what the test does."""

    async def life() -> None:
        async with opened(folder, clock, **changes) as store:
            await store.recover()
            await body(store)

    asyncio.run(life())


def test_an_ended_job_comes_back_whole(tmp_path: Path, clock: Clock) -> None:
    """After a restart a completed job has every value it had, and its image's bytes."""
    terms = Terms(
        "edit", "me", Priority.LOW, True, True, False, False, "key", "print", "https://x.example"
    )
    kept: list[Job] = []

    async def first(store: JobStore) -> None:
        kept.append(await done(store, clock, "job_1", b"the picture", terms))

    async def second(store: JobStore) -> None:
        job = await store.get("job_1")
        assert job is not None
        before = kept[0]
        assert (job.request, job.terms, job.status) == (REQUEST, terms, JobStatus.COMPLETED)
        assert (job.created, job.started, job.ended) == (clock(), clock(), clock())
        assert (job.attempts, job.last_event) == (1, before.last_event)
        assert job.usage() == before.usage()
        assert job.images == {0: dataclasses.replace(before.images[0], data=None)}
        whole = await store.with_files(job)
        assert whole.images[0].content == b"the picture"
        assert await store.image(str(whole.images[0].id)) == (b"the picture", "png")
        named = await store.job_by_idempotency_key("me", "key")
        assert named is not None
        assert named.id == "job_1"
        assert await store.job_by_idempotency_key("you", "key") is None

    run(tmp_path, clock, first)
    run(tmp_path, clock, second)


@pytest.mark.parametrize(
    "ending", [JobFailed(Reason.WORKER_CRASHED, "It died."), JobCancelled("Enough.")]
)
def test_failures_come_back_too(tmp_path: Path, clock: Clock, ending: JobEvent) -> None:
    """With their reason and sentence."""

    async def first(store: JobStore) -> None:
        end(store, clock, await started(store, clock, "job_1"), ending)

    async def second(store: JobStore) -> None:
        job = await store.get("job_1")
        assert job is not None
        assert job.ending == ending

    run(tmp_path, clock, first)
    run(tmp_path, clock, second)


def test_what_the_next_life_does_with_unfinished_jobs(tmp_path: Path, clock: Clock) -> None:
    """Background jobs are done again, in their order, unless they ran twice already; others end."""
    inputs = Inputs(Pixels(2, 1, b"abcdef"), Pixels(2, 1, b"gh"))

    async def first(store: JobStore) -> None:
        await added(store, clock, "waiting", inputs=inputs)
        await started(store, clock, "running")
        await started(store, clock, "with a client", Terms())
        again = await started(store, clock, "fatal")
        again.apply(Requeued(), clock())
        again.apply(Running(), clock())
        await store.update(again)
        patient = await started(store, clock, "laid aside")
        patient.apply(Requeued(counts=False), clock())
        await store.update(patient)

    async def second(store: JobStore) -> None:
        for name in ("with a client", "fatal"):
            job = await store.get(name)
            assert job is not None
            assert isinstance(job.ending, JobFailed)
            assert job.ending.reason is Reason.INTERRUPTED
            # Beyond whatever a reader has seen: it is still to be told.
            assert job.last_event > 1_000_000

    run(tmp_path, clock, first)

    async def third() -> None:
        async with opened(tmp_path, clock) as store:
            jobs = await store.recover()
            assert [job.id for job in jobs] == ["waiting", "running", "laid aside"]
            assert [job.attempts for job in jobs] == [0, 1, 0]
            assert {job.status for job in jobs} == {JobStatus.QUEUED}
            # Numbers of events only grow, also from life to life.
            assert [job.first_event >= 1_000_000 for job in jobs] == [True] * 3
            assert await store.inputs(jobs[0]) == inputs
            assert await store.inputs(jobs[1]) == Inputs()
            await second(store)

    asyncio.run(third())


def test_a_finished_image_of_an_unfinished_job_is_kept(tmp_path: Path, clock: Clock) -> None:
    """The second try begins after it."""

    async def first(store: JobStore) -> None:
        job = await started(store, clock, "job_1")
        image = ImageResult(0, 7, b"x", 1, 4, 1.0, 2.0, 3.0, store.put(b"x", "png"))
        store.note_image(job, image)

    run(tmp_path, clock, first)

    async def second() -> None:
        async with opened(tmp_path, clock) as store:
            (job,) = await store.recover()
            assert list(job.images) == [0]

    asyncio.run(second())


def test_pictures_that_are_gone_are_missed(tmp_path: Path, clock: Clock) -> None:
    """A job that came with some is not drawn from nothing."""

    async def body(store: JobStore) -> None:
        edit = await added(store, clock, "edit", inputs=Inputs(Pixels(2, 1, b"abcdef")))
        plain = await added(store, clock, "plain")
        (tmp_path / "inputs" / "edit").unlink()
        assert await store.inputs(plain) == NOTHING
        with pytest.raises(FileNotFoundError):
            await store.inputs(edit)

    run(tmp_path, clock, body)


def test_jobs_expire(tmp_path: Path, clock: Clock) -> None:
    """Some time after their end, with their files; what has not ended stays."""

    async def body(store: JobStore) -> None:
        old = await done(store, clock, "old")
        await started(store, clock, "endless")
        clock.now += 50
        await done(store, clock, "young")
        clock.now += 20
        await store.expire()
        assert await store.get("old") is None
        assert await store.image(str(old.images[0].id)) is None
        assert await store.get("young") is not None
        assert await store.get("endless") is not None
        assert len(files(tmp_path)) == 1

    run(tmp_path, clock, body)


@pytest.mark.parametrize("jump", [-259_200, 259_200])
def test_a_clock_that_was_set_expires_nothing(tmp_path: Path, clock: Clock, jump: float) -> None:
    """Jobs are accepted by a clock three days off: they live as long as others, in their order."""

    async def body(store: JobStore) -> None:
        other = Clock()
        other.now = clock.now
        await done(store, other, "before", b"x" * 400)
        other.now += jump
        await done(store, other, "after", b"x" * 400)
        await store.expire()
        clock.now += 50
        await store.expire()
        assert await store.get("before") is not None
        assert await store.get("after") is not None
        await done(store, clock, "last", b"x" * 400)
        await store.expire()
        assert await store.get("before") is None  # made room
        assert await store.get("after") is not None
        clock.now += 20
        await store.expire()
        assert await store.get("after") is None
        assert await store.get("last") is not None

    run(tmp_path, clock, body)


def test_ends_that_an_earlier_life_had_in_the_future_expire(tmp_path: Path, clock: Clock) -> None:
    """Once the clock has been put right, they live as long as a job that ended at the start."""

    async def ahead(store: JobStore) -> None:
        clock.now += 259_200
        await done(store, clock, "ahead")
        clock.now -= 259_200

    async def body(store: JobStore) -> None:
        await store.expire()
        assert await store.get("ahead") is not None
        clock.now += 61
        await store.expire()
        assert await store.get("ahead") is None

    run(tmp_path, clock, ahead)
    run(tmp_path, clock, body)


def test_the_oldest_make_room(tmp_path: Path, clock: Clock) -> None:
    """The bytes on disk stay within the limit, and a job goes with all it has."""

    async def body(store: JobStore) -> None:
        for number in range(5):
            clock.now += 1
            await done(store, clock, f"job_{number}", b"x" * 400)
        left = [n for n in range(5) if await store.get(f"job_{n}") is not None]
        assert left == [3, 4]
        assert sum(path.stat().st_size for path in (tmp_path / "images").iterdir()) == 800

    run(tmp_path, clock, body)


def test_a_crash_leaves_no_orphans(tmp_path: Path, clock: Clock) -> None:
    """Files without rows, rows without files, and pictures of ended jobs go at the next start."""
    kept: list[Job] = []

    async def first(store: JobStore) -> None:
        kept.append(await done(store, clock, "kept"))
        gone = await done(store, clock, "its file is gone")
        store.put(b"no row", "png")
        await store.expire()  # the store's thread has done all of it
        (tmp_path / "images" / f"{gone.images[0].id}.png").unlink()
        (tmp_path / "images" / "half.part").write_bytes(b"ha")
        (tmp_path / "inputs" / "kept").write_bytes(b"?")

    async def second(store: JobStore) -> None:
        assert files(tmp_path) == [f"{kept[0].images[0].id}.png"]
        assert list((tmp_path / "inputs").iterdir()) == []
        assert await store.get("its file is gone") is None

    run(tmp_path, clock, first)
    run(tmp_path, clock, second)


def test_pages(tmp_path: Path, clock: Clock) -> None:
    """Newest first, of one owner, by status, on from a job; `more` is right at the edge."""

    async def body(store: JobStore) -> None:
        for number in range(5):
            await done(store, clock, f"job_{number}", b"", Terms(owner="me"))
        await added(store, clock, "job_5", Terms(owner="me"))
        await added(store, clock, "other", Terms(owner="you"))

        async def ids(limit: int, after: str | None = None, *statuses: JobStatus) -> Any:
            page = await store.page("me", statuses=statuses, limit=limit, after=after)
            return [job.id for job in page.jobs], page.more

        assert await ids(2) == (["job_5", "job_4"], True)
        assert await ids(4, "job_4") == (["job_3", "job_2", "job_1", "job_0"], False)
        assert await ids(3, "job_4") == (["job_3", "job_2", "job_1"], True)
        assert await ids(9, None, JobStatus.QUEUED, JobStatus.FAILED) == (["job_5"], False)

    run(tmp_path, clock, body)


def test_ids_are_looked_up_and_never_paths(tmp_path: Path, clock: Clock) -> None:
    """Whatever a client writes into the URL."""

    async def body(store: JobStore) -> None:
        (tmp_path / "secret.png").write_bytes(b"secret")
        for name in ("../secret", "nobody", "", "%", "' OR 1=1 --"):
            assert await store.image(name) is None
            assert await store.get(name) is None

    run(tmp_path, clock, body)


def test_a_full_disk_takes_no_job(tmp_path: Path, clock: Clock) -> None:
    """Neither by the free space nor by what the database says; finished jobs are not touched."""

    async def body(store: JobStore) -> None:
        await done(store, clock, "before")
        database = store._db
        database.execute(f"PRAGMA max_page_count = {_pages(database)}")

        async def fill() -> None:
            for number in range(200):
                await added(store, clock, f"job_{number}")

        with pytest.raises(StorageFull):
            await fill()
        assert await store.get("before") is not None

    run(tmp_path / "a", clock, body)

    async def refusing(store: JobStore) -> None:
        with pytest.raises(StorageFull):
            await added(store, clock, "job", inputs=Inputs(Pixels(1, 1, b"abc")))
        assert list((tmp_path / "b" / "inputs").iterdir()) == []

    run(tmp_path / "b", clock, refusing, min_free_bytes=2**60)


def test_a_full_disk_delays_and_loses_nothing(tmp_path: Path, clock: Clock) -> None:
    """Images, ends and webhooks are written in order when there is room; till then nothing lies."""
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
            await store.written(client)  # whose client has the picture
            for told in (
                store.settled(running),
                store.get("running"),
                store.page("me", statuses=[], limit=9, after=None),
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

    run(tmp_path, clock, body, max_bytes=10_000)


def test_what_waits_is_written_at_the_end(tmp_path: Path, clock: Clock) -> None:
    """A server that stops tries once more."""

    async def first() -> None:
        async with opened(tmp_path, clock) as store:
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
    run(tmp_path, clock, second)


def test_a_change_that_no_repetition_mends_holds_up_nothing(tmp_path: Path, clock: Clock) -> None:
    """An image of a job that is gone is left out, and what comes behind it is written."""

    async def body(store: JobStore) -> None:
        gone = Job("gone", REQUEST, clock(), BACKGROUND)
        store.note_image(gone, ImageResult(0, 7, b"x", 1, 4, 1.0, 2.0, 3.0, None))
        await asyncio.wait_for(store.written(gone), 10)
        job = await done(store, clock, "job")
        await asyncio.wait_for(store.written(job), 10)

    run(tmp_path, clock, body)


@pytest.mark.parametrize("again", [False, True])
def test_a_folder_that_is_gone(tmp_path: Path, clock: Clock, again: bool) -> None:
    """SQLite would go on writing into what nobody can open any more."""
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

    run(folder, clock, body)


@contextmanager
def full() -> Iterator[None]:
    """No file of this process may grow beyond a page, as on a disk without room."""
    usual, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (usual, most))


def _pages(database: sqlite3.Connection) -> int:
    (count,) = database.execute("PRAGMA page_count").fetchone()
    return int(count)


def test_nobody_else_reads_a_data_folder(tmp_path: Path, clock: Clock) -> None:
    """Folders and files are for the server's user, also those that were there before."""
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
        run(folder, clock, first)
        assert _modes(folder) == {"folder": {0o700}, "file": {0o600}}
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        run(folder, clock, second)
        (folder / "notes").write_text("somebody else's")
        (folder / "notes").chmod(0o755)
        asyncio.run(only_opened(folder, clock))
        assert (folder / "notes").stat().st_mode & 0o777 == 0o755
    finally:
        os.umask(before)


async def only_opened(folder: Path, clock: Clock) -> None:
    """A life of a server in which nothing happens."""
    async with opened(folder, clock):
        pass


def _modes(folder: Path) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {"folder": set(), "file": set()}
    for path in {folder, *folder.rglob("*")} - {folder / "notes"}:
        found["folder" if path.is_dir() else "file"].add(path.stat().st_mode & 0o777)
    return found


def test_owners_of_old_jobs_are_sealed(tmp_path: Path, clock: Clock) -> None:
    """Digests of keys are in no database any more, and the jobs are still their owners'."""
    digest = hashlib.sha256(b"key-a").hexdigest()[:32]
    script = (Path(__file__).parents[2] / "golden" / "jobs_v1.sql").read_text()
    mine = script.replace("'job_1',''", f"'job_1','{digest}'")
    with sqlite3.connect(tmp_path / "jobs.sqlite") as old:
        old.executescript(mine.replace('"owner": ""', f'"owner": "{digest}"'))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "image_1.png").write_bytes(b"png")

    async def body(store: JobStore) -> None:
        owner = store.owner_of(digest)
        page = await store.page(owner, statuses=[], limit=9, after=None)
        assert [(job.id, job.terms.owner) for job in page.jobs] == [("job_1", owner)]
        assert store.owner_of("") == ""

    run(tmp_path, clock, body)
    run(tmp_path, clock, body)
    kept = b"".join(path.read_bytes() for path in tmp_path.glob("jobs.sqlite*"))
    assert digest.encode() not in kept


def test_a_secret_that_is_damaged(tmp_path: Path, clock: Clock) -> None:
    """Another one would take every job from its owner: the server says so instead."""
    (tmp_path / "secret").write_bytes(b"short")
    store = JobStore(tmp_path, ttl_seconds=1, max_bytes=1, min_free_bytes=0, clock=clock)
    with pytest.raises(StoreError, match="damaged"):
        store.open()


def test_one_folder_has_one_server(tmp_path: Path, clock: Clock) -> None:
    """The second is told what to do instead."""

    async def body(_store: JobStore) -> None:
        with pytest.raises(StoreError, match=r"in use by another server.*--data-dir"):
            async with opened(tmp_path, clock):
                pass

    run(tmp_path, clock, body)


def test_folders_that_cannot_be_used(tmp_path: Path, clock: Clock) -> None:
    """A file in place of a folder, a database that is none, and one of a later release."""
    (tmp_path / "file").write_text("")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "jobs.sqlite").write_bytes(b"no database" * 100)
    (tmp_path / "later").mkdir()
    with sqlite3.connect(tmp_path / "later" / "jobs.sqlite") as later:
        later.execute("PRAGMA user_version = 99")
    for name, words in (("file", "cannot be used"), ("broken", "cannot"), ("later", "newer")):
        store = JobStore(tmp_path / name, ttl_seconds=1, max_bytes=1, min_free_bytes=0, clock=clock)
        with pytest.raises(StoreError, match=words):
            store.open()


def test_the_first_schema_is_still_read(tmp_path: Path, clock: Clock) -> None:
    """A database written by version 1 is migrated and its jobs answer."""
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

    run(tmp_path, clock, body)
