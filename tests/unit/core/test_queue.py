"""The fair queue, by examples and under random call orders."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdstream.core.queue import FairQueue, Priority


def queue_of(*items: str, priority: Priority = Priority.NORMAL) -> FairQueue[str]:
    """Items whose first letter is their owner, one image each."""
    queue: FairQueue[str] = FairQueue()
    for item in items:
        queue.push(item, owner=item[0], images=1, priority=priority)
    return queue


def all_of(queue: FairQueue[str]) -> list[str]:
    """Everything that waits, taken out."""
    return [queue.pop() for _ in range(len(queue))]


def test_one_owner_is_served_in_order() -> None:
    """Without anybody else it is a plain queue."""
    queue = queue_of("a1", "a2", "a3")
    assert (list(queue), len(queue), queue.images()) == (["a1", "a2", "a3"], 3, 3)
    assert all_of(queue) == ["a1", "a2", "a3"]


def test_owners_take_turns() -> None:
    """Somebody with one picture does not wait for all of somebody's fifty."""
    assert all_of(queue_of("a1", "a2", "a3", "b1", "b2")) == ["a1", "b1", "a2", "b2", "a3"]


def ten_then_one_against(ones: int) -> FairQueue[str]:
    """Owner a with ten images in one job and then one, and so many jobs of b with one each."""
    queue: FairQueue[str] = FairQueue()
    queue.push("a1", owner="a", images=10, priority=Priority.NORMAL)
    queue.push("a2", owner="a", images=1, priority=Priority.NORMAL)
    for number in range(ones):
        queue.push(f"b{number}", owner="b", images=1, priority=Priority.NORMAL)
    return queue


def test_a_turn_is_counted_in_images() -> None:
    """Ten images in one job cost ten turns."""
    queue = ten_then_one_against(11)
    order = all_of(queue)
    assert order[0] == "a1"
    assert order.index("a2") == 11  # after as many images of the other


def test_nobody_saves_turns_up() -> None:
    """Who was away while others drew begins where they are now, not before them all."""
    queue = queue_of("a1", "a2", "a3", "a4")
    assert [queue.pop(), queue.pop(), queue.pop()] == ["a1", "a2", "a3"]
    for item in ("b1", "b2", "a5"):
        queue.push(item, owner=item[0], images=1, priority=Priority.NORMAL)
    assert all_of(queue) == ["b1", "a4", "b2", "a5"]


def test_better_classes_go_first() -> None:
    """High before normal before low, whoever came first."""
    queue = queue_of("a1", "b1", priority=Priority.LOW)
    queue.push("a2", owner="a", images=1, priority=Priority.NORMAL)
    queue.push("a3", owner="a", images=1, priority=Priority.HIGH)
    assert all_of(queue) == ["a3", "a2", "a1", "b1"]
    assert Priority.HIGH.outranks(Priority.NORMAL)
    assert not Priority.LOW.outranks(Priority.LOW)


def test_a_second_try_goes_before_its_class() -> None:
    """But not before a better one."""
    queue = queue_of("a1", "b1")
    queue.push("c1", owner="c", images=5, priority=Priority.NORMAL, first=True)
    queue.push("d1", owner="d", images=1, priority=Priority.HIGH)
    assert all_of(queue) == ["d1", "c1", "a1", "b1"]


def test_a_turn_out_of_order_is_a_turn() -> None:
    """Who is taken before the others, as his model is free, has had his turn all the same."""
    queue = queue_of("a1", "a2", "a3", "b1")
    queue.take("a3")
    queue.push("a4", owner="a", images=1, priority=Priority.NORMAL)
    queue.push("c1", owner="c", images=1, priority=Priority.NORMAL)
    assert all_of(queue) == ["a1", "b1", "a2", "c1", "a4"]


def test_taking_out_of_the_middle() -> None:
    """A cancelled item is gone, once."""
    queue = queue_of("a1", "a2", "b1")
    item = list(queue)[1]
    assert queue.remove(item)
    assert not queue.remove(item)
    assert queue.images("a") + queue.images("b") == 2


