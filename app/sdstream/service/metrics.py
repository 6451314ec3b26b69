"""Metrics for operators, in the format of Prometheus; every name begins with ``sdstream_``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from sdstream import __version__
from sdstream.engine.worker import Worker

#: Labels of workers; the machine is empty without a cluster.
_WHERE: Final = ("model", "machine")
_SECONDS: Final = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)


# These would export a start time with each counter, which nothing reads.
disable_created_metrics()  # type: ignore[no-untyped-call]


class _Totals(Collector):
    """A counter whose values are counted by another part of the service.

    Args:
        name: Name without ``_total``.
        meaning: Help text, one sentence.
        labels: Names of the labels.

    Attributes:
        values: Values of the labels -> count.
    """

    def __init__(self, name: str, meaning: str, *labels: str) -> None:
        self._about = (name, meaning)
        self._labels = labels
        self.values: Mapping[tuple[str, ...], float] = {}

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Yield the counter with its current values."""
        family = CounterMetricFamily(*self._about, labels=self._labels)
        for labels, value in self.values.items():
            family.add_metric(labels, value)
        yield family


class Metrics:
    """The metrics of one server, in a separate registry."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        #: Name, type, labels and meaning of every metric, for the documentation.
        self.described: list[tuple[str, str, tuple[str, ...], str]] = []
        ProcessCollector(registry=self._registry)
        self._add_requests()
        self._add_jobs()
        self._add_workers()
        self._add_store()

    def _add_requests(self) -> None:
        build = self._gauge("build_info", "Always 1; the label is the version.", "version")
        build.labels(__version__).set(1)
        self.ready = self._gauge(
            "ready", "1 if the default model can generate, as /readyz reports."
        )
        self.requests = self._counter(
            "http_requests", "Answered HTTP requests.", "method", "route", "status"
        )
        self.request_seconds = self._histogram(
            "http_request_seconds", "Seconds until an answer was complete.", "method", "route"
        )
        self.rejected = self._counter(
            "http_errors", "Answers with an error, by the reason of the error.", "reason"
        )

    def _add_jobs(self) -> None:
        self.accepted_jobs = self._counter("accepted_jobs", "Accepted jobs.", "model")
        self.jobs = self._counter("jobs", "Ended jobs.", "model", "outcome")
        self.images = self._counter("images", "Finished images.", "model")
        self.steps = self._counter("steps", "Sampling steps of finished images.", "model")
        self.phase_seconds = self._histogram(
            "phase_seconds",
            "Seconds in each phase. Phases of a job: queue, loading. Phases of an image: "
            "encoding, sampling, decoding, file (encoding of the file), store.",
            "model",
            "phase",
        )
        self.conditions = self._counter(
            "conditions",
            "Encoded prompts of finished images: computed, or reused from an earlier image.",
            "model",
            "source",
        )
        self.queued_images = self._gauge("queued_images", "Waiting images.")
        self.queue_limit = self._gauge("queue_limit_images", "Maximum number of waiting images.")
        self.queue_age = self._gauge(
            "queue_oldest_seconds", "Seconds that the oldest waiting job has waited."
        )
        self.running_jobs = self._gauge("running_jobs", "Running jobs.")

    def _add_workers(self) -> None:
        self.worker_starts = self._totals(
            "worker_starts",
            "Started worker processes of the model: when it is loaded, and after a crash.",
            *_WHERE,
        )
        self.worker_up = self._gauge("worker_up", "Loaded workers of the model.", *_WHERE)
        self.worker_memory = self._gauge(
            "worker_resident_bytes", "Memory of the model's worker processes.", *_WHERE
        )
        self.worker_kernels = self._gauge(
            "worker_kernels",
            "Loaded workers of the model by the CPU kernels that they use.",
            *_WHERE,
            "kernels",
        )
        self.machines = self._gauge("machines", "Machines of the cluster by state.", "state")
        self.evictions = self._totals(
            "worker_evictions", "Workers that were stopped to make room for another model."
        )
        self.memory_budget = self._gauge(
            "memory_budget_bytes", "Memory that all loaded models may use together."
        )

    def _add_store(self) -> None:
        self.store_bytes = self._gauge("store_bytes", "Size of the stored images.")
        self.store_limit = self._gauge("store_limit_bytes", "Maximum size of the stored images.")
        self.disk_free = self._gauge("disk_free_bytes", "Free space of the data folder's disk.")

    def _totals(self, name: str, meaning: str, *labels: str) -> _Totals:
        self.described.append((f"sdstream_{name}_total", "counter", labels, meaning))
        totals = _Totals(f"sdstream_{name}", meaning, *labels)
        self._registry.register(totals)
        return totals

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

    def measure_workers(
        self, workers: Sequence[Worker], starts: Mapping[tuple[str, str], int], evictions: int
    ) -> None:
        """Update the metrics of workers.

        Args:
            workers: All existing workers.
            starts: Model and machine -> number of started processes.
            evictions: Number of workers that were stopped to make room for another model.
        """
        self.evictions.values = {(): evictions}
        gauges = (self.worker_up, self.worker_memory, self.worker_kernels)
        for gauge in gauges:
            gauge.clear()
        for worker in workers:
            where = (worker.model, worker.place)
            self.worker_up.labels(*where).inc(int(worker.is_up))
            self.worker_memory.labels(*where).inc(worker.resident_bytes)
            if worker.is_up and worker.loaded is not None:
                self.worker_kernels.labels(*where, worker.loaded.kernels).inc()
        self.worker_starts.values = {where: float(count) for where, count in starts.items()}

    def measure_machines(self, states: Mapping[str, int]) -> None:
        """Update the gauge of machines from a mapping of states to numbers of machines."""
        for state, count in states.items():
            self.machines.labels(state).set(count)

    def render(self) -> bytes:
        """Return the text that Prometheus scrapes."""
        return generate_latest(self._registry)
