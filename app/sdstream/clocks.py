"""Unix time that passes as a stopwatch's does, whatever is done to the system's clock."""

from __future__ import annotations

import time
from collections.abc import Callable


class SteadyClock:
    """The Unix time of a moment, and what has passed since then.

    Durations between its times are right, and never negative, although the system's clock may be
    set meanwhile. A time that clients receive begins with the system's clock: each job has a
    clock of its own that starts when the job is accepted.

    Args:
        start: Unix seconds of this moment.
        stopwatch: Seconds that only grow.
    """

    def __init__(self, start: float, stopwatch: Callable[[], float] = time.monotonic) -> None:
        self._stopwatch = stopwatch
        self._offset = start - stopwatch()

    def __call__(self) -> float:
        """Return Unix seconds."""
        return self._offset + self._stopwatch()
