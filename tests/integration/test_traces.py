"""OpenTelemetry traces, as a collector receives them."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import httpx2
import pytest
from mcp import Client

from tests.support.collector import Collector, SeenSpan
from tests.support.documents import ROOT, Page
from tests.support.mcp import run_session
from tests.support.servers import GENERATIONS, Call, ServerProcess, running_server, wait_until

PAGE = Page(ROOT / "docs/deploy/metrics.md")
TRACE: Final = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT: Final = "00f067aa0ba902b7"
#: Is in every part of a request that must not be exported.
SECRET: Final = "zebra"
KEY: Final = {"Authorization": f"Bearer {SECRET}-key"}
HEADERS: Final = {**KEY, "traceparent": f"00-{TRACE}-{PARENT}-01"}
_SERVER: Final = 2


@pytest.fixture(scope="module")
def server(
    collector: Collector, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """A server that is started with the documented variable and the collector's address."""
    (line,) = re.findall(r"^\$ (OTEL_\w+)=\S+ sdstream serve$", PAGE.text, re.MULTILINE)
    variables = {**os.environ, **collector.environment}
    assert line in variables
    folder = tmp_path_factory.mktemp("traces")
    with running_server(
        folder, engine="fake", api_keys=f"{SECRET}-key", environment=variables
    ) as found:
        yield found


def table() -> dict[str, str]:
    """Return each span of the documented table with its parent."""
    _, _, after = PAGE.text.partition("| span | parent | what it covers |\n")
    rows = re.findall(r"^\| `?([^|`]+)`? \| `?([^|`]*)`? \|", after, re.MULTILINE)
    return {name.strip(): parent.strip() for name, parent in rows if not name.startswith("-")}


def is_within(inner: SeenSpan, outer: SeenSpan) -> bool:
    """Return True if a span lies within another one, to the precision of a float."""
    (began, ended), (first, last) = inner.seconds, outer.seconds
    return first - 1e-5 <= began <= ended <= last + 1e-5


def test_a_request_and_its_job(server: ServerProcess, collector: Collector) -> None:
    """Spans form the documented tree; none contains the prompt, the key or the query."""
    address = f"{server.url}{GENERATIONS}?{SECRET}=1"
    body = {"prompt": f"a {SECRET}", "n": 2, "steps": 3, f"{SECRET}_field": SECRET}
    answer = httpx2.post(address, json=body, headers=HEADERS, timeout=60)
    assert answer.status_code == 200, answer.text
    request_id = answer.headers["x-request-id"]
    request = collector.wait_for(sdstream_request_id=request_id)
    assert answer.headers["traceparent"] == f"00-{TRACE}-{request.id}-01"
    assert (request.name, request.kind) == (f"POST {GENERATIONS}", _SERVER)
    assert (request.trace, request.parent, request.links) == (TRACE, PARENT, ())
    expected = {
        "http.request.method": "POST",
        "http.route": GENERATIONS,
        "http.response.status_code": 200,
        "client.address": "127.0.0.1",
        "sdstream.outcome": "completed",
    }
    assert expected.items() <= request.attributes.items()
    (line,) = server.log_lines(request_id)
    assert f"trace={TRACE}" in line

    (job,) = collector.below(request)
    assert job.attributes["sdstream.job.id"] == request.attributes["sdstream.job.id"]
    assert job.attributes["sdstream.model"] == "embedded"
    assert job.attributes["sdstream.finished_images"] == 2
    queue, *images = collector.below(job)
    assert [image.name for image in images] == ["image", "image"]
    found = {"job": "request", queue.name: "job"}
    for number, image in enumerate(images):
        assert (image.attributes["sdstream.image"], image.attributes["sdstream.steps"]) == (
            number,
            3,
        )
        found[image.name] = "job"
        stages = collector.below(image)
        found |= {stage.name: "image" for stage in stages}
        assert all(is_within(stage, image) for stage in stages)
        assert is_within(image, job)
    assert {"request": "", **found, "loading": "queue"} == table()
    assert not [body for body in collector.bodies if SECRET.encode() in body]
    assert collector.resource["service.name"] == "sdstream"


