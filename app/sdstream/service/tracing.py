"""Spans of requests, jobs and their stages, for OpenTelemetry.

The extra ``otel`` is imported if the standard variables ask for traces, and not before. Otherwise
the classes of this module stand for it and do nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from importlib import import_module, util
from typing import Final

from sdstream.core.job import Job

logger = logging.getLogger(__name__)

Attributes = Mapping[str, str | int | float]

#: Any of these asks for traces.
_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
NO_ATTRIBUTES: Final[Attributes] = {}


class Span:
    """A span that is not exported.

    Attributes:
        traceparent: Its name for other programs (W3C Trace Context), empty if it has none.
    """

    traceparent = ""

    def stage(
        self, name: str, began: float, ended: float, attributes: Attributes = NO_ATTRIBUTES
    ) -> Span:
        """Add a span below this one; return it, so that it can have stages too.

        Args:
            name: What was done.
            began, ended: Unix seconds.
            attributes: What is known of it.
        """
        del name, began, ended, attributes
        return self

    def end(
        self, at: float, attributes: Attributes, *, name: str | None = None, error: str = ""
    ) -> None:
        """End the span; the first call counts.

        Args:
            at: Unix seconds.
            attributes: What is known by now.
            name: Its name, if that was not known before.
            error: Kind of the error that ended it, empty without one.
        """


#: Stands for every span that is not exported.
NO_SPAN: Final = Span()


class Tracing:
    """Makes spans; these are not exported."""

    def request(self, headers: Mapping[str, str]) -> Span:
        """Begin the span of a request, below the one that its headers name."""
        del headers
        return NO_SPAN

    def job(self, job: Job) -> Span:
        """Begin the span of a job.

        It is below the span of the request that made it. The span of a background job, which
        continues without its client, begins a trace and links to that of the request.
        """
        del job
        return NO_SPAN

    def close(self) -> None:
        """Export what waits, within seconds; blocks meanwhile."""


def exporters_of(variable: Callable[[str], str | None]) -> list[str]:
    """Return the names of the exporters that the standard variables ask for.

    Args:
        variable: Returns a variable of the environment.
    """
    if (variable("OTEL_SDK_DISABLED") or "").strip().lower() == "true":
        return []
    names = variable("OTEL_TRACES_EXPORTER")
    if not names:
        names = "otlp" if any(map(variable, _ENDPOINTS)) else ""
    return [name for name in map(str.strip, names.split(",")) if name not in ("", "none")]


def tracing_of(variable: Callable[[str], str | None]) -> Tracing:
    """Return what makes spans; they are exported if the standard variables ask for it.

    A fault is logged, and no traces are exported: they are no reason to end a server.

    Args:
        variable: Returns a variable of the environment.
    """
    names = exporters_of(variable)
    if not names:
        return Tracing()
    if util.find_spec("opentelemetry.sdk") is None:
        logger.warning("Traces need an extra: pip install 'sdstream[otel]'. None are exported.")
        return Tracing()
    try:
        tracing: Tracing = import_module("sdstream.service.otel").OpenTelemetry(names, variable)
    except Exception as error:  # of any package that the variables name
        logger.warning("No traces are exported: %s", error)
        return Tracing()
    return tracing
