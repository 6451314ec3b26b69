"""The queue of writes: each write is retried until it succeeds, and none overtakes another.

One thread owns the database. Writes without a waiting caller are queued. A write that fails because
the database is locked or the disk is full stays at the head of the queue and is retried; the writes
behind it wait. A read sees all writes that were queued before it, or raises: it never returns a
state older than one that was returned before.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final, ParamSpec, TypeVar

from sdstream.core.errors import ImageServiceError, Reason, StorageFull, Unavailable
from sdstream.notifier import Notifier
from sdstream.storage.ports import Database
from sdstream.system import has_no_room

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

#: Seconds between two attempts of a write that failed.
_PAUSE_SECONDS: Final = 0.5
#: Attempts to write the waiting changes when the server stops.
_LAST_TRIES: Final = 6

_Write = tuple[str, Callable[[], object]]


@dataclass(slots=True)
class _Unwritten:
    """Number of waiting writes of one key, and a notifier for their success or failure."""

    writes: int = 0
    changed: Notifier = field(default_factory=Notifier)


class Ledger:
    """Runs the reads and writes of a job store in one thread, in order.

    Args:
        database: An open database; only the thread uses it.
    """

    def __init__(self, database: Database) -> None:
        self._db = database
        self._errors: tuple[type[Exception], ...] = (*database.errors, OSError)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        # Used only on the event loop.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._unwritten: dict[str, _Unwritten] = {}
        self._retry: asyncio.TimerHandle | None = None
        self._closing = False
        # Used only in the thread.
        self._pending: deque[_Write] = deque()
        self._next_try = 0.0
        #: Why nothing can be written now; set by the thread, read by both.
        self.fault: ImageServiceError | None = None

    # --- on the event loop ----------------------------------------------------------------------

    async def read(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``work`` after all queued writes; raise ``fault`` if one of the writes fails."""
        return await self._run(partial(self._after_pending, partial(work, *args, **kwargs)))

    async def look(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``work`` at once: it reads data that no waiting write can change."""
        return await self._run(partial(self._reading, partial(work, *args, **kwargs)))

    async def write(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``work`` after all queued writes, without a retry.

        Raises:
            StorageFull: The disk is full.
            Unavailable: The database is locked, or cannot be written for another reason.
        """
        return await self._run(partial(self._try_now, partial(work, *args, **kwargs)))

    def later(self, key: str, work: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Queue a write under a key, for which ``written`` can wait."""
        self._loop = asyncio.get_running_loop()
        self._unwritten.setdefault(key, _Unwritten()).writes += 1
        self._thread.submit(self._take, (key, partial(work, *args, **kwargs)))

    def is_written(self, key: str) -> bool:
        """Return whether no write of this key waits."""
        return key not in self._unwritten

    async def written(self, key: str) -> None:
        """Wait until the writes of this key succeed."""
        while (unwritten := self._unwritten.get(key)) is not None:
            await unwritten.changed.wait()

    async def settled(self, key: str) -> None:
        """Wait as ``written`` does, but raise ``fault`` if writes fail."""
        while (unwritten := self._unwritten.get(key)) is not None:
            if (fault := self.fault) is not None:
                raise fault
            await unwritten.changed.wait()

    async def close(self, last: Callable[[], None]) -> None:
        """Retry the waiting writes for a few seconds, then run ``last`` and end the thread."""
        self._closing = True
        if self._retry is not None:
            self._retry.cancel()
        for _ in range(_LAST_TRIES):
            await self._run(self._retry_now)
            left = await self._run(lambda: len(self._pending))
            if not left or self._db.lost is not None:
                break
            await asyncio.sleep(_PAUSE_SECONDS)
        else:
            logger.critical("%d changes of jobs could not be written and are lost", left)
        await self._run(last)
        self._thread.shutdown()

    async def _run(self, work: Callable[[], T]) -> T:
        self._loop = asyncio.get_running_loop()
        return await self._loop.run_in_executor(self._thread, work)

    def _notify(self, done: list[str]) -> None:
        """Wake the callers that wait for writes, and schedule a retry if a write failed."""
        for key in done:
            unwritten = self._unwritten[key]
            unwritten.writes -= 1
            if not unwritten.writes:
                self._unwritten.pop(key).changed.notify()
        if self.fault is not None:
            for unwritten in self._unwritten.values():
                unwritten.changed.notify()
        if self.fault is not None and self._retry is None and not self._closing:
            assert self._loop is not None
            self._retry = self._loop.call_later(_PAUSE_SECONDS, self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        self._thread.submit(self._retry_now)

    # --- in the thread --------------------------------------------------------------------------

    def _take(self, write: _Write) -> None:
        self._pending.append(write)
        if time.monotonic() >= self._next_try:
            self._flush()

    def _retry_now(self) -> None:
        """Retry the waiting writes; if none waits, test whether a write succeeds."""
        self._next_try = 0.0
        self._flush()
        if self.fault is not None and not self._pending:
            with suppress(ImageServiceError):
                self._attempt(self._db.touch)
        self._report([])

    def _after_pending(self, work: Callable[[], T]) -> T:
        if self._pending:
            self._raise_early()
            self._flush()
        if self._pending and self.fault is not None:
            raise self.fault
        return self._reading(work)

    def _try_now(self, work: Callable[[], T]) -> T:
        self._raise_early()
        self._flush()
        if self._pending and self.fault is not None:
            raise self.fault
        try:
            return self._attempt(work)
        finally:
            self._report([])

    def _raise_early(self) -> None:
        if self.fault is not None and time.monotonic() < self._next_try:
            raise self.fault

    def _flush(self) -> None:
        """Run the waiting writes in order, up to the first that fails."""
        done = []
        while self._pending:
            key, work = self._pending[0]
            try:
                self._attempt(work)
            except ImageServiceError:
                break
            except Exception:
                logger.exception("a change of a job can never be written and is dropped")
            self._pending.popleft()
            done.append(key)
        self._report(done)

    def _attempt(self, work: Callable[[], T]) -> T:
        """Run one write; raise ``fault`` if it fails and may succeed later."""
        try:
            self._db.check()
            result = work()
        except self._errors as error:
            if self._db.is_hopeless(error):
                raise
            raise self._failed(error) from error
        if self.fault is not None:
            logger.warning("the job store can be written again")
            self.fault = None
            self._db.hurry(hurried=False)
        return result

    def _failed(self, error: Exception) -> ImageServiceError:
        if self.fault is None:
            words = " ".join(str(error).split())
            logger.error("the job store cannot be written, and retries: %s", words)
            self._db.hurry(hurried=True)
        self.fault = fault_of(error, self._db)
        self._next_try = time.monotonic() + _PAUSE_SECONDS
        return self.fault

    def _reading(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except self._db.errors as error:
            if self._db.takeover:
                # Usually the session is lost; the next write opens a new one.
                fault = self._failed(error)
                self._report([])
                raise fault from None
            logger.error("the job store cannot be read: %s", " ".join(str(error).split()))
            raise fault_of(error, self._db) from error

    def _report(self, done: list[str]) -> None:
        if (done or self.fault is not None) and self._loop is not None:
            self._loop.call_soon_threadsafe(self._notify, done)


def fault_of(error: Exception, database: Database) -> ImageServiceError:
    """Return the error that a client gets for an error of the database or the file system."""
    if has_no_room(error) or database.is_full(error):
        return StorageFull("The server's disk is full.", reason=Reason.STORAGE_FULL)
    return Unavailable(
        "The server cannot write its database; try again.",
        reason=Reason.STORAGE_UNAVAILABLE,
        retry_after=1,
    )
