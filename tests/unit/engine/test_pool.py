"""Workers on several machines: placement, eviction, and the loss of a machine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from sdstream.core.errors import Reason, Unavailable
from sdstream.core.messages import Done, Event, Failed, Generate, Load, Loaded, Share
from sdstream.core.model_spec import ModelSpec
from sdstream.core.runtime_options import RuntimeOptions
from sdstream.engine import pool
from sdstream.engine.pool import WorkerPool
from sdstream.engine.process import LoadRefused, PlaceGone
from sdstream.engine.seat import Place
from sdstream.engine.worker import Worker, WorkerOptions, WorkerState
from tests.support.processes import LOADED, FakeProcess, a_request, driven

MIB = 2**20


class Machines:
    """A pool of fake processes on places that a test may change.

    Attributes:
        places: The current places.
        processes: The latest process of each place, by the place's name.
        every: All processes started so far, oldest first.
        gpu_mb: Memory of each GPU, of which other programs use 100 MiB; None means no GPU.
        gone: Names of places that are out of reach.
        refusing: Names of places that lack the model's files.
        starts: Names of the places on which a start was attempted.
    """

    def __init__(
        self,
        *places: Place,
        file_mb: int = 100,
        keep_alive: float | None = None,
        hang_seconds: float = 60.0,
        gpu_mb: int | None = None,
    ) -> None:
        self.places = list(places)
        self.gpu_mb = gpu_mb
        self.processes: dict[str, FakeProcess] = {}
        self.every: list[FakeProcess] = []
        self.gone: set[str] = set()
        self.refusing: set[str] = set()
        self.starts: list[str] = []
        self.changes = 0
        self._on_gpu: list[tuple[FakeProcess, str | None]] = []
        self._bytes = file_mb * MIB
        self._options = WorkerOptions("fake", {}, hang_seconds=hang_seconds)
        self.pool = WorkerPool(
            self._made,
            file_bytes=lambda _: file_mb * MIB - 150 * MIB,
            places=lambda: self.places,
            keep_alive=keep_alive,
            on_change=self._noted,
        )

    def _noted(self) -> None:
        self.changes += 1

    def _made(self, spec: ModelSpec, changed: Callable[[], None], place: str) -> Worker:
        async def spawn(*_: object) -> FakeProcess:
            self.starts.append(place)
            if place in self.gone:
                raise PlaceGone("out of reach")
            if place in self.refusing:
                raise LoadRefused("The machine lacks x.gguf.")
            self.processes[place] = FakeProcess(
                resident_bytes=self._bytes, loaded=self._loaded(spec)
            )
            self.every.append(self.processes[place])
            if not self.processes[place].loaded.on_cpu:
                self._on_gpu.append((self.processes[place], spec.device))
            return self.processes[place]

        load = Load(spec.id, "sd1", {"model": "x"}, "/nowhere", RuntimeOptions().model_dump())
        return Worker(load, self._options, changed, spawn=spawn, place=place)

    def _loaded(self, spec: ModelSpec) -> Loaded:
        if self.gpu_mb is None or spec.device == "cpu":
            return LOADED
        others = [p for p, device in self._on_gpu if device == spec.device and not p.is_gone]
        free = (self.gpu_mb - 100) * MIB - len(others) * self._bytes
        return replace(LOADED, on_cpu=False, gpu_free_bytes=free, gpu_used_bytes=self._bytes)

    def there(self) -> list[tuple[str, str]]:
        """Return (model, place) of all workers, sorted."""
        return sorted((w.model, w.place) for w in self.pool.workers())

    async def started(self, spec: ModelSpec) -> bool:
        """Start one more worker and wait until it is loaded."""
        before = self.pool.workers(spec.id)
        started = self.pool.start(spec)
        for worker in self.pool.workers(spec.id):
            if worker not in before:
                await worker.ready()
        return started


def a_model(name: str = "a", **more: Any) -> ModelSpec:
    """Return an entry of the catalogue."""
    fields = {"id": name, "family": "sd1", "files": {"model": "x"}, **more}
    return ModelSpec.model_validate(fields)


@driven
async def test_a_worker_goes_where_the_fewest_are() -> None:
    """Replicas and models spread over the machines, and none is started beyond their slots."""
    machines = Machines(Place("one", 1000 * MIB, 2), Place("two", 1000 * MIB, 2))
    both = a_model("a", replicas=2)
    assert await machines.started(both)
    assert await machines.started(both)
    assert machines.there() == [("a", "one"), ("a", "two")]
    assert not machines.pool.start(both)
    assert await machines.started(a_model("b", replicas=3))
    assert await machines.started(a_model("b", replicas=3))
    assert not machines.pool.start(a_model("b", replicas=3))
    assert machines.there() == [("a", "one"), ("a", "two"), ("b", "one"), ("b", "two")]
    await machines.pool.close()


@driven
async def test_room_is_made_within_one_place() -> None:
    """The workers to evict are on one machine, as few as necessary, and never busy."""
    machines = Machines(Place("one", 220 * MIB), Place("two", 120 * MIB), file_mb=100)
    for name in "abc":
        assert await machines.started(a_model(name))
    assert machines.there() == [("a", "one"), ("b", "two"), ("c", "one")]
    assert await machines.started(a_model("d"))
    assert len(machines.there()) == 3
    assert machines.pool.evictions == 1
    busy = machines.pool.workers()
    for worker in busy:
        machines.pool.take(worker)
    assert not machines.pool.start(a_model("e"))
    await machines.pool.close()


@driven
async def test_auto_is_one_worker_for_each_slot() -> None:
    """Only open machines count, and a place without slots counts as one."""
    machines = Machines(Place("one", 1000 * MIB, 2), Place("two", 1000 * MIB, 1, is_open=False))
    auto = a_model(replicas="auto")
    assert machines.pool.most_workers(auto) == 2
    machines.places.append(Place("three", 1000 * MIB, None))
    assert machines.pool.most_workers(auto) == 3
    assert [await machines.started(auto) for _ in range(4)] == [True, True, True, False]
    await machines.pool.close()


@driven
async def test_auto_is_one_worker_for_each_core_of_a_machine_without_slots() -> None:
    """A small model gets up to 8 workers while a worker that can share the CPU is loaded."""
    auto = a_model(replicas="auto")
    for file_mb, cores, count in ((200, 4, 4), (200, 20, 8), (500, 4, 1)):
        machines = Machines(Place("", 10_000 * MIB, cores=cores), file_mb=file_mb)
        assert machines.pool.most_workers(auto) == 1
        assert await machines.started(auto)
        assert machines.pool.most_workers(auto) == count
        assert machines.pool.most_workers(a_model()) == 1
        (worker,) = machines.pool.workers()
        machines.every[0].kill()
        while worker.state is WorkerState.READY:
            await asyncio.sleep(0)
        assert machines.pool.most_workers(auto) == 1
        await machines.pool.close()


@driven
async def test_another_worker_of_a_model_stops_nobody() -> None:
    """A further replica does not evict a worker, even if cores are free."""
    machines = Machines(Place("", 250 * MIB, cores=8))
    auto = a_model(replicas="auto")
    assert [await machines.started(auto) for _ in range(3)] == [True, True, False]
    await machines.pool.close()


@driven
async def test_workers_with_a_job_divide_the_cpu() -> None:
    """A lone job uses the whole CPU, running jobs adapt, and a job on a GPU takes no share."""
    machines = Machines(Place("", 1000 * MIB, cores=8))
    auto = a_model(replicas="auto")
    assert await machines.started(auto)
    assert await machines.started(auto)
    first, second = machines.pool.workers()
    machines.every[0].step_seconds = 0.02
    machines.pool.take(first)
    job = asyncio.create_task(drawn(first))
    while first.state is not WorkerState.BUSY:
        await asyncio.sleep(0)
    machines.pool.take(second)
    assert isinstance((await drawn(second))[-1], Done)
    machines.pool.give_back(second)
    assert isinstance((await job)[-1], Done)
    machines.pool.give_back(first)
    assert machines.every[0].shares == [Share(0, 1), Share(0, 2), Share(0, 1)]
    assert machines.every[1].shares == [Share(1, 2)]
    assert second.loaded is not None
    second.loaded = replace(second.loaded, on_cpu=False)
    for worker in (second, first):
        machines.pool.take(worker)
    assert isinstance((await drawn(first))[-1], Done)
    assert machines.every[0].shares[-1] == Share(0, 1)
    await machines.pool.close()


@pytest.mark.parametrize(("cores", "threads"), [(8, [3, 3, 2]), (2, [1, 1, 1])])
def test_every_core_has_a_worker(cores: int, threads: list[int]) -> None:
    """All cores are assigned, and every worker has at least one thread."""
    assert [Share(index, 3).threads(cores) for index in range(3)] == threads


async def a_small_model(
    monkeypatch: pytest.MonkeyPatch, spare_seconds: float
) -> tuple[Machines, ModelSpec]:
    """Start a worker on two cores; a second one would stop after this many idle seconds."""
    monkeypatch.setattr(pool, "_SPARE_SECONDS", spare_seconds)
    monkeypatch.setattr(pool, "_LEAST_IDLE_SECONDS", 0.0)
    machines = Machines(Place("", 1000 * MIB, cores=2))
    auto = a_model(replicas="auto")
    assert await machines.started(auto)
    return machines, auto


@driven
async def test_a_second_worker_goes_when_it_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """The most recently used worker stays and receives the next job."""
    machines, auto = await a_small_model(monkeypatch, 0.05)
    assert await machines.started(auto)
    first, second = machines.pool.workers()
    for worker in (first, second):
        machines.pool.take(worker)
    for worker in (second, first):
        machines.pool.give_back(worker)
    assert machines.pool.free("a") is first
    machines.pool.take(first)
    while len(machines.pool.workers()) > 1:
        await asyncio.sleep(0.01)
    machines.pool.give_back(first)
    await asyncio.sleep(0.1)
    assert machines.pool.workers() == [first]
    await machines.pool.close()


@driven
async def test_a_second_worker_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The failed worker does not stop the first, and after an eviction the model can load again."""
    machines, auto = await a_small_model(monkeypatch, 0.0)
    (first,) = machines.pool.workers()
    machines.refusing.add("")
    assert machines.pool.start(auto)
    second = machines.pool.workers()[1]
    while second.state is not WorkerState.FAILED:
        await asyncio.sleep(0)
    machines.pool.take(first)
    machines.pool.give_back(first)
    await asyncio.sleep(0.05)
    assert machines.pool.workers() == [first, second]
    assert machines.pool.failed("a") is None
    assert machines.pool.free("a") is first
    # A model that needs all the memory.
    machines.refusing.clear()
    machines.places[0] = Place("", 120 * MIB, cores=2)
    assert await machines.started(a_model("b"))
    assert [worker.model for worker in machines.pool.workers()] == ["b"]
    assert machines.pool.failed("a") is None
    assert machines.pool.is_ready(auto)
    await machines.pool.close()