def test_a_cancelled_item_costs_no_turn() -> None:
    """Neither those of its owner that wait nor those that come."""
    queue: FairQueue[str] = FairQueue()
    many = ["a1", "a2", "a3"]
    for item in (*many, "b1", "b2"):
        queue.push(item, owner=item[0], images=10, priority=Priority.NORMAL)
    for item in many[:2]:
        assert queue.remove(item)
    queue.push("a4", owner="a", images=1, priority=Priority.NORMAL)
    assert all_of(queue) == ["a3", "b1", "b2", "a4"]


def test_a_turn_that_is_half_gone_is_half_given_back() -> None:
    """Nobody goes before what the others have had meanwhile."""
    queue = ten_then_one_against(8)
    for _ in range(6):  # the model of the others is not there yet
        queue.take(next(item for item in queue if item.startswith("b")))
    queue.remove("a1")
    queue.push("c1", owner="c", images=1, priority=Priority.NORMAL)
    assert all_of(queue) == ["a2", "c1", "b6", "b7"]


@given(st.lists(st.sampled_from("abc"), max_size=20), st.data())
def test_a_queue_forgets_who_left(owners: list[str], data: st.DataObject) -> None:
    """Before anything was drawn, the order is that of a queue in which they never were."""
    items = [f"{owner}{number}" for number, owner in enumerate(owners)]
    left = data.draw(st.sets(st.sampled_from(items))) if items else set()
    queue, later = queue_of(*items), [f"{owner}-later" for owner in "abc"]
    for item in data.draw(st.permutations(sorted(left))):
        queue.remove(next(known for known in queue if known == item))
    for item in later:
        queue.push(item, owner=item[0], images=1, priority=Priority.NORMAL)
    assert all_of(queue) == all_of(queue_of(*(i for i in items if i not in left), *later))


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(1, 10), st.sampled_from(list(Priority)))
        | st.none(),
        max_size=60,
    )
)
def test_nothing_is_lost_and_each_owner_keeps_its_order(
    calls: list[tuple[str, int, Priority] | None],
) -> None:
    """Whatever the order of pushes and pops (None)."""
    queue: FairQueue[tuple[str, Priority, int]] = FairQueue()
    put, taken = [], []
    for number, call in enumerate(calls):
        if call is not None:
            owner, images, priority = call
            put.append((owner, priority, number))
            queue.push(put[-1], owner=owner, images=images, priority=priority)
        elif len(queue):
            foremost = next(iter(queue))
            taken.append(queue.pop())
            assert taken[-1] is foremost
    rest = list(queue)
    assert sorted(put, key=str) == sorted([*taken, *rest], key=str)
    assert [item[1] for item in rest] == sorted(
        (item[1] for item in rest), key=list(Priority).index
    )
    for owner in "abc":
        for priority in Priority:
            waits = [number for o, p, number in rest if (o, p) == (owner, priority)]
            assert waits == sorted(waits)


@dataclass
class Waiting:
    """An item of PlainQueue: its key sorts first what goes first."""

    name: str
    owner: str
    rank: int
    start: float
    arrival: int
    images: int

    @property
    def key(self) -> tuple[int, float, int]:
        """Class, clock of the owner at the turn, arrival."""
        return self.rank, self.start, self.arrival


class PlainQueue:
    """The rule of the queue in its simplest form: every start is stored, every change sorts."""

    def __init__(self) -> None:
        self.items: list[Waiting] = []
        self.now = [0.0] * len(Priority)
        self.clocks: dict[tuple[int, str], float] = {}
        self.arrivals = 0

    def push(self, name: str, owner: str, images: int, rank: int, *, first: bool) -> None:
        """Put an item in."""
        start = -1.0
        if not first:
            start = max(self.now[rank], self.clocks.get((rank, owner), 0.0))
            self.clocks[rank, owner] = start + images
        self.arrivals += 1
        self.items.append(Waiting(name, owner, rank, start, self.arrivals, images))
        self.items.sort(key=lambda item: item.key)

    def take(self, index: int) -> str:
        """An item has its turn."""
        item = self.items.pop(index)
        self.now[item.rank] = max(self.now[item.rank], item.start)
        return item.name

    def remove(self, index: int) -> str:
        """An item leaves: what is still to come of its turn moves its owner's others back."""
        gone = self.items.pop(index)
        turn = gone.start + gone.images - max(gone.start, self.now[gone.rank])
        if gone.start >= 0 and turn > 0:
            self.clocks[gone.rank, gone.owner] -= turn
            for item in self.items:
                same = (item.rank, item.owner) == (gone.rank, gone.owner)
                if same and item.start > gone.start:
                    item.start -= turn
            self.items.sort(key=lambda item: item.key)
        return gone.name


