"""The rules of the job store, on every kind of database and image store."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from sdstream.core.errors import Reason, StorageFull, Unavailable
from sdstream.core.job import (
    Completed,
    ImageResult,
    Job,
    JobCancelled,
    JobEvent,
    JobFailed,
    JobStatus,
    Requeued,
    Running,
    Terms,
)
from sdstream.core.job_filter import JobFilter
from sdstream.core.pixels import Inputs, Pixels
from sdstream.core.queue import Priority
from sdstream.storage.job_store import JobStore
from sdstream.storage.ports import ImageStore, StoreError
from tests.support.stores import (
    BACKGROUND,
    NOTHING,
    REQUEST,
    Clock,
    Place,
    added,
    done,
    end,
    opened,
    run,
    started,
)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a background task has met the condition."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.02)


def dropped(place: Place, drop: Callable[[ImageStore], None]) -> None:
    """Delete something from a place, as if it had been lost."""
    images = place.images()
    images.open()
    drop(images)
    images.close()


def test_an_ended_job_comes_back_whole(place: Place, clock: Clock) -> None:
    """After a restart, a completed job has all its values and its image's bytes."""
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

    run(place, clock, first)
    run(place, clock, second)


@pytest.mark.parametrize(
    "ending", [JobFailed(Reason.WORKER_CRASHED, "It died."), JobCancelled("Enough.")]
)
def test_failures_come_back_too(place: Place, clock: Clock, ending: JobEvent) -> None:
    """A failed or cancelled job has the same reason and message after a restart."""

    async def first(store: JobStore) -> None:
        end(store, clock, await started(store, clock, "job_1"), ending)

    async def second(store: JobStore) -> None:
        job = await store.get("job_1")
        assert job is not None
        assert job.ending == ending

    run(place, clock, first)
    run(place, clock, second)


def test_what_the_next_life_does_with_unfinished_jobs(place: Place, clock: Clock) -> None:
    """Background jobs are queued again in order, unless they ran twice; other jobs fail."""
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
            # The number is above any that a reader has seen, so the event still reaches readers.
            assert job.last_event > 1_000_000

    run(place, clock, first)

    async def third() -> None:
        async with opened(place, clock) as store:
            jobs = await store.recover()
            assert [job.id for job in jobs] == ["waiting", "running", "laid aside"]
            assert [job.attempts for job in jobs] == [0, 1, 0]
            assert {job.status for job in jobs} == {JobStatus.QUEUED}
            # Event numbers also grow across restarts.
            assert [job.first_event >= 1_000_000 for job in jobs] == [True] * 3
            assert await store.inputs(jobs[0]) == inputs
            assert await store.inputs(jobs[1]) == Inputs()
            await second(store)

    asyncio.run(third())


def test_a_finished_image_of_an_unfinished_job_is_kept(place: Place, clock: Clock) -> None:
    """The retried job keeps its finished image."""

    async def first(store: JobStore) -> None:
        job = await started(store, clock, "job_1")
        image = ImageResult(0, 7, b"x", 1, 4, 1.0, 2.0, 3.0, store.put(b"x", "png"))
        store.note_image(job, image)

    run(place, clock, first)

    async def second() -> None:
        async with opened(place, clock) as store:
            (job,) = await store.recover()
            assert list(job.images) == [0]

    asyncio.run(second())


def test_a_wrong_image_store_loses_nothing(place: Place, clock: Clock) -> None:
    """If none of the named images exists, the start ends with an error and deletes nothing."""
    kept: list[Job] = []

    async def first(store: JobStore) -> None:
        kept.extend([await done(store, clock, "job_1"), await done(store, clock, "job_2")])

    run(place, clock, first)
    names = place.files("images")

    def lose(images: ImageStore) -> None:
        for job in kept:
            images.drop(str(job.images[0].id), "png")

    dropped(place, lose)
    place.write("images", "other.png", b"of another server")

    async def wrong() -> None:
        async with opened(place, clock) as store:
            with pytest.raises(
                StoreError, match=r"lacks every image that the database names \(2\)"
            ):
                await store.recover()

    asyncio.run(wrong())
    assert place.files("images") == ["other.png"]
    place.write("images", names[0], b"png")

    async def partly(store: JobStore) -> None:
        assert [job.id for job in kept if await store.get(job.id)] == [
            job.id for job in kept if f"{job.images[0].id}.png" == names[0]
        ]

    run(place, clock, partly)
    assert place.files("images") == [names[0]]


