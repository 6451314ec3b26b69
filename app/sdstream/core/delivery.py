"""A webhook message that waits to be posted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message to be posted.

    Attributes:
        id: The same on every try, so that a receiver can recognise repetitions.
        url: Where to.
        payload: JSON.
        attempts: Tries so far.
        next_at: Unix seconds of the next one.
    """

    id: str
    url: str
    payload: bytes
    attempts: int
    next_at: float
