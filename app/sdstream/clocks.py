"""A Unix clock that does not follow changes of the system clock."""

from __future__ import annotations

import time
from collections.abc import Callable


class SteadyClock:
    """A clock that starts at a given Unix time and then follows a monotonic stopwatch.

    Durations between its times are correct and never negative, even if the system clock is set
    meanwhile. Each job has its own clock, which starts at the time of the system clock when the
    job is accepted.

    Args:
        start: The current time in Unix seconds.
        stopwatch: Returns seconds that never decrease.
    """

    def __init__(self, start: float, stopwatch: Callable[[], float] = time.monotonic) -> None:
        self._stopwatch = stopwatch
        self._offset = start - stopwatch()

    def __call__(self) -> float:
        """Return the current time in Unix seconds."""
        return self._offset + self._stopwatch()
