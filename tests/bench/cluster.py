"""Cost of several machines: throughput by workers, delays of frames, and the front's CPU time.

A cluster is compared with a single server with as many workers, in one run. The cluster has two
machines, on 127.0.0.3 and 127.0.0.4, with four slots each. The workers run the fake engine with
steps that sleep. Machines, front and clients share the cores of this computer, so the figures
contain the cost of all of them. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import psutil
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.machines import RayMachines, ray_machines
from tests.support.servers import GENERATIONS, ServerProcess, running_server

PLACES = (1, 2, 4, 8)
STEPS, STEP_SECONDS = 20, 0.1
_SAMPLES = 12


@dataclass
class Run:
    """One measurement of streamed jobs.

    Attributes:
        images, frames: Number of images and frames that were received.
        seconds: Time from the first request to the last answer.
        cpu: CPU seconds of the front.
    """

    images: int = 0
    frames: int = 0
    seconds: float = 0.0
    cpu: float = 0.0


@dataclass
class Delays:
    """Seconds beyond the time of the engine itself."""

    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    cancel: list[float] = field(default_factory=list)


async def stream(
    server: ServerProcess, body: dict[str, object]
) -> AsyncIterator[dict[str, object]]:
    """Yield the progress items of one streamed request, on a separate connection."""
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
    """Return the CPU seconds of the front's own process."""
    times = psutil.Process(server.process.pid).cpu_times()
    return times.user + times.system


async def throughput(
    server: ServerProcess,
    model: str,
    places: int,
    jobs: int,
    steps: int = STEPS,
    step_seconds: float = STEP_SECONDS,
) -> Run:
    """Run twice as many clients as places, each with one request after the other."""
    left, run = iter(range(jobs * places)), Run()

    async def client() -> None:
        for number in left:
            body = {
                "model": model,
                "prompt": f"step={step_seconds} {number}",
                "sample_steps": steps,
            }
            frames = len([frame async for frame in stream(server, body)])
            run.frames += frames  # after the await: other clients add theirs meanwhile
            run.images += 1

    cpu, began = cpu_of(server), time.perf_counter()
    await asyncio.gather(*(client() for _ in range(2 * places)))
    run.seconds, run.cpu = time.perf_counter() - began, cpu_of(server) - cpu
    return run


async def delays(server: ServerProcess, model: str) -> Delays:
    """Measure first frames, gaps between frames, and cancels, one request at a time."""
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
            while (await client.get(path)).json()["progress"] < 1:
                await asyncio.sleep(0.02)
            began = time.perf_counter()
            await client.post(f"{path}/cancel")
            while (await client.get(path)).json()["status"] != "cancelled":
                await asyncio.sleep(0.001)
            found.cancel.append(time.perf_counter() - began)
    return found


def load_all(server: ServerProcess, model: str, places: int) -> None:
    """Load a model once for each place, and unload the others."""
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
    """Format a quantile in milliseconds."""
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
    run = asyncio.run(throughput(server, f"m{PLACES[-1]}", PLACES[-1], jobs, 100, 0.002))
    rows.add_row(
        *(form, f"{PLACES[-1]}, steps of 2 ms", f"{run.images / run.seconds:.2f}", ""),
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


def machine(server: ServerProcess, name: str) -> dict[str, Any]:
    """Return a machine as the server lists it."""
    listed = httpx2.get(f"{server.url}/v1/cluster", timeout=30).json()["machines"]
    return next((m for m in listed if m["name"] == name), {"state": "", "workers": []})


def busy(server: ServerProcess, name: str) -> int:
    """Count the workers of a machine that generate."""
    return len([w for w in machine(server, name)["workers"] if w["state"] == "busy"])


def timed(condition: Callable[[], bool]) -> float:
    """Wait until a condition holds, and return the seconds that it took."""
    began = time.perf_counter()
    while not condition():
        if time.perf_counter() - began > 180:
            raise RuntimeError("it took more than three minutes")
        time.sleep(0.05)
    return time.perf_counter() - began


def _is_ready(server: ServerProcess, name: str) -> bool:
    return bool(machine(server, name)["state"] == "ready")


def _is_busy(server: ServerProcess, name: str, count: int) -> bool:
    return busy(server, name) == count


def _have_ended(paths: list[str]) -> bool:
    return all(_ended(path) for path in paths)


def losses(server: ServerProcess, machines: RayMachines, rows: Table) -> None:
    """Let machines join, and lose each with two jobs: one by SIGKILL, one by SIGSTOP."""
    for address, number in (("127.0.0.5", signal.SIGKILL), ("127.0.0.6", signal.SIGSTOP)):
        began = time.perf_counter()
        node = machines.join(address, "--slots", "2", wait=False)
        timed(partial(_is_ready, server, address))
        joined = time.perf_counter() - began
        body = {"model": "auto", "prompt": "step=0.1", "size": "64x64", "sample_steps": 60}
        jobs = [
            httpx2.post(
                server.url + GENERATIONS, json=body, headers={"Prefer": "respond-async"}, timeout=30
            ).json()["id"]
            for _ in range(10)
        ]
        timed(partial(_is_busy, server, address, 2))
        first = time.perf_counter() - began
        if number is signal.SIGKILL:
            node.kill()
        else:
            node.signal_all(number)
        noticed = timed(partial(_is_busy, server, address, 0))
        paths = [f"{server.url}/v1/jobs/{job}" for job in jobs]
        timed(partial(_have_ended, paths))
        ends = Counter(httpx2.get(path, timeout=30).json()["status"] for path in paths)
        rows.add_row(
            *(number.name, f"{joined:.1f}", f"{first:.1f}", f"{noticed:.1f}", str(dict(ends)))
        )
        node.kill()


def _ended(path: str) -> bool:
    return httpx2.get(path, timeout=30).json()["status"] in ("completed", "failed")


def main() -> None:
    """Measure both forms and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=6, help="images for each place [default: 6]")
    parser.add_argument("--losses", action="store_true", help="machines that join and die, alone")
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
        counts = ("auto",) if options.losses else PLACES
        models.write_text("models:\n" + "".join(entry.format(count) for count in counts))
        machines = stack.enter_context(ray_machines())
        if options.losses:
            _measure_losses(folder, models, machines)
            return
        for address in ("127.0.0.3", "127.0.0.4"):
            machines.join(address, "--slots", "4")
        forms: dict[str, dict[str, Any]] = {
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


def _measure_losses(folder: Path, models: Path, machines: RayMachines) -> None:
    rows = Table(title="Machines that join and are lost with two jobs, in seconds", box=None)
    for name in ("end", "start to ready", "to its first jobs", "end noticed after", "jobs"):
        rows.add_column(name, justify="right")
    machines.join("127.0.0.3", "--slots", "4")
    where: dict[str, Any] = {"cluster": machines.address, "cluster_token_file": machines.token}
    models.write_text(models.read_text().replace("id: mauto", "id: auto"))
    with running_server(folder, engine="fake", models=models, **where) as server:
        losses(server, machines, rows)
    Console(width=120).print(rows)


if __name__ == "__main__":
    main()
