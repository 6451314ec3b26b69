"""A client of the jobs API for tests: requests, and event streams that are read event by event."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import httpx2

from tests.support.servers import GENERATIONS, ServerProcess

ASYNC: Final = {"Prefer": "respond-async"}
ENDINGS: Final = ("completed", "failed", "cancelled")


@dataclass(frozen=True)
class Told:
    """One event of a stream."""

    id: str
    name: str
    data: dict[str, Any]

    @property
    def number(self) -> int:
        """Number of the event, without the job's id, which may precede it."""
        return int(self.id.rpartition(":")[2])


def begin(
    server: ServerProcess, body: Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Start a background job; return the job from the response."""
    answer = server.post(dict(body), headers={**ASYNC, **(headers or {})})
    assert answer.status_code == 202, answer.text
    job: dict[str, Any] = answer.json()
    return job


def look(
    server: ServerProcess, job: str, headers: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return the current state of a job."""
    answer = httpx2.get(f"{server.url}/v1/jobs/{job}", headers=headers, timeout=20)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def wait_for(
    server: ServerProcess,
    job: str,
    *statuses: str,
    seconds: float = 120,
    headers: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Poll a job until it has one of these statuses."""
    deadline = time.monotonic() + seconds
    while True:
        found = look(server, job, headers)
        if found["status"] in statuses:
            return found
        assert found["status"] not in ENDINGS, f"{found['status']}, which does not change"
        assert time.monotonic() < deadline, f"{found['status']} after {seconds} s"
        time.sleep(0.02)


class EventStream:
    """An open GET of events on a separate connection, which a test may read or close early."""

    def __init__(
        self, server: ServerProcess, path: str, headers: Mapping[str, str] | None = None
    ) -> None:
        self._connection = http.client.HTTPConnection(*server.address, timeout=60)
        self._connection.request("GET", path, headers=dict(headers or {}))
        self.answer = self._connection.getresponse()
        self.retry: int | None = None

    def __enter__(self) -> EventStream:
        return self

    def __exit__(self, *_error: object) -> None:
        self.answer.close()
        self._connection.close()

    def events(self) -> Iterator[Told]:
        """Yield events until the server closes the stream."""
        fields: dict[str, str] = {}
        while line := self.answer.readline().decode():
            if line == "\n":
                if "data" in fields:
                    yield Told(fields["id"], fields["event"], json.loads(fields["data"]))
                fields = {}
                continue
            name, _, value = line.rstrip("\n").partition(": ")
            if name == "retry":
                self.retry = int(value)
            fields[name] = value


def events_of(
    server: ServerProcess, job: str, headers: Mapping[str, str] | None = None
) -> list[Told]:
    """Return all events of a job until its end."""
    with EventStream(server, f"/v1/jobs/{job}/events", headers) as stream:
        return list(stream.events())


def eventsource_path(**options: object) -> str:
    """The address that an EventSource would open."""
    query = httpx2.QueryParams({name: str(value) for name, value in options.items()})
    return f"{GENERATIONS}?{query}"
