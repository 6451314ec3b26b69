"""Fair turns of many tasks on the event loop."""

from __future__ import annotations

import asyncio

from sdstream.web.turns import Turns


def test_one_goes_on_in_each_turn_of_the_loop() -> None:
    """One task continues per turn of the loop, in order; a cancelled task delays no other."""
    went: list[tuple[int, int]] = []

    async def crowd() -> None:
        turns, tick = Turns(), 0

        async def one(number: int) -> None:
            await turns.turn()
            went.append((number, tick))

        tasks = [asyncio.create_task(one(number)) for number in range(100)]
        while not all(task.done() for task in tasks):
            await asyncio.sleep(0)
            tick += 1
            if tick == 5:
                tasks[50].cancel()

    asyncio.run(crowd())
    assert [number for number, _ in went] == [n for n in range(100) if n != 50]
    ticks = [tick for _, tick in went]
    assert max(ticks.count(tick) for tick in ticks) == 1


def test_alone_nobody_waits() -> None:
    """The first task of a turn continues at once."""

    async def alone() -> bool:
        turns = Turns()
        for _ in range(3):
            task = asyncio.create_task(turns.turn())
            await asyncio.sleep(0)
            assert task.done()
            await asyncio.sleep(0)
        return True

    assert asyncio.run(alone())


def test_callbacks_and_tasks_share_the_turns() -> None:
    """A callback runs at once if it is the first of its turn of the loop, else in order."""
    went: list[str] = []

    async def crowd() -> None:
        turns = Turns()

        async def task() -> None:
            await turns.turn()
            went.append("task")

        turns.call(lambda: went.append("first"))
        turns.call(lambda: went.append("second"))
        assert went == ["first"]
        await task()

    asyncio.run(crowd())
    assert went == ["first", "second", "task"]
