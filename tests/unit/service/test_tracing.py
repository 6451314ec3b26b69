"""Exporting of traces: which variables enable it, and what is imported."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from importlib import util

import pytest

from sdstream.service import otel
from sdstream.service.tracing import Tracing, exporters_of, tracing_of
from tests.support.servers import free_port, wait_until


@pytest.mark.parametrize(
    ("variables", "names"),
    [
        ({}, []),
        ({"OTEL_SERVICE_NAME": "images"}, []),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318"}, ["otlp"]),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://localhost:4318/v1/traces"}, ["otlp"]),
        ({"OTEL_TRACES_EXPORTER": "console, otlp"}, ["console", "otlp"]),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "True"}, []),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, []),
    ],
)
def test_the_standard_variables_ask_for_traces(variables: dict[str, str], names: list[str]) -> None:
    """Other variables, and settings that disable tracing, select no exporter."""
    assert exporters_of(variables.get) == names


def test_nothing_is_imported_without_them() -> None:
    """Without an exporter, no OpenTelemetry package is imported."""
    program = """
import sys
from sdstream.service.tracing import tracing_of
import sdstream.web.server
tracing_of({"OTEL_TRACES_EXPORTER": "none"}.get)
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"


def test_what_is_missing_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A missing exporter does not stop the server; the warning contains the remedy."""
    assert type(tracing_of({"OTEL_TRACES_EXPORTER": "zipkin"}.get)) is Tracing
    assert "no exporter 'zipkin'" in caplog.text
    assert "console, otlp_proto_http" in caplog.text
    grpc = {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    assert type(tracing_of(grpc.get)) is Tracing
    assert "no exporter 'otlp_proto_grpc'" in caplog.text
    monkeypatch.setattr(util, "find_spec", lambda _: None)
    assert type(tracing_of({"OTEL_TRACES_EXPORTER": "otlp"}.get)) is Tracing
    assert "pip install 'sdstream[otel]'" in caplog.text


def test_a_collector_that_is_away_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Spans are dropped with one warning, and closing does not wait for a retry."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    monkeypatch.setattr(otel, "_FLUSH_SECONDS", 0.1)
    tracing = tracing_of(os.environ.get)
    tracing.request({}).end(time.time(), {})
    wait_until(lambda: caplog.records, 30, "nothing was logged")
    tracing.close()
    wait_until(
        lambda: not [t for t in threading.enumerate() if t.name.startswith("OtelBatch")],
        30,
        "the exporter's thread goes on",
    )
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "spans" in record.getMessage()
