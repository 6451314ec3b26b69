"""The supervisor of worker processes, with the fake engine in real child processes."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from sdstream.core.errors import Reason, Unavailable
from sdstream.core.messages import (
    Cancelled,
    Done,
    Event,
    Failed,
    Generate,
    ImageDrawn,
    Load,
    Phase,
    Preview,
    Progress,
)
from sdstream.core.model_spec import ModelSpec
from sdstream.core.options import Options
from sdstream.core.pixels import Inputs, Pixels
from sdstream.core.request import EVERY_STEP
from sdstream.core.runtime_options import Kernels, RuntimeOptions
from sdstream.core.size import Size
from sdstream.engine import worker as worker_module
from sdstream.engine.pace import Pace
from sdstream.engine.pool import WorkerPool
from sdstream.engine.process import WorkerProcess
from sdstream.engine.seat import Place
from sdstream.engine.worker import Worker, WorkerOptions, WorkerState, _backoff
from sdstream.settings import worker_environment
from tests.support.processes import FakeProcess, a_request, driven

LIMIT = 2.0
"""Seconds that a phase may take in tests of hangs: far more than it needs on a busy machine."""


@asynccontextmanager
async def running_worker(
    file: str = "fine",
    *,
    hang_seconds: float = 60.0,
    cancel_seconds: float = 5.0,
    kernels: Kernels = "off",
) -> AsyncIterator[Worker]:
    """Run a worker on the fake engine; the file's name may make the load fail."""
    runtime = RuntimeOptions(kernels=kernels).model_dump()
    load = Load("fake", "ovis_image", {"model": file}, "/nowhere", runtime)
    options = WorkerOptions("fake", worker_environment(), hang_seconds, cancel_seconds)
    worker = Worker(load, options)
    task = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def drawn(worker: Worker, prompt: str = "a circle", **changes: Any) -> list[Event]:
    """Return every event of one job on a worker that is ready or will be."""
    await worker.ready()
    return [event async for event in worker.generate(Generate("job", a_request(prompt, **changes)))]


async def drawn_until(
    worker: Worker, step: int, act: Callable[[], Any], prompt: str
) -> list[Event]:
    """Run a job of 100 steps, call ``act`` at one of them, and return every event."""
    await worker.ready()
    events = []
    async for event in worker.generate(Generate("job", a_request(prompt, steps=100))):
        events.append(event)
        if isinstance(event, Progress) and event.phase is Phase.SAMPLING and event.step == step:
            outcome = act()
            if asyncio.iscoroutine(outcome):
                await outcome
    return events


def is_alive(pid: int) -> bool:
    """Return True while the process runs; a zombie does not."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@driven
async def test_events_come_in_order() -> None:
    """A job reports its phases and steps in order, each image, and Done at the end."""
    async with running_worker() as worker:
        events = await drawn(worker, n=2, previews=EVERY_STEP)
    assert isinstance(events[-1], Done)
    for index in (0, 1):
        mine = [e for e in events if getattr(e, "index", None) == index]
        phases = [(e.phase, e.step) for e in mine if isinstance(e, Progress)]
        assert phases == [
            (Phase.ENCODING, 0),
            *((Phase.SAMPLING, step) for step in range(5)),
            (Phase.DECODING, 4),
        ]
        assert [e.step for e in mine if isinstance(e, Preview)] == [1, 2, 3, 4]
        image = mine[-1]
        assert isinstance(image, ImageDrawn)
        assert (image.seed, len(image.blob)) == (7 + index, 64 * 48 * 3)


@driven
async def test_a_job_that_comes_between_a_death_and_its_autopsy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A job that arrives before a dead worker's exit code is known fails like a running one."""
    dead, examined = asyncio.Event(), asyncio.Event()
    exit_code = WorkerProcess.exit_code

    async def slow_exit_code(process: WorkerProcess) -> int:
        dead.set()
        await examined.wait()
        return await exit_code(process)

    async with running_worker() as worker:
        await worker.ready()
        monkeypatch.setattr(WorkerProcess, "exit_code", slow_exit_code)
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGSEGV)
        await dead.wait()
        asyncio.get_running_loop().call_later(0.2, examined.set)
        (ending,) = await drawn(worker)
    assert isinstance(ending, Failed)
    assert ending.reason == Reason.WORKER_CRASHED


