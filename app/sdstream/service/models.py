"""The current catalogue of models, and their workers."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Mapping
from typing import Final

from sdstream.core.catalog import Catalog, CatalogChange
from sdstream.core.catalog_yaml import CatalogError
from sdstream.core.errors import CatalogRejected, NotFound, Reason, Unavailable
from sdstream.core.model_spec import ModelSpec
from sdstream.engine.pool import WorkerPool
from sdstream.engine.worker import WorkerState
from sdstream.weights.discovery import ModelError

logger = logging.getLogger(__name__)

#: Folders in a message; errors that clients see must not reveal paths of the server.
_FOLDERS: Final = re.compile(r"(?<![\w.])/(?:[^/\s:]+/)+")

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
        catalog: The catalogue at the start.
        refresh: Returns a catalogue updated to the files on this machine.
        read: Reads models.yaml; raises CatalogError and ModelError.
        pool: The pool of workers.
        on_change: Called when the models of waiting jobs may have changed or been removed.
        checksum_of: Returns the SHA-256 of a checkpoint; None while it is unknown.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        refresh: Callable[[Catalog], Catalog],
        read: Callable[[], Catalog],
        pool: WorkerPool,
        on_change: Callable[[], None],
        checksum_of: Callable[[ModelSpec], str | None],
    ) -> None:
        self.catalog = catalog
        self._refresh = refresh
        self._read = read
        self.pool = pool
        self._changed = on_change
        self._checksum_of = checksum_of
        self._reloading = asyncio.Lock()
        #: Runtime options that requests chose, by model.
        self._runtime: dict[str, Mapping[str, object]] = {}

    @property
    def ready(self) -> bool:
        """True when jobs of the default model can run."""
        default = self.catalog.find(None)  # None if its files were removed
        return default is not None and self.pool.is_ready(default)

    def why_unavailable(self, model: str) -> str | None:
        """Return why the model cannot be loaded, None if no load has failed."""
        worker = self.pool.failed(model)
        return worker.unavailable().message if worker is not None else None

    def checksum(self, model: str) -> str | None:
        """Return the SHA-256 of the model's checkpoint in hex, None while it is not known."""
        spec = self.catalog.find(model)
        return None if spec is None else self._checksum_of(spec)

    def state(self, model: str) -> str:
        """Return the state of the model's best worker, "unloaded" if it has none."""
        states = [worker.state for worker in self.pool.workers(model)]
        best = next((state for state in _BEST_FIRST if state in states), None)
        return best.value if best else "unloaded"

    async def refresh(self) -> Catalog:
        """Update the catalogue for models that were downloaded or removed, and return it."""
        known = self.catalog
        fresh = await asyncio.to_thread(self._refresh, known)
        for model, values in self._runtime.items():
            fresh = fresh.with_runtime(model, values)
        if self.catalog is known:  # else it was reloaded meanwhile
            self.catalog = fresh
        return self.catalog

    async def reload(self) -> CatalogChange:
        """Read models.yaml again, and restart the workers of models that changed.

        A worker that generates an image finishes its job first. Waiting jobs of models that were
        removed fail.

        Raises:
            CatalogRejected: models.yaml cannot be used; the catalogue stays as it was.
        """
        async with self._reloading:
            try:
                fresh = await asyncio.to_thread(self._read)
            except (CatalogError, ModelError) as error:
                logger.error("models.yaml was not reloaded: %s", error)
                problems = error.problems if isinstance(error, CatalogError) else ()
                listed = "; ".join(f"line {line}: {message}" for line, message in problems)
                raise CatalogRejected(
                    f"models.yaml was not reloaded: {_FOLDERS.sub('', listed or str(error))}",
                    reason=Reason.CATALOG_INVALID,
                ) from None
            change = fresh.change_from(self.catalog)
            self.catalog = fresh
            self._runtime.clear()
        logger.info("models.yaml was reloaded: %s", change)
        self.pool.adopt(fresh.models)
        default = fresh.models[fresh.default]
        if not self.pool.workers(default.id):
            self.pool.start(default)
        self._changed()
        return change

    async def get(self, name: str, param: str = "model") -> ModelSpec:
        """Return the model of that name, even if it was just downloaded; raises NotFound."""
        spec = self.catalog.find(name) or (await self.refresh()).find(name)
        if spec is None:
            raise NotFound(
                self.catalog.why_missing(name), reason=Reason.MODEL_NOT_FOUND, param=param
            )
        return spec

    async def load(self, spec: ModelSpec, runtime: Mapping[str, object] | None = None) -> None:
        """Load a model before its first job; retry if an earlier load failed.

        Args:
            spec: The model.
            runtime: Runtime options that replace those of models.yaml, until another call sets
                other options or models.yaml is reloaded. If they differ from those of a loaded
                model, the model is loaded again after its running job. None keeps the options.

        Raises:
            RuntimeOptionError: The model does not support an option.
            Unavailable: There is not enough memory now, or the model cannot be loaded.
        """
        if runtime is not None:
            spec.with_runtime(runtime)
            self._runtime[spec.id] = runtime
            self.pool.adopt((await self.refresh()).models)
            spec = self.catalog.models.get(spec.id, spec)
        if self.pool.failed(spec.id) is not None:
            self.pool.unload(spec.id)
        if not self.pool.workers(spec.id) and not self.pool.start(spec):
            raise Unavailable(
                f"Not enough memory for '{spec.id}' while other models are busy; try again later.",
                reason=Reason.MODEL_UNAVAILABLE,
                retry_after=10,
            )
        workers = self.pool.workers(spec.id)
        usable = [worker for worker in workers if worker.state is not WorkerState.FAILED]
        worker = (usable or workers)[0]
        if worker.state is not WorkerState.BUSY:
            await worker.ready()

    def unload(self, spec: ModelSpec) -> None:
        """Stop a model's workers, each as soon as its job has ended."""
        self.pool.unload(spec.id)
