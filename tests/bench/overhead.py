"""Overhead of the service: bare calls of the runtime against the same work over HTTP, in one run.

The contestants generate one image after the other, in an order that is shuffled every round, so
that other load on the machine affects all of them alike. Two figures show the overhead:

- ``- bare`` is the wall time of a request minus that of the bare call of the same round; "ratio" is
  the median of their ratios. It contains the whole cost for a client, including a runtime that
  computes more slowly beside a server. But it is the difference of two long and noisy times, so its
  p99 means little on a busy machine.
- ``- native`` is the wall time of a request minus the time that its own worker spent in the
  runtime. It contains only what the service adds: HTTP, queue, sockets, PNG and base64. It is
  robust against noise, so the goals apply to it. "share" is its ratio to the native time.

The delay of a frame begins when the runtime calls back in the worker. probe/sitecustomize.py
records this moment without a change of the service, by a clock that all processes of a machine
share. On a busy machine a frame may be late because the server or the client of a stream "waited
for a core". A delay below that time is noise.

The settings in SDSTREAM_ variables apply, and the catalogue's default model is used. A missed goal
is printed but is not a failure: the exit code is 1 only if something could not be measured. Linux
only.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from contestants import Bare, ContestantFailed, Draw, Sample, Service, Upstream, answers
from figures import (
    BARE,
    FIRST_FRAME,
    FRAME_DELAY,
    LIVEZ,
    PLAIN,
    STREAMED,
    UPSTREAM,
    Goal,
    Rounds,
    latency_table,
    memory_table,
    overhead_table,
)
from rich.console import Console
from work import Work, load_command

from sdstream.settings import Settings, worker_environment
from sdstream.weights.discovery import load_catalog
from sdstream.weights.embedded import materialise

WORKS = (Work("128x128", 4), Work("128x128", 20), Work("192x128", 4), Work("192x128", 20))

_LEGEND = """\
- bare     wall time minus that of the bare call of the same round; ratio: of the two, p50
- native   wall time minus the time in the runtime of that very request; the goals are judged by
           it. For sd-server it comes from its log, which rounds to 10 ms.
