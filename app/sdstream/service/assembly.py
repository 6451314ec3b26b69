"""Assembles the service from settings: store, worker pool, cluster, webhooks and metrics.

The HTTP application and the library's ``Runner`` both start here, so that both run jobs in the
same way.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from sdstream.clocks import SteadyClock
from sdstream.cluster import extra
from sdstream.cluster.port import Cluster
from sdstream.core.catalog import Catalog
from sdstream.core.errors import ImageServiceError
from sdstream.core.locations import BUILTIN
from sdstream.core.messages import Load
from sdstream.core.model_spec import CPU, ModelSpec
from sdstream.core.request import Assets, Limits
from sdstream.engine.pool import WorkerPool
from sdstream.engine.seat import Place
from sdstream.engine.worker import Worker, WorkerOptions
from sdstream.imaging.processor import ImageProcessor
from sdstream.imaging.safety import load_checker
from sdstream.service.admission import Policy
from sdstream.service.metrics import Metrics
from sdstream.service.service import ImageService
from sdstream.service.tracing import Tracing, tracing_of
from sdstream.service.webhooks import Webhooks, delivery_of
from sdstream.settings import Settings, variable, worker_environment
from sdstream.storage.choice import database_of, images_of
from sdstream.storage.job_store import JobStore
from sdstream.storage.ports import StoreError, StoreInUse
from sdstream.system import available_cores, total_memory
from sdstream.weights.checksums import Checksums
from sdstream.weights.discovery import absolute, load_catalog, refresh_catalog
from sdstream.weights.embedded import MODELS as BUILTIN_MODELS
from sdstream.weights.embedded import UPSCALERS, vocabularies
from sdstream.weights.embedded import checksum_of as builtin_checksum
from sdstream.weights.folders import (
    PICKLES,
    candidate_files,
    name_of,
    name_problem,
    size_of,
)
from sdstream.weights.inspection import Asset, examine

logger = logging.getLogger(__name__)

#: Highest random seed; AUTOMATIC1111, Forge and ComfyUI accept no higher one.
_MAX_RANDOM_SEED = 2**32 - 1

#: Seconds between two deletions of expired jobs.
_TIDY_SECONDS = 60
#: Seconds between two attempts of a standby server to open the store.
_STANDBY_SECONDS = 0.3
#: Seconds between two heartbeats to a database that another server may take over.
_WATCH_SECONDS = 1.0

#: Environment variable that selects GPUs -> the devices of models.yaml that it applies to.
_GPU_VARIABLES: Final = {
    "CUDA_VISIBLE_DEVICES": ("cuda",),
    "HIP_VISIBLE_DEVICES": ("rocm",),
    "GGML_VK_VISIBLE_DEVICES": ("vulkan",),
}


@dataclass(frozen=True)
class Assembly:
    """The connected parts of one service.

    Attributes:
        service: Accepts and runs jobs.
        store: Jobs and images on the disk.
        webhooks: Posts a message when a job ends.
        metrics: Counters and gauges of all parts.
        tracing: Creates the spans of requests and jobs.
        standby: Whether to wait while another server holds the store.
        cluster: The cluster whose machines generate; None means this machine only.
    """

    service: ImageService
    store: JobStore
    webhooks: Webhooks
    metrics: Metrics
    tracing: Tracing
    standby: bool = False
    cluster: Cluster | None = None

    @asynccontextmanager
    async def running(
        self,
        on_death: Callable[[], None] = lambda: None,
        on_loss: Callable[[], None] = lambda: None,
    ) -> AsyncIterator[None]:
        """Open the store and run the service's tasks; stop and close everything at the end.

        A standby service does this once the other server has released the store.

        Args:
            on_death: Called when a task that the service cannot do without has ended.
            on_loss: Called when another server has taken over the store.

        Raises:
            StoreError: The data folder or the database cannot be used.
        """
        try:
            async with self._opened(on_death, on_loss):
                yield
        finally:
            await asyncio.to_thread(self.tracing.close)

    @asynccontextmanager
    async def _opened(
        self, on_death: Callable[[], None], on_loss: Callable[[], None]
    ) -> AsyncIterator[None]:
        """Open the store, at once or as soon as it is free, and serve until the end."""
        if self.store.is_open or not self.standby:
            await asyncio.to_thread(self.store.open)
            async with self._serving(on_death, on_loss):
                yield
            return
        task = asyncio.create_task(self._stand_by(on_death, on_loss))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait((task,))
            await self.store.close()

    async def _stand_by(self, on_death: Callable[[], None], on_loss: Callable[[], None]) -> None:
        """Wait for the store, then serve until cancelled."""
        try:
            await _open_when_free(self.store)
            logger.warning("the store is free: this server takes over")
            async with self._serving(on_death, on_loss):
                await asyncio.Event().wait()
        except Exception:
            logger.critical("the service could not take over", exc_info=True)
            on_death()

    @asynccontextmanager
    async def _serving(
        self, on_death: Callable[[], None], on_loss: Callable[[], None]
    ) -> AsyncIterator[None]:
        """Run the tasks of a service whose store is open, and close it at the end."""
        tasks = []
        try:
            if self.store.takeover:
                tasks.append(asyncio.create_task(_watch(self.store, on_loss)))
            left: Sequence[str] = ()
            if self.cluster is not None:
                left = await asyncio.to_thread(self.cluster.begin, self.store.name)
            # Recover before the first request: a browser that reconnects must find its job.
            await self._recover()
            # End old workers only after the recovery. It fails if another server took over while
            # this one hung, so that the other server keeps its workers.
            if self.cluster is not None:
                await asyncio.to_thread(self.cluster.end_workers, left)
            lasting = [asyncio.create_task(self.service.run())]
            if self.cluster is not None:
                pool = self.service.pool
                watching = self.cluster.watch(pool.places_changed, self.service.wanted_workers)
                lasting.append(asyncio.create_task(watching))
            tasks = [*lasting, *tasks, asyncio.create_task(_tidy(self.store))]
            tasks += [asyncio.create_task(self.webhooks.run())]

            def ended(task: asyncio.Task[None]) -> None:
                if not task.cancelled():
                    logger.critical(
                        "the service stopped after an internal error", exc_info=task.exception()
                    )
                    on_death()

            for task in lasting:
                task.add_done_callback(ended)
            yield
        finally:
            for one in tasks:
                one.cancel()
                await asyncio.wait((one,))  # wait() never raises, so the store is always closed
            await self.store.close()
            if self.cluster is not None:
                await asyncio.to_thread(self.cluster.leave)

    async def _recover(self) -> None:
        """Recover the stored jobs; retry if the database session is lost and can be regained."""
        while not self.service.took_over:
            try:
                await self.service.recover()
            except ImageServiceError:
                if not self.store.takeover or self.store.lost is not None:
                    raise
                await asyncio.sleep(_STANDBY_SECONDS)


def assemble(settings: Settings, *, priority_digests: Sequence[str] = ()) -> Assembly:
    """Create the parts of a service and connect them.

    Args:
        settings: Settings of the server.
        priority_digests: Digests of the API keys that may request high priority; if empty, every
            client may.

    Raises:
        CatalogError: models.yaml cannot be used.
        ModelError: The default model does not exist on this machine.
        SafetyCheckerError: The safety checker cannot be used.
        WebhookSettingsError: The webhook settings contradict each other.
        ConfigurationError: This machine cannot join the cluster.
    """
    metrics = Metrics()
    tracing = tracing_of(variable)
    # Expiry uses a monotonic clock, so that setting the system's clock deletes no jobs.
    steady = SteadyClock(time.time())
    store = JobStore(
        database_of(settings),
        images_of(settings),
        ttl_seconds=settings.job_ttl_seconds,
        max_bytes=settings.image_store_mb * 2**20,
        min_free_bytes=settings.min_free_mb * 2**20,
        clock=steady,
        delivery_of=delivery_of,
    )
    secret = settings.webhook_secret
    webhooks = Webhooks(
        store,
        hosts=settings.webhook_hosts,
        secret=secret.get_secret_value() if secret else None,
        private=settings.webhook_private,
        clock=time.time,
        steady=steady,
    )
    catalog = load_catalog(settings)
    cluster = extra.join(settings)
    pool = partial(_pool, settings, cluster)
    service = _service(settings, metrics, tracing, store, webhooks, priority_digests, catalog, pool)
    return Assembly(service, store, webhooks, metrics, tracing, settings.standby, cluster)


def _service(
    settings: Settings,
    metrics: Metrics,
    tracing: Tracing,
    store: JobStore,
    webhooks: Webhooks,
    priority_digests: Sequence[str],
    catalog: Catalog,
    make_pool: Callable[[Callable[[], None]], WorkerPool],
) -> ImageService:
    return ImageService(
        catalog=catalog,
        read_catalog=lambda: load_catalog(settings),
        refresh_catalog=lambda known: refresh_catalog(settings, known),
        make_pool=make_pool,
        processor=ImageProcessor(
            shelf=store,
            checker=load_checker(settings.safety_checker) if settings.safety_checker else None,
            max_input_pixels=settings.max_input_pixels,
            embed_parameters=settings.embed_parameters,
        ),
        store=store,
        metrics=metrics,
        tracing=tracing,
        policy=Policy(
            queue_images=settings.queue_images,
            queue_images_per_key=settings.queue_images_per_key,
            high_priority_owners=lambda: frozenset(map(store.owner_of, priority_digests)),
            limits=Limits(
                settings.max_pixels,
                settings.max_upscaled_pixels,
                settings.max_images,
                settings.max_steps,
            ),
            grace_seconds=settings.job_grace_seconds,
        ),
        new_id=lambda: f"job_{secrets.token_urlsafe(16)}",
        assets=lambda: _assets(settings),
        checksum_of=_checksums(settings),
        on_end=webhooks.notify,
        random_seed=lambda: random.SystemRandom().randint(0, _MAX_RANDOM_SEED),
    )


def _checksums(settings: Settings) -> Callable[[ModelSpec], str | None]:
    """Return a function that returns the SHA-256 of a model's checkpoint, None while unknown."""
    checksums = Checksums(settings.cache_dir / "checksums.json")

    def checksum_of(spec: ModelSpec) -> str | None:
        location = spec.files.checkpoint
        if location.startswith(BUILTIN):
            name = location.removeprefix(BUILTIN)
            return builtin_checksum(name) if name in BUILTIN_MODELS else None
        return checksums.of(absolute(settings, location))

    return checksum_of


