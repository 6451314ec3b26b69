"""What the job store needs: a database for rows, and a place for files.

``JobStore`` holds the rules: the order of writes, expiry and recovery. A database is a connection
with its statements (SQLite or PostgreSQL), an image store is a folder or a bucket. The tests in
tests/unit/storage run the rules on every combination.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any, Protocol

from sdstream.core.errors import ConfigurationError
from sdstream.core.messages import Generate
from sdstream.core.options import OutputFormat
from sdstream.core.pixels import Inputs
from sdstream.storage.statements import Statements

#: Column -> value. A flag may be a bool or an integer.
Row = Mapping[str, Any]
#: A statement with its parameters, by name.
Change = tuple[str, Mapping[str, object]]


class StoreError(ConfigurationError):
    """The database or the image store cannot be used; the message contains the reason."""


class StoreInUse(StoreError):
    """Another server has the database."""


class StoreUnreachable(StoreError):
    """The database does not answer: a later start may succeed, so a supervisor may try it."""

    exit_code = 1


class Database(Protocol):
    """The rows of jobs, which belong to one server at a time. One thread uses it.

    Attributes:
        statements: In the database's SQL.
        errors: What its methods raise, beside OSError.
        takeover: Another server may take the rows over while this one runs.
        lost: A sentence for the operator once another server has taken the rows over; nothing can
            be written any more. None before.
    """

    statements: Statements
    errors: tuple[type[Exception], ...]
    takeover: bool
    lost: str | None

    def open(self, images: ImageStore) -> bytes:
        """Take the database, and bring its tables up to date; callable again after it failed.

        Args:
            images: Whose files the rows name; it must be open.

        Returns:
            The secret of the rows, 32 bytes: owners and tokens depend on it.

        Raises:
            StoreInUse: Another server uses the database.
            StoreError: It is damaged, cannot be reached, or is of a newer release.
            OSError: A file cannot be read or written.
        """

    def close(self) -> None:
        """Give the database up."""

    def rows(self, statement: str, values: Mapping[str, object] = ...) -> Sequence[Row]:
        """Return the rows that a statement selects."""

    def change(self, *changes: Change) -> None:
        """Run statements in one transaction."""

    def check(self) -> None:
        """Raise an error when nothing can be written; called before each write."""

    def touch(self) -> None:
        """Write something without an effect."""

    def hurry(self, *, hurried: bool) -> None:
        """Choose how long a write waits for another process's lock: briefly while writes fail."""

    def is_hopeless(self, error: Exception) -> bool:
        """Return whether a write that failed will fail again."""

    def is_full(self, error: Exception) -> bool:
        """Return whether a write failed because the database's disk has no room."""

    def free_bytes(self) -> float:
        """Return the free space on its disk, infinity when that is not this machine's."""


class ImageStore(Protocol):
    """The files of jobs: finished images, uploads, and the input images of waiting jobs.

    Every method may be called in any thread, and raises OSError when the files cannot be reached.
    """

    def open(self) -> None:
        """Prepare the place of the files."""

    def close(self) -> None:
        """Finish what was begun."""

    def is_empty(self) -> bool:
        """Return whether no finished image exists."""

    def free_bytes(self) -> float:
        """Return the free space, infinity when there is no limit."""

    def location(self, image_id: str, output_format: OutputFormat) -> str:
        """Return where an image is: a path or an address."""

    def put(self, data: bytes, output_format: OutputFormat) -> str:
        """Write an image; return its unguessable id."""

    def get(self, image_id: str, output_format: OutputFormat) -> bytes:
        """Return the bytes of an image; raises FileNotFoundError when they are gone."""

    def drop(self, image_id: str, output_format: OutputFormat) -> None:
        """Delete an image if it exists; a failure is logged."""

    def put_inputs(self, order: Generate) -> None:
        """Write the input images of a job."""

    def has_inputs(self, job: str) -> bool:
        """Return whether the input images of a job exist."""

    def get_inputs(self, job: str) -> Inputs:
        """Return the input images of a job; raises FileNotFoundError, ValueError if damaged."""

    def drop_inputs(self, job: str) -> None:
        """Delete the input images of a job if they exist; a failure is logged."""

    def put_uploads(self, job: str, uploads: Mapping[str, bytes]) -> None:
        """Write the files that were uploaded with a job, by their names."""

    def get_upload(self, job: str, name: str) -> bytes:
        """Return an uploaded file; raises FileNotFoundError when it is gone."""

    def drop_uploads(self, job: str) -> None:
        """Delete the uploaded files of a job if they exist; a failure is logged."""

    def sweep(
        self, images: Container[str], jobs: Container[str], uploads: Container[str]
    ) -> set[str]:
        """Delete all other files; return the names of the images that are left.

        Args:
            images: Names of images to keep: the id, a dot, and the format.
            jobs: Whose input images to keep.
            uploads: Jobs whose uploaded files to keep.
        """


def image_name(image_id: str, output_format: str) -> str:
    """Return the name of an image's file."""
    return f"{image_id}.{output_format}"
