"""The order of waiting jobs: by priority, then fairly between owners, then by arrival.

The queue uses start-time fair queueing. Each owner has a virtual clock, and every job advances its
owner's clock by its number of images. The job whose clock is lowest is next. So an owner with one
waiting image goes before the second image of an owner with fifty. An owner that was idle gets no
credit for that time. A job that is removed before its turn does not advance its owner's clock.

The jobs of one owner and priority class form a lane. A lane stores the clock of its first job only.
The clock of a later job is that clock plus the turns of the jobs before it. So the removal of a job
updates the clocks of all later jobs at once. A heap of lanes finds the next job. Adding, removing
and counting cost O(log lanes). Taking a job out of order also costs one step for each earlier job
of its owner.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, heapreplace, merge
from typing import Final, Generic, TypeVar

from sdstream.core.enums import DescribedEnum

T = TypeVar("T", bound=Hashable)


class Priority(DescribedEnum):
    """Priority classes of jobs; a waiting job of a better class always goes first."""

    HIGH = "high", "before all others"
    NORMAL = "normal", "as usual"
    LOW = "low", "when nothing else waits"

    def outranks(self, other: Priority) -> bool:
        """Return whether jobs of this class go before those of the other class."""
        return _RANKS[self] < _RANKS[other]


_RANKS: Final = {priority: rank for rank, priority in enumerate(Priority)}


#: Clock of jobs that had their turn already; it places them before all other jobs.
_HAD_THEIR_TURN: Final = -1.0
#: Initial limit of lanes and of heads; above the limit the queue removes outdated ones.
_FEW: Final = 64


@dataclass(eq=False, slots=True)
class _Ticket(Generic[T]):
    """A turn in a lane.

    Attributes:
        lane: The lane of the ticket.
        arrival: Number of the ticket in order of arrival.
        turn: Amount by which the ticket advances the owner's clock.
        item: The waiting item. None if the item was taken out of order or removed, or if the ticket
            only fills a gap of the clock.
        owner: Owner of the item.
        images: Number of images of the item.
    """

    lane: _Lane[T]
    arrival: int
    turn: float
    item: T | None
    owner: str = ""
    images: int = 0


@dataclass(eq=False, slots=True)
class _Lane(Generic[T]):
    """The jobs of one owner and class in order of arrival.

    Attributes:
        rank: Rank of the priority class.
        start: The owner's clock at the turn of the first ticket.
        end: The owner's clock after the turn of the last ticket.
        tickets: Tickets by arrival; the first one has an item.
    """

    rank: int
    start: float
    end: float
    tickets: OrderedDict[int, _Ticket[T]] = field(default_factory=OrderedDict)

    @property
    def first(self) -> _Ticket[T]:
        return next(iter(self.tickets.values()))

    def add(self, ticket: _Ticket[T]) -> None:
        self.tickets[ticket.arrival] = ticket
        self.end += ticket.turn

    def drop_spent(self) -> None:
        """Remove the tickets without an item at the front, and advance the clock by their turns."""
        while self.tickets and (first := self.first).item is None:
            self.start += first.turn
            del self.tickets[first.arrival]

    def turns(self) -> Iterator[tuple[float, _Ticket[T]]]:
        """Yield the tickets with items, each with the owner's clock at its turn."""
        for start, _, ticket in _turns(self.start, self.tickets.values()):
            if ticket.item is not None:
                yield start, ticket

    def start_of(self, wanted: _Ticket[T], until: float = float("inf")) -> float:
        """Return the owner's clock at the turn of a ticket, but at most ``until``."""
        for start, ticket in self.turns():
            if ticket is wanted or start >= until:
                return min(start, until)
        raise KeyError(wanted.item)


#: A lane with the clock and the arrival of its first ticket. Both only grow, so that an outdated
#: head of a lane comes before its current head in the heap.
_Head = tuple[float, int, _Lane[T]]


