"""Who is next: by priority, then fairly between owners, then by arrival.

Fair means start-time fair queueing: each owner has a clock of its own that every job moves on by
its images, and the job whose clock stood lowest goes first. Who waits with one image is drawn
before the second of somebody who brought fifty. An owner who comes back after a while gets no
credit for the time away. A job that leaves without its turn costs none.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, Generic, TypeVar

from sdstream.core.enums import DescribedEnum

T = TypeVar("T")


class Priority(DescribedEnum):
    """Classes of jobs; a waiting job of a better class always goes first."""

    HIGH = "high", "before all others"
    NORMAL = "normal", "as usual"
    LOW = "low", "when nothing else waits"

    def outranks(self, other: Priority) -> bool:
        """True when jobs of this class go before those of the other."""
        return _RANKS[self] < _RANKS[other]


_RANKS: Final = {priority: rank for rank, priority in enumerate(Priority)}


@dataclass(frozen=True, slots=True, order=True)
class _Place:
    """Sorts first what goes first.

    Attributes:
        rank: Of the priority.
        start: The owner's clock when the job came.
        arrival: Counts what ever came; keeps the order total.
    """

    rank: int
    start: float
    arrival: int


@dataclass(frozen=True, slots=True)
class _Ticket(Generic[T]):
    place: _Place
    owner: str
    images: int
    item: T


class FairQueue(Generic[T]):
    """Waiting items in the order in which they will go."""

    def __init__(self) -> None:
        self._tickets: list[_Ticket[T]] = []
        self._arrivals = 0
        #: Of the item that went last; no owner's clock is behind it.
        self._now = dict.fromkeys(_RANKS.values(), 0.0)
        self._clocks: dict[tuple[int, str], float] = {}

    def __len__(self) -> int:
        return len(self._tickets)

    def __iter__(self) -> Iterator[T]:
        """First to go first."""
        return (ticket.item for ticket in self._tickets)

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
        rank = _RANKS[priority]
        start = -1.0
        if not first:
            start = max(self._now[rank], self._clocks.get((rank, owner), 0.0))
            self._clocks[rank, owner] = start + images
        self._arrivals += 1
        ticket = _Ticket(_Place(rank, start, self._arrivals), owner, images, item)
        insort(self._tickets, ticket, key=lambda ticket: ticket.place)

    def pop(self) -> T:
        """Take out what goes next; raises IndexError when nothing waits."""
        return self._take(0)

    def take(self, item: T) -> None:
        """Take out an item whose turn it is although others stand before it."""
        self._take(next(i for i, ticket in enumerate(self._tickets) if ticket.item is item))

    def _take(self, index: int) -> T:
        ticket = self._tickets.pop(index)
        rank, start = ticket.place.rank, ticket.place.start
        now = self._now[rank] = max(self._now[rank], start)
        self._clocks = {
            key: clock for key, clock in self._clocks.items() if key[0] != rank or clock > now
        }
        return ticket.item

    def remove(self, item: T) -> bool:
        """Take an item out without its turn; False when it does not wait here."""
        for index, ticket in enumerate(self._tickets):
            if ticket.item is item:
                del self._tickets[index]
                self._refund(ticket)
                return True
        return False

    def _refund(self, gone: _Ticket[T]) -> None:
        """Move the owner's clock and later items back by what is still to come of a turn."""
        rank, start = gone.place.rank, gone.place.start
        turn = start + gone.images - max(start, self._now[rank])
        if start < 0 or turn <= 0:
            return
        self._clocks[rank, gone.owner] -= turn
        for index, ticket in enumerate(self._tickets):
            place = ticket.place
            if (place.rank, ticket.owner) == (rank, gone.owner) and place.start > start:
                self._tickets[index] = replace(
                    ticket, place=replace(place, start=place.start - turn)
                )
        self._tickets.sort(key=lambda ticket: ticket.place)

    def images(self, owner: str | None = None) -> int:
        """Images that wait, of one owner or in all."""
        return sum(t.images for t in self._tickets if owner in (None, t.owner))
