"""The library's Runner with the fake engine in a real worker process."""

from __future__ import annotations

import asyncio
import base64
import errno
import io
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError

import sdstream
from sdstream import AsyncRunner, Progress, Runner
from sdstream.core.errors import (
    GenerationFailed,
    InvalidRequest,
    JobWasCancelled,
    NotFound,
    StorageFull,
    Unavailable,
)
from sdstream.core.job import JobStatus, Terms
from sdstream.dialects.openai.request import parse
from sdstream.storage.files import ImageFolder
from sdstream.weights.discovery import ModelError

#: Slow enough for a cancellation before the last step.
SLOW = "a cat step=0.2"


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """A runner shared by all tests of this module."""
    with Runner(engine="fake", cache_dir=tmp_path_factory.mktemp("cache")) as runner:
        yield runner


def pixels(content: bytes) -> tuple[str | None, tuple[int, int]]:
    """Return the format and size of an image file after decoding it."""
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        return image.format, image.size


def test_each_step_is_reported(runner: Runner) -> None:
    """Each step of each image is reported in order, with a preview if requested."""
    reports: list[Progress] = []
    response = runner.generate(
        "a cat", n=2, size="64x64", steps=3, previews=True, on_progress=reports.append
    )
    steps = [(one.index, one.step, one.steps) for one in reports if one.step]
    assert steps == [(i, step, 3) for i in (0, 1) for step in (1, 2, 3)]
    assert all(pixels(one.preview)[0] == "PNG" for one in reports if one.preview)
    assert sum(one.preview is not None for one in reports) == 6
    assert reports[0].status == "queued"
    assert [image.index for image in response.data] == [0, 1]


def test_a_response_has_files_seeds_and_parameters(runner: Runner) -> None:
    """The url is the file's path, and b64_json is the file's content."""
    response = runner.generate("a cat", n=2, width=64, height=128, seed=7, steps=3)
    assert response.seed == 7
    assert [image.seed for image in response.data] == [7, 8]
    assert response.parameters["size"] == "64x128"
    assert response.parameters["sample_steps"] == 3
    assert response.usage["output_tokens"] == 2 * 4 * 8
    for image in response.data:
        assert image.url is not None
        assert Path(image.url).read_bytes() == base64.b64decode(image.b64_json) == image.content
        assert pixels(image.content) == ("PNG", (64, 128))


def test_saving(runner: Runner, tmp_path: Path) -> None:
    """One image gets the given name, several get numbers, and a wrong suffix is an error."""
    one = runner.generate("a cat", size="64x64", output_format="jpeg")
    assert one.save(tmp_path / "one.jpg") == [tmp_path / "one.jpg"]
    assert pixels((tmp_path / "one.jpg").read_bytes()) == ("JPEG", (64, 64))
    with pytest.raises(ValueError, match=r"'one.png' must end in .jpg or .jpeg"):
        one.save(tmp_path / "one.png")
    two = runner.generate("a cat", size="64x64", n=2)
    assert two.save(str(tmp_path / "two.png")) == [tmp_path / "two-1.png", tmp_path / "two-2.png"]
    assert (tmp_path / "two-2.png").read_bytes() == two.data[1].content


def test_edits(runner: Runner, tmp_path: Path) -> None:
    """Image and mask may be paths or bytes, and pixels outside the mask are unchanged."""
    source = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    source.save(tmp_path / "input.png")
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (32, 0, 64, 64))
    file = io.BytesIO()
    mask.save(file, "PNG")
    response = runner.edit(
        tmp_path / "input.png", "a cat", mask=file.getvalue(), mask_mode="luminance", steps=2
    )
    with Image.open(io.BytesIO(response.data[0].content)) as result:
        assert result.crop((0, 0, 32, 64)).tobytes() == source.crop((0, 0, 32, 64)).tobytes()
        assert result.tobytes() != source.tobytes()
    again = runner.edit([(tmp_path / "input.png").read_bytes()], "a cat", strength=0.5, steps=2)
    assert again.parameters["strength"] == 0.5
    with pytest.raises(InvalidRequest):
        runner.edit(b"no image", "a cat")
    with pytest.raises(FileNotFoundError):
        runner.edit(tmp_path / "missing.png", "a cat")