def test_pictures_that_are_gone_are_missed(place: Place, clock: Clock) -> None:
    """A job whose input images are missing raises an error instead of starting without them."""

    async def body(store: JobStore) -> None:
        edit = await added(store, clock, "edit", inputs=Inputs(Pixels(2, 1, b"abcdef")))
        plain = await added(store, clock, "plain")
        dropped(place, lambda images: images.drop_inputs("edit"))
        assert await store.inputs(plain) == NOTHING
        with pytest.raises(FileNotFoundError):
            await store.inputs(edit)

    run(place, clock, body)


def test_images_that_cannot_be_read(
    place: Place, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read error is reported as temporarily unavailable, not as a missing image."""

    def unreadable(*_arguments: object) -> bytes:
        raise OSError("no answer")

    async def body(store: JobStore) -> None:
        job = await done(store, clock, "job_1")
        await store.written(job)
        monkeypatch.setattr(type(place.images()), "get", unreadable)
        kept = dataclasses.replace(job.images[0], data=None)
        for asked in (
            store.image(str(kept.id)),
            store.with_file(kept, "png"),
            store.with_files(job),
        ):
            with pytest.raises(Unavailable):
                await asked
        monkeypatch.undo()

    run(place, clock, body)


def test_jobs_expire(place: Place, clock: Clock) -> None:
    """An ended job expires with its files; an unfinished job does not."""

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
        await until(lambda: len(place.files("images")) == 1)

    run(place, clock, body)


@pytest.mark.parametrize("jump", [-259_200, 259_200])
def test_a_clock_that_was_set_expires_nothing(place: Place, clock: Clock, jump: float) -> None:
    """Jobs accepted while the clock was three days off expire after the usual time, in order."""

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
        assert await store.get("before") is None  # deleted to make room
        assert await store.get("after") is not None
        clock.now += 20
        await store.expire()
        assert await store.get("after") is None
        assert await store.get("last") is not None

    run(place, clock, body)


def test_ends_that_an_earlier_life_had_in_the_future_expire(place: Place, clock: Clock) -> None:
    """After a restart, a job that ended in the future expires as if it had ended at the start."""

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

    run(place, clock, ahead)
    run(place, clock, body)


def test_the_oldest_make_room(place: Place, clock: Clock) -> None:
    """The oldest jobs are deleted with their files to keep within the byte limit."""

    async def body(store: JobStore) -> None:
        for number in range(5):
            clock.now += 1
            await done(store, clock, f"job_{number}", b"x" * 400)
        left = [n for n in range(5) if await store.get(f"job_{n}") is not None]
        assert left == [3, 4]
        await until(lambda: len(place.files("images")) == 2)

    run(place, clock, body)


def test_a_job_that_exceeds_the_limit_is_kept_until_the_next(
    place: Place, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """The newest job keeps its images, so that its client can fetch them."""

    async def body(store: JobStore) -> None:
        await done(store, clock, "small", b"x")
        large = await done(store, clock, "large", b"x" * 2000)
        assert await store.get("small") is None
        assert await store.image(str(large.images[0].id)) == (b"x" * 2000, "png")
        assert "job large exceeds the limit" in caplog.text
        await done(store, clock, "next", b"x")
        assert await store.get("large") is None
        assert await store.get("next") is not None

    run(place, clock, body)


def test_a_crash_leaves_no_orphans(place: Place, clock: Clock) -> None:
    """The next start deletes files without rows, rows without files, and inputs of ended jobs."""
    kept: list[Job] = []

    async def first(store: JobStore) -> None:
        kept.append(await done(store, clock, "kept"))
        gone = await done(store, clock, "its file is gone")
        store.put(b"no row", "png")
        await store.expire()  # all earlier work of the store's thread is done now
        dropped(place, lambda images: images.drop(str(gone.images[0].id), "png"))
        place.write("images", "half.part", b"ha")
        place.write("inputs", "kept", b"?")

    async def second(store: JobStore) -> None:
        assert place.files("images") == [f"{kept[0].images[0].id}.png"]
        assert place.files("inputs") == []
        assert await store.get("its file is gone") is None

    run(place, clock, first)
    run(place, clock, second)


def test_pages(place: Place, clock: Clock) -> None:
    """Pages list an owner's jobs, newest first, with a correct `more` at the last one."""

    async def body(store: JobStore) -> None:
        for number in range(5):
            await done(store, clock, f"job_{number}", b"", Terms(owner="me"))
        await added(store, clock, "job_5", Terms(owner="me"))
        await added(store, clock, "other", Terms(owner="you"))

        async def ids(limit: int, after: str | None = None, *statuses: JobStatus) -> Any:
            page = await store.page("me", JobFilter(tuple(statuses)), limit=limit, after=after)
            return [job.id for job in page.jobs], page.more

        assert await ids(2) == (["job_5", "job_4"], True)
        assert await ids(4, "job_4") == (["job_3", "job_2", "job_1", "job_0"], False)
        assert await ids(3, "job_4") == (["job_3", "job_2", "job_1"], True)
        assert await ids(9, None, JobStatus.QUEUED, JobStatus.FAILED) == (["job_5"], False)

    run(place, clock, body)


def test_ids_are_looked_up_and_never_paths(place: Place, clock: Clock) -> None:
    """An id from a URL is never used as a path or as SQL."""

    async def body(store: JobStore) -> None:
        place.write("inputs", "secret.png", b"secret")
        for name in ("../inputs/secret", "nobody", "", "%", "' OR 1=1 --", "\0"):
            assert await store.image(name) is None
            assert await store.get(name) is None

    run(place, clock, body)


def test_a_change_that_no_repetition_mends_holds_up_nothing(place: Place, clock: Clock) -> None:
    """An image of a deleted job is left out, and later changes are still written."""

    async def body(store: JobStore) -> None:
        gone = Job("gone", REQUEST, clock(), BACKGROUND)
        store.note_image(gone, ImageResult(0, 7, b"x", 1, 4, 1.0, 2.0, 3.0, None))
        await asyncio.wait_for(store.written(gone), 10)
        job = await done(store, clock, "job")
        await asyncio.wait_for(store.written(job), 10)

    run(place, clock, body)


async def listed(store: JobStore, which: JobFilter) -> list[str]:
    """Return the ids of an owner's jobs that match the filter."""
    page = await store.page("me", which, limit=50, after=None)
    return [job.id for job in page.jobs]


def test_conditions_of_lists(place: Place, clock: Clock) -> None:
    """Prompt words in any case, model, group, favorites and times can be combined."""

    async def body(store: JobStore) -> None:
        prompts = ("A Red circle", "red STRASSE", "größe ÄPFEL", "blue Straße İSTANBUL")
        for number, prompt in enumerate(prompts):
            clock.now += 100
            request = dataclasses.replace(REQUEST, prompt=prompt, model=f"m{number % 2}")
            group = "pair" if number < 2 else None
            terms = Terms(owner="me", background=True, group=group)
            await store.add(Job(f"job_{number}", request, clock(), terms), NOTHING)
        await store.mark("job_2", favorite=True)
        for which, found in {
            JobFilter(words=("RED",)): ["job_1", "job_0"],
            JobFilter(words=("red", "straße")): ["job_1"],
            JobFilter(words=("STRASSE",)): ["job_3", "job_1"],
            JobFilter(words=("äpfel", "GRÖSSE")): ["job_2"],
            JobFilter(words=("i̇stanbul",)): ["job_3"],
            JobFilter(words=("%",)): [],
            JobFilter(words=("\0",)): [],
            JobFilter(model="m1"): ["job_3", "job_1"],
            JobFilter(group="pair"): ["job_1", "job_0"],
            JobFilter(group="pair", words=("circle",)): ["job_0"],
            JobFilter(favorite=True): ["job_2"],
            JobFilter(favorite=False): ["job_3", "job_1", "job_0"],
            JobFilter(since=clock() - 100): ["job_3", "job_2"],
            JobFilter(until=clock() - 100): ["job_1", "job_0"],
        }.items():
            assert await listed(store, which) == found, which

    run(place, clock, body)


def test_favorites_do_not_expire(place: Place, clock: Clock) -> None:
    """A favorite is never deleted for its age or for room; unmarked, it expires from then on."""

    async def first(store: JobStore) -> None:
        await done(store, clock, "favorite", b"x" * 400)
        running = await started(store, clock, "marked while it ran")
        await store.mark("favorite", favorite=True)
        await store.mark("marked while it ran", favorite=True)
        end(store, clock, running, Completed())
        await done(store, clock, "other", b"x" * 400)
        await store.expire()  # the ends are written now
        clock.now += 61
        await store.expire()
        assert await store.get("other") is None

    async def second(store: JobStore) -> None:
        for number in range(3):
            await done(store, clock, f"more_{number}", b"x" * 400)
        kept = await store.get("favorite")
        assert kept is not None
        assert kept.favorite
        assert await store.get("marked while it ran") is not None
        assert await store.get("more_1") is None  # deleted to make room
        await store.mark("favorite", favorite=False)
        clock.now += 30
        await store.expire()
        assert await store.get("favorite") is not None
        clock.now += 31
        await store.expire()
        assert await store.get("favorite") is None

    run(place, clock, first)
    run(place, clock, second)


def test_favorites_leave_room(place: Place, clock: Clock) -> None:
    """Favorites may use half of the bytes, so that new images have room."""

    async def body(store: JobStore) -> None:
        await done(store, clock, "first", b"x" * 400)
        await done(store, clock, "second", b"x" * 400)
        await store.mark("first", favorite=True)
        with pytest.raises(StorageFull, match="800 of 1000 bytes"):
            await store.mark("second", favorite=True)
        job = await store.get("second")
        assert job is not None
        assert not job.favorite

    run(place, clock, body)


def test_uploads_are_kept_with_their_job(place: Place, clock: Clock) -> None:
    """Uploads survive a restart, count as bytes, and are deleted with their job."""
    uploads = {"image": b"i" * 300, "mask": b"m" * 200}

    async def edit(store: JobStore, name: str) -> None:
        job = Job(name, REQUEST, clock(), BACKGROUND)
        await store.add(job, Inputs(Pixels(2, 1, b"abcdef")), uploads)
        job.apply(Running(), clock())
        end(store, clock, job, JobCancelled("enough"))
        await store.expire()

    async def first(store: JobStore) -> None:
        await edit(store, "job_1")
        place.write("uploads", "orphan/image", b"?")

    async def second(store: JobStore) -> None:
        assert place.files("uploads") == ["job_1/image", "job_1/mask"]
        job = await store.get("job_1")
        assert job is not None
        assert job.uploads == {"image": 300, "mask": 200}
        assert await store.upload(job, "mask") == uploads["mask"]
        assert await store.upload(job, "../../secret") is None
        await edit(store, "job_2")
        assert await store.get("job_1") is not None
        await edit(store, "job_3")  # 1,500 bytes in total
        assert await store.get("job_1") is None
        await until(lambda: "job_1/mask" not in place.files("uploads"))
        kept = {name.partition("/")[0] for name in place.files("uploads")}
        assert kept >= {"job_2", "job_3"}
        await store.mark("job_2", favorite=True)
        with pytest.raises(StorageFull, match="1000 of 1000"):
            await store.mark("job_3", favorite=True)

    run(place, clock, first)
    run(place, clock, second)
