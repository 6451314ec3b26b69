"""The files of jobs in a folder: finished images, uploads, and the inputs of waiting jobs."""

from __future__ import annotations

import logging
import secrets
import shutil
from collections.abc import Container, Mapping, Set
from pathlib import Path

from sdstream.atomic import write_atomically
from sdstream.core.messages import Generate, encode, unframe
from sdstream.core.options import OutputFormat
from sdstream.core.pixels import Inputs
from sdstream.storage.ports import image_name
from sdstream.storage.privacy import close_folder

logger = logging.getLogger(__name__)


class ImageFolder:
    """An ImageStore in ``images/``, ``uploads/`` and ``inputs/`` of a folder.

    Args:
        folder: Created if it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        self._images = folder / "images"
        self._inputs = folder / "inputs"
        self._uploads = folder / "uploads"

    def open(self) -> None:
        """Create the folders, readable by the server's user only; raises OSError."""
        for part in (self._images, self._inputs, self._uploads):
            close_folder(part, "*")

    def close(self) -> None:
        """Do nothing: every write is complete when it returns."""

    def is_empty(self) -> bool:
        """Return whether no finished image exists."""
        return not any(self._images.iterdir())

    def free_bytes(self) -> float:
        """Return the free space of the folder's disk."""
        return shutil.disk_usage(self._images).free

    def location(self, image_id: str, output_format: OutputFormat) -> str:
        """Return the path of an image."""
        return str(self._path(image_id, output_format))

    def put(self, data: bytes, output_format: OutputFormat) -> str:
        """Write an image and return its unguessable id. Raises OSError."""
        image_id = secrets.token_urlsafe(16)
        write_atomically(self._path(image_id, output_format), data)
        return image_id

    def get(self, image_id: str, output_format: OutputFormat) -> bytes:
        """Return the bytes of an image; raises FileNotFoundError if it was deleted."""
        return self._path(image_id, output_format).read_bytes()

    def put_inputs(self, order: Generate) -> None:
        """Write the input images of a job. Raises OSError."""
        write_atomically(self._inputs / order.job, encode(order))

    def has_inputs(self, job: str) -> bool:
        """Return whether the input images of a job exist."""
        return (self._inputs / job).exists()

    def get_inputs(self, job: str) -> Inputs:
        """Return the input images of a job.

        Raises:
            OSError: The file does not exist or cannot be read.
            ValueError: The file does not contain input images.
        """
        message = unframe((self._inputs / job).read_bytes())
        if not isinstance(message, Generate):
            raise ValueError(f"the stored inputs of {job} are a {type(message).__name__} message")
        return message.inputs

    def drop(self, image_id: str, output_format: OutputFormat) -> None:
        """Delete an image, if it exists."""
        _delete(self._path(image_id, output_format))

    def drop_inputs(self, job: str) -> None:
        """Delete the input images of a job, if there are any."""
        _delete(self._inputs / job)

    def put_uploads(self, job: str, uploads: Mapping[str, bytes]) -> None:
        """Write the files that were uploaded with a job, by their names. Raises OSError."""
        folder = self._uploads / job
        close_folder(folder)
        for name, data in uploads.items():
            write_atomically(folder / name, data)

    def get_upload(self, job: str, name: str) -> bytes:
        """Return an uploaded file; raises FileNotFoundError if it was deleted."""
        return (self._uploads / job / name).read_bytes()

    def drop_uploads(self, job: str) -> None:
        """Delete the uploaded files of a job, if there are any."""
        try:
            shutil.rmtree(self._uploads / job)
        except FileNotFoundError:
            pass  # the job has no files
        except OSError as error:
            _warn(error)

    def sweep(self, images: Set[str], jobs: Container[str], uploads: Container[str]) -> set[str]:
        """Delete all other files; return the names of the kept images that exist.

        If none of the images exists, nothing is deleted: the files may be another server's.

        Args:
            images: File names of the images to keep.
            jobs: Ids of the jobs whose input images to keep.
            uploads: Ids of the jobs whose uploaded files to keep.
        """
        found = {path.name for path in self._images.iterdir()}
        if images and images.isdisjoint(found):
            return set()
        for name in found - images:
            _delete(self._images / name)
        for path in self._inputs.iterdir():
            if path.name not in jobs:
                _delete(path)
        for path in self._uploads.iterdir():
            if path.name not in uploads:
                self.drop_uploads(path.name)
        return found & images

    def _path(self, image_id: str, output_format: OutputFormat) -> Path:
        return self._images / image_name(image_id, output_format)


def _delete(path: Path) -> None:
    """Delete a file that no row names; if this fails, the next start of the server retries."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        _warn(error)


def _warn(error: OSError) -> None:
    logger.warning("a file could not be deleted: %s", error)