@driven
@pytest.mark.parametrize("way", ["orphan", "escape"])
async def test_a_fork_that_outlives_the_worker_holds_nobody_up(way: str) -> None:
    """A fork that keeps a dead worker's socket and log open delays neither jobs nor the end."""
    began = asyncio.get_running_loop().time()
    async with running_worker() as worker:
        ending = (await drawn(worker, f"{way}=2"))[-1]
        pid = worker.pid
        assert isinstance(ending, Failed)
        assert ending.reason == Reason.WORKER_CRASHED
        assert isinstance((await drawn(worker))[-1], Done)
        assert worker.pid != pid
        assert isinstance((await drawn(worker, f"{way}=2"))[-1], Failed)
    assert asyncio.get_running_loop().time() - began < 15
    assert way == "escape" or not _group(pid or 0)


def _group(leader: int) -> list[str]:
    """Return the states of the living processes of a group."""
    stats = [path.read_text() for path in Path("/proc").glob("[0-9]*/stat") if path.exists()]
    fields = [stat.rpartition(")")[2].split() for stat in stats]
    return [field[0] for field in fields if int(field[2]) == leader and field[0] != "Z"]


@driven
async def test_a_model_is_ready_while_its_files_are_there() -> None:
    """An unloaded model is ready, because it can be loaded again; without its files it is not."""
    there = [True]
    spec = ModelSpec.model_validate({"id": "fake", "family": "sd1", "files": {"model": "fine"}})

    def made(_spec: ModelSpec, changed: Callable[[], None], _place: str) -> Worker:
        load = Load("fake", "sd1", {"model": "fine"}, "/nowhere", RuntimeOptions().model_dump())
        return Worker(load, WorkerOptions("fake", worker_environment()), changed)

    pool = WorkerPool(
        made,
        file_bytes=lambda _: 0,
        can_load=lambda _: there[0],
        places=lambda: [Place("", 2**40)],
        on_change=lambda: None,
    )
    assert not pool.is_ready(spec)
    assert pool.start(spec)
    await pool.workers()[0].ready()
    assert pool.is_ready(spec)
    pool.unload("fake")
    assert pool.is_ready(spec)
    there[0] = False
    assert not pool.is_ready(spec)
    await pool.close()


@driven
async def test_one_process_serves_many_jobs() -> None:
    """The model is loaded once for any number of jobs."""
    async with running_worker() as worker:
        for _ in range(5):
            assert isinstance((await drawn(worker))[-1], Done)
        assert worker.starts == 1
        assert worker.state is WorkerState.READY


@driven
async def test_cancel_between_steps_keeps_the_process() -> None:
    """A cancelled job ends within a step, and the same process runs the next one."""
    async with running_worker() as worker:
        events = await drawn_until(worker, 3, lambda: worker.cancel("job"), "step=0.02")
        pid = worker.pid
        assert isinstance(events[-1], Cancelled)
        assert max(e.step for e in events if isinstance(e, Progress)) <= 5
        assert isinstance((await drawn(worker))[-1], Done)
        assert worker.pid == pid


@driven
async def test_cancel_before_the_first_step_keeps_the_process() -> None:
    """A cancel at the first event of a job ends this job only."""
    async with running_worker() as worker:
        await worker.ready()
        events: list[Event] = []
        async for event in worker.generate(Generate("job", a_request("step=0.02", steps=100))):
            if not events:
                worker.cancel("job")
            events.append(event)
        assert isinstance(events[-1], Cancelled)
        assert max(e.step for e in events if isinstance(e, Progress)) <= 2
        assert isinstance((await drawn(worker))[-1], Done)
        assert worker.starts == 1


@driven
async def test_cancel_of_another_job_is_ignored() -> None:
    """Only the named job is cancelled."""
    async with running_worker() as worker:
        events = await drawn_until(worker, 3, lambda: worker.cancel("another"), "step=0.001")
        assert isinstance(events[-1], Done)


@driven
async def test_cancel_of_a_deaf_engine_costs_the_process() -> None:
    """A process that ignores a cancel is killed after the grace time; another runs the next job."""
    async with running_worker(cancel_seconds=0.3) as worker:
        began = 0.0

        async def cancel() -> None:
            nonlocal began
            began = time.monotonic()
            worker.cancel("job")

        events = await drawn_until(worker, 2, cancel, "deaf=1 step=0.1")
        assert isinstance(events[-1], Cancelled)
        assert time.monotonic() - began > 0.2
        assert isinstance((await drawn(worker))[-1], Done)
        assert worker.starts == 2


