"""Cost of many waiting streams: the server's CPU time, and the latency of /livez meanwhile.

A server with the fake engine runs one long job. Many streams arrive and wait behind it. One of them
leaves, then all others. Then many streams arrive again, the long job is cancelled, and the waiting
jobs run to their ends. A separate process requests /livez at a fixed pace, so that a late answer
delays no further request. The server runs in a separate process as well. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.servers import ServerProcess, running_server

#: Time between two requests for /livez.
_PACE_SECONDS = 0.005
#: The job in front of the crowd outlasts every measurement.
_IN_FRONT = {"prompt": "step=3600", "steps": 1, "size": "64x64"}
_WAITING = {"prompt": "a crowd", "steps": 1, "size": "64x64", "stream": True}
_ARRIVING_AT_ONCE = 64


@dataclass
class Phase:
    """One measurement.

    Attributes:
        name: What the streams do.
        streams: Number of streams.
        seconds: Wall time.
        cpu: CPU seconds of the server's process.
        livez: Latency of each answer, in seconds.
    """

    name: str
    streams: int
    seconds: float = 0.0
    cpu: float = 0.0
    livez: list[float] = field(default_factory=list)

    def at(self, share: float) -> float:
        """Return a quantile of ``livez``."""
        ordered = sorted(self.livez)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    def row(self) -> dict[str, Any]:
        """Return the row of the table, with latencies in milliseconds."""
        return {
            "streams": self.streams,
            "phase": self.name,
            "wall_s": round(self.seconds, 2),
            "cpu_s": round(self.cpu, 2),
            "cpu_ms_per_stream": round(1000 * self.cpu / self.streams, 3),
            "livez_p50_ms": round(1000 * self.at(0.5), 1),
            "livez_p99_ms": round(1000 * self.at(0.99), 1),
            "livez_max_ms": round(1000 * self.at(1.0), 1),
        }


class Stream:
    """One waiting client on a raw socket, which is cheap enough for thousands of them."""

    def __init__(self, server: ServerProcess) -> None:
        self._address = server.address
        self.told = 0

    async def come(self, body: dict[str, Any] = _WAITING) -> None:
        """Send a request, and read until the first frame."""
        self._reader, self._writer = await asyncio.open_connection(*self._address)
        data = json.dumps(body).encode()
        head = (
            "POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        self._writer.write(head.encode() + data)
        first = await self._reader.readuntil(b"data: ")
        if b" 200 " not in first.split(b"\r\n", 1)[0]:
            raise RuntimeError(first.decode())
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        with suppress(OSError):
            while chunk := await self._reader.read(65536):
                self.told += chunk.count(b"data: ")

    async def end(self) -> None:
        """Read to the end of the stream."""
        await self._reading

    def leave(self) -> None:
        """Close the connection."""
        self._reading.cancel()
        self._writer.close()


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Watch:
    """Request /livez at a fixed pace in another process, because this one is too busy for it."""

    CODE = """
import asyncio, sys, time
host, port, pace = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
async def one(due):
    r, w = await asyncio.open_connection(host, port)
    w.write(b"GET /livez HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n")
    await r.read()
    w.close()
    print(due, time.monotonic() - due, flush=True)
async def main():
    tasks, due = set(), time.monotonic()
    while True:
        due += pace
        await asyncio.sleep(max(0, due - time.monotonic()))
        task = asyncio.create_task(one(due)); tasks.add(task); task.add_done_callback(tasks.discard)
asyncio.run(main())
"""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self._seen: list[tuple[float, float]] = []

    async def __aenter__(self) -> Watch:
        host, port = self._server.address
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            self.CODE,
            host,
            str(port),
            str(_PACE_SECONDS),
            stdout=asyncio.subprocess.PIPE,
        )
        self._reading = asyncio.create_task(self._read())
        return self

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            due, took = map(float, line.split())
            self._seen.append((due, took))

    async def __aexit__(self, *_: object) -> None:
        self._process.kill()
        await self._process.wait()
        await self._reading

    async def between(self, began: float, ended: float) -> list[float]:
        """Return the latencies of the requests in an interval."""
        for _ in range(500):
            if self._seen and self._seen[-1][0] > ended + 0.1:
                break
            await asyncio.sleep(0.02)
        return [took for due, took in self._seen if began <= due <= ended]


async def _quiet(server: ServerProcess) -> None:
    """Wait until the server is idle, or as busy as the waiting streams and /livez keep it."""
    before, used = _cpu(server.process.pid), 0.0
    while True:
        await asyncio.sleep(0.5)
        now = _cpu(server.process.pid)
        last, used, before = used, now - before, now
        if used < 0.06 or (used < 0.35 and abs(used - last) < 0.2 * last):
            return


async def _arrive(server: ServerProcess, count: int) -> list[Stream]:
    streams = [Stream(server) for _ in range(count)]
    gate = asyncio.Semaphore(_ARRIVING_AT_ONCE)

    async def one(stream: Stream) -> None:
        async with gate:
            await stream.come()

    await asyncio.gather(*(one(stream) for stream in streams))
    return streams


@asynccontextmanager
async def _measured(
    phase: Phase, server: ServerProcess, watch: Watch, done: list[Phase]
) -> AsyncIterator[None]:
    pid = server.process.pid
    began, cpu = time.monotonic(), _cpu(pid)
    yield
    await _quiet(server)
    ended = time.monotonic()
    phase.seconds, phase.cpu = ended - began, _cpu(pid) - cpu
    phase.livez = await watch.between(began, ended)
    done.append(phase)


async def measure(server: ServerProcess, count: int) -> list[Phase]:
    """Measure streams that arrive, that leave, and that are processed to their ends."""
    done: list[Phase] = []
    front = Stream(server)
    await front.come({**_IN_FRONT, "stream": True})
    async with Watch(server) as watch:
        await asyncio.sleep(0.5)
        async with _measured(Phase("come", count), server, watch, done):
            streams = await _arrive(server, count)
        async with _measured(Phase("first leaves", count), server, watch, done):
            streams.pop(0).leave()
        async with _measured(Phase("leave", count), server, watch, done):
            for stream in streams:
                stream.leave()
        streams = await _arrive(server, min(count, 800))
        await _quiet(server)
        async with _measured(Phase("finish", len(streams)), server, watch, done):
            front.leave()
            await asyncio.gather(*(stream.end() for stream in streams))
    return done


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, nargs="*", default=[800, 5000])
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    chosen = parser.parse_args()
    need = max(chosen.streams) * 2 + 200
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (need, max(need, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    )
    phases: list[Phase] = []
    for count in chosen.streams:
        with (
            tempfile.TemporaryDirectory() as folder,
            running_server(
                Path(folder),
                engine="fake",
                queue_images=count + 10,
                log_level="warning",
                grace_seconds=1,
            ) as server,
        ):
            phases += asyncio.run(measure(server, count))
    rows = [phase.row() for phase in phases]
    table = Table(*rows[0], title="waiting streams")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console(width=160).print(table)
    if chosen.json:
        chosen.json.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
