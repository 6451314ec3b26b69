"""A fake of the interface sdstream.engine.process.Process, and helpers for tests of processes."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine, Mapping
from itertools import count
from typing import Any, Final

from sdstream.core.messages import (
    Cancel,
    Cancelled,
    Command,
    Done,
    Event,
    Generate,
    ImageDrawn,
    Load,
    Loaded,
    Phase,
    Progress,
    Share,
    Stop,
)
from sdstream.core.request import GenerationRequest
from sdstream.engine.process import PlaceGone

_PIDS: Final = count(1)
_KILLED: Final = -9


def driven(scenario: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test in a new event loop, for at most a minute."""

    @functools.wraps(scenario)
    def test(*args: Any, **kwargs: Any) -> None:
        asyncio.run(asyncio.wait_for(scenario(*args, **kwargs), 60))

    return test


def a_request(prompt: str = "a circle", **changes: Any) -> GenerationRequest:
    """A small job."""
    fields: dict[str, Any] = {
        "model": "fake",
        "prompt": prompt,
        "negative_prompt": "",
        "width": 64,
        "height": 48,
        "steps": 4,
        "sampler": "euler",
        "schedule": "discrete",
        "cfg_scale": 1.0,
        "seed": 7,
        "n": 1,
    }
    return GenerationRequest(**{**fields, **changes})


LOADED = Loaded(0.0, can_abort=True, fast_kernels=True, on_cpu=True, can_share=True)


class FakeProcess:
    """A worker process that loads immediately and generates black images on the event loop.

    Attributes:
        step_seconds: Duration of each sampling step.
        pid: A number that belongs to no process.
        resident_bytes: Memory use that the fake reports.
        loaded: Its answer to the command that loads a model.
        shares: The shares of the CPU that it received, oldest first.
    """

    def __init__(
        self,
        step_seconds: float = 0.0,
        resident_bytes: int = 1,
        loaded: Loaded = LOADED,
    ) -> None:
        self.step_seconds = step_seconds
        self.loaded = loaded
        self.pid = next(_PIDS)
        self.resident_bytes = resident_bytes
        self.shares: list[Share] = []
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._code: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._drawing: asyncio.Task[None] | None = None
        self._job: str | None = None

    @classmethod
    async def spawn(cls, _engine: str, _environment: Mapping[str, str]) -> FakeProcess:
        """Start a fake process."""
        return cls()

    @property
    def is_gone(self) -> bool:
        """True if the process has ended or was lost."""
        return self._code.done()

    def send(self, command: Command) -> None:
        """Execute a command; no effect if the process is gone."""
        if self._code.done():
            return
        match command:
            case Load():
                self._events.put_nowait(self.loaded)
            case Generate():
                self._drawing = asyncio.create_task(self._draw(command))
            case Cancel(job) if job == self._job and self._drawing is not None:
                self._drawing.cancel()
                self._job = None
                self._events.put_nowait(Cancelled(job))
            case Share():
                self.shares.append(command)
            case Stop():
                self._die(0)

    async def receive(self) -> Event | None:
        """Return the next event, or None once the process is gone."""
        event = await self._events.get()
        if event is None:
            self._events.put_nowait(None)
        return event

    async def exit_code(self) -> int:
        """Wait for the end; return the exit code, or raise PlaceGone after ``lose``."""
        return await asyncio.shield(self._code)

    async def end(self) -> None:
        """End the process if it still runs."""
        self._die(0)

    def kill(self) -> None:
        """Kill the process."""
        self._die(_KILLED)

    def lose(self) -> None:
        """Behave like a process on a machine that has become unreachable."""
        if not self._code.done():
            self._code.set_exception(PlaceGone("the machine is out of reach"))
            self._code.exception()
            self._stop()

    def _die(self, code: int) -> None:
        if not self._code.done():
            self._code.set_result(code)
            self._stop()

    def _stop(self) -> None:
        self.resident_bytes = 0
        if self._drawing is not None:
            self._drawing.cancel()
        self._events.put_nowait(None)

    async def _draw(self, order: Generate) -> None:
        job, request = order.job, order.request
        self._job = job
        size, steps = request.runtime_size, request.steps
        for index in range(order.first, request.n):
            self._events.put_nowait(Progress(job, index, Phase.ENCODING, 0, steps))
            for step in range(steps + 1):
                self._events.put_nowait(Progress(job, index, Phase.SAMPLING, step, steps))
                await asyncio.sleep(self.step_seconds)
            blob = bytes(3 * size.width * size.height)
            times = (0.0, self.step_seconds * steps, 0.0)
            seed = request.seed + index
            self._events.put_nowait(
                ImageDrawn(job, index, seed, size.width, size.height, steps, *times, blob)
            )
        self._job = None
        self._events.put_nowait(Done(job))
