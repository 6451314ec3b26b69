"""Runs coroutines for callers that have no event loop."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from threading import Thread
from typing import Any, Generic, TypeVar

R = TypeVar("R")
T = TypeVar("T")
U = TypeVar("U")


class BackgroundLoop(Generic[R]):
    """An event loop in a daemon thread, with one asynchronous resource open in it.

    Args:
        resource: Context manager that the thread enters at once and that ``close`` exits.

    Attributes:
        resource: The value that entering the context manager returned.

    Raises:
        Exception: Any error that entering the context manager raised.
    """

    def __init__(self, resource: AbstractAsyncContextManager[R]) -> None:
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        started: Future[R] = Future()
        self._closed: Future[None] = Future()
        self._thread = Thread(
            target=lambda: asyncio.run(self._main(resource, started)), name="sdstream", daemon=True
        )
        self._thread.start()
        self.resource = started.result()

    async def _main(self, resource: AbstractAsyncContextManager[R], started: Future[R]) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        try:
            async with resource as value:
                started.set_result(value)
                await self._stop.wait()
        except BaseException as error:
            # __init__ or close, which wait for these futures, raise the error in their thread.
            (self._closed if started.done() else started).set_exception(error)
        else:
            self._closed.set_result(None)

    def close(self) -> None:
        """Exit the resource and stop the thread. Later calls do nothing.

        Raises:
            Exception: Any error that exiting the context manager raised.
        """
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
            self._closed.result()

    def call_soon(self, function: Callable[[], object]) -> None:
        """Schedule a plain function to run in the thread of the loop.

        It runs after the coroutines that ``run`` was given earlier have begun.
        """
        self._check_open()
        # A coroutine begins one turn of the loop after the callback that creates its task.
        self._loop.call_soon_threadsafe(self._loop.call_soon, function)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the loop and wait for its result.

        An exception in the waiting thread, KeyboardInterrupt for example, cancels the coroutine.

        Raises:
            RuntimeError: The loop is closed.
        """
        future = self._start(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def run_with_reports(
        self,
        work: Callable[[Callable[[T], object]], Coroutine[Any, Any, U]],
        on_report: Callable[[T], object] | None,
    ) -> U:
        """Run ``work`` in the loop and handle its reports in the calling thread.

        Args:
            work: Coroutine function. It receives a function that it calls with each report.
            on_report: Called with each report. An exception that it raises cancels ``work`` and
                propagates to the caller.

        Raises:
            RuntimeError: The loop is closed.
        """
        reports: queue.SimpleQueue[T | _End] = queue.SimpleQueue()
        future = self._start(work(reports.put))
        future.add_done_callback(lambda _: reports.put(_END))
        try:
            while not isinstance(report := reports.get(), _End):
                if on_report is not None:
                    on_report(report)
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, items: AsyncGenerator[T, None]) -> Iterator[T]:
        """Yield the items of an asynchronous generator.

        Closing this iterator closes the generator.
        """
        try:
            while not isinstance(item := self.run(_next(items)), _End):
                yield item
        finally:
            if self._thread.is_alive():
                self.run(_closing(items))

    def _start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        try:
            self._check_open()
        except RuntimeError:
            work.close()
            raise
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _check_open(self) -> None:
        if not self._thread.is_alive():
            raise RuntimeError("The client or runner is closed. Create another one.")


class _End:
    """Marks the end of a sequence."""


_END = _End()


async def _next(items: AsyncGenerator[T, None]) -> T | _End:
    return await anext(items, _END)


async def _closing(items: AsyncGenerator[Any, None]) -> None:
    # After KeyboardInterrupt the generator may still be handling the cancellation of its last item.
    while getattr(items, "ag_running", False):  # noqa: ASYNC110 - it has no event
        await asyncio.sleep(0.01)
    await items.aclose()
