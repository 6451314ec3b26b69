"""Which jobs of an owner a list contains."""

from __future__ import annotations

from dataclasses import dataclass

from sdstream.core.job import JobStatus


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Conditions that all jobs of a list meet; None and empty values are no condition.

    Attributes:
        statuses: The job has one of these.
        words: The prompt contains each of these, in upper or lower case.
        model: Id of the model.
        group: Name of the group.
        favorite: True for favorites only, False for the others only.
        since: Unix seconds; the job was accepted then or later.
        until: Unix seconds; the job was accepted before.
    """

    statuses: tuple[JobStatus, ...] = ()
    words: tuple[str, ...] = ()
    model: str | None = None
    group: str | None = None
    favorite: bool | None = None
    since: float | None = None
    until: float | None = None


ALL_JOBS = JobFilter()
UNFINISHED = tuple(status for status in JobStatus if not status.terminal)
