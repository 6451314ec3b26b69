"""The service: every route, plain or streamed, comes through here.

::

    submit ──> queue ──> worker ──> events ──> Job.apply ──> readers (follow)

Each part has its module: admission.py takes requests, job_queue.py keeps their order, dispatch.py
runs them and decides how they end, live_jobs.py has their events and readers, models.py what they
can be drawn with. All of it runs on one event loop; what is done to pixels is done in the image
processor's threads.
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
from sdstream.storage.job_rows import Page
from sdstream.storage.job_store import JobStore


class ImageService:
    """Submits, runs, cancels and drains jobs. ``run`` is a task of the owner."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        make_pool: Callable[[Callable[[], None]], WorkerPool],
        processor: ImageProcessor,
        store: JobStore,
        metrics: Metrics,
        policy: Policy,
        new_id: Callable[[], str],
        random_seed: Callable[[], int],
        read_catalog: Callable[[], Catalog],
        refresh_catalog: Callable[[Catalog], Catalog],
        assets: Callable[[], Assets] = lambda: NO_ASSETS,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self.processor = processor
        self.assets = assets
        #: The store is this server's and its jobs are taken up; false while it stands by.
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
        )
        self._jobs = LiveJobs(store, metrics, on_end)
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
            self.drain_began,
            processor=processor,
            store=store,
            metrics=metrics,
            policy=policy,
            new_id=new_id,
            random_seed=random_seed,
            assets=assets,
        )

    # --- its state ------------------------------------------------------------------------------

    @property
    def drain_began(self) -> asyncio.Event:
        """Set when the service takes no more work."""
        return self._dispatcher.drain_began

    @property
    def draining(self) -> bool:
        """True when the service takes no more work, since ``drain_began`` was set."""
        return self._dispatcher.draining

    @property
    def ready(self) -> bool:
        """True when jobs are taken and those of the default model are drawn."""
        return not self.draining and self._models.ready

    def why_no_request(self) -> ImageServiceError | None:
        """Return why no request is served now: another server has the jobs, or may have them."""
        return self._store.cut_off if self.took_over else standing_by()

    @property
    def limits(self) -> Limits:
        """Upper bounds of sizes."""
        return self._policy.limits

    @property
    def queued_images(self) -> int:
        """Images that wait, without those of the running jobs."""
        return self._queue.waiting.images()

    def wanted_workers(self) -> int:
        """Workers that would have all jobs generated at once, as far as models may have them."""
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
        """Bring the gauges up to date; called when somebody looks."""
        metrics = self._metrics
        metrics.ready.set(int(self.ready))
        metrics.queued_images.set(self.queued_images)
        metrics.queue_limit.set(self._policy.queue_images)
        metrics.queue_age.set(self._queue.oldest_seconds())
        metrics.running_jobs.set(len(self._queue.running))
        metrics.memory_budget.set(self.pool.budget_bytes)
        metrics.measure_workers(self.pool.workers(), self.pool.evictions)

    # --- models ---------------------------------------------------------------------------------

    @property
    def catalog(self) -> Catalog:
        """Which models there are."""
        return self._models.catalog

    def why_unavailable(self, model: str) -> str | None:
        """Why the model cannot be loaded; see Models."""
        return self._models.why_unavailable(model)

    def model_state(self, model: str) -> str:
        """Return the state of the model's best worker; see Models."""
        return self._models.state(model)

    async def refresh_catalog(self) -> Catalog:
        """The catalogue with what was pulled or removed since the start."""
        return await self._models.refresh()

    async def reload_catalog(self) -> CatalogChange:
        """Read models.yaml again; raises CatalogRejected, see Models."""
        return await self._models.reload()

    async def get_model(self, name: str, param: str = "model") -> ModelSpec:
        """The model of that name, pulled lately perhaps; raises NotFound."""
        return await self._models.get(name, param)

    async def load(self, spec: ModelSpec, runtime: Mapping[str, object] | None = None) -> None:
        """Load a model before its first job; see Models."""
        await self._models.load(spec, runtime)

    def unload(self, spec: ModelSpec) -> None:
        """Stop a model's workers, each as soon as its job is over."""
        self._models.unload(spec)

    # --- jobs -----------------------------------------------------------------------------------

    async def submit(self, ask: ParsedRequest, terms: Terms) -> LiveJob:
        """Accept a request as a job; raises why it is not one, see Admission."""
        return await self._admission.submit(ask, terms)

    def cancel(self, live: LiveJob, message: str) -> None:
        """Stop a job: at once when it waits, within a step when it runs."""
        self._dispatcher.end_early(live, JobCancelled(message))

    def peek(self, live: LiveJob) -> None:
        """Have a running job give a preview with its next step."""
        if live.worker is not None:
            live.worker.peek(live.job.id)

    async def mark(self, live: LiveJob, *, favorite: bool) -> None:
        """Make a job a favorite or an ordinary one; raises StorageFull, see JobStore.mark."""
        await self._jobs.mark(live, favorite=favorite)

    async def delete(self, live: LiveJob) -> None:
        """Delete a job and its images, stopping it first."""
        if not live.over:
            self.cancel(live, "The job was deleted.")
            await self._jobs.end_of(live)
        await self._jobs.delete(live)

    def seconds_left(self, job: Job) -> float | None:
        """Seconds until an unfinished job ends, None while too little was measured."""
        return self._queue.seconds_left(job)

    # --- readers of jobs, see LiveJobs ----------------------------------------------------------

    async def find(self, job_id: str, owner: str) -> LiveJob:
        """A job of this owner, whether it lives or ended in the past; raises NotFound."""
        return await self._jobs.find(job_id, owner)

    async def page(self, owner: str, which: JobFilter, *, limit: int, after: str | None) -> Page:
        """An owner's jobs, newest first; see JobStore.page."""
        return await self._jobs.page(owner, which, limit=limit, after=after)

    async def earlier_images(self, live: LiveJob) -> list[Entry]:
        """Images of an unfinished job from an earlier life of the server, with their files."""
        return await self._jobs.earlier_images(live)

    async def upload(self, job: Job, name: str) -> bytes | None:
        """A file that was uploaded with a job, None when there is none."""
        return await self._store.upload(job, name)

    async def with_files(self, job: Job) -> Job:
        """An ended job with the files of its images; raises NotFound when they are gone."""
        return await self._jobs.with_files(job)

    def follow(
        self, live: LiveJob, idle_seconds: float, start: int = 0
    ) -> AsyncIterator[Entry | None]:
        """Everything that happened to a job and happens until its end."""
        return self._jobs.follow(live, idle_seconds, start)

    async def finished(self, live: LiveJob) -> Job:
        """Wait until the job has ended, or is laid aside for the next start."""
        return await self._jobs.finished(live)

    def until_written(self, live: LiveJob, idle_seconds: float) -> AsyncIterator[None]:
        """Wait until what is known of the job may be told; yields at each such silence."""
        return self._jobs.until_written(live, idle_seconds)

    async def settled(self, live: LiveJob) -> None:
        """Wait until what is known of the job may be told; raises StorageFull, Unavailable."""
        await self._jobs.settled(live)

    # --- for the owner --------------------------------------------------------------------------

    async def recover(self) -> None:
        """Take up the background jobs that an earlier run of the server, or another one, left."""
        for job in await self._store.recover():
            self._queue.enqueue(self._jobs.add_earlier(job))
        self.took_over = True

    def begin_drain(self) -> None:
        """Take no more work, and give running jobs the grace time; callable repeatedly."""
        self._dispatcher.begin_drain()

    async def run(self) -> None:
        """Load the default model, then give jobs to workers until cancelled."""
        await self._dispatcher.run()
