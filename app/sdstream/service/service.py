"""The service behind every route, streamed or not.

::

    submit ──> queue ──> worker ──> events ──> Job.apply ──> readers (follow)

Each part has its module: admission.py accepts requests, job_queue.py orders the jobs, dispatch.py
runs them and decides how they end, live_jobs.py holds their events and readers, and models.py holds
the models and their workers. All of them run on one event loop. The image processor's threads do
the work on pixels.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping

from sdstream.core.ask import ParsedRequest
from sdstream.core.catalog import Catalog, CatalogChange
from sdstream.core.errors import ImageServiceError
from sdstream.core.job import Entry, Job, JobCancelled, Terms
from sdstream.core.job_filter import JobFilter
from sdstream.core.model_spec import ModelSpec
from sdstream.core.request import NO_ASSETS, Assets, Limits
from sdstream.engine.pool import WorkerPool
from sdstream.imaging.processor import ImageProcessor
from sdstream.notifier import Notifier
from sdstream.service.admission import Admission, Policy
from sdstream.service.dispatch import Dispatcher
from sdstream.service.job_queue import JobQueue
from sdstream.service.live_jobs import LiveJob, LiveJobs, standing_by
from sdstream.service.metrics import Metrics
from sdstream.service.models import Models
from sdstream.service.tracing import Tracing
from sdstream.storage.job_rows import Page
from sdstream.storage.job_store import JobStore


class ImageService:
    """Submits, runs, cancels and drains jobs. Its owner runs ``run`` as a task."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        make_pool: Callable[[Callable[[], None]], WorkerPool],
        processor: ImageProcessor,
        store: JobStore,
        metrics: Metrics,
        tracing: Tracing,
        policy: Policy,
        new_id: Callable[[], str],
        random_seed: Callable[[], int],
        read_catalog: Callable[[], Catalog],
        refresh_catalog: Callable[[Catalog], Catalog],
        assets: Callable[[], Assets] = lambda: NO_ASSETS,
        checksum_of: Callable[[ModelSpec], str | None] = lambda _spec: None,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self.processor = processor
        self.assets = assets
        #: This server holds the store and has recovered its jobs; false on standby.
        self.took_over = False
        self._store = store
        self._metrics = metrics
        self._policy = policy
        changed = Notifier()
        self.pool = make_pool(changed.notify)
        self._models = Models(
            catalog,
            refresh=refresh_catalog,
            read=read_catalog,
            pool=self.pool,
            on_change=changed.notify,
            checksum_of=checksum_of,
        )
        self._jobs = LiveJobs(store, metrics, tracing, on_end)
        self._queue = JobQueue(self._jobs, changed)
        self._dispatcher = Dispatcher(
            self._models,
            self._queue,
            self._jobs,
            changed,
            processor=processor,
            store=store,
            metrics=metrics,
            grace_seconds=policy.grace_seconds,
        )
        self._admission = Admission(
            self._models,
            self._queue,
            self._jobs,
            self._dispatcher,
            processor=processor,
            store=store,
            metrics=metrics,
            policy=policy,
            new_id=new_id,
            random_seed=random_seed,
            assets=assets,
        )

    # --- state ----------------------------------------------------------------------------------

    @property
    def drain_began(self) -> asyncio.Event:
        """Event that is set when the service stops accepting jobs."""
        return self._dispatcher.drain_began

    @property
    def draining(self) -> bool:
        """True from ``drain_began`` on."""
        return self._dispatcher.draining

    @property
    def ready(self) -> bool:
        """True when the service accepts jobs and the default model can generate."""
        return not self.draining and self._models.ready

    def why_no_request(self) -> ImageServiceError | None:
        """Return why requests cannot be served (another server may hold the jobs), or None."""
        return self._store.cut_off if self.took_over else standing_by()

    @property
    def limits(self) -> Limits:
        """Upper bounds of image sizes, images and steps."""
        return self._policy.limits

    @property
    def queued_images(self) -> int:
        """Number of images of the waiting jobs."""
        return self._queue.waiting.images()

    def wanted_workers(self) -> int:
        """Return how many workers the jobs could use at once, within each model's ``replicas``."""
        wanted = self._queue.models + Counter(
            live.job.request.model for live in self._queue.running
        )
        found = {name: self.catalog.find(name) for name in wanted}
        most = {name: spec.replicas for name, spec in found.items() if spec is not None}
        return sum(
            wanted[name] if replicas == "auto" else min(replicas, wanted[name])
            for name, replicas in most.items()
        )

    def measure(self) -> None:
        """Update the gauges; called before each scrape."""
        metrics = self._metrics
        metrics.ready.set(int(self.ready))
        metrics.queued_images.set(self.queued_images)
        metrics.queue_limit.set(self._policy.queue_images)
        metrics.queue_age.set(self._queue.oldest_seconds())
        metrics.running_jobs.set(len(self._queue.running))
        metrics.memory_budget.set(self.pool.budget_bytes)
        metrics.measure_workers(self.pool.workers(), self.pool.starts(), self.pool.evictions)

    # --- models ---------------------------------------------------------------------------------

    @property
    def catalog(self) -> Catalog:
        """The catalogue of models."""
        return self._models.catalog

    def why_unavailable(self, model: str) -> str | None:
        """Return why a model cannot be loaded, None if it can; see Models."""
        return self._models.why_unavailable(model)

    def model_state(self, model: str) -> str:
        """Return the state of the model's best worker; see Models."""
        return self._models.state(model)

    async def refresh_catalog(self) -> Catalog:
        """Update the catalogue for models that were downloaded or removed, and return it."""
        return await self._models.refresh()

    async def reload_catalog(self) -> CatalogChange:
        """Read models.yaml again; raises CatalogRejected, see Models."""
        return await self._models.reload()

    async def get_model(self, name: str, param: str = "model") -> ModelSpec:
        """Return the model of that name, even if it was just downloaded; raises NotFound."""
        return await self._models.get(name, param)

    def checksum(self, model: str) -> str | None:
        """Return the SHA-256 of the model's checkpoint in hex, None while it is not known."""
        return self._models.checksum(model)

    async def load(self, spec: ModelSpec, runtime: Mapping[str, object] | None = None) -> None:
        """Load a model before its first job; see Models."""
        await self._models.load(spec, runtime)

    def unload(self, spec: ModelSpec) -> None:
        """Stop a model's workers, each at the end of its job."""
        self._models.unload(spec)

    # --- jobs -----------------------------------------------------------------------------------

    async def submit(self, ask: ParsedRequest, terms: Terms) -> LiveJob:
        """Accept a request as a job, or raise why it is rejected; see Admission."""
        return await self._admission.submit(ask, terms)

    def cancel(self, live: LiveJob, message: str) -> None:
        """Cancel a job: at once if it waits, within one step if it runs."""
        self._dispatcher.end_early(live, JobCancelled(message))

    def peek(self, live: LiveJob) -> None:
        """Ask the worker of a running job for a preview with its next step."""
        if live.worker is not None:
            live.worker.peek(live.job.id)

    async def mark(self, live: LiveJob, *, favorite: bool) -> None:
        """Mark a job as a favorite, or remove the mark; raises StorageFull, see JobStore.mark."""
        await self._jobs.mark(live, favorite=favorite)

    async def delete(self, live: LiveJob) -> None:
        """Delete a job and its images; cancel it first if it has not ended."""
        if not live.over:
            self.cancel(live, "The job was deleted.")
            await self._jobs.end_of(live)
        await self._jobs.delete(live)

    def seconds_left(self, job: Job) -> float | None:
        """Return the estimated seconds until a job ends, None without enough measurements."""
        return self._queue.seconds_left(job)

    # --- readers of jobs, see LiveJobs ----------------------------------------------------------

    async def find(self, job_id: str, owner: str, param: str | None = None) -> LiveJob:
        """Return a job of this owner, unfinished or ended; raises NotFound, see LiveJobs.find."""
        return await self._jobs.find(job_id, owner, param)

    async def page(self, owner: str, which: JobFilter, *, limit: int, after: str | None) -> Page:
        """Return an owner's jobs, newest first; see JobStore.page."""
        return await self._jobs.page(owner, which, limit=limit, after=after)

    async def earlier_images(self, live: LiveJob) -> list[Entry]:
        """Return the images that an unfinished job had before the server restarted, with files."""
        return await self._jobs.earlier_images(live)

    async def upload(self, job: Job, name: str) -> bytes | None:
        """Return a file that was uploaded with a job, None if it does not exist."""
        return await self._store.upload(job, name)

    async def with_files(self, job: Job) -> Job:
        """Return an ended job with its image files; raises NotFound if they were deleted."""
        return await self._jobs.with_files(job)

    def follow(
        self, live: LiveJob, idle_seconds: float, start: int = 0
    ) -> AsyncIterator[Entry | None]:
        """Yield the events of a job, past and coming, until its end; see LiveJobs.follow."""
        return self._jobs.follow(live, idle_seconds, start)

    async def finished(self, live: LiveJob) -> Job:
        """Wait until the job has ended, or is deferred to the next start of the server."""
        return await self._jobs.finished(live)

    def until_written(self, live: LiveJob, idle_seconds: float) -> AsyncIterator[None]:
        """Wait until the job's state is stored; yields after each ``idle_seconds`` of waiting."""
        return self._jobs.until_written(live, idle_seconds)

    async def settled(self, live: LiveJob) -> None:
        """Wait until the job's state is stored; raises StorageFull, Unavailable."""
        await self._jobs.settled(live)

    # --- for the owner --------------------------------------------------------------------------

    async def recover(self) -> None:
        """Queue the unfinished background jobs of an earlier run, of this server or another."""
        for job in await self._store.recover():
            self._queue.enqueue(self._jobs.add_earlier(job))
        self.took_over = True

    def begin_drain(self) -> None:
        """Stop accepting jobs and give running ones the grace time; may be called repeatedly."""
        self._dispatcher.begin_drain()

    async def drained(self) -> None:
        """Wait until the running jobs have ended or the grace time is over, after begin_drain."""
        await self._dispatcher.drained()

    async def run(self) -> None:
        """Load the default model, then dispatch jobs to workers until cancelled."""
        await self._dispatcher.run()
