"""A thread with a short queue, for image work that takes seconds and is not a job."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, ParamSpec, TypeVar

from sdstream.core.errors import QueueFull, Reason

#: Maximum number of images that are processed or wait; each may take tens of MiB.
MOST_AT_ONCE: Final = 8

P = ParamSpec("P")
T = TypeVar("T")


class OneThread:
    """A thread that processes one image at a time; uploads and finished images use other threads.

    Args:
        name: Name of the thread.
        work: The work as a participle for errors, for example "resized".
        seconds: Time that a large image takes, for Retry-After.
    """

    def __init__(self, name: str, work: str, seconds: int) -> None:
        self._threads = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._work = work
        self._seconds = seconds
        self._busy: set[asyncio.Future[Any]] = set()

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function in the thread and return its result.

        Raises:
            QueueFull: Too many images wait.
        """
        waiting = len(self._busy)
        if waiting >= MOST_AT_ONCE:
            raise QueueFull(
                f"{waiting} images are waiting to be {self._work}; try again later.",
                reason=Reason.QUEUE_FULL,
                retry_after=self._seconds * waiting,
            )
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._threads, partial(work, *args, **kwargs))
        self._busy.add(future)
        future.add_done_callback(self._busy.discard)
        return await future

    def close(self) -> None:
        """Accept no more work and cancel the work that waits."""
        self._threads.shutdown(wait=False, cancel_futures=True)
