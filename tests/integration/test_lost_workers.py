"""Jobs whose worker is lost with its machine, with simulated processes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest

from sdstream.client.results import Progress
from sdstream.core.errors import Reason, Unavailable
from sdstream.core.job_filter import JobFilter
from sdstream.engine.worker import Worker
from sdstream.runner import AsyncRunner
from sdstream.service import assembly
from tests.support.processes import FakeProcess, driven

QUICK: dict[str, Any] = {"size": "64x64", "sample_steps": 3}


class Losing:
    """Start simulated processes and lose the first of them when they generate.

    Attributes:
        losses: Number of processes that are still to be lost.
        started: All processes that were started.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, losses: int) -> None:
        self.losses = losses
        self.started: list[FakeProcess] = []
        monkeypatch.setattr(assembly, "Worker", partial(Worker, spawn=self.spawn))

    async def spawn(self, _engine: str, _environment: Mapping[str, str]) -> FakeProcess:
        """Start a process."""
        process = FakeProcess(step_seconds=0.02)
        self.started.append(process)
        return process

    def lose(self, *_: object) -> None:
        """Lose the newest process if any losses remain."""
        if self.losses and not self.started[-1].is_gone:
            self.losses -= 1
            self.started[-1].lose()


@driven
async def test_a_job_is_generated_again_when_its_machine_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A lost machine's job is generated again, and the loss is not counted as an attempt."""
    machines = Losing(monkeypatch, 1)

    def at_step(progress: Progress) -> None:
        if progress.step == 2 and progress.index == 1:
            machines.lose()

    async with AsyncRunner(engine="fake") as runner:
        answer = await runner.generate("a", on_progress=at_step, n=2, **QUICK)
        assert len(answer.data) == 2
        page = await runner.assembly.service.page("", JobFilter(), limit=1, after=None)
        assert page.jobs[0].attempts == 1
    assert len(machines.started) == 2


@driven
async def test_a_machine_may_be_lost_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job is generated again if its machine is lost before the first step."""
    machines = Losing(monkeypatch, 1)
    async with AsyncRunner(engine="fake") as runner:
        answer = await runner.generate("a", on_progress=machines.lose, **QUICK)
        assert len(answer.data) == 1
    assert len(machines.started) == 2


@driven
async def test_a_job_whose_machines_are_lost_twice_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job whose machines are lost twice fails with the reason worker_lost; the next job runs."""
    machines = Losing(monkeypatch, 2)
    async with AsyncRunner(engine="fake") as runner:
        with pytest.raises(Unavailable) as caught:
            await runner.generate("a", on_progress=machines.lose, **QUICK)
        assert caught.value.reason is Reason.WORKER_LOST
        assert len((await asyncio.wait_for(runner.generate("b", **QUICK), 30)).data) == 1
    assert len(machines.started) == 3
