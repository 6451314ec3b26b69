"""The files of jobs: finished images, and the input pictures of jobs that wait."""

from __future__ import annotations

import logging
import secrets
import tempfile
from collections.abc import Container
from pathlib import Path

from sdstream.core.job import ImageResult
from sdstream.core.messages import Generate, encode, unframe
from sdstream.core.options import OutputFormat
from sdstream.core.pixels import Inputs
from sdstream.storage.privacy import close_folder

logger = logging.getLogger(__name__)


class JobFiles:
    """The folders ``images/`` and ``inputs/``. Every method may be called in any thread."""

    def __init__(self, folder: Path) -> None:
        self.images = folder / "images"
        self.inputs = folder / "inputs"

    def make_folders(self) -> None:
        """Make both folders, for the server's user alone; raises OSError."""
        for part in (self.images, self.inputs):
            close_folder(part, "*")

    def path(self, image_id: str, output_format: OutputFormat) -> Path:
        """Where an image is."""
        return self.images / f"{image_id}.{output_format}"

    def put(self, data: bytes, output_format: OutputFormat) -> str:
        """Write an image; returns its unguessable id. Raises OSError."""
        image_id = secrets.token_urlsafe(16)
        _write(self.path(image_id, output_format), data)
        return image_id

    def file(self, image: ImageResult, output_format: OutputFormat) -> bytes:
        """The bytes of an image; raises FileNotFoundError when they are gone."""
        if image.id is None:
            raise FileNotFoundError("the disk was full when this image was finished")
        return self.path(image.id, output_format).read_bytes()

    def put_inputs(self, order: Generate) -> None:
        """Write the input pictures of a job. Raises OSError."""
        _write(self.inputs / order.job, encode(order))

    def has_inputs(self, job: str) -> bool:
        """True when a job's input pictures are there."""
        return (self.inputs / job).exists()

    def get_inputs(self, job: str) -> Inputs:
        """The input pictures of a job; raises OSError and ValueError when they are gone."""
        message = unframe((self.inputs / job).read_bytes())
        if not isinstance(message, Generate):
            raise ValueError(f"not the pictures of a job: {job}")
        return message.inputs

    def drop(self, image_id: str, output_format: OutputFormat) -> None:
        """Delete an image, if it is there."""
        _delete(self.path(image_id, output_format))

    def drop_inputs(self, job: str) -> None:
        """Delete the input pictures of a job, if there are any."""
        _delete(self.inputs / job)

    def sweep(self, images: Container[str], jobs: Container[str]) -> set[str]:
        """Delete all files but these; returns the names of the images that are left.

        Args:
            images: Names of files to keep.
            jobs: Whose input pictures to keep.
        """
        there = {path.name for path in self.images.iterdir()}
        gone = {name for name in there if name not in images}
        for name in gone:
            _delete(self.images / name)
        for path in self.inputs.iterdir():
            if path.name not in jobs:
                _delete(path)
        return there - gone


def _write(path: Path, data: bytes) -> None:
    """Write a whole file or none."""
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as part:
        try:
            part.write(data)
            part.flush()
            Path(part.name).replace(path)
        except OSError:
            Path(part.name).unlink(missing_ok=True)
            raise


def _delete(path: Path) -> None:
    """Delete a file that no row names any more; the next start does what fails now."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("a file could not be deleted: %s", error)
