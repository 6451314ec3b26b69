"""OpenTelemetry spans. Needs the extra ``otel``, whose SDK reads the ``OTEL_*`` variables.

OpenTelemetry's middleware for Starlette is not used: it exports the query string, which may contain
a token or a prompt. The provider is not the global one, so that the spans of other libraries are
not exported.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Final

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from sdstream import __version__
from sdstream.core.job import Job
from sdstream.service.tracing import NO_ATTRIBUTES, Attributes, Span, Tracing

#: Entry point group of exporters.
_EXPORTERS: Final = "opentelemetry_traces_exporter"
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
#: Time to export the remaining spans when the server stops; the SDK would try for 30 s.
_FLUSH_SECONDS: Final = 2.0

_W3C: Final = TraceContextTextMapPropagator()


class _Span(Span):
    """A span that is exported after it has ended."""

    def __init__(self, tracer: trace.Tracer, span: trace.Span) -> None:
        self._tracer = tracer
        self._span = span
        context = span.get_span_context()
        ids = trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id)
        self.traceparent = f"00-{ids[0]}-{ids[1]}-{context.trace_flags:02x}"

    def stage(
        self, name: str, began: float, ended: float, attributes: Attributes = NO_ATTRIBUTES
    ) -> Span:
        """Add a child span."""
        span = self._tracer.start_span(
            name,
            trace.set_span_in_context(self._span, Context()),
            attributes=attributes,
            start_time=_nanoseconds(began),
        )
        span.end(_nanoseconds(ended))
        return _Span(self._tracer, span)

    def end(
        self, at: float, attributes: Attributes, *, name: str | None = None, error: str = ""
    ) -> None:
        """End the span."""
        if not self._span.is_recording():
            return
        if name is not None:
            self._span.update_name(name)
        self._span.set_attributes(attributes)
        if error:
            self._span.set_attribute("error.type", error)
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end(_nanoseconds(at))


class OpenTelemetry(Tracing):
    """Creates spans and exports them in background threads.

    Args:
        names: Names of the exporters, as in OTEL_TRACES_EXPORTER.
        variable: Returns the value of an environment variable.

    Raises:
        ValueError: An exporter is not installed.
    """

    def __init__(self, names: Sequence[str], variable: Callable[[str], str | None]) -> None:
        exporters = [_exporter(name, variable) for name in names]
        own = {"service.name": "sdstream", "service.version": __version__}
        # Environment variables override these values.
        resource = Resource.create(own).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._exporters = [_QuietExporter(exporter) for exporter in exporters]
        for exporter in self._exporters:
            self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("sdstream", __version__)

    def request(self, headers: Mapping[str, str]) -> Span:
        """Begin the span of a request."""
        context = propagate.extract(headers, Context())
        return _Span(self._tracer, self._tracer.start_span("HTTP", context, SpanKind.SERVER))

    def job(self, job: Job) -> Span:
        """Begin the span of a job."""
        request, terms = job.request, job.terms
        context = _W3C.extract({"traceparent": terms.traceparent}, Context())
        origin = trace.get_current_span(context).get_span_context()
        apart = terms.background and origin.is_valid
        span = self._tracer.start_span(
            "job",
            Context() if apart else context,
            links=[trace.Link(origin)] if apart else None,
            attributes={
                "sdstream.job.id": job.id,
                "sdstream.job.operation": terms.operation,
                "sdstream.job.priority": terms.priority.value,
                "sdstream.model": request.model,
                "sdstream.size": str(request.asked_size),
                "sdstream.images": request.n,
                "sdstream.steps": request.steps,
            },
            start_time=_nanoseconds(job.created),
        )
        return _Span(self._tracer, span)

    def close(self) -> None:
        """Export the remaining spans, within ``_FLUSH_SECONDS``."""
        thread = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        thread.start()
        thread.join(_FLUSH_SECONDS)
        for exporter in self._exporters:
            exporter.stop()


class _QuietExporter(SpanExporter):
    """An exporter that logs only the first of several failures in a row."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._fails = False
        self._is_stopped = False
        logging.getLogger(type(exporter).__module__).addFilter(self._is_news)

    def _is_news(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        known, self._fails = self._fails, True
        return not known

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export spans; called in the exporter's thread."""
        result = self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            self._fails = False
        return result

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Export the spans that the exporter itself buffers."""
        return self._exporter.force_flush(timeout_millis)

    def shutdown(self) -> None:
        """Stop the exporter after the last export; called by the SDK."""
        self.stop()

    def stop(self) -> None:
        """Stop the exporter, even while it waits to retry."""
        if not self._is_stopped:
            self._is_stopped = True
            self._exporter.shutdown()


def _exporter(name: str, variable: Callable[[str], str | None]) -> SpanExporter:
    """Return a new exporter for a name in OTEL_TRACES_EXPORTER."""
    entry = name
    if name == "otlp":
        protocol = next(filter(None, map(variable, _PROTOCOLS)), "http/protobuf")
        entry = "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"
    found = entry_points(group=_EXPORTERS)
    if entry not in found.names:
        raise ValueError(
            f"there is no exporter '{entry}' for OTEL_TRACES_EXPORTER={name}; installed are "
            f"{', '.join(sorted(found.names))}"
        )
    made: SpanExporter = found[entry].load()()
    return made


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