@given(
    st.lists(
        st.tuples(
            st.just("push"), st.sampled_from("abc"), st.integers(1, 9),
            st.sampled_from([1, 1, 1, 0]), st.sampled_from([False, False, False, True]),
        )
        | st.tuples(st.sampled_from(["pop", "take", "remove"]), st.integers(0, 30)),
        max_size=80,
    )
)  # fmt: skip
def test_the_order_is_that_of_the_plain_rule(calls: list[tuple[object, ...]]) -> None:
    """Lanes and heaps change the cost of a call and nothing else, whatever comes."""
    queue: FairQueue[str] = FairQueue()
    plain = PlainQueue()
    for number, call in enumerate(calls):
        match call:
            case ("push", str(owner), int(images), int(rank), bool(first)):
                name = f"{owner}{number}"
                plain.push(name, owner, images, rank, first=first)
                queue.push(
                    name, owner=owner, images=images, priority=list(Priority)[rank], first=first
                )
            case ("pop", _) if plain.items:
                assert queue.pop() == plain.take(0)
            case ("take", int(where)) if plain.items:
                queue.take(plain.take(where % len(plain.items)))
            case ("remove", int(where)) if plain.items:
                assert queue.remove(plain.remove(where % len(plain.items)))
        assert list(queue) == [item.name for item in plain.items]
        assert (len(queue), bool(queue)) == (len(plain.items), bool(plain.items))
        for owner in "abc":
            own = [item for item in plain.items if item.owner == owner]
            assert list(queue.of_owner(owner)) == [item.name for item in own]
            assert queue.images(owner) == sum(item.images for item in own)
        for rank, priority in enumerate(Priority):
            assert queue.jobs(priority) == sum(item.rank <= rank for item in plain.items)
    assert queue.images() == sum(item.images for item in plain.items)


class Steps:
    """Counts the lines of Python that run: a measure that no busy machine changes."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> Steps:
        self._before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def _trace(self, _frame: FrameType, event: str, _argument: object) -> Any:
        self.count += event == "line"
        return self._trace

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)


@pytest.mark.parametrize("owners", [1, 40, 3000])
def test_a_change_costs_the_same_in_a_long_queue(owners: int) -> None:
    """Arriving, leaving in the middle, having the next turn: a hundred times as many wait."""

    def steps_of_changes(waiting: int) -> int:
        queue: FairQueue[int] = FairQueue()

        def push(item: int) -> None:
            queue.push(item, owner=str(item % owners), images=1, priority=Priority.NORMAL)

        for item in range(waiting):
            push(item)
        with Steps() as steps:
            for change in range(20):
                push(waiting + change)
                assert queue.remove(waiting // 2 + change)
                queue.pop()
                assert next(iter(queue)) in queue
                queue.images(), queue.jobs(Priority.LOW)
        return steps.count

    assert steps_of_changes(10_000) < 2 * steps_of_changes(100)


@pytest.mark.parametrize("owners", [1, 3, 40])
def test_a_snapshot_has_the_order_of_its_moment(owners: int) -> None:
    """Changes meanwhile do not disturb it: what left is left out, what came is not in it."""
    queue: FairQueue[int] = FairQueue()
    for item in range(40):
        priority = Priority.LOW if item % 7 == 0 else Priority.NORMAL
        queue.push(item, owner=str(item % owners), images=1 + item % 3, priority=priority)
    expected = [*queue]
    assert [*queue.snapshot()] == expected
    found = []
    for item in queue.snapshot():
        found.append(item)
        if len(found) == 5:
            queue.push(99, owner="0", images=1, priority=Priority.NORMAL)
            for gone in (found[0], expected[20], expected[-1]):
                assert queue.remove(gone)
    assert {*found} == {*expected} - {expected[20], expected[-1]}
