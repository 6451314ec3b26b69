"""The fair queue, by examples and under random sequences of calls."""

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
    """A queue of one-image items; an item's first letter is its owner."""
    queue: FairQueue[str] = FairQueue()
    for item in items:
        queue.push(item, owner=item[0], images=1, priority=priority)
    return queue


def all_of(queue: FairQueue[str]) -> list[str]:
    """Remove and return all items in order."""
    return [queue.pop() for _ in range(len(queue))]


def test_one_owner_is_served_in_order() -> None:
    """A single owner's items are served first in, first out."""
    queue = queue_of("a1", "a2", "a3")
    assert (list(queue), len(queue), queue.images()) == (["a1", "a2", "a3"], 3, 3)
    assert all_of(queue) == ["a1", "a2", "a3"]


def test_owners_take_turns() -> None:
    """Owners alternate, so a short list of jobs does not wait for all of a long one."""
    assert all_of(queue_of("a1", "a2", "a3", "b1", "b2")) == ["a1", "b1", "a2", "b2", "a3"]


def ten_then_one_against(ones: int) -> FairQueue[str]:
    """A queue with a's jobs of ten images and one, and this many one-image jobs of b."""
    queue: FairQueue[str] = FairQueue()
    queue.push("a1", owner="a", images=10, priority=Priority.NORMAL)
    queue.push("a2", owner="a", images=1, priority=Priority.NORMAL)
    for number in range(ones):
        queue.push(f"b{number}", owner="b", images=1, priority=Priority.NORMAL)
    return queue


def test_a_turn_is_counted_in_images() -> None:
    """A job of ten images counts as ten turns."""
    queue = ten_then_one_against(11)
    order = all_of(queue)
    assert order[0] == "a1"
    assert order.index("a2") == 11  # after as many images of the other owner


def test_nobody_saves_turns_up() -> None:
    """An owner who returns starts level with the others and has no saved-up turns."""
    queue = queue_of("a1", "a2", "a3", "a4")
    assert [queue.pop(), queue.pop(), queue.pop()] == ["a1", "a2", "a3"]
    for item in ("b1", "b2", "a5"):
        queue.push(item, owner=item[0], images=1, priority=Priority.NORMAL)
    assert all_of(queue) == ["b1", "a4", "b2", "a5"]


def test_better_classes_go_first() -> None:
    """High priority goes before normal and normal before low, regardless of arrival."""
    queue = queue_of("a1", "b1", priority=Priority.LOW)
    queue.push("a2", owner="a", images=1, priority=Priority.NORMAL)
    queue.push("a3", owner="a", images=1, priority=Priority.HIGH)
    assert all_of(queue) == ["a3", "a2", "a1", "b1"]
    assert Priority.HIGH.outranks(Priority.NORMAL)
    assert not Priority.LOW.outranks(Priority.LOW)


def test_a_second_try_goes_before_its_class() -> None:
    """A retried job goes to the front of its class, behind any higher class."""
    queue = queue_of("a1", "b1")
    queue.push("c1", owner="c", images=5, priority=Priority.NORMAL, first=True)
    queue.push("d1", owner="d", images=1, priority=Priority.HIGH)
    assert all_of(queue) == ["d1", "c1", "a1", "b1"]


def test_a_turn_out_of_order_is_a_turn() -> None:
    """An item taken early, because its model is loaded, still counts as its owner's turn."""
    queue = queue_of("a1", "a2", "a3", "b1")
    queue.take("a3")
    queue.push("a4", owner="a", images=1, priority=Priority.NORMAL)
    queue.push("c1", owner="c", images=1, priority=Priority.NORMAL)
    assert all_of(queue) == ["a1", "b1", "a2", "c1", "a4"]


def test_taking_out_of_the_middle() -> None:
    """A cancelled item is removed exactly once."""
    queue = queue_of("a1", "a2", "b1")
    item = list(queue)[1]
    assert queue.remove(item)
    assert not queue.remove(item)
    assert queue.images("a") + queue.images("b") == 2


def test_a_cancelled_item_costs_no_turn() -> None:
    """A cancelled item delays neither its owner's waiting items nor later ones."""
    queue: FairQueue[str] = FairQueue()
    many = ["a1", "a2", "a3"]
    for item in (*many, "b1", "b2"):
        queue.push(item, owner=item[0], images=10, priority=Priority.NORMAL)
    for item in many[:2]:
        assert queue.remove(item)
    queue.push("a4", owner="a", images=1, priority=Priority.NORMAL)
    assert all_of(queue) == ["a3", "b1", "b2", "a4"]


def test_a_turn_that_is_half_gone_is_half_given_back() -> None:
    """An owner gets back only the part of a cancelled turn that the others have not used."""
    queue = ten_then_one_against(8)
    for _ in range(6):  # the other owner's model is not loaded yet
        queue.take(next(item for item in queue if item.startswith("b")))
    queue.remove("a1")
    queue.push("c1", owner="c", images=1, priority=Priority.NORMAL)
    assert all_of(queue) == ["a2", "c1", "b6", "b7"]


@given(st.lists(st.sampled_from("abc"), max_size=20), st.data())
def test_a_queue_forgets_who_left(owners: list[str], data: st.DataObject) -> None:
    """After cancellations, the order is as if the cancelled items had never been added."""
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
    """Any sequence of pushes and pops (None) keeps all items and each owner's order."""
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
    """An item of PlainQueue, sorted by its key."""

    name: str
    owner: str
    rank: int
    start: float
    arrival: int
    images: int

    @property
    def key(self) -> tuple[int, float, int]:
        """Return class, the owner's clock at the turn, and arrival."""
        return self.rank, self.start, self.arrival


class PlainQueue:
    """The queue's rule in its simplest form: every start is stored, every change sorts."""

    def __init__(self) -> None:
        self.items: list[Waiting] = []
        self.now = [0.0] * len(Priority)
        self.clocks: dict[tuple[int, str], float] = {}
        self.arrivals = 0

    def push(self, name: str, owner: str, images: int, rank: int, *, first: bool) -> None:
        """Add an item."""
        start = -1.0
        if not first:
            start = max(self.now[rank], self.clocks.get((rank, owner), 0.0))
            self.clocks[rank, owner] = start + images
        self.arrivals += 1
        self.items.append(Waiting(name, owner, rank, start, self.arrivals, images))
        self.items.sort(key=lambda item: item.key)

    def take(self, index: int) -> str:
        """Take the item at this index as the next turn."""
        item = self.items.pop(index)
        self.now[item.rank] = max(self.now[item.rank], item.start)
        return item.name

    def remove(self, index: int) -> str:
        """Remove an item; the unused part of its turn moves the owner's later items forward."""
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
    """The optimised queue has the same order as PlainQueue under any sequence of calls."""
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
    """Counts executed lines of Python, a measure that does not depend on the machine's load."""

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
    """Push, remove and pop cost about the same with a hundred times as many items waiting."""

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
    """Later changes do not disturb a snapshot: it skips removed items and contains no new ones."""
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