def _pool(settings: Settings, cluster: Cluster | None, on_change: Callable[[], None]) -> WorkerPool:
    """Return a pool of workers on this machine, or on the machines of a cluster."""
    options = WorkerOptions(
        engine=settings.engine,
        environment=worker_environment(),
        hang_seconds=settings.hang_seconds,
        cancel_seconds=settings.cancel_seconds,
    )
    budget = settings.memory_mb * 2**20 or total_memory() * 4 // 5
    here = (Place("", budget, cores=available_cores()),)

    def worker_here(spec: ModelSpec, changed: Callable[[], None], _place: str) -> Worker:
        load = load_command(settings, spec)
        return Worker(load, _on_device(options, spec.device), changed)

    def worker_there(spec: ModelSpec, changed: Callable[[], None], place: str) -> Worker:
        assert cluster is not None
        if spec.device not in (None, CPU):
            # Ray assigns each worker a GPU of the machine that it runs on.
            logger.warning("model %s: device %s has no effect in a cluster", spec.id, spec.device)
        device = CPU if spec.device == CPU else None
        load = load_command(settings, spec.model_copy(update={"device": device}))
        variables = _gpu_variables(device)
        spawn = cluster.spawner(place, load, variables)
        return Worker(load, options, changed, spawn=spawn, place=place)

    return WorkerPool(
        worker_here if cluster is None else worker_there,
        file_bytes=lambda spec: _file_bytes(settings, spec),
        can_load=lambda spec: cluster is not None or _are_there(settings, spec),
        places=cluster.places if cluster is not None else lambda: here,
        keep_alive=settings.cluster_keep_alive if cluster is not None else None,
        on_change=on_change,
    )


