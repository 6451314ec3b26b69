"""An OpenTelemetry collector: an HTTP server that keeps the spans that it receives."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.support.servers import wait_until

_ERROR: Final = 2


@dataclass(frozen=True, slots=True)
class SeenSpan:
    """A received span; ids are hexadecimal."""

    name: str
    trace: str
    id: str
    parent: str
    kind: int
    links: tuple[tuple[str, str], ...]
    attributes: dict[str, Any]
    seconds: tuple[float, float]
    is_error: bool


@dataclass(eq=False)
class Collector:
    """The address of a running collector, and the spans that it received.

    Attributes:
        endpoint: Value of OTEL_EXPORTER_OTLP_ENDPOINT.
        bodies: Bodies of all requests, oldest first.
        spans: All spans so far.
        resource: Attributes of the program that sent the newest spans.
    """

    endpoint: str
    bodies: list[bytes] = field(default_factory=list)
    spans: list[SeenSpan] = field(default_factory=list)
    resource: dict[str, Any] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """Variables that make a program send its spans to this collector at short intervals."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "20"}

    def take(self, body: bytes) -> None:
        """Store the spans of a request."""
        self.bodies.append(body)
        for part in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resource = _attributes(part.resource.attributes)
            self.spans += [_seen(span) for scope in part.scope_spans for span in scope.spans]

    def wait_for(self, **attributes: str | int) -> SeenSpan:
        """Wait for a span with these attributes, with dots as underscores; return the span."""
        wanted = {name.replace("_", "."): value for name, value in attributes.items()}

        def found() -> list[SeenSpan]:
            return [span for span in self.spans if wanted.items() <= span.attributes.items()]

        wait_until(found, 30, f"no span has {wanted}")
        return found()[0]

    def below(self, span: SeenSpan) -> list[SeenSpan]:
        """Return the child spans of a span, in the order of their start."""
        children = [one for one in self.spans if (one.trace, one.parent) == (span.trace, span.id)]
        return sorted(children, key=lambda one: one.seconds)


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


def _seen(span: Span) -> SeenSpan:
    return SeenSpan(
        name=span.name,
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        kind=span.kind,
        links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
        attributes=_attributes(span.attributes),
        seconds=(span.start_time_unix_nano / 1e9, span.end_time_unix_nano / 1e9),
        is_error=span.status.code == _ERROR,
    )


@contextmanager
def running_collector() -> Iterator[Collector]:
    """Run a collector on a free port of 127.0.0.1."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            collector.take(self.rfile.read(int(self.headers["content-length"])))
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200 if self.path == "/v1/traces" else 404)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Write no log."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector = Collector(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
