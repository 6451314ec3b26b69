"""A webhook message that waits to be sent."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Delivery:
    """One webhook message.

    Attributes:
        id: The same on every try, so that a receiver can recognise duplicates.
        url: Address to which the server posts it.
        payload: JSON.
        attempts: Number of tries so far.
        next_at: Unix time of the next try in seconds.
    """

    id: str
    url: str
    payload: bytes
    attempts: int
    next_at: float
