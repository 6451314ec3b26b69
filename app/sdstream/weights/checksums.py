"""SHA-256 of the files of models, by which Civitai and AUTOMATIC1111 identify a checkpoint.

Files of a hub's cache and built-in models need no reading: the cache names a file by its checksum,
and the package has the checksum of its models. A background thread reads other files once. It has
the lowest priority, and stores what it found beside the cache, with the size and time of each file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import queue
import re
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from sdstream.atomic import write_atomically

logger = logging.getLogger(__name__)

_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class Checksums:
    """Checksums of weight files; ``of`` returns at once what is known.

    Args:
        store: JSON file that keeps them; it may be missing.
    """

    def __init__(self, store: Path) -> None:
        self._store = store
        self._known: dict[str, list[Any]] | None = None
        self._wanted: set[str] = set()
        self._queue: queue.SimpleQueue[Path] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def of(self, path: Path) -> str | None:
        """Return the SHA-256 of a file in hex, or None and compute it in the background.

        Damaged or missing files have none. A file that changes is read again.
        """
        if path.is_symlink():
            target = path.readlink()
            if target.parent.name == "blobs":  # of a hub's cache
                return target.name if _SHA256.fullmatch(target.name) else None
        try:
            version = _version(path)
        except OSError:
            return None
        if self._known is None:
            self._known = _read(self._store)
        known = self._known.get(str(path), [])
        if known[:2] == version:
            return str(known[2])
        self._want(path)
        return None

    def _want(self, path: Path) -> None:
        if str(path) in self._wanted:
            return
        self._wanted.add(str(path))
        self._queue.put(path)
        if self._thread is None:
            # A daemon: a server that stops does not wait for the checksum of a large file.
            self._thread = threading.Thread(target=self._work, name="checksums", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        with suppress(OSError, AttributeError):  # Linux gives each thread a priority
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        while True:
            path = self._queue.get()
            try:
                version = _version(path)
                with path.open("rb") as file:
                    checksum = hashlib.file_digest(file, "sha256").hexdigest()
                if _version(path) == version:
                    assert self._known is not None
                    self._known = {**self._known, str(path): [*version, checksum]}
                    self._write()
            except OSError as error:
                logger.warning("the checksum of %s cannot be computed: %s", path.name, error)
            self._wanted.discard(str(path))

    def _write(self) -> None:
        """Store what is known; it is computed again if that fails."""
        with suppress(OSError):
            self._store.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._store, json.dumps(self._known).encode())


def _version(path: Path) -> list[int]:
    """Size and time of modification, which change with the contents."""
    facts = path.stat()
    return [facts.st_size, facts.st_mtime_ns]


def _read(store: Path) -> dict[str, list[Any]]:
    """Return path -> [size, time, checksum] of a store; empty if it cannot be used."""
    try:
        found = json.loads(store.read_text())
    except (OSError, ValueError):
        return {}
    entries = found.items() if isinstance(found, dict) else ()
    return {path: entry for path, entry in entries if isinstance(entry, list) and len(entry) == 3}