def _file_bytes(settings: Settings, spec: ModelSpec) -> int:
    """Return the size of a model's files in bytes, without built-in files.

    The pool uses it as an estimate of the memory that a model needs, until the model has run.
    """
    paths = (absolute(settings, place) for _, place in spec.files.items())
    return sum(size_of(path) or 0 for path in paths)


def _are_there(settings: Settings, spec: ModelSpec) -> bool:
    """Return whether a model's files exist; the fake engine and built-in models need none."""
    places = [place for _, place in spec.files.items() if not place.startswith(BUILTIN)]
    return settings.engine == "fake" or all(
        size_of(absolute(settings, p)) is not None for p in places
    )


def load_command(settings: Settings, spec: ModelSpec) -> Load:
    """Return the command that loads a model in a worker."""
    keep = settings.engine == "fake"
    files = {
        component: location
        if keep or location.startswith(BUILTIN)
        else str(absolute(settings, location))
        for component, location in spec.files.items()
    }
    folders = {name: str(folder.resolve()) for name, folder in settings.asset_folders().items()}
    return Load(
        model=spec.id,
        family=spec.family,
        files=files,
        cache_dir=str(settings.cache_dir),
        runtime={
            **spec.runtime.model_dump(),
            "kernels": spec.runtime.kernels or settings.kernels,
        },
        device=spec.device or "",
        **folders,
    )


