"""The models that there are: the catalogue as it is now, and their workers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from sdstream.core.catalog import Catalog
from sdstream.core.errors import NotFound, Reason, Unavailable
from sdstream.core.model_spec import ModelSpec
from sdstream.engine.pool import WorkerPool
from sdstream.engine.worker import WorkerState

#: States of workers, the most useful first.
_BEST_FIRST: Final = (
    WorkerState.READY,
    WorkerState.BUSY,
    WorkerState.STARTING,
    WorkerState.FAILED,
)


class Models:
    """The catalogue, and the workers of its models.

    Args:
        catalog: Of the start.
        refresh: The catalogue with what is on this machine now.
        pool: Of workers.
    """

    def __init__(
        self, catalog: Catalog, refresh: Callable[[], Catalog] | None, pool: WorkerPool
    ) -> None:
        self.catalog = catalog
        self._refresh = refresh
        self.pool = pool

    @property
    def ready(self) -> bool:
        """True when jobs of the default model are drawn."""
        return self.pool.is_ready(self.catalog.models[self.catalog.default])

    def why_unavailable(self, model: str) -> str | None:
        """Why the model cannot be loaded, None when nothing is known against it."""
        worker = self.pool.failed(model)
        return worker.unavailable().message if worker is not None else None

    def state(self, model: str) -> str:
        """Return the state of the model's best worker, "unloaded" if it has none."""
        states = [worker.state for worker in self.pool.workers(model)]
        best = next((state for state in _BEST_FIRST if state in states), None)
        return best.value if best else "unloaded"

    async def refresh(self) -> Catalog:
        """The catalogue with what was pulled or removed since the start."""
        if self._refresh is not None:
            self.catalog = await asyncio.to_thread(self._refresh)
        return self.catalog

    async def get(self, name: str, param: str = "model") -> ModelSpec:
        """The model of that name, pulled lately perhaps; raises NotFound."""
        spec = self.catalog.find(name) or (await self.refresh()).find(name)
        if spec is None:
            raise NotFound(
                self.catalog.why_missing(name), reason=Reason.MODEL_NOT_FOUND, param=param
            )
        return spec

    async def load(self, spec: ModelSpec) -> None:
        """Load a model ahead of its first job, also one that could not be loaded before.

        Raises:
            Unavailable: There is no room now, or it cannot be loaded.
        """
        if self.pool.failed(spec.id) is not None:
            self.pool.unload(spec.id)
        if not self.pool.workers(spec.id) and not self.pool.start(spec):
            raise Unavailable(
                f"Not enough memory for '{spec.id}' while other models are busy; try again later.",
                reason=Reason.MODEL_UNAVAILABLE,
                retry_after=10,
            )
        worker = self.pool.workers(spec.id)[0]
        if worker.state is not WorkerState.BUSY:
            await worker.ready()

    def unload(self, spec: ModelSpec) -> None:
        """Stop a model's workers, each as soon as its job is over."""
        self.pool.unload(spec.id)
