"""Finished images by id, as files in one folder with an age and a size limit.

Methods block on the disk: call them in a thread.
"""

from __future__ import annotations

import secrets
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from app.core.request import OutputFormat

_SUFFIXES: Final[dict[str, OutputFormat]] = {".png": "png", ".jpeg": "jpeg", ".webp": "webp"}


@dataclass(frozen=True, slots=True)
class StoredImage:
    """One file of the store."""

    path: Path
    format: OutputFormat
    size: int
    created: float


class ImageStore:
    """Keeps images until they are too old or there are too many bytes of them.

    Args:
        folder: Made when the first image comes; files of an earlier run are taken up.
        ttl_seconds: Age at which an image goes.
        max_bytes: The oldest images go until the rest is within this.
        clock: Unix seconds.
    """

    def __init__(
        self, folder: Path, *, ttl_seconds: float, max_bytes: int, clock: Callable[[], float]
    ) -> None:
        self._folder = folder
        self._ttl = ttl_seconds
        self._max_bytes = max_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._images: dict[str, StoredImage] = {}

    def open(self) -> None:
        """Take up what is there and delete what a crash left half-written."""
        with self._lock:
            found = [self._taken_up(path) for path in self._folder.glob("*")]
            images = sorted((i for i in found if i), key=lambda image: image.created)
            self._images = {image.path.stem: image for image in images}
            self._expire()

    def put(self, data: bytes, output_format: OutputFormat) -> str:
        """Keep an image; returns its unguessable id. Raises OSError when the disk will not."""
        image_id = secrets.token_urlsafe(16)
        target = self._folder / f"{image_id}.{output_format}"
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self._folder, suffix=".part", delete=False) as part:
            try:
                part.write(data)
                part.flush()
                Path(part.name).replace(target)
            except OSError:
                Path(part.name).unlink(missing_ok=True)
                raise
        with self._lock:
            self._images[image_id] = StoredImage(target, output_format, len(data), self._clock())
            self._expire()
        return image_id

    def get(self, image_id: str) -> tuple[bytes, OutputFormat] | None:
        """The file and its format, or None when it never was here or has expired."""
        with self._lock:
            self._expire()
            image = self._images.get(image_id)
            # Read under the lock: it may be the next to expire.
            try:
                return (image.path.read_bytes(), image.format) if image else None
            except FileNotFoundError:
                return None

    def _taken_up(self, path: Path) -> StoredImage | None:
        if path.suffix == ".part":
            path.unlink(missing_ok=True)
        if path.suffix not in _SUFFIXES or not path.is_file():
            return None
        stat = path.stat()
        return StoredImage(path, _SUFFIXES[path.suffix], stat.st_size, stat.st_mtime)

    def _expire(self) -> None:
        oldest = self._clock() - self._ttl
        total = sum(image.size for image in self._images.values())
        for image_id, image in list(self._images.items()):  # in the order they came
            if image.created >= oldest and total <= self._max_bytes:
                break
            total -= image.size
            del self._images[image_id]
            image.path.unlink(missing_ok=True)