@driven
async def test_a_step_on_a_share_of_the_cpu_takes_its_time() -> None:
    """The time limit for a step is longer for a worker with a smaller share of the CPU."""
    machines = Machines(Place("", 1000 * MIB, cores=8), hang_seconds=0.1)
    assert await machines.started(a_model())
    (worker,) = machines.pool.workers()
    machines.every[0].step_seconds = 0.02
    assert isinstance((await drawn(worker))[-1], Done)
    worker.share(0, 16)
    machines.every[0].step_seconds = 0.4
    assert isinstance((await drawn(worker))[-1], Done)
    worker.share(0, 1)
    machines.every[0].step_seconds = 5
    assert isinstance((await drawn(worker))[-1], Failed)
    await machines.pool.close()


@driven
async def test_a_gpu_that_is_too_small_is_the_last_choice() -> None:
    """Weights over a GPU's memory are placed elsewhere if possible, unless they run on a CPU."""
    small, large = Place("small", 1000 * MIB, 1, 10 * MIB), Place("large", 1000 * MIB, 1, 80 * MIB)
    machines = Machines(small, large, file_mb=200)
    assert await machines.started(a_model())
    assert machines.there() == [("a", "large")]
    machines.places.remove(large)
    machines.pool.places_changed()
    assert await machines.started(a_model())
    assert machines.there() == [("a", "small")]
    await machines.pool.close()
    machines = Machines(small, large, file_mb=200)
    assert await machines.started(a_model(device="cpu"))
    assert machines.there() == [("a", "small")]
    await machines.pool.close()