@pytest.mark.parametrize(
    ("prompt", "word"), [("crash=2", "SIGABRT"), ("segv=2", "SIGSEGV")], ids=["SIGABRT", "SIGSEGV"]
)
@driven
async def test_a_crash_ends_the_job_and_the_next_one_runs(prompt: str, word: str) -> None:
    """A crash fails only the running job, with the name of the signal."""
    async with running_worker() as worker:
        events = await drawn(worker, prompt)
        ending = events[-1]
        assert isinstance(ending, Failed)
        assert ending.reason == Reason.WORKER_CRASHED
        assert word in ending.message
        assert worker.state is not WorkerState.READY
        assert isinstance((await drawn(worker))[-1], Done)
        assert worker.starts == 2


@driven
async def test_a_kill_from_outside_is_told_apart() -> None:
    """SIGKILL, which the kernel sends when memory runs out, has the reason worker_killed."""
    async with running_worker() as worker:
        events = await drawn_until(
            worker, 2, lambda: os.kill(worker.pid or 0, signal.SIGKILL), "step=0.05"
        )
        ending = events[-1]
        assert isinstance(ending, Failed)
        assert ending.reason == Reason.WORKER_KILLED
        assert isinstance((await drawn(worker))[-1], Done)


@driven
async def test_an_engine_that_fails_keeps_its_process() -> None:
    """A failure that the engine reports ends the job but not the process."""
    async with running_worker() as worker:
        ending = (await drawn(worker, "fail=2"))[-1]
        assert isinstance(ending, Failed)
        assert ending.reason == Reason.GENERATION_FAILED
        assert isinstance((await drawn(worker))[-1], Done)
        assert worker.starts == 1


@driven
async def test_a_hang_ends_at_its_limit() -> None:
    """A step without progress fails with worker_hung at its limit, and the next job runs."""
    async with running_worker(hang_seconds=LIMIT) as worker:
        await drawn(worker)  # the first run of a phase has ten times the limit
        began = time.monotonic()
        ending = (await drawn(worker, "hang=2"))[-1]
        assert isinstance(ending, Failed)
        assert ending.reason == Reason.WORKER_HUNG
        assert time.monotonic() - began > 0.9 * LIMIT
        assert isinstance((await drawn(worker))[-1], Done)
        assert worker.starts == 2


@driven
async def test_a_phase_never_seen_may_take_longer() -> None:
    """The first run of a phase has no measured pace, so its limit is ten times the minimum."""
    async with running_worker(hang_seconds=LIMIT) as worker:
        assert isinstance((await drawn(worker, f"step={LIMIT + 1}", steps=1))[-1], Done)


@driven
async def test_a_child_that_reads_no_more_is_ended() -> None:
    """A stopped process that cannot receive a large command is ended as hung."""
    async with running_worker(hang_seconds=LIMIT) as worker:
        await drawn(worker)
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGSTOP)
        picture = Pixels(1024, 1024, bytes(3 * 1024 * 1024))
        order = Generate("large", a_request(), Inputs(picture))
        (ending,) = [event async for event in worker.generate(order)]
        assert isinstance(ending, Failed)
        assert ending.reason == Reason.WORKER_HUNG
        assert isinstance((await drawn(worker))[-1], Done)