share      - native p50 in parts of the native time
With fewer than 100 measurements p99 is the largest.
"""

#: A pipe's default of 80 columns would break the rows of the tables.
_COLUMNS = 160


@dataclass(frozen=True)
class Plan:
    """Duration of each part.

    Attributes:
        cell_seconds: Time for the rounds of one work; at least ``least_rounds`` are run.
        least_rounds: Minimum number of rounds of each work.
        images: Numbers of images after which memory is measured.
        memory_work: Work of these images.
        livez_seconds: Time for requests to /livez while images are generated.
    """

    cell_seconds: float
    least_rounds: int
    images: tuple[int, ...]
    memory_work: Work
    livez_seconds: float


QUICK = Plan(2.0, 1, (1, 5), Work("128x128", 4), 3.0)
USUAL = Plan(45.0, 5, (1, 20), Work("192x128", 4), 15.0)
LONG = Plan(240.0, 30, (1, 20, 100), Work("192x128", 4), 60.0)


class Arena:
    """The started contestants and what they share."""

    def __init__(self, folder: Path, port: int, upstream: str | None, stack: ExitStack) -> None:
        environment = worker_environment()
        self.bare = Bare(environment, folder)
        stack.callback(self.bare.close)
        self.service = Service(environment, folder, port or _free_port())
        stack.callback(self.service.close)
        self.upstream: Upstream | None = None
        if upstream:
            other = port + 1 if port else _free_port()
            self.upstream = Upstream(upstream, environment, folder, other, self.bare.threads)
            stack.callback(self.upstream.close)

    @property
    def draws(self) -> dict[str, Draw]:
        """Contestant -> the function that generates an image with it."""
        draws: dict[str, Draw] = {
            BARE: self.bare.draw,
            PLAIN: self.service.plain,
            STREAMED: self.service.streamed,
        }
        return draws | ({UPSTREAM: self.upstream.plain} if self.upstream else {})

    def resident(self) -> dict[str, int]:
        """Return the memory in bytes by process."""
        upstream = self.upstream.resident() if self.upstream else {}
        own: dict[str, int] = self.bare.resident() | self.service.resident()
        return own | upstream

    def ready_seconds(self) -> dict[str, float]:
        """Return the seconds from the start of each process until it can generate."""
        upstream = {"sd-server": self.upstream.ready_seconds} if self.upstream else {}
        return {
            "bare process": self.bare.ready_seconds,
            "sdstream server": self.service.ready_seconds,
            **upstream,
        }


def measure_memory(arena: Arena, plan: Plan) -> dict[int, dict[str, int]]:
    """Return the memory by process for each number of images; also warm up all contestants."""
    draws = [arena.bare.draw, arena.service.plain]
    if arena.upstream:
        draws.append(arena.upstream.plain)
    memory = {0: arena.resident()}
    for image in range(1, max(plan.images) + 1):
        for draw in draws:
            draw(replace(plan.memory_work, seed=image))
        if image in plan.images:
            memory[image] = arena.resident()
    return memory


def race(arena: Arena, work: Work, plan: Plan) -> Rounds:
    """Run rounds of one work until its time is over; each contestant generates once per round."""
    draws = arena.draws
    rounds: dict[str, list[Sample]] = {name: [] for name in draws}
    order = list(draws)
    shuffle = random.Random(0).shuffle
    end = time.monotonic() + plan.cell_seconds
    seed = 0
    while seed < plan.least_rounds or time.monotonic() < end:
        shuffle(order)
        for name in order:
            rounds[name].append(draws[name](replace(work, seed=seed)))
        seed += 1
    return rounds


def same_pixels(cells: dict[Work, Rounds]) -> dict[str, bool]:
    """Return for each contestant whether all its images equal those of the bare process."""
    return {
        name: all(
            sample.sha256 == bare.sha256
            for rounds in cells.values()
            for sample, bare in zip(rounds[name], rounds[BARE], strict=True)
        )
        for name in next(iter(cells.values()))
        if name != BARE
    }


def ask_while_drawing(port: int, path: str, draw: Draw, seconds: float) -> list[float]:
    """Return the seconds of GET requests, at most fifty a second, during generation."""
    times: list[float] = []
    with _drawing(draw):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            began = time.monotonic()
            if not answers(port, path):
                raise ContestantFailed(f"{path} did not answer 200")
            times.append(time.monotonic() - began)
            time.sleep(0.02)
    return times


@contextmanager
def _drawing(draw: Draw) -> Iterator[None]:
    """Generate images one after the other, in a thread, during a with block."""
    stopped = threading.Event()
    faults: list[Exception] = []

    def draw_on() -> None:
        try:
            while not stopped.is_set():
                draw(replace(WORKS[-1], seed=1))
        except Exception as fault:
            faults.append(fault)

    thread = threading.Thread(target=draw_on)
    thread.start()
    time.sleep(0.1)  # until the first image has begun
    try:
        yield
    finally:
        stopped.set()
        thread.join()
    if faults:
        raise faults[0]


Latencies = dict[str, tuple[list[float], Goal | None]]


def latencies(cells: dict[Work, Rounds], livez: dict[str, list[float]]) -> Latencies:
    """Return the rows of the second table."""
    every = [sample for rounds in cells.values() for sample in rounds[STREAMED]]
    plain = [sample for rounds in cells.values() for sample in rounds[PLAIN]]
    rows: Latencies = {
        "request to first frame, worker idle": (_known(every, "first_frame"), FIRST_FRAME),
        "native callback to frame": ([d for s in every for d in s.frames], FRAME_DELAY),
        "last pixel to frame with the picture": (_known(every, "final_frame"), None),
        "server waited for a core, per stream": (_known(every, "server_waited"), None),
        "client waited for a core, per stream": (_known(every, "client_waited"), None),
        "request to native call": (_known([*every, *plain], "before"), None),
        "native return to end of answer": (_known([*every, *plain], "after"), None),
    }
    for name, values in livez.items():
        rows[name] = (values, LIVEZ if name.startswith("/livez") else None)
    return rows


def _known(samples: list[Sample], field: str) -> list[float]:
    return [value for sample in samples if (value := getattr(sample, field)) is not None]


def measure(arena: Arena, plan: Plan, say: Callable[[str], object]) -> dict[str, Any]:
    """Run all measurements and return them in the order of the tables."""
    say("memory")
    memory = measure_memory(arena, plan)
    cells = {}
    for work in WORKS:
        say(work.title)
        cells[work] = race(arena, work, plan)
    say("/livez")
    service = arena.service
    livez = {
        "/livez while drawing": ask_while_drawing(
            service.port, "/livez", service.streamed, plan.livez_seconds
        )
    }
    if arena.upstream:
        other = arena.upstream
        livez["sd-server's /v1/models while drawing"] = ask_while_drawing(
            other.port, "/v1/models", other.plain, plan.livez_seconds
        )
    return {
        "cells": cells,
        "latencies": latencies(cells, livez),
        "memory": memory,
        "ready": arena.ready_seconds(),
        "same_pixels": same_pixels(cells),
    }


def show(console: Console, found: dict[str, Any]) -> None:
    """Print the tables."""
    console.print(overhead_table(found["cells"]))
    console.print(_LEGEND, style="dim")
    console.print(latency_table(found["latencies"]))
    console.print()
    console.print(memory_table(found["memory"], found["ready"]))
    console.print()
    words = [f"{name} {'yes' if same else 'NO'}" for name, same in found["same_pixels"].items()]
    console.print("same pixels as bare:", ", ".join(words))


def save(path: Path, found: dict[str, Any]) -> None:
    """Write all measurements to a file, in seconds and bytes."""
    cells = {
        work.title: {name: [asdict(s) for s in samples] for name, samples in rounds.items()}
        for work, rounds in found["cells"].items()
    }
    values = {name: values for name, (values, _goal) in found["latencies"].items()}
    text = json.dumps({**found, "cells": cells, "latencies": values}, indent=1)
    path.write_text(text + "\n")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _make_model() -> None:
    """Write a built-in model's file now, so that the first load of it is not slower."""
    settings = Settings()
    for location in load_command(settings, load_catalog(settings)).files.values():
        materialise(location, settings.cache_dir)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--quick", action="store_true", help="under a minute; p99 means little")
    length.add_argument("--long", action="store_true", help="half an hour, memory to 100 pictures")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep every measurement")
    parser.add_argument(
        "--port", type=int, default=0, help="of the server, the next one for sd-server [free ones]"
    )
    parser.add_argument(
        "--sd-server",
        metavar="FILE",
        default=os.environ.get("SD_SERVER"),
        help="upstream's server, measured as well (SD_SERVER)",
    )
    return parser.parse_args()


def _main() -> int:
    arguments = _arguments()
    logging.getLogger("gguf").setLevel(logging.WARNING)
    plan = QUICK if arguments.quick else LONG if arguments.long else USUAL
    console = Console(highlight=False)
    if console.width < _COLUMNS:
        console.width = _COLUMNS
    progress = Console(stderr=True, highlight=False)
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            _make_model()
            progress.print("starting", style="dim")
            arena = Arena(Path(folder), arguments.port, arguments.sd_server, stack)
            found = measure(arena, plan, partial(progress.print, style="dim"))
    except (ContestantFailed, OSError) as fault:
        progress.print(f"Error: {fault}", style="red", markup=False)
        return 1
    show(console, found)
    seconds = time.monotonic() - began
    console.print(f"{arena.bare.threads} threads, {seconds:.0f} s, on {sys.platform}")
    if arguments.json:
        save(arguments.json, found)
    return 0


if __name__ == "__main__":
    sys.exit(_main())
