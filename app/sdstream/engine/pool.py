"""Workers of several models side by side, on one machine or several, within budgets of memory.

A model is loaded when a job needs it, once however many wait for it, in the place with the fewest
workers. Where no place has room, the models of one place that were idle the longest are unloaded,
never one that generates or is being loaded. The memory that a model needs is measured on its
process; before its first run, it is the size of its files.

A small model gains little from many threads, and a machine without slots may have several workers
of it (``replicas: auto``). The workers of a machine that have a job divide its cores among them.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from sdstream.core.model_spec import CPU, ModelSpec
from sdstream.engine.worker import Worker, WorkerState

logger = logging.getLogger(__name__)

#: What a worker takes beside the files of its model.
_PROCESS_BYTES: Final = 150 * 2**20

#: Least time that an idle worker stays: enough for the job that it was loaded for, or that waits
#: behind the last one, to be given to it.
_LEAST_IDLE_SECONDS: Final = 1.0

#: For a model with larger files, another worker is not worth its memory.
_SMALL_BYTES: Final = 256 * 2**20
#: Most workers of a small model on one machine.
_MOST_WORKERS: Final = 8
#: Seconds that such a worker beside another one stays idle, unless its model has a time of its own.
_SPARE_SECONDS: Final = 300.0

_LOADED: Final = (WorkerState.READY, WorkerState.BUSY)


@dataclass(frozen=True)
class Place:
    """A machine where workers run.

    Attributes:
        name: Empty for this machine.
        budget: Memory for all workers there, in bytes; one model may always be there.
        slots: Workers that may be there at once, as there are GPUs; None is any number.
        gpu_bytes: Memory of each of its GPUs; None without GPUs, or when it is unknown.
        cores: CPU cores, each of which may have a worker of a small model where there are no slots.
        is_open: Workers may be started there, and jobs given to them.
        is_leaving: Its workers stop as soon as their jobs are over.
    """

    name: str
    budget: int
    slots: int | None = None
    gpu_bytes: int | None = None
    cores: int = 1
    is_open: bool = True
    is_leaving: bool = False


@dataclass(eq=False)
class _Seat:
    """One worker in the pool.

    Attributes:
        spec: Its model.
        worker: It.
        task: Runs it.
        taken: A job has it.
        leaving: It goes as soon as no job has it.
        successor: The entry of its model that is to be loaded in its place.
        used: When a job had it last, on the loop's clock.
        going: Ends it for having been idle too long.
    """

    spec: ModelSpec
    worker: Worker
    task: asyncio.Task[None]
    used: float
    taken: bool = False
    leaving: bool = False
    successor: ModelSpec | None = None
    going: asyncio.TimerHandle | None = field(default=None, repr=False)

    @property
    def idle(self) -> bool:
        """True when it could go without harm."""
        return not self.taken and self.worker.state in (WorkerState.READY, WorkerState.FAILED)


class WorkerPool:
    """Starts, lends and stops workers. Everything happens on one event loop.

    Args:
        make_worker: A worker for a model in a place of that name, which calls back whenever its
            state changes.
        file_bytes: Size of a model's files.
        can_load: Returns whether a model's files exist.
        places: Returns the places; the caller calls ``places_changed`` when they change.
        keep_alive: Seconds that an idle worker stays loaded whose model does not say; None is until
            others need its room.
        on_change: Called when a worker may be free, loaded or gone.
    """

    def __init__(
        self,
        make_worker: Callable[[ModelSpec, Callable[[], None], str], Worker],
        *,
        file_bytes: Callable[[ModelSpec], int],
        can_load: Callable[[ModelSpec], bool] = lambda _: True,
        places: Callable[[], Sequence[Place]],
        keep_alive: float | None = None,
        on_change: Callable[[], None],
    ) -> None:
        self._make_worker = make_worker
        self._file_bytes = file_bytes
        self._can_load = can_load
        self._places = places
        self._keep_alive = keep_alive
        self._on_change = on_change
        self._seats: list[_Seat] = []
        self._seen_bytes: dict[str, int] = {}
        #: Models that were loaded and did not fail since.
        self._sound: set[str] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self.evictions = 0
        #: Model and place -> starts of the workers that have ended.
        self._past_starts: Counter[tuple[str, str]] = Counter()
        #: Workers that went with their machine, or are to be tried again on another one.
        self.losses = 0

    # --- looking --------------------------------------------------------------------------------

    def workers(self, model: str | None = None, place: str | None = None) -> list[Worker]:
        """The workers of a model, or all; in the place of that name, or in all."""
        return [
            seat.worker
            for seat in self._seats
            if model in (None, seat.spec.id) and place in (None, seat.worker.place)
        ]

    def _loaded(self, model: str, place: str | None = None) -> list[Worker]:
        return [worker for worker in self.workers(model, place) if worker.state in _LOADED]

    def places(self) -> Sequence[Place]:
        """The places that there are now."""
        return self._places()

    def used_bytes(self, place: str) -> int:
        """Memory that the workers of a place need, in bytes."""
        return self._used_bytes([seat for seat in self._seats if seat.worker.place == place])

    def embeddings(self, model: str) -> tuple[str, ...]:
        """Words that a model reads as embeddings; none is known before it is loaded."""
        return next((w.loaded.embeddings for w in self.workers(model) if w.loaded), ())

    def kernels(self, model: str) -> str | None:
        """CPU kernels that a model's workers use; None before it is loaded."""
        return next((w.loaded.kernels for w in self.workers(model) if w.loaded), None)

    def free(self, model: str) -> Worker | None:
        """A loaded worker of the model that no job has.

        The most recently used one is preferred: it has cached prompts, and others can stop.
        """
        shut = {place.name for place in self._places() if not place.is_open}
        free = [
            seat
            for seat in self._seats
            if seat.spec.id == model
            and seat.idle
            and seat.worker.state is WorkerState.READY
            and seat.worker.place not in shut
        ]
        return max(free, key=lambda seat: seat.used).worker if free else None

    def coming(self, model: str) -> int:
        """Workers of the model that are being started."""
        return sum(worker.state is WorkerState.STARTING for worker in self.workers(model))

    def is_ready(self, spec: ModelSpec) -> bool:
        """Return whether jobs of the model can run: it is loaded, or was unloaded on purpose.

        Then the next job loads it again, if its files still exist. A model whose worker is being
        restarted after a crash is not ready, nor is one whose worker crashed too often.
        """
        workers = self.workers(spec.id)
        if self._loaded(spec.id):
            return not any(w.unsteady for w in workers)
        resting = all(w.starts <= 1 and w.state is WorkerState.STARTING for w in workers)
        return resting and spec.id in self._sound and self._can_load(spec) and self.has_places

    @property
    def has_places(self) -> bool:
        """True when there is a place where workers can be started."""
        return any(place.is_open for place in self._places())

    def most_workers(self, spec: ModelSpec) -> int:
        """Workers that the model may have at once.

        "auto" is one for each slot; a place without slots has one for each core if the model is
        small and a loaded worker of it can divide the CPU with others.
        """
        if spec.replicas != "auto":
            return spec.replicas
        return sum(
            (self._most_by_cores(spec, place) if place.slots is None else place.slots)
            for place in self._places()
            if place.is_open
        )

    def _most_by_cores(self, spec: ModelSpec, place: Place) -> int:
        # Not beside one that restarts after a crash: a second one would crash as well.
        workers = self._loaded(spec.id, place.name)
        divides = any(w.loaded and w.loaded.can_share and w.loaded.on_cpu for w in workers)
        is_small = self._file_bytes(spec) <= _SMALL_BYTES
        return min(place.cores, _MOST_WORKERS) if divides and is_small else 1

    def failed(self, model: str) -> Worker | None:
        """The worker that shows why the model cannot be loaded."""
        workers = self.workers(model)
        broken = [worker for worker in workers if worker.state is WorkerState.FAILED]
        return broken[0] if broken and len(broken) == len(workers) else None

    # --- lending --------------------------------------------------------------------------------

    def start(self, spec: ModelSpec, after: asyncio.Task[None] | None = None) -> bool:
        """Begin to load one more worker of a model; False when it has enough or there is no room.

        Others make room for the first worker of a model, but not for another one of it.

        Args:
            spec: The model.
            after: A worker that is ending, whose memory this one takes.
        """
        count = len(self.workers(spec.id))
        if count >= self.most_workers(spec):
            return False
        chosen = self._choose(spec, may_evict=count == 0)
        if chosen is None:
            return False
        place, victims = chosen
        for seat in victims:
            logger.info("model %s makes room for %s", seat.spec.id, spec.id)
            self.evictions += 1
        gone = [*(self._end(seat) for seat in victims), *([after] if after else [])]
        worker = self._make_worker(spec, self._changed, place.name)
        task = asyncio.create_task(_run_after(gone, worker))
        task.add_done_callback(_log_fault)
        self._seats.append(_Seat(spec, worker, task, self._now()))
        return True

    def places_changed(self) -> None:
        """Give up the workers of places that are gone, and those of places that leave when free."""
        there = {place.name: place for place in self._places()}
        for seat in list(self._seats):
            place = there.get(seat.worker.place)
            if seat.worker.is_refused:  # another machine, or this one by now, may have its files
                self.losses += 1
                self._end(seat)
            elif place is None:
                seat.worker.lose()  # which takes it out
            elif place.is_leaving and not seat.leaving:
                seat.leaving = True
                if not seat.taken:
                    self._end(seat)
        self._on_change()

    def _changed(self) -> None:
        """A worker's state is another one: who is idle from now on may have to go some time."""
        for seat in [s for s in self._seats if s.worker.state is WorkerState.STOPPED]:
            self.losses += 1
            self._end(seat)  # its machine is out of reach
        for seat in self._seats:
            if seat.worker.state in _LOADED:
                self._sound.add(seat.spec.id)
            elif self.failed(seat.spec.id) is not None:
                self._sound.discard(seat.spec.id)
            ready = seat.worker.state is WorkerState.READY and not seat.taken
            keep_alive = self._idle_seconds(seat)
            if ready and seat.going is None and keep_alive is not None:
                seconds = max(keep_alive, _LEAST_IDLE_SECONDS)
                loop = asyncio.get_running_loop()
                seat.going = loop.call_later(seconds, self._end_idle, seat)
        self._on_change()

    def keep_alive(self, spec: ModelSpec) -> float | None:
        """Seconds that an idle worker of the model stays loaded; None is until others need it."""
        return self._keep_alive if spec.keep_alive is None else spec.keep_alive

    def _idle_seconds(self, seat: _Seat) -> float | None:
        """Seconds that a worker may be idle; None is until others need its room."""
        seconds = self.keep_alive(seat.spec)
        is_spare = seat.spec.replicas == "auto" and len(self._loaded(seat.spec.id)) > 1
        return _SPARE_SECONDS if seconds is None and is_spare else seconds

    def take(self, worker: Worker) -> None:
        """Lend a free worker to a job."""
        seat = next(seat for seat in self._seats if seat.worker is worker)
        assert not seat.taken
        seat.taken = True
        if seat.going is not None:
            seat.going.cancel()
            seat.going = None
        self._divide_cpu(worker.place)

    def give_back(self, worker: Worker) -> None:
        """The job is over."""
        seat = next((seat for seat in self._seats if seat.worker is worker), None)
        if seat is None:
            return  # all were stopped meanwhile
        seat.taken, seat.used = False, self._now()
        self._note(seat)
        self._divide_cpu(worker.place)
        if seat.leaving:
            self._leave(seat)
        self._changed()

    def _divide_cpu(self, place: str) -> None:
        """Notify the busy workers of a place of their number."""
        taken = [seat.worker for seat in self._seats if seat.taken and seat.worker.place == place]
        computing = [worker for worker in taken if worker.loaded and worker.loaded.on_cpu]
        for index, worker in enumerate(computing):
            worker.share(index, len(computing))

    def unload(self, model: str) -> None:
        """Stop a model's workers, each as soon as no job has it."""
        for seat in [seat for seat in self._seats if seat.spec.id == model]:
            seat.leaving, seat.successor = True, None
            if not seat.taken:
                self._end(seat)
        self._on_change()

    def adopt(self, models: Mapping[str, ModelSpec]) -> None:
        """Stop the workers of models that are gone or changed, each as soon as no job has it.

        Args:
            models: Those that there are now; one that changed is loaded again.
        """
        for seat in list(self._seats):
            spec = models.get(seat.spec.id)
            if seat.leaving and seat.successor is None:
                continue  # it was unloaded, or its model was removed
            failed = seat.worker.state is WorkerState.FAILED  # its files may be right now
            if spec == (seat.successor or seat.spec) and not failed:
                continue
            self._seen_bytes.pop(seat.spec.id, None)
            self._sound.discard(seat.spec.id)
            seat.leaving, seat.successor = True, spec
            if not seat.taken:
                self._leave(seat)
        self._on_change()

    def _leave(self, seat: _Seat) -> None:
        ended = self._end(seat)
        if seat.successor is not None:
            self.start(seat.successor, after=ended)

    async def close(self) -> None:
        """Stop all."""
        for seat in list(self._seats):
            self._end(seat)
        while self._ending:
            await asyncio.wait(self._ending)

    @property
    def budget_bytes(self) -> int:
        """Memory for the workers of all places together."""
        return sum(place.budget for place in self._places())

    # --- memory ---------------------------------------------------------------------------------

    def need(self, spec: ModelSpec) -> int:
        """Bytes that a worker of the model takes, as far as is known."""
        return self._seen_bytes.get(spec.id) or self._file_bytes(spec) + _PROCESS_BYTES

    def _used_bytes(self, seats: Sequence[_Seat]) -> int:
        return sum(max(self._note(seat), self.need(seat.spec)) for seat in seats)

    def _note(self, seat: _Seat) -> int:
        """Measure a worker; what it took at most is what it needs."""
        now = seat.worker.resident_bytes
        if seat.worker.state in _LOADED:
            self._seen_bytes[seat.spec.id] = max(now, self._seen_bytes.get(seat.spec.id, 0))
        return now

    def _choose(self, spec: ModelSpec, *, may_evict: bool) -> tuple[Place, list[_Seat]] | None:
        """The place for one more worker, and those who make room there; None without one.

        The best place has a GPU that is large enough, then needs no worker to stop, then has the
        fewest workers.
        """
        seats: defaultdict[str, list[_Seat]] = defaultdict(list)
        for seat in self._seats:
            if seat.worker.state is not WorkerState.FAILED:
                seats[seat.worker.place].append(seat)
        best: tuple[tuple[bool, int, int], Place, list[_Seat]] | None = None
        for place in self._places():
            here = seats[place.name]
            victims = self._victims(spec, place, here) if place.is_open else None
            if victims is None or (victims and not may_evict):
                continue
            rank = (not self._fits_gpu(spec, place), len(victims), len(here))
            if best is None or rank < best[0]:
                best = rank, place, victims
        return None if best is None else best[1:]

    def _fits_gpu(self, spec: ModelSpec, place: Place) -> bool:
        """False when the weights alone are larger than the GPU that they would be loaded to."""
        if place.gpu_bytes is None or spec.device == CPU or spec.runtime.offload:
            return True
        return self._file_bytes(spec) <= place.gpu_bytes

    def _victims(self, spec: ModelSpec, place: Place, here: Sequence[_Seat]) -> list[_Seat] | None:
        """Whom to stop so that the model fits there; None when that would not be enough."""
        used, wanted, count = self._used_bytes(here), self.need(spec), len(here)
        slots = count + 1 if place.slots is None else place.slots
        victims: list[_Seat] = []
        for seat in sorted((s for s in here if s.idle), key=lambda s: s.used):
            if used + wanted <= place.budget and count < slots:
                break
            victims.append(seat)
            used -= max(seat.worker.resident_bytes, self.need(seat.spec))
            count -= 1
        has_room = used + wanted <= place.budget or count == 0
        return victims if has_room and count < slots else None

    # --- parts ----------------------------------------------------------------------------------

    def _end_idle(self, seat: _Seat) -> None:
        seat.going = None
        seconds = self._idle_seconds(seat)
        if seat in self._seats and seat.idle and seconds is not None:
            logger.info("model %s was idle for %g s", seat.spec.id, seconds)
            self._end(seat)
            self._on_change()

    def _end(self, seat: _Seat) -> asyncio.Task[None]:
        """Take a worker out; the task is over when its process is."""
        if seat.going is not None:
            seat.going.cancel()
        self._seats.remove(seat)
        self._past_starts[seat.worker.model, seat.worker.place] += seat.worker.starts
        if seat.worker.state in _LOADED and self.failed(seat.spec.id) is not None:
            # The model itself can be loaded: only further workers of it could not.
            for other in [other for other in self._seats if other.spec.id == seat.spec.id]:
                self._end(other)
        seat.task.cancel()
        self._ending.add(seat.task)
        seat.task.add_done_callback(self._ending.discard)
        # A task that is cancelled before the worker runs leaves this undone.
        seat.task.add_done_callback(lambda _task: seat.worker.retire())
        return seat.task

    def starts(self) -> Counter[tuple[str, str]]:
        """Return model and place -> how often a process was started for it."""
        starts = self._past_starts.copy()
        for worker in self.workers():
            starts[worker.model, worker.place] += worker.starts
        return starts

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


async def _run_after(gone: list[asyncio.Task[None]], worker: Worker) -> None:
    """Run a worker when those whose memory it takes are gone."""
    if gone:
        await asyncio.wait(gone)
    await worker.run()


def _log_fault(task: asyncio.Task[None]) -> None:
    """A supervisor never ends by an exception unless the program is wrong."""
    if not task.cancelled() and task.exception() is not None:
        logger.critical("a worker's supervisor stopped by a fault", exc_info=task.exception())
