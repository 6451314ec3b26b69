"""Tables of the figures: percentiles, goals, rich tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from contestants import Sample
from rich.table import Table
from work import Work

#: Contestant -> its images of one work, in the order of the rounds.
Rounds = Mapping[str, Sequence[Sample]]

BARE, PLAIN, STREAMED, UPSTREAM = "bare", "plain", "streamed", "sd-server"

#: Goal for the overhead, as a share of the native time of jobs of a second or more.
_SHARE = 0.02
#: Native time from which the goal for the share applies; it does not apply to shorter jobs.
_ONE_SECOND = 0.9


def percentile(values: Sequence[float], percent: float) -> float:
    """Return a measured value by nearest rank; of fewer than 100, p99 is the largest."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


@dataclass(frozen=True)
class Goal:
    """A limit in seconds for the figure at a percentile."""

    percent: int
    seconds: float

    def __str__(self) -> str:
        return f"p{self.percent} ≤ {self.seconds * 1000:g} ms"

    def verdict(self, values: Sequence[float]) -> str:
        """Return whether the goal was met, as text for a table."""
        return _mark(percentile(values, self.percent) <= self.seconds)


OVERHEAD = (Goal(50, 0.015), Goal(99, 0.050))
FIRST_FRAME = Goal(50, 0.010)
FRAME_DELAY = Goal(99, 0.005)
LIVEZ = Goal(99, 0.020)


def own_overhead(samples: Sequence[Sample]) -> list[float]:
    """Return the seconds of each request outside the runtime, by the runtime's own clock."""
    return [sample.wall - sample.native for sample in samples]


def over_bare(rounds: Rounds, name: str) -> list[float]:
    """Return the seconds beyond the bare call of the same round."""
    pairs = zip(rounds[name], rounds[BARE], strict=True)
    return [sample.wall - bare.wall for sample, bare in pairs]


def overhead_table(cells: Mapping[Work, Rounds]) -> Table:
    """Return a table with a row for each work and contestant, and for all works together."""
    table = _table("One picture, in ms", ["work", "asked", "n"])
    timed = ("wall p50", "p99", "- bare p50", "p99", "ratio", "- native p50", "p99", "share")
    for heading in timed:
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in (*map(str, OVERHEAD), f"share ≤ {_SHARE:.0%}"):
        table.add_column(heading, no_wrap=True)
    for work, rounds in cells.items():
        for number, name in enumerate(rounds):
            table.add_row("" if number else work.title, *_overhead_row(rounds, name))
        table.add_section()
    for number, name in enumerate(name for name in next(iter(cells.values())) if name != BARE):
        table.add_row("" if number else "all", *_pooled_row(cells, name))
    return table


def _overhead_row(rounds: Rounds, name: str) -> list[str]:
    samples = rounds[name]
    walls = [sample.wall for sample in samples]
    row = [name, str(len(samples)), *_two(walls)]
    if name == BARE:
        return row
    own, native = own_overhead(samples), statistics.median(s.native for s in samples)
    pairs = zip(rounds[name], rounds[BARE], strict=True)
    ratio = statistics.median(sample.wall / bare.wall for sample, bare in pairs)
    share = percentile(own, 50) / native
    return [
        *(*row, *_two(over_bare(rounds, name)), f"{ratio:.3f}"),
        *(*_two(own), f"{share:.1%}", *(goal.verdict(own) for goal in OVERHEAD)),
        _mark(share <= _SHARE) if native >= _ONE_SECOND else "",
    ]


def _pooled_row(cells: Mapping[Work, Rounds], name: str) -> list[str]:
    beyond = [value for rounds in cells.values() for value in over_bare(rounds, name)]
    own = [value for rounds in cells.values() for value in own_overhead(rounds[name])]
    verdicts = (goal.verdict(own) for goal in OVERHEAD)
    return [name, str(len(own)), "", "", *_two(beyond), "", *_two(own), "", *verdicts]


def latency_table(rows: Mapping[str, tuple[Sequence[float], Goal | None]]) -> Table:
    """Return a table with a row for each measured latency."""
    table = _table("Latencies, in ms", ["what", "n"])
    for heading in ("p50", "p99"):
        table.add_column(heading, justify="right")
    table.add_column("goal")
    for name, (values, goal) in rows.items():
        if values:
            verdict = f"{goal} {goal.verdict(values)}" if goal else ""
            table.add_row(name, str(len(values)), *_two(values), verdict)
    return table


def memory_table(memory: Mapping[int, Mapping[str, int]], ready: Mapping[str, float]) -> Table:
    """Return a table of memory by process and number of images, and of seconds to ready."""
    table = _table("Memory, in MB, and start", ["process"])
    for images in memory:
        title = f"after {images} image{'s' if images > 1 else ''}" if images else "ready"
        table.add_column(title, justify="right")
    table.add_column("seconds to ready", justify="right")
    for process in memory[max(memory)]:
        sizes = [f"{at[process] / 1e6:.0f}" if process in at else "" for at in memory.values()]
        table.add_row(process, *sizes, f"{ready[process]:.1f}" if process in ready else "")
    return table


def _table(title: str, words: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1))
    for word in words:
        table.add_column(word, no_wrap=True, justify="right" if word == "n" else "left")
    return table


def _two(values: Sequence[float]) -> tuple[str, str]:
    """Format p50 and p99 in milliseconds."""
    p50, p99 = (f"{percentile(values, percent) * 1000:.1f}" for percent in (50, 99))
    return p50, p99


def _mark(met: bool) -> str:
    return "[green]pass[/]" if met else "[red]MISS[/]"
