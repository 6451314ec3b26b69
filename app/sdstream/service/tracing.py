"""Spans of requests, jobs and their stages, for OpenTelemetry.

The extra ``otel`` is imported only if the standard variables enable traces. Otherwise the classes
of this module replace it and do nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from importlib import import_module, util
from typing import Final

from sdstream.core.job import Job

logger = logging.getLogger(__name__)

Attributes = Mapping[str, str | int | float]

#: Each of these variables enables traces.
_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
NO_ATTRIBUTES: Final[Attributes] = {}


class Span:
    """A span that is not exported.

    Attributes:
        traceparent: Header that identifies the span (W3C Trace Context), empty if not exported.
    """

    traceparent = ""

    def stage(
        self, name: str, began: float, ended: float, attributes: Attributes = NO_ATTRIBUTES
    ) -> Span:
        """Add a child span; return it, so that it can have children too.

        Args:
            name: Name of the stage.
            began, ended: Unix seconds.
            attributes: Attributes of the stage.
        """
        del name, began, ended, attributes
        return self

    def end(
        self, at: float, attributes: Attributes, *, name: str | None = None, error: str = ""
    ) -> None:
        """End the span; the first call counts.

        Args:
            at: Unix seconds.
            attributes: Attributes to add.
            name: New name, None to keep the name.
            error: Kind of the error that ended the span, empty without an error.
        """


#: The span that replaces every span that is not exported.
NO_SPAN: Final = Span()


class Tracing:
    """Creates spans that are not exported."""

    def request(self, headers: Mapping[str, str]) -> Span:
        """Begin the span of a request, as a child of the span that its headers name."""
        del headers
        return NO_SPAN

    def job(self, job: Job) -> Span:
        """Begin the span of a job.

        It is a child of the span of the job's request. A background job continues without its
        client: its span begins a new trace, which links to the span of the request.
        """
        del job
        return NO_SPAN

    def close(self) -> None:
        """Export the remaining spans; blocks for some seconds at most."""


def exporters_of(variable: Callable[[str], str | None]) -> list[str]:
    """Return the names of the exporters that the standard variables select.

    Args:
        variable: Returns the value of an environment variable.
    """
    if (variable("OTEL_SDK_DISABLED") or "").strip().lower() == "true":
        return []
    names = variable("OTEL_TRACES_EXPORTER")
    if not names:
        names = "otlp" if any(map(variable, _ENDPOINTS)) else ""
    return [name for name in map(str.strip, names.split(",")) if name not in ("", "none")]


def tracing_of(variable: Callable[[str], str | None]) -> Tracing:
    """Return a Tracing, which exports spans if the standard variables enable traces.

    If the exporter cannot be set up, the error is logged and the server runs without traces.

    Args:
        variable: Returns the value of an environment variable.
    """
    names = exporters_of(variable)
    if not names:
        return Tracing()
    if util.find_spec("opentelemetry.sdk") is None:
        logger.warning(
            "No traces are exported, because an extra is missing: pip install 'sdstream[otel]'."
        )
        return Tracing()
    try:
        tracing: Tracing = import_module("sdstream.service.otel").OpenTelemetry(names, variable)
    except Exception as error:  # of any package that the variables select
        logger.warning("No traces are exported: %s", error)
        return Tracing()
    return tracing