@driven
async def test_models_share_the_memory_of_a_gpu() -> None:
    """The model that was idle the longest makes room; other GPUs and the CPU keep their models."""
    # 100 MiB belong to other programs, and 1 GiB stays free: there is room for two models.
    machines = Machines(Place("", 10_000 * MIB), file_mb=1000, gpu_mb=3200)
    assert await machines.started(a_model("processor", device="cpu"))
    assert await machines.started(a_model("second-card", device="cuda:1"))
    for name in "abc":
        assert await machines.started(a_model(name))
    kept = [("processor", ""), ("second-card", "")]
    assert machines.there() == [("b", ""), ("c", ""), *kept]
    assert machines.pool.evictions == 1
    for worker in machines.pool.workers():
        if worker.model in ("b", "c"):
            machines.pool.take(worker)
    assert not machines.pool.start(a_model("d"))
    assert await machines.started(a_model("e", device="cpu"))
    assert await machines.started(a_model("f", device="cuda:1"))
    assert machines.pool.evictions == 1
    await machines.pool.close()


@driven
async def test_a_model_that_is_larger_than_a_gpu() -> None:
    """It is loaded if it is alone; the runtime then reports that it does not fit."""
    machines = Machines(Place("", 10_000 * MIB), file_mb=1000, gpu_mb=1500)
    assert await machines.started(a_model("a"))
    assert await machines.started(a_model("b"))
    assert machines.there() == [("b", "")]
    assert await machines.started(a_model("c", runtime={"offload": True}))
    assert machines.there() == [("c", "")]
    await machines.pool.close()


