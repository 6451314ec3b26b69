"""A filter for the list of an owner's jobs."""

from __future__ import annotations

from dataclasses import dataclass

from sdstream.core.job import JobStatus


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Conditions that a job must meet to be in a list; None or an empty value is not checked.

    Attributes:
        statuses: The job has one of these statuses.
        words: The prompt contains each of these words; case does not matter.
        model: Id of the model.
        group: Name of the group.
        favorite: True for favorites only, False for all other jobs.
        since: Unix time in seconds; the job was accepted at this time or later.
        until: Unix time in seconds; the job was accepted before this time.
    """

    statuses: tuple[JobStatus, ...] = ()
    words: tuple[str, ...] = ()
    model: str | None = None
    group: str | None = None
    favorite: bool | None = None
    since: float | None = None
    until: float | None = None


UNFINISHED = tuple(status for status in JobStatus if not status.terminal)