def test_a_callback_can_cancel(runner: Runner) -> None:
    """The request ends before its last step with an error, and the runner remains usable."""
    steps: list[int] = []

    def stop(progress: Progress) -> None:
        steps.append(progress.step)
        if progress.step == 2:
            runner.cancel()

    with pytest.raises(JobWasCancelled, match="The request was cancelled"):
        runner.generate(SLOW, size="64x64", steps=50, on_progress=stop)
    assert 2 <= max(steps) < 50
    assert runner.generate("a cat", size="64x64", steps=2).data


def test_a_request_that_is_being_submitted_is_cancelled_too(tmp_path: Path) -> None:
    """cancel stops an edit whose image is still being read, and ends it before it is generated."""

    async def use() -> None:
        async with AsyncRunner(engine="fake", cache_dir=tmp_path) as runner:
            picture = io.BytesIO()
            Image.new("RGB", (2000, 2000), "red").save(picture, "PNG")
            task = asyncio.create_task(runner.edit(picture.getvalue(), SLOW, steps=100))
            await asyncio.sleep(0)  # the request has begun and has read nothing yet
            runner.cancel()
            with pytest.raises(JobWasCancelled):
                await task

    asyncio.run(asyncio.wait_for(use(), 25))


def test_cancel_concerns_a_request_of_another_thread(runner: Runner) -> None:
    """A request that a thread has just made is cancelled, however early."""
    for _ in range(5):
        caught: list[BaseException] = []

        def generate(caught: list[BaseException] = caught) -> None:
            try:
                runner.generate(SLOW, size="64x64", steps=100)
            except JobWasCancelled as error:
                caught.append(error)

        started = threading.Event()
        start = runner._loop._start

        def begin(work: Any, started: threading.Event = started, start: Any = start) -> Any:
            future = start(work)
            started.set()
            return future

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runner._loop, "_start", begin)
            thread = threading.Thread(target=generate)
            thread.start()
            assert started.wait(20)
            runner.cancel()
            thread.join(25)
        assert len(caught) == 1


def test_a_submission_that_is_cancelled_leaves_no_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the caller leaves while the row is written, the job is cancelled, and its key is free."""

    async def use() -> None:
        async with AsyncRunner(engine="fake", cache_dir=tmp_path) as runner:
            service, store = runner.assembly.service, runner.assembly.store
            add, written = store.add, asyncio.Event()

            async def slowly(*arguments: Any) -> None:
                await add(*arguments)
                written.set()
                await asyncio.sleep(0.05)

            monkeypatch.setattr(store, "add", slowly)
            terms = Terms(background=True, idempotency_key="key", fingerprint="print")
            submission = asyncio.create_task(service.submit(parse({"prompt": SLOW}), terms))
            await written.wait()
            submission.cancel()
            with pytest.raises(asyncio.CancelledError):
                await submission
            live = await service.submit(parse({"prompt": SLOW}), terms)
            job = await service.finished(live)
            assert job.status is JobStatus.CANCELLED
            stored = await store.get(job.id)
            assert stored is not None
            assert stored.status is JobStatus.CANCELLED

    asyncio.run(asyncio.wait_for(use(), 25))


def test_an_image_that_cannot_be_stored_can_be_requested_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a full disk or an image store that does not answer, the same key starts a new job."""

    async def use() -> None:
        async with AsyncRunner(engine="fake", cache_dir=tmp_path) as runner:
            service, store = runner.assembly.service, runner.assembly.store
            terms = Terms(background=True, idempotency_key="key", fingerprint="print")
            ask = parse({"prompt": "a cat", "size": "64x64", "steps": 2})
            put = ImageFolder.put
            for number, expected in (
                (errno.ENOSPC, StorageFull),
                (errno.EIO, Unavailable),
                (0, type(None)),
            ):

                def fail(*arguments: Any, number: int = number) -> str:
                    if number:
                        raise OSError(number, "no")
                    return put(*arguments)

                monkeypatch.setattr(ImageFolder, "put", fail)
                job = await service.finished(await service.submit(ask, terms))
                assert type(job.error()) is expected
            assert await store.get(job.id)

    asyncio.run(asyncio.wait_for(use(), 25))