async def drawn(worker: Worker) -> list[Event]:
    """Return every event of one job."""
    order = Generate("job", a_request(steps=3))
    return [event async for event in worker.generate(order)]


@driven
async def test_the_workers_of_a_lost_place_end_and_their_jobs_say_why() -> None:
    """The job fails with worker_lost, and the model is loaded on another machine."""
    machines = Machines(Place("one", 1000 * MIB, 1))
    assert await machines.started(a_model())
    (worker,) = machines.pool.workers()
    machines.processes["one"].step_seconds = 60
    machines.pool.take(worker)
    job = asyncio.create_task(drawn(worker))
    while worker.state is not WorkerState.BUSY:
        await asyncio.sleep(0)
    machines.places[:] = [Place("two", 1000 * MIB, 1)]
    machines.pool.places_changed()
    ending = (await job)[-1]
    assert isinstance(ending, Failed)
    assert ending.reason == Reason.WORKER_LOST
    machines.pool.give_back(worker)
    assert machines.there() == []
    assert await machines.started(a_model())
    assert machines.there() == [("a", "two")]
    await machines.pool.close()


@driven
async def test_a_process_whose_machine_is_lost_is_not_started_again_there() -> None:
    """The worker stops, and neither a crash nor a failed load is counted."""
    machines = Machines(Place("one", 1000 * MIB, 1), Place("two", 1000 * MIB, 1))
    assert await machines.started(a_model())
    (worker,) = machines.pool.workers()
    machines.processes["one"].lose()
    while machines.pool.workers():
        await asyncio.sleep(0)
    assert worker.state is WorkerState.STOPPED
    assert machines.pool.is_ready(a_model())
    machines.places[0] = Place("one", 1000 * MIB, 1, is_open=False)
    assert await machines.started(a_model())
    assert machines.there() == [("a", "two")]
    assert machines.starts == ["one", "two"]
    await machines.pool.close()


@driven
async def test_starts_on_a_machine_out_of_reach_never_fail_a_model() -> None:
    """Failed starts on an unreachable machine do not count as failures of the model."""
    machines = Machines(Place("one", 1000 * MIB, 1))
    machines.gone.add("one")
    for _ in range(5):
        assert machines.pool.start(a_model())
        while machines.pool.workers():
            await asyncio.sleep(0)
    assert machines.pool.failed("a") is None
    machines.gone.clear()
    assert await machines.started(a_model())
    await machines.pool.close()