def _on_device(options: WorkerOptions, device: str | None) -> WorkerOptions:
    """Return options that make one GPU or none visible: the runtime uses the first visible GPU."""
    return replace(options, environment={**options.environment, **_gpu_variables(device)})


def _gpu_variables(device: str | None) -> dict[str, str]:
    """Return the variables that make one GPU or none visible; empty without a device."""
    if device is None:
        return {}
    kind, _, number = device.partition(":")
    return {name: number if kind in kinds else "-1" for name, kinds in _GPU_VARIABLES.items()}


def _assets(settings: Settings) -> Assets:
    """Return the LoRAs, embeddings and upscalers in the operator's folders now."""
    loras, bad_loras = _examined(settings.lora_dir, "lora", settings)
    _, bad_embeddings = _examined(settings.embedding_dir, "embedding", settings)
    upscalers, bad_upscalers = _examined(settings.upscaler_dir, "upscaler", settings)
    own = {name: file.factor for name, file in upscalers.items() if file.factor is not None}
    return Assets(
        loras=[*loras],
        lora_hashes={name: file.checksum for name, file in loras.items() if file.checksum},
        lora_in_prompt=settings.lora_in_prompt,
        upscalers={**own, **UPSCALERS},
        built_in=[*UPSCALERS],
        vocabularies={} if settings.engine == "fake" else vocabularies(),
        unusable={"lora": bad_loras, "embedding": bad_embeddings, "upscaler": bad_upscalers},
    )


def _examined(
    folder: Path | None, kind: str, settings: Settings
) -> tuple[dict[str, Asset], dict[str, str]]:
    """Return name -> details of the usable files, and file name -> problem of the others."""
    usable: dict[str, Asset] = {}
    unusable: dict[str, str] = {}
    for file, path in candidate_files(folder).items():
        # The fake engine accepts any weight file as a LoRA.
        unread = settings.engine == "fake" and kind == "lora" and path.suffix not in PICKLES
        asset = Asset() if unread else examine(path, kind)
        problem = asset.problem or name_problem(file)
        if problem is None:
            usable[name_of(file)] = asset
        else:
            unusable[file] = problem
    return usable, unusable


async def _tidy(store: JobStore) -> None:
    """Delete expired jobs at intervals; the end of a job also does this, but jobs may be rare."""
    while True:
        await asyncio.sleep(_TIDY_SECONDS)
        try:
            await store.expire()
        except ImageServiceError as fault:
            # The database may be locked; the next round retries.
            logger.warning("expired jobs could not be deleted: %s", fault)
        except Exception:
            logger.exception("expired jobs could not be deleted")


async def _open_when_free(store: JobStore) -> None:
    """Open a store as soon as no other server holds it; log other errors and retry."""
    known = ""
    while True:
        try:
            await asyncio.to_thread(store.open)
            return
        except StoreInUse:
            known = ""
        except StoreError as error:
            if str(error) != known:
                known = str(error)
                logger.warning("standing by: %s", error)
        await asyncio.sleep(_STANDBY_SECONDS)


async def _watch(store: JobStore, on_loss: Callable[[], None]) -> None:
    """Write to the database at intervals, so that an idle server notices if it lost the store."""
    while store.lost is None:
        try:
            await store.fault()
        except Exception:
            logger.exception("the state of the job database could not be read")
        await asyncio.sleep(_WATCH_SECONDS)
    logger.critical("%s", store.lost)
    on_loss()