@driven
async def test_a_hang_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A hang is logged, as a crash is."""
    async with running_worker(hang_seconds=LIMIT) as worker:
        await drawn(worker)
        await drawn(worker, "hang=2")
    assert [r for r in caplog.records if "hung" in r.getMessage()]


@pytest.mark.parametrize(
    ("file", "word"),
    [
        ("broken", "damaged"),
        ("crash", "SIGABRT"),
    ],
)
@driven
async def test_three_failed_loads_are_enough(file: str, word: str) -> None:
    """A model that cannot be loaded is tried three times; jobs then get the reason."""
    async with running_worker(file) as worker:
        with pytest.raises(Unavailable, match=word) as caught:
            await worker.ready()
        assert caught.value.reason is Reason.MODEL_UNAVAILABLE
        assert worker.state is WorkerState.FAILED
        assert worker.starts == 3
        while worker.pid is not None:
            await asyncio.sleep(0.01)


@driven
async def test_an_idle_worker_that_dies_is_replaced() -> None:
    """An idle worker that dies is restarted automatically."""
    async with running_worker() as worker:
        await worker.ready()
        first = worker.pid or 0
        os.kill(first, signal.SIGKILL)
        while worker.pid in (first, None):
            await asyncio.sleep(0.01)
        await worker.ready()
        assert worker.starts == 2


@driven
async def test_frames_of_a_job_that_is_gone_are_ignored() -> None:
    """Events of an abandoned job do not appear in the next job."""
    async with running_worker() as worker:
        await worker.ready()
        jobs = worker.generate(Generate("first", a_request("step=0.05 deaf=1", steps=50)))
        await anext(jobs)
        assert isinstance(jobs, AsyncGenerator)
        await jobs.aclose()
        await worker.ready()
        request = a_request("second")
        events = [event async for event in worker.generate(Generate("second", request))]
        assert isinstance(events[-1], Done)
        assert {getattr(event, "job", "second") for event in events} == {"second"}


def test_looking_at_references_has_a_pace_of_its_own() -> None:
    """Encoding with references has a separate pace, since it may take minutes, not moments."""
    pace = Pace(60.0)
    pace.expect(a_request())
    pace.note(Phase.ENCODING, 0.1)
    assert pace.usual(Phase.ENCODING) == pytest.approx(0.1)
    assert pace.limit(Phase.ENCODING) == 60.0
    pace.expect(a_request(), references=2)
    assert (pace.usual(Phase.ENCODING), pace.limit(Phase.ENCODING)) == (0.0, 600.0)
    pace.note(Phase.ENCODING, 70.0)
    assert pace.limit(Phase.ENCODING) == pytest.approx(700.0)
    pace.expect(a_request(width=2048, height=2048))
    assert pace.limit(Phase.ENCODING) == 60.0


def test_the_second_pass_of_a_hires_fix_may_take_longer() -> None:
    """The limit for sampling grows with the square of the second pass's pixels.

    The time of such a job does not change the limit of other jobs.
    """
    pace = Pace(1.0)
    pace.expect(a_request(width=64, height=64))
    pace.note(Phase.SAMPLING, 2.0)
    assert pace.limit(Phase.SAMPLING) == pytest.approx(20.0)
    pace.expect(a_request(width=64, height=64, second_pass=Size(128, 128)))
    assert pace.limit(Phase.SAMPLING) == pytest.approx(320.0)
    pace.note(Phase.SAMPLING, 30.0)
    pace.expect(a_request(width=64, height=64))
    assert pace.limit(Phase.SAMPLING) == pytest.approx(20.0)


def test_a_crash_loop_starts_at_most_five_times_in_15_seconds() -> None:
    """The waits between starts grow as 0, 1, 2, 4 … to 30 s: at most five starts in 15 s."""
    waits = [_backoff(failures) for failures in range(20)]
    starts = [sum(waits[: count + 1]) for count in range(len(waits))]
    assert len([at for at in starts[1:] if at < 15]) <= 5
    assert waits == sorted(waits)
    assert waits[-1] == 30


@driven
async def test_two_crashes_with_kernels_turn_them_off(caplog: pytest.LogCaptureFixture) -> None:
    """After two crashes a model is loaded without CPU kernels, and the log has the reason."""
    async with running_worker(kernels="auto") as worker:
        for crashes in range(2):
            await drawn(worker, "crash=1")
            await worker.ready()
            assert worker.loaded is not None
            assert worker.loaded.kernels == ("auto" if crashes == 0 else "off")
        assert "crashed 2 times with CPU kernels and is loaded without them" in caplog.text
        assert isinstance((await drawn(worker))[-1], Done)


@driven
async def test_kernels_stay_when_the_system_kills_the_worker() -> None:
    """A worker that the system kills keeps its kernels, which are not to blame for full memory."""
    async with running_worker(kernels="auto") as worker:
        for _ in range(3):
            await worker.ready()
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
            await drawn(worker)
        assert worker.loaded is not None
        assert worker.loaded.kernels == "auto"


@driven
async def test_kernels_stay_when_python_code_ends_the_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A worker that ends with an exit status keeps its kernels, which are native code."""
    exit_code = WorkerProcess.exit_code

    async def with_status(process: WorkerProcess) -> int:
        await exit_code(process)
        return 1

    monkeypatch.setattr(WorkerProcess, "exit_code", with_status)
    async with running_worker(kernels="auto") as worker:
        for _ in range(2):
            ending = (await drawn(worker, "crash=1"))[-1]
            assert isinstance(ending, Failed)
            assert "ended with status 1" in ending.message
        await worker.ready()
        assert worker.loaded is not None
        assert worker.loaded.kernels == "auto"


