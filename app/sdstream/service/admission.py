"""Admission of requests: each becomes a job in the queue, or is rejected with a reason."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final
from weakref import WeakValueDictionary

from sdstream.clocks import SteadyClock
from sdstream.core.ask import ParsedRequest
from sdstream.core.errors import TEMPORARY_REASONS, Forbidden, KeyReused, QueueFull, Reason
from sdstream.core.job import Job, JobCancelled, JobFailed, Terms
from sdstream.core.model_options import only_looks
from sdstream.core.pixels import Inputs
from sdstream.core.queue import Priority
from sdstream.core.request import Assets, Limits
from sdstream.core.resolve import check_count, model_of, resolve
from sdstream.imaging.processor import ImageProcessor, Pictures
from sdstream.service.dispatch import Dispatcher
from sdstream.service.job_queue import JobQueue
from sdstream.service.live_jobs import LiveJob, LiveJobs, deferred_error, going_down
from sdstream.service.metrics import Metrics
from sdstream.service.models import Models
from sdstream.storage.job_store import JobStore

#: Transient reasons: after one of these, a request with the same idempotency key starts a new job.
_TRANSIENT: Final = (*TEMPORARY_REASONS, Reason.INTERRUPTED, Reason.STORAGE_FULL)
#: Requests without input images that are accepted at the same time; more would not be faster.
_ACCEPTED_AT_ONCE: Final = 2


@dataclass(frozen=True)
class Policy:
    """Limits for accepting requests, and the grace time at shutdown.

    Attributes:
        queue_images: Most images that may wait.
        queue_images_per_key: Most images of one API key that may wait.
        high_priority_owners: Returns the owners that may request high priority; if empty, every
            owner may. The store must be open, because the owners depend on its secret.
        limits: Upper bounds of sizes, images and steps.
        grace_seconds: Time that running jobs have to end at shutdown.
    """

    queue_images: int
    queue_images_per_key: int
    high_priority_owners: Callable[[], frozenset[str]]
    limits: Limits
    grace_seconds: float


class Admission:
    """Accepts requests as jobs.

    Args:
        models: The catalogue and the workers.
        queue: Receives the accepted jobs.
        jobs: The jobs that this run of the server knows.
        dispatcher: Runs the queued jobs, and knows whether the server accepts jobs.
        processor: Decodes and resizes input images.
        store: Stores jobs.
        metrics: Counts accepted jobs.
        policy: The limits.
        new_id: Returns an unguessable id.
        random_seed: Returns a seed for a request without one.
        assets: Returns the LoRAs, embeddings and upscalers in the operator's folders.
    """

    def __init__(
        self,
        models: Models,
        queue: JobQueue,
        jobs: LiveJobs,
        dispatcher: Dispatcher,
        *,
        processor: ImageProcessor,
        store: JobStore,
        metrics: Metrics,
        policy: Policy,
        new_id: Callable[[], str],
        random_seed: Callable[[], int],
        assets: Callable[[], Assets],
    ) -> None:
        self._models = models
        self._queue = queue
        self._jobs = jobs
        self._dispatcher = dispatcher
        self._processor = processor
        self._store = store
        self._metrics = metrics
        self._policy = policy
        self._new_id = new_id
        self._random_seed = random_seed
        self._assets = assets
        #: Number of images of the jobs that are being written to the store, by owner.
        self._entering: Counter[str] = Counter()
        #: Limits concurrent requests to a few, so that other tasks on the event loop continue.
        self._desk = asyncio.Semaphore(_ACCEPTED_AT_ONCE)
        self._names: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    async def submit(self, ask: ParsedRequest, terms: Terms) -> LiveJob:
        """Accept a request as a job, or return the job that its idempotency key names.

        Args:
            ask: The request, with the input images as the client sent them.
            terms: Owner of the job, and how it is stored.

        Raises:
            InvalidRequest, NotFound: The request can never work.
            Forbidden: This owner may not request that priority.
            KeyReused: The idempotency key names another request.
            QueueFull: Too many images wait.
            StorageFull: The disk is full.
            Unavailable: The server is shutting down, the model cannot be loaded, or the store
                cannot be written.
        """
        if terms.idempotency_key is None:
            if ask.files is not None:
                return await self._accept(ask, terms)
            async with self._desk:
                return await self._accept(ask, terms)
        # If two requests with one key arrive together, the second waits and finds the first's job.
        name = (terms.owner, terms.idempotency_key)
        async with self._names.setdefault(name, asyncio.Lock()):
            known = await self._job_of_key(terms)
            return known or await self._accept(ask, terms)

    async def _accept(self, ask: ParsedRequest, terms: Terms) -> LiveJob:
        if self._models.catalog.find(ask.params.model) is None:
            await self._models.refresh()
        # Check this first: decoding the images costs more than rejecting the request.
        spec = model_of(ask, self._models.catalog)
        self._admit(spec.id, ask.params.n or 1, terms)
        pictures = Pictures()
        if ask.files is not None:
            check_count(ask, spec, ask.files.images)
            pictures = await self._processor.decode(
                ask.files,
                only_references=only_looks(ask, spec),
                mask_mode=ask.params.mask_mode or "auto",
            )
        request = resolve(
            ask,
            self._models.catalog,
            assets=await asyncio.to_thread(self._assets),
            random_seed=self._random_seed,
            limits=self._policy.limits,
            has_checker=self._processor.can_check,
            sources=pictures.sources,
        )
        inputs = Inputs()
        if ask.files is not None:
            inputs = await self._processor.fit(pictures, request)
        self._admit(request.model, request.n, terms)
        clock = SteadyClock(time.time())
        job = Job(self._new_id(), request, clock(), terms)
        entry = asyncio.create_task(
            self._enter(job, clock, inputs, ask.files.named() if ask.files else {})
        )
        try:
            return await asyncio.shield(entry)
        except asyncio.CancelledError:
            # The row may be written already. A row of a job that never enters the queue would be
            # a job that cannot be cancelled, and that runs after the next start.
            entry.add_done_callback(self._abandon)
            await asyncio.wait((entry,))
            raise

    def _abandon(self, entry: asyncio.Task[LiveJob]) -> None:
        """End a job whose submission was cancelled."""
        if not entry.cancelled() and entry.exception() is None:
            ending = JobCancelled("The request was cancelled.")
            self._dispatcher.end_early(entry.result(), ending)

    async def _enter(
        self, job: Job, clock: SteadyClock, inputs: Inputs, uploads: Mapping[str, bytes]
    ) -> LiveJob:
        """Store a job and put it into the queue."""
        request, terms = job.request, job.terms
        self._entering[terms.owner] += request.n
        try:
            await self._store.add(job, inputs, uploads)
        finally:
            self._entering[terms.owner] -= request.n
            if not self._entering[terms.owner]:
                del self._entering[terms.owner]
        live = self._jobs.add(job, clock)
        self._metrics.accepted_jobs.labels(job.request.model).inc()
        if self._dispatcher.draining:  # the shutdown began after _admit
            self._jobs.apply(live, JobFailed(Reason.SHUTTING_DOWN, "The server is shutting down."))
            raise going_down()
        self._queue.enqueue(live)
        return live

    async def _job_of_key(self, terms: Terms) -> LiveJob | None:
        """Return the job that an idempotency key names, if any; raises KeyReused, Unavailable.

        A job that failed for a transient reason loses the key, so that a retry can succeed.
        """
        assert terms.idempotency_key is not None
        job = await self._store.job_by_idempotency_key(terms.owner, terms.idempotency_key)
        if job is None:
            return None
        if job.terms.fingerprint != terms.fingerprint:
            raise KeyReused(
                "This Idempotency-Key was used for a different request.",
                reason=Reason.IDEMPOTENCY_KEY_REUSED,
                param="Idempotency-Key",
            )
        # The job may have ended since its row was read.
        live = self._jobs.known(job.id)
        if live is not None and live.deferred:
            raise deferred_error(live.job)
        if live is not None and not live.over:
            return live
        ended = (live.job if live is not None else await self._store.get(job.id)) or job
        if isinstance(ended.ending, JobFailed) and ended.ending.reason in _TRANSIENT:
            await self._store.unname(job.id)
            return None
        return LiveJob(await self._jobs.with_files(ended))

    def _admit(self, model: str, images: int, terms: Terms) -> None:
        """Raise an error if a job cannot be accepted now."""
        if self._dispatcher.draining:
            raise going_down()
        allowed = self._policy.high_priority_owners()
        if terms.priority is Priority.HIGH and allowed and terms.owner not in allowed:
            raise Forbidden(
                "This API key is not allowed to request high priority.",
                reason=Reason.PRIORITY_NOT_ALLOWED,
                param="priority",
            )
        failed = self._models.pool.failed(model)
        if failed is not None:
            raise failed.unavailable()
        self._admit_to_queue(images, terms.owner)

    def _admit_to_queue(self, images: int, owner: str) -> None:
        queue, policy = self._queue.waiting, self._policy
        waiting, most = queue.images() + self._entering.total(), policy.queue_images
        whose, counted = "the limit of this server is", None
        if owner and not (waiting and waiting + images > most):
            waiting, most = queue.images(owner) + self._entering[owner], policy.queue_images_per_key
            whose, counted = "the limit of an API key is", owner
        if waiting and waiting + images > most:
            raise QueueFull(
                f"{waiting} images are waiting and {whose} {most}.",
                reason=Reason.QUEUE_FULL,
                retry_after=self._queue.retry_after(waiting + images - most, counted),
            )