@driven
async def test_a_model_that_no_machine_has_is_told_of_and_tried_again() -> None:
    """The load fails at once with the reason, and is retried when the machines change."""
    machines = Machines(Place("one", 1000 * MIB, 1))
    machines.refusing.add("one")
    assert machines.pool.start(a_model())
    (worker,) = machines.pool.workers()
    with pytest.raises(Unavailable, match=r"lacks x\.gguf"):
        await worker.ready()
    assert machines.pool.failed("a") is worker
    assert machines.starts == ["one"]
    machines.places.append(Place("two", 1000 * MIB, 1))
    machines.pool.places_changed()
    assert machines.pool.failed("a") is None
    machines.places.pop(0)
    assert await machines.started(a_model())
    assert machines.there() == [("a", "two")]
    await machines.pool.close()


@pytest.mark.parametrize("end", ["unload", "adopt", "places_changed", "close"])
@driven
async def test_a_loaded_worker_and_a_failed_one_end_together(end: str) -> None:
    """A model with one loaded and one failed worker can be unloaded, changed and closed."""
    machines = Machines(Place("one", 1000 * MIB, 1), Place("two", 1000 * MIB, 1))
    machines.refusing.add("two")
    assert await machines.started(a_model(replicas=2))
    assert machines.pool.start(a_model(replicas=2))
    with pytest.raises(Unavailable):
        await machines.pool.workers()[1].ready()
    machines.refusing.clear()
    match end:
        case "unload":
            machines.pool.unload("a")
            assert machines.there() == []
        case "adopt":
            machines.pool.adopt({"a": a_model(replicas=2, keep_alive=5)})
            assert machines.there() == [("a", "one"), ("a", "two")]
        case "places_changed":
            machines.places[0] = replace(machines.places[0], is_open=False, is_leaving=True)
            machines.pool.places_changed()
            assert machines.there() == []
    await machines.pool.close()
    assert all(process.is_gone for process in machines.every)


@driven
async def test_a_leaving_place_finishes_its_jobs() -> None:
    """Idle workers stop at once, a busy one after its job, and no new worker starts there."""
    machines = Machines(Place("one", 1000 * MIB, 2))
    for name in "ab":
        assert await machines.started(a_model(name))
    busy = machines.pool.workers("a")[0]
    machines.pool.take(busy)
    machines.places[:] = [Place("one", 1000 * MIB, 2, is_open=False, is_leaving=True)]
    machines.pool.places_changed()
    assert machines.there() == [("a", "one")]
    assert not machines.pool.start(a_model("b"))
    assert isinstance((await drawn(busy))[-1], Done)
    machines.pool.give_back(busy)
    assert machines.there() == []
    await machines.pool.close()


@driven
async def test_jobs_go_to_open_places_only() -> None:
    """A worker on a closed machine, which may be lost, receives no job."""
    machines = Machines(Place("one", 1000 * MIB, 1))
    assert await machines.started(a_model())
    assert machines.pool.free("a") is not None
    machines.places[:] = [Place("one", 1000 * MIB, 1, is_open=False)]
    assert machines.pool.free("a") is None
    await machines.pool.close()


@driven
async def test_keep_alive_of_the_pool_is_for_models_without_their_own() -> None:
    """The pool's keep_alive applies unless the catalogue's entry has its own value."""
    machines = Machines(Place("one", 1000 * MIB, 2), keep_alive=300)
    assert machines.pool.keep_alive(a_model()) == 300
    assert machines.pool.keep_alive(a_model(keep_alive=5)) == 5
    await machines.pool.close()


@pytest.mark.parametrize("error", [OSError(12, "Cannot allocate memory"), RuntimeError("odd")])
@driven
async def test_any_error_at_the_start_is_a_failed_load(error: Exception) -> None:
    """The load fails after three starts, whatever the error is."""

    async def spawn(*_: object) -> FakeProcess:
        raise error

    load = Load("a", "sd1", {"model": "x"}, "/nowhere", RuntimeOptions().model_dump())
    worker = Worker(load, WorkerOptions("fake", {}), spawn=spawn)
    await asyncio.wait_for(worker.run(), 30)
    assert worker.state is WorkerState.FAILED
    assert worker.starts == 3
    assert ("Cannot allocate memory" in worker.error) or ("odd" in worker.error)
