"""Places (machines) and seats: a seat is one worker in a place, as the pool sees it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from sdstream.core.messages import Loaded
from sdstream.core.model_spec import CPU, ModelSpec
from sdstream.engine.worker import Worker, WorkerState


@dataclass(frozen=True)
class Place:
    """A machine where workers run.

    Attributes:
        name: Name of the machine; empty for this machine.
        budget: Memory for all of its workers, in bytes; one worker may exceed it if it is alone.
        slots: Maximum number of workers, which is the number of GPUs; None means no limit.
        gpu_bytes: Memory of each GPU; None if there is no GPU or the size is unknown.
        cores: CPU cores. Without slots, each core may have one worker of a small model.
        is_open: The pool may start workers there and give them jobs.
        is_leaving: The workers stop as soon as their jobs are finished.
    """

    name: str
    budget: int
    slots: int | None = None
    gpu_bytes: int | None = None
    cores: int = 1
    is_open: bool = True
    is_leaving: bool = False


@dataclass(eq=False)
class Seat:
    """One worker in the pool.

    Attributes:
        spec: The worker's model.
        worker: The worker itself.
        task: The task that runs the worker.
        taken: A job is using the worker.
        leaving: The worker stops as soon as no job uses it.
        successor: The changed catalogue entry of its model, which is loaded after the worker stops.
        used: The time of the event loop's clock when a job last used the worker.
        going: The timer that stops the worker after it has been idle too long.
        recorded: The load whose use of GPU memory was recorded last.
    """

    spec: ModelSpec
    worker: Worker
    task: asyncio.Task[None]
    used: float
    taken: bool = False
    leaving: bool = False
    successor: ModelSpec | None = None
    going: asyncio.TimerHandle | None = field(default=None, repr=False)
    recorded: Loaded | None = None

    @property
    def idle(self) -> bool:
        """True if the pool can stop the worker without interrupting a job or a load."""
        return not self.taken and self.worker.state in (WorkerState.READY, WorkerState.FAILED)

    @property
    def gpu(self) -> str | None:
        """Number of the GPU that the worker uses, as the runtime counts; None on a CPU."""
        if self.worker.loaded is not None and self.worker.loaded.on_cpu:
            return None
        return gpu_of(self.spec)


def gpu_of(spec: ModelSpec) -> str | None:
    """Return the number of the GPU that a model uses if the machine has one; None for the CPU.

    Without a device in its entry, a model uses the first GPU.
    """
    if spec.device is None:
        return "0"
    return None if spec.device == CPU else spec.device.partition(":")[2]
