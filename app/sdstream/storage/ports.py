"""The interfaces that the job store uses: a database for rows, and an image store for files.

``JobStore`` has the rules: the order of writes, expiry and recovery. A database is a connection to
SQLite or PostgreSQL with its statements. An image store is a folder or a bucket. The tests in
tests/unit/storage check the rules on every combination.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence, Set
from typing import Any, Protocol

from sdstream.core.errors import ConfigurationError
from sdstream.core.messages import Generate
from sdstream.core.options import OutputFormat
from sdstream.core.pixels import Inputs
from sdstream.storage.statements import Statements

#: Column -> value. A flag may be a bool or an integer.
Row = Mapping[str, Any]
#: A statement, and its parameters by name.
Change = tuple[str, Mapping[str, object]]


class StoreError(ConfigurationError):
    """The database or the image store cannot be used; the message contains the reason."""


class StoreInUse(StoreError):
    """Another server uses the database."""


class StoreUnreachable(StoreError):
    """The database or the image store does not answer; a later start may succeed."""

    exit_code = 1


class Database(Protocol):
    """The rows of jobs, which belong to one server at a time. One thread uses it.

    Attributes:
        statements: Statements in the database's SQL.
        errors: Exceptions that its methods raise, besides OSError.
        takeover: Whether another server may take over the rows while this one runs.
        lost: Message for the operator after another server has taken over the rows, so that this
            one can write nothing; None before.
    """

    statements: Statements
    errors: tuple[type[Exception], ...]
    takeover: bool
    lost: str | None

    def open(self, images: ImageStore) -> bytes:
        """Lock the database and migrate its tables; may be called again after a failure.

        Args:
            images: The image store with the files that the rows name; it must be open.

        Returns:
            The secret of the rows, 32 bytes; owners and tokens are derived from it.

        Raises:
            StoreInUse: Another server uses the database.
            StoreError: It is damaged, cannot be reached, or was written by a newer release.
            OSError: A file cannot be read or written.
        """

    def close(self) -> None:
        """Close the database and release its lock."""

    def rows(self, statement: str, values: Mapping[str, object] = ...) -> Sequence[Row]:
        """Return the rows that a statement selects."""

    def change(self, *changes: Change) -> None:
        """Run statements in one transaction."""

    def check(self) -> None:
        """Raise an error if nothing can be written; called before each write."""

    def touch(self) -> None:
        """Test a write, without changing any data."""

    def hurry(self, *, hurried: bool) -> None:
        """Set how long a write waits for a lock: a short time if ``hurried`` (writes fail)."""

    def is_hopeless(self, error: Exception) -> bool:
        """Return whether a write that failed will fail again."""

    def is_full(self, error: Exception) -> bool:
        """Return whether a write failed because the database's disk has no room."""

    def free_bytes(self) -> float:
        """Return the free space of the database's disk, infinity if it is on another machine."""


class ImageStore(Protocol):
    """The files of jobs: finished images, uploads, and the input images of waiting jobs.

    Every method may be called in any thread, and raises OSError if the files cannot be reached.
    """

    def open(self) -> None:
        """Prepare the folder or the bucket."""

    def close(self) -> None:
        """Finish the deletions that still run."""

    def is_empty(self) -> bool:
        """Return whether no finished image exists."""

    def free_bytes(self) -> float:
        """Return the free space, infinity without a limit."""

    def location(self, image_id: str, output_format: OutputFormat) -> str:
        """Return the path or the URL of an image."""

    def put(self, data: bytes, output_format: OutputFormat) -> str:
        """Write an image; return its unguessable id."""

    def get(self, image_id: str, output_format: OutputFormat) -> bytes:
        """Return the bytes of an image; raises FileNotFoundError if it was deleted."""

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
        """Return an uploaded file; raises FileNotFoundError if it was deleted."""

    def drop_uploads(self, job: str) -> None:
        """Delete the uploaded files of a job if they exist; a failure raises no error."""

    def sweep(self, images: Set[str], jobs: Container[str], uploads: Container[str]) -> set[str]:
        """Delete all other files; return the names of the kept images that exist.

        If none of the images exists, nothing is deleted: the files may be another server's.

        Args:
            images: File names of the images to keep: the id, a dot, and the format.
            jobs: Ids of the jobs whose input images to keep.
            uploads: Ids of the jobs whose uploaded files to keep.
        """


def image_name(image_id: str, output_format: str) -> str:
    """Return the name of an image's file."""
    return f"{image_id}.{output_format}"
