"""Image work beside the jobs: one after the other, and few may wait."""

from __future__ import annotations

import asyncio
import threading

import pytest

from sdstream.core.errors import QueueFull
from sdstream.imaging.one_thread import MOST_AT_ONCE, OneThread


def test_too_many_images_are_rejected() -> None:
    """While eight wait, a further request gets a 429 with a time; each end frees a place."""

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
    """What the work raises comes to the caller, as often as there are places and once more."""

    async def scenario() -> None:
        thread = OneThread("test", "resized", 3)
        for _ in range(MOST_AT_ONCE + 1):
            with pytest.raises(ValueError, match="invalid literal"):
                await thread.run(int, "x")
        thread.close()

    asyncio.run(scenario())
