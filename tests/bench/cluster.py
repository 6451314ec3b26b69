"""What several machines add: throughput by places, delays of frames, and the front's CPU time.

Two machines on 127.0.0.3 and 127.0.0.4 with four slots each, whose workers are the fake engine with
sleeping steps, against the single form with as many workers in the same run. Machines, front and
clients share the cores of this one, so that what is measured is what they cost together. Linux.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import psutil
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.machines import ray_machines
from tests.support.servers import GENERATIONS, ServerProcess, running_server

PLACES = (1, 2, 4, 8)
STEPS, STEP_SECONDS = 20, 0.1
_SAMPLES = 20


@dataclass
class Run:
    """One measurement of streamed jobs.

    Attributes:
        images, frames: That came.
        seconds: From the first request to the last answer.
        cpu: Of the front, in seconds.
    """

    images: int = 0
    frames: int = 0
    seconds: float = 0.0
    cpu: float = 0.0


@dataclass
class Delays:
    """Seconds beyond what the engine itself takes."""

    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    cancel: list[float] = field(default_factory=list)


async def stream(
    server: ServerProcess, body: dict[str, object]
) -> AsyncIterator[dict[str, object]]:
    """The progress items of one streamed request, on a connection of its own."""
    reader, writer = await asyncio.open_connection(*server.address)
    content = json.dumps({**body, "stream": True, "size": "64x64"}).encode()
    head = f"POST {GENERATIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    try:
        while line := await reader.readline():
            if line.startswith(b"data: [DONE]"):
                return
            if line.startswith(b"data: "):
                yield json.loads(line[6:])
    finally:
        writer.close()


def cpu_of(server: ServerProcess) -> float:
    """Seconds of processor time of the front's own process."""
    times = psutil.Process(server.process.pid).cpu_times()
    return times.user + times.system


async def throughput(server: ServerProcess, model: str, places: int, jobs: int) -> Run:
    """Have twice as many clients as places ask one job after the other."""
    left, run = iter(range(jobs * places)), Run()

    async def client() -> None:
        for number in left:
            body = {
                "model": model,
                "prompt": f"step={STEP_SECONDS} {number}",
                "sample_steps": STEPS,
            }
            run.frames += len([frame async for frame in stream(server, body)])
            run.images += 1

    cpu, began = cpu_of(server), time.perf_counter()
    await asyncio.gather(*(client() for _ in range(2 * places)))
    run.seconds, run.cpu = time.perf_counter() - began, cpu_of(server) - cpu
    return run


async def delays(server: ServerProcess, model: str) -> Delays:
    """First frames, gaps between frames, and cancels, one request at a time."""
    found = Delays()
    body = {"model": model, "prompt": f"step={STEP_SECONDS}", "sample_steps": 10}
    for _ in range(_SAMPLES):
        began, last = time.perf_counter(), 0.0
        async for frame in stream(server, body):
            step = frame["data"][0].get("progressed_steps", 0)  # type: ignore[index]
            now = time.perf_counter()
            if step == 1 and not last:
                found.first.append(now - began - STEP_SECONDS)
            elif last and 1 < step < 10:
                found.gaps.append(now - last - STEP_SECONDS)
            last = now if step else 0.0
    async with httpx2.AsyncClient(base_url=server.url, timeout=60) as client:
        for _ in range(_SAMPLES):
            job = await client.post(
                GENERATIONS, json={**body, "sample_steps": 100}, headers={"Prefer": "respond-async"}
            )
            path = f"/v1/jobs/{job.json()['id']}"
            while (await client.get(path)).json()["percent"] < 1:
                await asyncio.sleep(0.02)
            began = time.perf_counter()
            await client.post(f"{path}/cancel")
            while (await client.get(path)).json()["status"] != "cancelled":
                await asyncio.sleep(0.001)
            found.cancel.append(time.perf_counter() - began)
    return found


def load_all(server: ServerProcess, model: str, places: int) -> None:
    """Have a model loaded as often as there are places, and no other one."""
    for other in PLACES:
        if other != places:
            httpx2.post(f"{server.url}/v1/models/m{other}/unload", timeout=30)
    deadline = time.monotonic() + 180
    while server.metric("sdstream_worker_up", model=model) < places:
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"{model} has no {places} workers:\n{server.log.read_text()[-2000:]}"
            )
        asyncio.run(throughput(server, model, places, 1))


def percentile(values: Sequence[float], share: float) -> str:
    """A quantile in milliseconds."""
    ordered = sorted(values)
    return f"{1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]:.1f}"


def measured(server: ServerProcess, form: str, jobs: int, rows: Table, late: Table) -> None:
    """Fill both tables for one form of the service."""
    one = 0.0
    for places in PLACES:
        load_all(server, f"m{places}", places)
        run = asyncio.run(throughput(server, f"m{places}", places, jobs))
        rate = run.images / run.seconds
        one = one or rate
        rows.add_row(
            *(form, str(places), f"{rate:.2f}", f"{rate / one / places:.3f}"),
            *(f"{run.frames / run.seconds:.0f}", f"{1000 * run.cpu / run.frames:.2f}"),
            f"{100 * run.cpu / run.seconds:.0f} %",
        )
    load_all(server, "m1", 1)
    found = asyncio.run(delays(server, "m1"))
    late.add_row(
        form,
        *(percentile(v, s) for v in (found.first, found.gaps, found.cancel) for s in (0.5, 0.9)),
        f"{1000 * statistics.mean(found.gaps):.1f}",
    )


def main() -> None:
    """Measure both forms and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=6, help="images for each place [default: 6]")
    options = parser.parse_args()
    rows = Table(title=f"{STEPS} steps of {STEP_SECONDS:g} s, every frame streamed", box=None)
    for name in ("form", "places", "images/s", "linear", "frames/s", "CPU ms/frame", "front's CPU"):
        rows.add_column(name, justify="right")
    late = Table(title="Delays in ms beyond the engine's own time", box=None)
    for name in ("form", "first p50", "p90", "gap p50", "p90", "cancel p50", "p90", "gap mean"):
        late.add_column(name, justify="right")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        models = folder / "models.yaml"
        entry = (
            "  - {{id: m{0}, family: sd3, files: {{model: x}}, size: {{min: 64}}, replicas: {0}}}\n"
        )
        models.write_text("models:\n" + "".join(entry.format(count) for count in PLACES))
        machines = stack.enter_context(ray_machines())
        for address in ("127.0.0.3", "127.0.0.4"):
            machines.join(address, "--slots", "4")
        forms = {
            "cluster": {"cluster": machines.address, "cluster_token_file": machines.token},
            "single": {},
        }
        for form, settings in forms.items():
            place = folder / form
            place.mkdir()
            with running_server(place, engine="fake", models=models, **settings) as server:
                measured(server, form, options.jobs, rows, late)
    console = Console(width=120)
    console.print(rows)
    console.print(late)


if __name__ == "__main__":
    main()
