"""Image work on one thread with a short queue."""

from __future__ import annotations

import asyncio
import threading

import pytest

from sdstream.core.errors import QueueFull
from sdstream.imaging.one_thread import MOST_AT_ONCE, OneThread


def test_too_many_images_are_rejected() -> None:
    """With eight requests waiting, the next gets a 429 with Retry-After until one ends."""

    async def scenario() -> None:
        thread, go = OneThread("test", "resized", 3), threading.Event()
        running = [asyncio.create_task(thread.run(go.wait, 20)) for _ in range(MOST_AT_ONCE)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull, match="8 images are waiting to be resized") as caught:
            await thread.run(go.wait, 20)
        assert caught.value.retry_after == 24
        go.set()
        assert await asyncio.gather(*running) == [True] * MOST_AT_ONCE
        assert await thread.run(threading.current_thread) is not threading.current_thread()
        thread.close()

    asyncio.run(scenario())


def test_an_error_frees_its_place() -> None:
    """An exception reaches the caller and frees the place in the queue."""

    async def scenario() -> None:
        thread = OneThread("test", "resized", 3)
        for _ in range(MOST_AT_ONCE + 1):
            with pytest.raises(ValueError, match="invalid literal"):
                await thread.run(int, "x")
        thread.close()

    asyncio.run(scenario())