def test_a_key_press_while_a_generator_waits(runner: Runner) -> None:
    """KeyboardInterrupt during an item reaches the caller, and the generator is closed first."""
    closed = threading.Event()

    async def items() -> AsyncGenerator[int, None]:
        try:
            yield 1
            await asyncio.sleep(20)
        finally:
            await asyncio.sleep(0.05)  # as a connection does when it is closed
            closed.set()

    numbers = runner._loop.iterate(items())
    assert next(numbers) == 1
    # A shell that starts the tests in the background makes them ignore the signal.
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    arguments = threading.get_ident(), signal.SIGINT
    threading.Timer(0.2, signal.pthread_kill, arguments).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            next(numbers)
    finally:
        signal.signal(signal.SIGINT, usual)
    assert closed.wait(1)


def test_an_exception_of_a_callback_cancels(runner: Runner) -> None:
    """The exception is raised unchanged, and the worker is free for the next request."""

    def fail(_progress: Progress) -> None:
        raise KeyError("a mistake of the callback")

    with pytest.raises(KeyError, match="a mistake of the callback"):
        runner.generate(f"{SLOW} hang=1", size="64x64", steps=50, on_progress=fail)
    assert runner.generate("a cat", size="64x64", steps=2).data


def test_errors_are_typed(runner: Runner) -> None:
    """A wrong option, a failure of the engine and an unknown model have their own error types."""
    with pytest.raises(InvalidRequest) as caught:
        runner.generate("a cat", size="64x64", stepz=3)
    assert caught.value.param == "stepz"
    with pytest.raises(GenerationFailed):
        runner.generate("a cat fail=1", size="64x64")
    with pytest.raises(NotFound):
        runner.generate("a cat", model="unknown")
    for option in ("stream", "response_format", "webhook_url"):
        unknown: dict[str, Any] = {option: "x"}
        with pytest.raises(TypeError, match=option):
            runner.generate("a cat", **unknown)


def test_a_runner_that_cannot_start(tmp_path: Path) -> None:
    """The constructor raises an error, also for settings of the HTTP server."""
    with pytest.raises(ModelError, match="no such file"):
        Runner(str(tmp_path / "nothing-here.gguf"))
    with pytest.raises(TypeError, match="'port' is a setting of the HTTP server"):
        Runner(port=8000)
    with pytest.raises(ValidationError):
        Runner(memory_mb=-1)


def test_the_data_folder(tmp_path: Path) -> None:
    """A temporary folder is deleted on close, a given one is kept, and a closed runner raises."""
    with Runner(engine="fake") as temporary:
        url = temporary.generate("a cat", size="64x64", steps=2).data[0].url
        assert url is not None
        assert Path(url).exists()
    assert not Path(url).exists()
    with pytest.raises(RuntimeError, match="closed"):
        temporary.generate("a cat")
    temporary.close()
    with Runner(engine="fake", data_dir=tmp_path) as kept:
        url = kept.generate("a cat", size="64x64", steps=2).data[0].url
        assert url is not None
    assert Path(url).is_relative_to(tmp_path)
    assert Path(url).exists()


def test_several_requests_at_once_and_cancelled_tasks() -> None:
    """Concurrent requests share the queue, and a cancelled task frees the worker."""

    async def use() -> None:
        async with AsyncRunner(engine="fake") as runner:
            both = await asyncio.gather(
                *(runner.generate(f"cat {i}", size="64x64", steps=2) for i in range(2))
            )
            assert both[0].data[0].content != both[1].data[0].content
            begun = asyncio.Event()
            task = asyncio.create_task(
                runner.generate(
                    SLOW,
                    size="64x64",
                    steps=140,
                    on_progress=lambda progress: begun.set() if progress.step else None,
                )
            )
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await runner.generate("a cat", size="64x64", steps=2)).data
        with pytest.raises(RuntimeError, match="not open"):
            await runner.generate("a cat")

    asyncio.run(asyncio.wait_for(use(), 25))


def test_a_program_that_does_not_close_its_runner_ends(tmp_path: Path) -> None:
    """The program ends without an error, and its temporary folder is deleted."""
    program = (
        "from sdstream import Runner\n"
        "runner = Runner(engine='fake')\n"
        "print(runner.generate('a cat', size='64x64', steps=2).data[0].url)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, timeout=60, check=True, cwd=tmp_path
    )
    assert not Path(done.stdout.decode().strip()).exists()
    assert done.stderr == b""


def test_public_errors_are_those_that_are_raised() -> None:
    """The public error classes are those that a runner raises."""
    assert issubclass(JobWasCancelled, sdstream.ImageServiceError)
    assert sdstream.InvalidRequest is InvalidRequest
