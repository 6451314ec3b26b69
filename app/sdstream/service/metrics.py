"""What operators watch, in Prometheus' form; every name starts with ``sdstream_``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from sdstream.engine.worker import Worker, WorkerState

_SECONDS: Final = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)


class Metrics:
    """The counters of one server, in a registry of their own."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        #: Name, type, labels and meaning of every metric, for the documents.
        self.described: list[tuple[str, str, tuple[str, ...], str]] = []
        self.requests = self._counter(
            "http_requests", "Answered HTTP requests.", "method", "route", "status"
        )
        self.accepted_jobs = self._counter("accepted_jobs", "Accepted jobs.", "model")
        self.jobs = self._counter("jobs", "Ended jobs.", "model", "outcome")
        self.images = self._counter("images", "Finished images.", "model")
        self.steps = self._counter("steps", "Sampling steps of finished images.", "model")
        self.phase_seconds = self._histogram(
            "phase_seconds",
            "Seconds of a job in the queue, and of an image in each phase of the runtime.",
            "model",
            "phase",
        )
        self.conditions = self._counter(
            "conditions",
            "Prompts of finished images that were encoded, or reused from an earlier image.",
            "model",
            "source",
        )
        self.queued_images = self._gauge("queued_images", "Images waiting.")
        self.running_jobs = self._gauge("running_jobs", "Running jobs.")
        self.worker_starts = self._gauge(
            "worker_starts",
            "Starts of the model's worker processes; more than it has replicas means restarts.",
            "model",
        )
        self.worker_up = self._gauge("worker_up", "Loaded workers of the model.", "model")
        self.worker_memory = self._gauge(
            "worker_resident_bytes", "Memory of the model's worker processes.", "model"
        )
        self.worker_kernels = self._gauge(
            "worker_kernels",
            "Loaded workers of the model by the CPU kernels that they use.",
            "model",
            "kernels",
        )
        self.evictions = self._gauge(
            "worker_evictions", "Workers that made room for another model."
        )

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        self.described.append((f"sdstream_{name}_total", "counter", labels, meaning))
        return Counter(f"sdstream_{name}", meaning, labels, registry=self._registry)

    def _gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        self.described.append((f"sdstream_{name}", "gauge", labels, meaning))
        return Gauge(f"sdstream_{name}", meaning, labels, registry=self._registry)

    def _histogram(self, name: str, meaning: str, *labels: str) -> Histogram:
        self.described.append((f"sdstream_{name}", "histogram", labels, meaning))
        return Histogram(
            f"sdstream_{name}", meaning, labels, buckets=_SECONDS, registry=self._registry
        )

    def measure_workers(self, workers: Sequence[Worker], evictions: int) -> None:
        """Bring the gauges of workers up to date."""
        self.evictions.set(evictions)
        gauges = (self.worker_up, self.worker_memory, self.worker_starts, self.worker_kernels)
        for gauge in gauges:
            gauge.clear()
        for worker in workers:
            up = worker.state in (WorkerState.READY, WorkerState.BUSY)
            self.worker_up.labels(worker.model).inc(int(up))
            self.worker_memory.labels(worker.model).inc(worker.resident_bytes)
            self.worker_starts.labels(worker.model).inc(worker.starts)
            if up and worker.loaded is not None:
                self.worker_kernels.labels(worker.model, worker.loaded.kernels).inc()

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self._registry)