class FairQueue(Generic[T]):
    """A queue of unique items in the order of their turns."""

    def __init__(self) -> None:
        self._tickets: dict[T, _Ticket[T]] = {}
        self._arrivals = 0
        #: Rank -> clock of the item that was taken last; a new item gets no earlier clock.
        self._now = dict.fromkeys(_RANKS.values(), 0.0)
        #: Lanes by rank and owner; the owner None stands for items that had their turn already.
        self._lanes: dict[tuple[int, str | None], _Lane[T]] = {}
        #: Rank -> heap of heads.
        self._heads: dict[int, list[_Head[T]]] = {rank: [] for rank in self._now}
        self._images: Counter[str] = Counter()
        self._all_images = 0
        self._jobs = Counter(dict.fromkeys(self._now, 0))
        self._most_lanes = self._most_heads = _FEW

    def __len__(self) -> int:
        return len(self._tickets)

    def __contains__(self, item: T) -> bool:
        return item in self._tickets

    def __iter__(self) -> Iterator[T]:
        """Iterate in the order of turns; the queue must not change during the iteration.

        Each step costs O(log lanes).
        """
        for heads in self._heads.values():
            yield from _in_order(heads.copy())

    def snapshot(self) -> Iterator[T]:
        """Iterate in the order of turns, while the queue may change.

        The iterator skips items that have left the queue, and does not yield items that were added
        after it began.
        """
        lanes = [(lane.rank, lane.start, [*lane.tickets.values()]) for lane in self._lanes.values()]
        for rank in self._heads:
            turns = (_turns(start, tickets) for own, start, tickets in lanes if own == rank)
            for _, _, ticket in merge(*turns):
                if ticket.item is not None:
                    yield ticket.item

    def push(
        self, item: T, *, owner: str, images: int, priority: Priority, first: bool = False
    ) -> None:
        """Add an item.

        Args:
            item: The item.
            owner: Owner whose clock the item advances.
            images: Amount by which the item advances the clock.
            priority: Priority class of the item.
            first: The item had its turn already; it goes before all others of its class.
        """
        assert item not in self._tickets
        rank = _RANKS[priority]
        lane = self._lane_of(rank, None if first else owner)
        ticket = _Ticket(lane, self._next(), 0.0 if first else images, item, owner, images)
        lane.add(ticket)
        if lane.first is ticket:
            self._head(lane)
        self._tickets[item] = ticket
        self._images[owner] += images
        self._all_images += images
        self._jobs[rank] += 1

    def _lane_of(self, rank: int, owner: str | None) -> _Lane[T]:
        """Return the lane of an owner; its end is the clock of the owner's next item."""
        lane = self._lanes.get((rank, owner))
        if lane is None:
            self._forget_lanes()
            clock = _HAD_THEIR_TURN if owner is None else self._now[rank]
            lane = self._lanes[rank, owner] = _Lane(rank, clock, clock)
        elif owner is not None and lane.end < self._now[rank]:
            if lane.tickets:  # since then, items of other owners were taken out of order
                lane.add(_Ticket(lane, self._next(), self._now[rank] - lane.end, None))
            else:
                lane.start = lane.end = self._now[rank]
        return lane

    def _next(self) -> int:
        self._arrivals += 1
        return self._arrivals

    def pop(self) -> T:
        """Remove and return the next item; raise IndexError if the queue is empty."""
        item = next(iter(self), None)
        if item is None:
            raise IndexError("nothing waits")
        self.take(item)
        return item

    def take(self, item: T) -> None:
        """Remove an item and count its turn, even if other items are before it."""
        ticket = self._forget(item)
        lane, rank = ticket.lane, ticket.lane.rank
        self._now[rank] = max(self._now[rank], lane.start_of(ticket))
        self._spend(ticket)

    def remove(self, item: T) -> bool:
        """Remove an item and give back the unused part of its turn; False if it is absent."""
        if item not in self._tickets:
            return False
        ticket = self._forget(item)
        lane, now = ticket.lane, self._now[ticket.lane.rank]
        # The part of the turn that the queue's clock has passed already still counts.
        used = min(ticket.turn, now - lane.start_of(ticket, until=now)) if lane.start < now else 0.0
        lane.end -= ticket.turn - used
        ticket.turn = used
        self._spend(ticket)
        return True

    def _forget(self, item: T) -> _Ticket[T]:
        ticket = self._tickets.pop(item)
        self._all_images -= ticket.images
        self._images[ticket.owner] -= ticket.images
        if not self._images[ticket.owner]:
            del self._images[ticket.owner]
        self._jobs[ticket.lane.rank] -= 1
        return ticket

    def _spend(self, ticket: _Ticket[T]) -> None:
        """Remove the item of a ticket; the ticket stays as long as its turn counts."""
        lane = ticket.lane
        was_first = lane.first is ticket
        ticket.item = None
        if not ticket.turn:
            del lane.tickets[ticket.arrival]
        lane.drop_spent()
        if was_first and lane.tickets:
            self._head(lane)

    def _head(self, lane: _Lane[T]) -> None:
        heads = self._heads[lane.rank]
        heappush(heads, (lane.start, lane.first.arrival, lane))
        if sum(map(len, self._heads.values())) > self._most_heads:
            for heads in self._heads.values():
                heads[:] = [head for head in heads if _is_current(head)]
                heapify(heads)
            self._most_heads = 2 * sum(map(len, self._heads.values())) + _FEW

    def _forget_lanes(self) -> None:
        """Remove empty lanes whose clocks are not ahead, if there are many lanes."""
        if len(self._lanes) > self._most_lanes:
            self._lanes = {
                key: lane
                for key, lane in self._lanes.items()
                if lane.tickets or lane.end > self._now[lane.rank]
            }
            self._most_lanes = 2 * len(self._lanes) + _FEW

    def images(self, owner: str | None = None) -> int:
        """Return the number of waiting images, of one owner or of all."""
        return self._all_images if owner is None else self._images[owner]

    def jobs(self, priority: Priority) -> int:
        """Return the number of items of this class and of better ones.

        A new item of this class has at most this number of items before it.
        """
        return sum(self._jobs[rank] for rank in self._jobs if rank <= _RANKS[priority])

    def of_owner(self, owner: str) -> Iterator[T]:
        """Yield the items of an owner in the order of their turns."""
        for rank in self._now:
            for key in (None, owner):
                lane = self._lanes.get((rank, key))
                for _, ticket in lane.turns() if lane is not None else ():
                    if ticket.owner == owner and ticket.item is not None:
                        yield ticket.item


def _turns(start: float, tickets: Iterable[_Ticket[T]]) -> Iterator[tuple[float, int, _Ticket[T]]]:
    """Yield the tickets of a lane, each with the owner's clock at its turn and its arrival."""
    for ticket in tickets:
        yield start, ticket.arrival, ticket
        start += ticket.turn


def _is_current(head: _Head[T]) -> bool:
    start, arrival, lane = head
    return bool(lane.tickets) and (start, arrival) == (lane.start, lane.first.arrival)


def _in_order(heads: list[_Head[T]]) -> Iterator[T]:
    """Yield the items of all lanes by the clocks of their turns; this empties the heap."""
    begun: dict[int, Iterator[tuple[float, _Ticket[T]]]] = {}
    while heads:
        _, arrival, lane = heads[0]
        turns = begun.get(id(lane))
        if turns is None:
            if not _is_current(heads[0]):
                heappop(heads)
                continue
            turns = begun[id(lane)] = lane.turns()
            next(turns)
        item = lane.tickets[arrival].item
        following = next(turns, None)
        if following is None:
            heappop(heads)
        else:
            heapreplace(heads, (following[0], following[1].arrival, lane))
        if item is not None:
            yield item