@driven
async def test_a_job_that_cannot_be_read_keeps_the_process() -> None:
    """The child answers an invalid request with Failed, and the same process runs the next job."""
    async with running_worker() as worker:
        invalid = Options.model_construct(hires_scale=1.0)
        ending = (await drawn(worker, options=invalid))[-1]
        assert isinstance(ending, Failed)
        assert ending.reason == Reason.GENERATION_FAILED
        assert "could not read the request" in ending.message
        assert isinstance((await drawn(worker))[-1], Done)
        assert worker.starts == 1


@driven
async def test_a_share_at_the_moment_when_the_time_runs_out() -> None:
    """A command that comes when a phase exceeds its limit does not end the supervisor."""

    class Late(FakeProcess):
        async def receive(self) -> Event | None:
            try:
                return await super().receive()
            except asyncio.CancelledError:  # the limit of the phase
                worker.share(0, 2)
                raise

    async def spawn(_engine: str, _environment: Mapping[str, str]) -> FakeProcess:
        return Late(step_seconds=60.0)

    load = Load("fake", "ovis_image", {"model": "x"}, "/nowhere", RuntimeOptions().model_dump())
    worker = Worker(load, WorkerOptions("fake", {}, hang_seconds=0.01), spawn=spawn)
    task = asyncio.create_task(worker.run())
    ending = (await drawn(worker))[-1]
    assert isinstance(ending, Failed)
    assert ending.reason == Reason.WORKER_HUNG
    await worker.ready()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


@driven
async def test_jobs_that_crash_slow_the_restarts_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second crash in a row delays the restart, and a successful job ends the series."""
    waits = []

    def backoff(failures: int) -> float:
        waits.append(_backoff(failures))
        return waits[-1]

    monkeypatch.setattr(worker_module, "_backoff", backoff)
    async with running_worker() as worker:
        await drawn(worker, "crash=1")
        await worker.ready()
        began = time.monotonic()
        await drawn(worker, "crash=1")
        await drawn(worker)
        assert time.monotonic() - began >= 1.0
        await drawn(worker, "crash=1")
        await worker.ready()
    assert waits == [0.0, 0.0, 1.0, 0.0]


@driven
async def test_idle_deaths_in_a_row_slow_the_restarts_down() -> None:
    """Repeated deaths of an idle process delay the restarts as well."""
    async with running_worker() as worker:
        began = time.monotonic()
        for _ in range(4):
            await worker.ready()
            pid = worker.pid or 0
            os.kill(pid, signal.SIGKILL)
            while worker.pid == pid:
                await asyncio.sleep(0.01)
        await worker.ready()
        # The delays are 0, 1, 2 and 4 s.
        assert time.monotonic() - began >= 7


@driven
async def test_a_load_that_hangs_after_a_cancelled_job_is_noticed() -> None:
    """The watchdog also covers the load of a process that replaces one that ignored a cancel."""
    async with running_worker(hang_seconds=LIMIT, cancel_seconds=0.1) as worker:
        await drawn_until(worker, 1, lambda: worker.cancel("job"), "deaf=1 step=0.5")
        while worker.starts < 2 or worker.pid is None:
            await asyncio.sleep(0.001)
        os.kill(worker.pid, signal.SIGSTOP)
        async with asyncio.timeout(30):
            assert isinstance((await drawn(worker))[-1], Done)


@pytest.mark.parametrize("prompt", ["", "step=0.2", "hang=1", "stopped"])
@driven
async def test_no_process_outlives_the_task(prompt: str) -> None:
    """Cancelling the worker's task ends its child: idle, busy, hung, or stopped by a signal."""
    async with running_worker() as worker:
        await worker.ready()
        pid = worker.pid or 0
        if prompt == "stopped":
            os.kill(pid, signal.SIGSTOP)
        elif prompt:
            await anext(worker.generate(Generate("job", a_request(prompt))))
        assert is_alive(pid)
    assert not is_alive(pid)
    assert worker.state is WorkerState.STOPPED


@driven
async def test_a_job_ends_with_the_task() -> None:
    """A job that runs when its worker is stopped fails with shutting_down."""
    async with running_worker() as worker:
        await worker.ready()
        job = asyncio.create_task(drawn(worker, "step=0.2"))
        while worker.state is not WorkerState.BUSY:
            await asyncio.sleep(0.01)
    ending = (await job)[-1]
    assert isinstance(ending, Failed)
    assert ending.reason == Reason.SHUTTING_DOWN
