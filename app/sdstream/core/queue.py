"""Who is next: by priority, then fairly between owners, then by arrival.

Fair means start-time fair queueing: each owner has its own clock, which every job moves on by
its images, and the job whose clock stood lowest goes first. An owner with one waiting image
goes before the second image of an owner with fifty. An owner that returns after a while gets no
credit for the time away. A job that leaves without its turn costs none.

The jobs of one owner and class form a lane. Only the clock of the first is stored; that of a later
one is the sum of the turns before it, so a job that leaves moves all behind it at once. A heap of
lanes finds the next job. Adding, removing and counting cost O(log lanes), except that a job that is
taken out of order costs the jobs of its owner before it.
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
    """Classes of jobs; a waiting job of a better class always goes first."""

    HIGH = "high", "before all others"
    NORMAL = "normal", "as usual"
    LOW = "low", "when nothing else waits"

    def outranks(self, other: Priority) -> bool:
        """True when jobs of this class go before those of the other."""
        return _RANKS[self] < _RANKS[other]


_RANKS: Final = {priority: rank for rank, priority in enumerate(Priority)}


#: The clock of jobs that had their turn already: before all others.
_HAD_THEIR_TURN: Final = -1.0
#: Empty lanes and old heads are cleaned up once there are more than this.
_FEW: Final = 64


@dataclass(eq=False, slots=True)
class _Ticket(Generic[T]):
    """A turn of a lane.

    Attributes:
        lane: Where it stands.
        arrival: Counts all tickets.
        turn: How far it moves the owner's clock.
        item: What waits; None for a turn that was used out of order, or not at all.
        owner: Whose item it is.
        images: Of the item.
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
        rank: Of the class.
        start: The owner's clock at the turn of the first ticket.
        end: The owner's clock after the turn of the last ticket.
        tickets: By arrival; the first one has an item.
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
        """Pass the turns at the front that have no item."""
        while self.tickets and (first := self.first).item is None:
            self.start += first.turn
            del self.tickets[first.arrival]

    def turns(self) -> Iterator[tuple[float, _Ticket[T]]]:
        """Tickets with items, each with the owner's clock at its turn."""
        for start, _, ticket in _turns(self.start, self.tickets.values()):
            if ticket.item is not None:
                yield start, ticket

    def start_of(self, wanted: _Ticket[T], until: float = float("inf")) -> float:
        """The clock at the turn of a ticket; ``until`` if it is not before that."""
        for start, ticket in self.turns():
            if ticket is wanted or start >= until:
                return min(start, until)
        raise KeyError(wanted.item)


#: A lane with the clock and the arrival of its first ticket. Both only grow, so that a head that
#: is out of date comes before the right one.
_Head = tuple[float, int, _Lane[T]]


class FairQueue(Generic[T]):
    """Waiting items in the order in which they will go; an item is in it once at most."""

    def __init__(self) -> None:
        self._tickets: dict[T, _Ticket[T]] = {}
        self._arrivals = 0
        #: Clock of the item that went last, by rank; no owner's clock is behind it.
        self._now = dict.fromkeys(_RANKS.values(), 0.0)
        #: By rank and owner; None has those who had their turn already.
        self._lanes: dict[tuple[int, str | None], _Lane[T]] = {}
        #: Heaps by rank.
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
        """First to go first. Each step costs O(log lanes); nothing may change meanwhile."""
        for heads in self._heads.values():
            yield from _in_order(heads.copy())

    def snapshot(self) -> Iterator[T]:
        """As iterating, found step by step while others change the queue.

        What leaves meanwhile is left out, what comes is not in it.
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
        """Put an item in.

        Args:
            item: What waits.
            owner: Whom it counts for.
            images: How much of a turn it takes.
            priority: Its class.
            first: It had its turn already and goes before the others of its class.
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
        """The lane, whose end is the clock of who comes now."""
        lane = self._lanes.get((rank, owner))
        if lane is None:
            self._forget_lanes()
            clock = _HAD_THEIR_TURN if owner is None else self._now[rank]
            lane = self._lanes[rank, owner] = _Lane(rank, clock, clock)
        elif owner is not None and lane.end < self._now[rank]:
            if lane.tickets:  # others were taken out of order meanwhile
                lane.add(_Ticket(lane, self._next(), self._now[rank] - lane.end, None))
            else:
                lane.start = lane.end = self._now[rank]
        return lane

    def _next(self) -> int:
        self._arrivals += 1
        return self._arrivals

    def pop(self) -> T:
        """Take out what goes next; raises IndexError when nothing waits."""
        item = next(iter(self), None)
        if item is None:
            raise IndexError("nothing waits")
        self.take(item)
        return item

    def take(self, item: T) -> None:
        """Take out an item whose turn it is although others stand before it."""
        ticket = self._forget(item)
        lane, rank = ticket.lane, ticket.lane.rank
        self._now[rank] = max(self._now[rank], lane.start_of(ticket))
        self._spend(ticket)

    def remove(self, item: T) -> bool:
        """Take an item out without its turn; False when it does not wait here."""
        if item not in self._tickets:
            return False
        ticket = self._forget(item)
        lane, now = ticket.lane, self._now[ticket.lane.rank]
        # What the others have had meanwhile is not given back.
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
        """Leave of a ticket no more than its turn."""
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
        """Forget the owners without jobs whose clocks are behind, now and then."""
        if len(self._lanes) > self._most_lanes:
            self._lanes = {
                key: lane
                for key, lane in self._lanes.items()
                if lane.tickets or lane.end > self._now[lane.rank]
            }
            self._most_lanes = 2 * len(self._lanes) + _FEW

    def images(self, owner: str | None = None) -> int:
        """Images that wait, of one owner or in all."""
        return self._all_images if owner is None else self._images[owner]

    def jobs(self, priority: Priority) -> int:
        """Items of this class and of better ones: a newcomer has no more before it."""
        return sum(self._jobs[rank] for rank in self._jobs if rank <= _RANKS[priority])

    def of_owner(self, owner: str) -> Iterator[T]:
        """The items of an owner, first to go first."""
        for rank in self._now:
            for key in (None, owner):
                lane = self._lanes.get((rank, key))
                for _, ticket in lane.turns() if lane is not None else ():
                    if ticket.owner == owner and ticket.item is not None:
                        yield ticket.item


def _turns(start: float, tickets: Iterable[_Ticket[T]]) -> Iterator[tuple[float, int, _Ticket[T]]]:
    """Tickets of a lane, each with the owner's clock at its turn and its arrival."""
    for ticket in tickets:
        yield start, ticket.arrival, ticket
        start += ticket.turn


def _is_current(head: _Head[T]) -> bool:
    start, arrival, lane = head
    return bool(lane.tickets) and (start, arrival) == (lane.start, lane.first.arrival)


def _in_order(heads: list[_Head[T]]) -> Iterator[T]:
    """The items of lanes, merged by the clocks of their turns; uses up the heap."""
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