def test_a_background_job_links_to_its_request(server: ServerProcess, collector: Collector) -> None:
    """A background job begins a new trace with a link, since it may outlast its request."""
    body = {"prompt": "a", "steps": 1}
    answer = server.post(body, headers={**HEADERS, "Prefer": "respond-async"})
    request = collector.wait_for(sdstream_request_id=answer.headers["x-request-id"])
    wait_until(lambda: [s for s in collector.spans if s.links], 30, "no span has a link")
    job = next(span for span in collector.spans if span.links)
    assert job.links == ((TRACE, request.id),)
    assert (job.parent, job.trace == TRACE) == ("", False)
    assert [span.name for span in collector.below(job)] == ["queue", "image"]


def test_a_request_without_a_trace_begins_one(server: ServerProcess, collector: Collector) -> None:
    """A request without traceparent begins a trace; a client's error does not mark its span."""
    answer = server.post({}, headers=KEY)
    span = collector.wait_for(sdstream_request_id=answer.headers["x-request-id"])
    assert span.parent == ""
    assert (span.attributes["http.response.status_code"], span.is_error) == (400, False)
    assert span.attributes["sdstream.outcome"] == "missing_field"
    lost = httpx2.get(f"{server.url}/{SECRET}", headers=KEY, timeout=10)
    span = collector.wait_for(sdstream_request_id=lost.headers["x-request-id"])
    assert (span.name, "http.route" in span.attributes) == ("GET", False)
    assert not [span for span in collector.spans if "readyz" in span.name]


def test_a_job_of_a_tool_is_below_its_request(server: ServerProcess, collector: Collector) -> None:
    """The job of an MCP tool is below the request that called it."""

    async def session(client: Client) -> None:
        await client.call_tool("generate_image", {"prompt": "a", "steps": 7})

    run_session(session, server.url, headers=KEY)
    job = collector.wait_for(sdstream_model="embedded", sdstream_steps=7)
    job_id = job.attributes["sdstream.job.id"]
    request = collector.wait_for(sdstream_job_id=job_id, http_route="/mcp")
    assert (job.trace, job.parent) == (request.trace, request.id)


def test_an_unsampled_request_is_not_exported(server: ServerProcess, collector: Collector) -> None:
    """The sampled flag of traceparent decides about the export, and is returned."""
    headers = {**KEY, "traceparent": f"00-{TRACE}-{PARENT}-00"}
    answer = server.post({"prompt": "a", "steps": 1}, headers=headers)
    assert answer.headers["traceparent"].endswith("-00")
    after = server.post({}, headers=KEY)
    collector.wait_for(sdstream_request_id=after.headers["x-request-id"])
    unseen = answer.headers["x-request-id"]
    assert not [s for s in collector.spans if s.attributes.get("sdstream.request.id") == unseen]


def test_how_a_job_ends(server: ServerProcess, collector: Collector) -> None:
    """A failed job is an error with its reason; a job whose client left is not an error."""
    failed = server.post({"prompt": "fail=1", "steps": 2}, headers=KEY)
    request = collector.wait_for(sdstream_request_id=failed.headers["x-request-id"])
    (job,) = collector.below(request)
    assert request.is_error
    assert request.attributes["error.type"] == "500"
    assert job.is_error
    assert job.attributes["error.type"] == "generation_failed"
    call = Call(server, {"prompt": "a step=0.1", "steps": 100, "stream": True}, KEY)
    call.wait_for_step(1)
    call.leave()
    request = collector.wait_for(sdstream_outcome="cancelled", http_route=GENERATIONS)
    job = collector.wait_for(sdstream_outcome="cancelled", sdstream_model="embedded")
    assert job.parent == request.id
    assert not request.is_error
    assert not job.is_error


def test_a_collector_that_does_not_answer(tmp_path: Path) -> None:
    """A collector that does not answer causes one warning; the server works and exits as usual."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
            "OTEL_BSP_SCHEDULE_DELAY": "20",
        }
        environment = {**os.environ, **variables}
        with running_server(tmp_path, engine="fake", environment=environment) as server:
            for _ in range(3):
                assert server.post({"prompt": "a", "steps": 1}).status_code == 200
            wait_until(lambda: server.log_lines(" opentelemetry."), 30, "nothing was logged")
            assert server.stop() == -signal.SIGTERM
    assert len(server.log_lines(" opentelemetry.")) == 1
    assert not server.log_lines("Traceback")
