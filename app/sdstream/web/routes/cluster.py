"""The route that lists the machines with their loaded models, free memory and state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from sdstream.cluster.port import Cluster, Machine, MachineState
from sdstream.dialects.rendering import compact
from sdstream.engine.pool import WorkerPool
from sdstream.engine.seat import Place
from sdstream.web import respond
from sdstream.web.route import ApiRoute, Operation
from sdstream.web.schemas import INTEGER, NUMBER, STRING, json_of, listing, record

_MAYBE_INTEGER: Final = {"type": ["integer", "null"]}
_WORKER: Final = record({"model": STRING, "state": STRING, "resident_bytes": INTEGER})
_MACHINE: Final = record(
    {
        "name": STRING,
        "host": STRING,
        "state": STRING,
        "reason": STRING,
        "since": NUMBER,
        "slots": _MAYBE_INTEGER,
        "free_slots": _MAYBE_INTEGER,
        "gpu_bytes": _MAYBE_INTEGER,
        "memory_bytes": INTEGER,
        "free_bytes": INTEGER,
        "workers": listing(_WORKER),
    }
)
_CLUSTER: Final = Operation(
    "List the machines, and what is loaded on each",
    {200: json_of(record({"object": STRING, "machines": listing(_MACHINE)}))},
)


@dataclass(frozen=True)
class ClusterRoute:
    """GET /v1/cluster.

    Attributes:
        pool: The pool of workers.
        cluster: The cluster of machines; None without a cluster.
        started: Unix seconds at which the server started.
    """

    pool: WorkerPool
    cluster: Cluster | None
    started: float

    def routes(self) -> list[ApiRoute]:
        """Return the route of this class."""
        return [ApiRoute("/v1/cluster", self.machines, _CLUSTER)]

    async def machines(self, _request: Request) -> Response:
        """GET /v1/cluster."""
        data = [self._machine(machine) for machine in self._machines()]
        return respond.json_bytes(compact({"object": "cluster", "machines": data}))

    def _machines(self) -> list[Machine]:
        if self.cluster is not None:
            return [*self.cluster.machines()]
        return [
            Machine(place.name, "", MachineState.READY, "", self.started, place)
            for place in self.pool.places()
        ]

    def _machine(self, machine: Machine) -> dict[str, Any]:
        place, workers = machine.place, self.pool.workers(place=machine.name)
        return {
            "name": machine.name,
            "host": machine.host,
            "state": machine.state.value,
            "reason": machine.reason,
            "since": round(machine.since, 3),
            "slots": place.slots,
            "free_slots": _free_slots(place, len(workers)),
            "gpu_bytes": place.gpu_bytes,
            "memory_bytes": place.budget,
            "free_bytes": max(0, place.budget - self.pool.used_bytes(machine.name)),
            "workers": [
                {"model": w.model, "state": w.state.value, "resident_bytes": w.resident_bytes}
                for w in workers
            ],
        }


def _free_slots(place: Place, workers: int) -> int | None:
    """Return how many more workers may be started on a machine; None means any number."""
    if not place.is_open:
        return 0
    return None if place.slots is None else max(0, place.slots - workers)
