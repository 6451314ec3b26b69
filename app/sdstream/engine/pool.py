"""The pool of workers: it runs several models on one or more machines, within memory budgets.

The pool loads a model when a job needs it, and only once even if several jobs wait for it. It
prefers the place (machine) with the fewest workers. If no place has room, it unloads the models of
one place that have been idle the longest; it never unloads a model that is generating or being
loaded. The memory that a model needs is measured on its process; before the model's first run, the
size of its files is the estimate.

A small model gains little from many threads. A machine without slots may therefore run several
workers of it (``replicas: auto``). The busy workers of a machine divide its cores among them.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from sdstream.core.messages import Loaded
from sdstream.core.model_spec import ModelSpec
from sdstream.engine.memory import Memory
from sdstream.engine.seat import Place, Seat
from sdstream.engine.worker import Worker, WorkerState

logger = logging.getLogger(__name__)

#: Minimum time that an idle worker stays loaded. The dispatcher needs it to give the worker the job
#: that it was loaded for, or the next job in the queue.
_LEAST_IDLE_SECONDS: Final = 1.0

#: A second worker of a model is not worth its memory if the model's files are larger than this.
_SMALL_BYTES: Final = 256 * 2**20
#: Maximum number of workers of a small model on one machine.
_MOST_WORKERS: Final = 8
#: Idle seconds after which an additional worker of such a model is stopped, unless a keep-alive
#: time is configured.
_SPARE_SECONDS: Final = 300.0


class WorkerPool:
    """The pool, which starts workers, lends them to jobs and stops them.

    All methods must be called on one event loop.

    Args:
        make_worker: Returns a worker for a model, a callback and the name of a place. The worker
            calls the callback whenever its state changes.
        file_bytes: Returns the size of a model's files.
        can_load: Returns whether a model's files exist.
        places: Returns the places; the caller calls ``places_changed`` when they change.
        keep_alive: Seconds that an idle worker stays loaded if its model sets no time; None keeps
            it until another model needs its memory.
        on_change: Called when a worker may have become free, been loaded or stopped.
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
        self._seats: list[Seat] = []
        self._memory = Memory(file_bytes)
        #: Models that were loaded and have not failed since then.
        self._sound: set[str] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self.evictions = 0
        #: (model, place) -> number of process starts of the workers that have ended.
        self._past_starts: Counter[tuple[str, str]] = Counter()
        #: Number of workers that were lost with their machine, or removed for another attempt.
        self.losses = 0

    # --- looking --------------------------------------------------------------------------------

    def workers(self, model: str | None = None, place: str | None = None) -> list[Worker]:
        """Return the workers, optionally only those of one model or in one place."""
        return [
            seat.worker
            for seat in self._seats
            if model in (None, seat.spec.id) and place in (None, seat.worker.place)
        ]

    def _loaded(self, model: str, place: str | None = None) -> list[Worker]:
        return [worker for worker in self.workers(model, place) if worker.is_up]

    def places(self) -> Sequence[Place]:
        """Return the current places."""
        return self._places()

    def used_bytes(self, place: str) -> int:
        """Return the memory that the workers of a place need, in bytes."""
        return self._memory.used([seat for seat in self._seats if seat.worker.place == place])

    def loaded(self, model: str) -> Loaded | None:
        """Return how a worker of a model loaded it; None until it is loaded."""
        return next((w.loaded for w in self.workers(model) if w.loaded), None)

    def free(self, model: str) -> Worker | None:
        """Return a loaded, idle worker of the model, or None.

        The most recently used worker is preferred: its prompt cache is warm, and the other workers
        can reach their idle time and stop.
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
        """Return the number of the model's workers that are starting."""
        return sum(worker.state is WorkerState.STARTING for worker in self.workers(model))

    def is_ready(self, spec: ModelSpec) -> bool:
        """Return whether the model is loaded, or the next job can load it.

        A model that the pool unloaded is ready if its files still exist: the next job loads it
        again. A model is not ready while its worker restarts after a crash, or if its worker
        crashed too often.
        """
        workers = self.workers(spec.id)
        if self._loaded(spec.id):
            return not any(w.unsteady for w in workers)
        resting = all(w.starts <= 1 and w.state is WorkerState.STARTING for w in workers)
        return resting and spec.id in self._sound and self._can_load(spec) and self.has_places

    @property
    def has_places(self) -> bool:
        """True if workers can be started in at least one place."""
        return any(place.is_open for place in self._places())

    def most_workers(self, spec: ModelSpec) -> int:
        """Return the maximum number of workers of the model.

        With "auto" the model may have one worker for each slot. In a place without slots it may
        have one for each core if the model is small and one of its loaded workers can share the
        CPU.
        """
        if spec.replicas != "auto":
            return spec.replicas
        return sum(
            (self._most_by_cores(spec, place) if place.slots is None else place.slots)
            for place in self._places()
            if place.is_open
        )

    def _most_by_cores(self, spec: ModelSpec, place: Place) -> int:
        # A worker that restarts after a crash does not count: a second worker would crash as well.
        workers = self._loaded(spec.id, place.name)
        divides = any(w.loaded and w.loaded.can_share and w.loaded.on_cpu for w in workers)
        is_small = self._file_bytes(spec) <= _SMALL_BYTES
        return min(place.cores, _MOST_WORKERS) if divides and is_small else 1

    def failed(self, model: str) -> Worker | None:
        """Return a failed worker, whose error is the reason, if all of the model's have failed."""
        workers = self.workers(model)
        broken = [worker for worker in workers if worker.state is WorkerState.FAILED]
        return broken[0] if broken and len(broken) == len(workers) else None

    # --- lending --------------------------------------------------------------------------------

    def start(self, spec: ModelSpec, after: asyncio.Task[None] | None = None) -> bool:
        """Start one more worker of a model.

        The pool stops workers of other models to make room for the first worker of a model, but not
        for a second one.

        Args:
            spec: The model.
            after: The task of a worker that is ending; the new worker starts when the task is done.

        Returns:
            False if the model already has its maximum number of workers, or if there is no room.
        """
        count = len(self.workers(spec.id))
        if count >= self.most_workers(spec):
            return False
        chosen = self._choose(spec, may_evict=count == 0)
        if chosen is None:
            return False
        place, victims = chosen
        for seat in victims:
            logger.info("model %s is unloaded to make room for %s", seat.spec.id, spec.id)
            self.evictions += 1
        gone = [*(self._end(seat) for seat in victims), *([after] if after else [])]
        worker = self._make_worker(spec, self._changed, place.name)
        task = asyncio.create_task(_run_after(gone, worker))
        task.add_done_callback(_log_fault)
        self._seats.append(Seat(spec, worker, task, self._now()))
        return True

    def places_changed(self) -> None:
        """Apply a change of the places.

        Workers of a place that no longer exists are given up at once. Workers of a place that is
        leaving stop when they are free. A worker that no machine accepted is removed, so that its
        model can be loaded again.
        """
        there = {place.name: place for place in self._places()}
        for seat in list(self._seats):
            place = there.get(seat.worker.place)
            if seat.worker.is_refused:  # some machine may have the model's files now
                self.losses += 1
                self._end(seat)
            elif place is None:
                seat.worker.lose()  # its callback removes the seat
            elif place.is_leaving and not seat.leaving:
                seat.leaving = True
                if not seat.taken:
                    self._end(seat)
        self._on_change()

    def _changed(self) -> None:
        """Handle a changed state of any worker, and start the idle timers of idle workers."""
        for seat in [s for s in self._seats if s.worker.state is WorkerState.STOPPED]:
            self.losses += 1
            self._end(seat)  # its machine cannot be reached
        for seat in self._seats:
            if seat.worker.is_up:
                self._sound.add(seat.spec.id)
                self._memory.record_load(seat, self._seats)
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
        """Return the seconds that an idle worker of the model stays loaded; None means no limit."""
        return self._keep_alive if spec.keep_alive is None else spec.keep_alive

    def _idle_seconds(self, seat: Seat) -> float | None:
        """Return the seconds that a worker may be idle; None means no limit."""
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
        """Take back a worker whose job is finished."""
        seat = next((seat for seat in self._seats if seat.worker is worker), None)
        if seat is None:
            return  # the worker was removed meanwhile
        seat.taken, seat.used = False, self._now()
        self._memory.measure(seat)
        self._divide_cpu(worker.place)
        if seat.leaving:
            self._leave(seat)
        self._changed()

    def _divide_cpu(self, place: str) -> None:
        """Send each busy worker of a place that computes on the CPU its share of the cores."""
        taken = [seat.worker for seat in self._seats if seat.taken and seat.worker.place == place]
        computing = [worker for worker in taken if worker.loaded and worker.loaded.on_cpu]
        for index, worker in enumerate(computing):
            worker.share(index, len(computing))

    def unload(self, model: str) -> None:
        """Stop each worker of a model as soon as no job uses it."""
        for seat in [seat for seat in self._seats if seat.spec.id == model]:
            seat.leaving, seat.successor = True, None
            if not seat.taken:
                self._end(seat)
        self._on_change()

    def adopt(self, models: Mapping[str, ModelSpec]) -> None:
        """Replace the workers of changed models, and failed ones, as soon as no job uses them.

        Workers of removed models stop.

        Args:
            models: Model id -> its entry in the new catalogue.
        """
        for seat in list(self._seats):
            spec = models.get(seat.spec.id)
            if seat.leaving and seat.successor is None:
                continue  # the model was unloaded or removed
            failed = seat.worker.state is WorkerState.FAILED  # its files may have been repaired
            if spec == (seat.successor or seat.spec) and not failed:
                continue
            self._memory.forget(seat.spec)
            self._sound.discard(seat.spec.id)
            seat.leaving, seat.successor = True, spec
            if not seat.taken:
                self._leave(seat)
        self._on_change()

    def _leave(self, seat: Seat) -> None:
        ended = self._end(seat)
        if seat.successor is not None:
            self.start(seat.successor, after=ended)

    async def close(self) -> None:
        """Stop all workers and wait until their processes have ended."""
        for seat in list(self._seats):
            self._end(seat)
        while self._ending:
            await asyncio.wait(self._ending)

    @property
    def budget_bytes(self) -> int:
        """Memory budget of all places together, in bytes."""
        return sum(place.budget for place in self._places())

    def _choose(self, spec: ModelSpec, *, may_evict: bool) -> tuple[Place, list[Seat]] | None:
        """Return the best place for one more worker, and the workers to stop there, or None.

        Places are compared by three criteria, in this order: the GPU is large enough, the fewest
        workers have to stop, the fewest workers run there.
        """
        seats: defaultdict[str, list[Seat]] = defaultdict(list)
        for seat in self._seats:
            if seat.worker.state is not WorkerState.FAILED:
                seats[seat.worker.place].append(seat)
        best: tuple[tuple[bool, int, int], Place, list[Seat]] | None = None
        for place in self._places():
            here = seats[place.name]
            victims = self._memory.victims(spec, place, here) if place.is_open else None
            if victims is None or (victims and not may_evict):
                continue
            rank = (not self._memory.fits_gpu(spec, place), len(victims), len(here))
            if best is None or rank < best[0]:
                best = rank, place, victims
        return None if best is None else best[1:]

    # --- parts ----------------------------------------------------------------------------------

    def _end_idle(self, seat: Seat) -> None:
        seat.going = None
        seconds = self._idle_seconds(seat)
        if seat in self._seats and seat.idle and seconds is not None:
            logger.info("model %s is unloaded: it was idle for %g s", seat.spec.id, seconds)
            self._end(seat)
            self._on_change()

    def _end(self, seat: Seat) -> asyncio.Task[None]:
        """Remove a worker from the pool; the returned task is done when its process has ended."""
        if seat not in self._seats:  # it was removed together with the last loaded worker, below
            return seat.task
        if seat.going is not None:
            seat.going.cancel()
        self._seats.remove(seat)
        self._past_starts[seat.worker.model, seat.worker.place] += seat.worker.starts
        if seat.worker.is_up and self.failed(seat.spec.id) is not None:
            # This worker had loaded the model: the failures of the others do not mean that the
            # model cannot be loaded.
            for other in [other for other in self._seats if other.spec.id == seat.spec.id]:
                self._end(other)
        seat.task.cancel()
        self._ending.add(seat.task)
        seat.task.add_done_callback(self._ending.discard)
        # The worker cannot retire by itself if its task is cancelled before it runs.
        seat.task.add_done_callback(lambda _task: seat.worker.retire())
        return seat.task

    def starts(self) -> Counter[tuple[str, str]]:
        """Return the number of process starts for each (model, place)."""
        starts = self._past_starts.copy()
        for worker in self.workers():
            starts[worker.model, worker.place] += worker.starts
        return starts

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


async def _run_after(gone: list[asyncio.Task[None]], worker: Worker) -> None:
    """Run a worker after the workers that make room for it have ended."""
    if gone:
        await asyncio.wait(gone)
    await worker.run()


def _log_fault(task: asyncio.Task[None]) -> None:
    """Log the exception of a worker's supervisor; it raises one only because of a bug."""
    if not task.cancelled() and task.exception() is not None:
        logger.critical("the supervisor of a worker failed", exc_info=task.exception())
