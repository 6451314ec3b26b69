"""The contract of the port Process, which every worker process fulfils."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from sdstream.core.messages import (
    Cancel,
    Cancelled,
    Done,
    Event,
    Generate,
    ImageDrawn,
    Load,
    Loaded,
    Progress,
    Stop,
)
from sdstream.core.runtime_options import RuntimeOptions
from sdstream.engine.process import Process, WorkerProcess
from sdstream.settings import worker_environment
from tests.support.processes import FakeProcess, a_request, driven

Start = Callable[[], Awaitable[Process]]


async def start_child() -> Process:
    """Start a child of this process on the fake engine."""
    return await WorkerProcess.spawn("fake", worker_environment())


async def start_fake() -> Process:
    """Start a simulated process."""
    return FakeProcess(step_seconds=0.01)


every_process = pytest.mark.parametrize("start", [start_child, start_fake])


@asynccontextmanager
async def loaded(start: Start) -> AsyncIterator[Process]:
    """Start a process with a loaded model, and end it on exit."""
    process = await start()
    try:
        process.send(Load("fake", "sd1", {"model": "x"}, "/nowhere", RuntimeOptions().model_dump()))
        while not isinstance(event := await process.receive(), Loaded):
            assert event is not None
        yield process
    finally:
        await process.end()


async def until_end(process: Process) -> list[Event]:
    """Return events up to the one that ends a job."""
    events: list[Event] = []
    while not events or not isinstance(events[-1], Done | Cancelled):
        event = await process.receive()
        assert isinstance(event, Event), events
        events.append(event)
    return events


@every_process
@driven
async def test_commands_are_obeyed_in_order(start: Start) -> None:
    """Two jobs run one after the other, each with its images and its end."""
    async with loaded(start) as process:
        for job in ("one", "two"):
            process.send(Generate(job, a_request(n=2, steps=2)))
            events = await until_end(process)
            assert {event.job for event in events if not isinstance(event, Loaded)} == {job}
            images = [event for event in events if isinstance(event, ImageDrawn)]
            assert [image.index for image in images] == [0, 1]
            assert [len(image.blob) for image in images] == [64 * 48 * 3] * 2
        assert process.pid > 0
        assert process.resident_bytes > 0


@every_process
@driven
async def test_a_cancel_ends_a_job_and_not_the_process(start: Start) -> None:
    """A cancelled job ends within a step, and the next job is generated."""
    async with loaded(start) as process:
        process.send(Generate("one", a_request("step=0.02", steps=100)))
        while not (isinstance(event := await process.receive(), Progress) and event.step == 2):
            pass
        process.send(Cancel("one"))
        events = await until_end(process)
        assert isinstance(events[-1], Cancelled)
        assert len(events) < 50
        process.send(Generate("two", a_request(steps=2)))
        assert isinstance((await until_end(process))[-1], Done)


@every_process
@pytest.mark.parametrize("busy", [False, True])
@driven
async def test_a_kill_is_the_end(start: Start, busy: bool) -> None:
    """A killed process ends at once with the signal as its exit code; later calls do nothing."""
    async with loaded(start) as process:
        if busy:
            process.send(Generate("one", a_request("step=0.05", steps=100)))
            await process.receive()
        process.kill()
        async with asyncio.timeout(30):
            while await process.receive() is not None:
                pass
            assert await process.receive() is None
            assert await process.exit_code() == -9
        process.send(Cancel("one"))
        await process.end()


@every_process
@driven
async def test_stop_is_an_orderly_end(start: Start) -> None:
    """A process that is told to stop exits with code 0."""
    async with loaded(start) as process:
        process.send(Stop())
        async with asyncio.timeout(30):
            while await process.receive() is not None:
                pass
            assert await process.exit_code() == 0
