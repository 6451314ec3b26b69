"""The cache of the hubs' files on this machine: finding, downloading and removing files.

The folder has the layout of huggingface_hub: blobs are named by their checksum, and snapshots
contain links to blobs. This module therefore finds files that other tools have downloaded, and they
find its files. Files of ModelScope have the same layout in the folder ``modelscope``;
weights/hub_sites.py contains the differences between the hubs.

huggingface_hub names the files, sends requests about them and adds the credentials. This module
downloads the contents and creates the links itself, because of four limits of huggingface_hub 2.4:

1. It resumes an interrupted download only within the same process, and it deletes the partial file
   of a failed download. This module keeps the partial file until the next pull, under a name made
   of the path and the checksum.
2. It verifies the size but not the checksum. This module renames a file to the blob's name only
   after its checksum was verified.
3. It retries after a timeout, a 408 and a 429, however long Retry-After is, but not after a reset
   connection or a 500 in the middle of a file.
4. It creates a link only after it has requested the file's headers again, and does not validate
   the checksum and the commit in them, which become parts of paths.

Files are downloaded by plain HTTP. The hub's chunked protocol (Xet) is faster, but it cannot resume
a download. huggingface_hub and this module use the same lock, so that no file is downloaded twice
at the same time.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeVar

import httpx2
from huggingface_hub import (  # noqa: TID251
    constants,
    get_session,
    hf_raise_for_status,
    try_to_load_from_cache,
)
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError  # noqa: TID251
from huggingface_hub.file_download import repo_folder_name  # noqa: TID251
from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # noqa: TID251
from rich.filesize import decimal

from sdstream.core.locations import HubFile
from sdstream.weights.folders import expanded
from sdstream.weights.hub_errors import HubError, cause_of, pause_after, sentences, short
from sdstream.weights.hub_sites import SITES

#: Id of a commit, which identifies a version of a repository.
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
#: Seconds before each retry; the list starts again whenever bytes have arrived.
_PAUSES: Final = (1, 2, 4, 8)
#: Seconds to wait for a lock before the watcher is notified.
_SHORTLY: Final = 0.2
_PARTIAL: Final = ".incomplete"

_T = TypeVar("_T")

# The library logs a warning for each retry; this module notifies the watcher instead.
logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


class Watcher(Protocol):
    """Interface of an object that is notified of a download's progress."""

    def has(self, octets: int) -> None:
        """Handle the number of bytes downloaded so far."""

    def says(self, words: str) -> None:
        """Handle the reason why no bytes arrive at present."""


@dataclass(frozen=True)
class Remote:
    """A hub's validated answer about a file.

    Attributes:
        file: The file.
        page: Web page where users accept the licence of the file.
        checksum: SHA-256 in hex, or git's SHA-1 for a small file; also the blob's name.
        size: Size in bytes.
        commit: The commit that the revision pointed to at the time of the request; for ModelScope
            the revision itself.
    """

    file: HubFile
    page: str
    checksum: str
    size: int
    commit: str


class Hub:
    """The hubs and their cache.

    Args:
        folder: Folder of the cache; None is the folder that HF_HUB_CACHE or HF_HOME sets.
        sleep: Function that waits for a number of seconds.
    """

    def __init__(self, folder: Path | None, sleep: Callable[[float], None] = time.sleep) -> None:
        self.folder = expanded(folder or constants.HF_HUB_CACHE)
        self._sleep = sleep

    @property
    def offline(self) -> bool:
        """True if HF_HUB_OFFLINE forbids all requests."""
        return bool(constants.is_offline_mode())

    # --- downloaded files -----------------------------------------------------------------------

    def find(self, file: HubFile) -> Path | None:
        """Return the path of a downloaded file, or None, without sending a request."""
        cache = self._cache(file)
        found = try_to_load_from_cache(file.repo, file.path, cache, file.revision)
        return Path(found) if isinstance(found, str) else None

    def is_damaged(self, file: HubFile) -> bool:
        """Return whether a downloaded file differs from its checksum.

        The result is False if the file is not downloaded, or if the cache contains a copy instead
        of a link, because a copy has no checksum.
        """
        pointer = self.find(file)
        if pointer is None or not pointer.is_symlink():
            return False
        name = pointer.readlink().name
        return _algorithm(name) is not None and _checksum(pointer, name) != name

    # --- downloading ----------------------------------------------------------------------------

    def look_up(self, file: HubFile, page: str | None, watcher: Watcher) -> Remote:
        """Request a file's checksum, size and commit from its hub.

        Args:
            file: The file.
            page: Web page where users accept the licence; None for the repository's own page.
            watcher: Object that is notified of retries.

        Raises:
            HubError: The file cannot be downloaded.
        """
        site = SITES[file.hub]
        page, hub = page or site.page(file), site.service
        with sentences(hub, file, page):
            found = self._patiently(lambda: site.ask(file), watcher)
        if found.checksum is None or found.size is None or found.commit is None:
            raise HubError(f"{hub} is not a hub: it sent no checksum of {file}.")
        if _algorithm(found.checksum) is None:
            raise HubError(f"{hub} sent '{found.checksum}' instead of a checksum of {file}.")
        known = _COMMIT.fullmatch(found.commit) or found.commit == file.revision
        if not known or found.size < 0:
            raise HubError(
                f"{hub} sent the commit '{found.commit[:64]}' and the size "
                f"{found.size} of {file}; a hub sends 40 hexadecimal digits and a size from 0."
            )
        return Remote(file, page, found.checksum, found.size, found.commit)

    def check_room(self, remotes: Iterable[Remote]) -> None:
        """Verify that the disk has enough free space for the missing parts of these files.

        Raises:
            HubError: The space is not enough; the message contains the missing amount.
        """
        need = sum(remote.size - self.fetched(remote) for remote in remotes)
        place = self.folder
        while not place.exists():
            place = place.parent
        free = shutil.disk_usage(place).free
        if need > free:
            raise HubError(
                f"{decimal(need)} must be downloaded, but the disk with {self.folder} has only "
                f"{decimal(free)} free; free {decimal(need - free)} more."
            )

    def fetched(self, remote: Remote) -> int:
        """Return the number of bytes that an earlier, interrupted pull has kept."""
        partial = self._partial(remote)
        return min(partial.stat().st_size, remote.size) if partial.exists() else 0

    def fetch(self, remote: Remote, watcher: Watcher) -> Path:
        """Download a file into the cache, and resume an earlier, interrupted download.

        Raises:
            HubError: The download failed, or the file has a wrong checksum. A partial file is kept
                for the next pull; a wrong file is deleted.
        """
        blob = self._repository(remote.file) / "blobs" / remote.checksum
        service = SITES[remote.file.hub].service
        with sentences(service, remote.file, remote.page), self._lock(remote, watcher):
            # Another process may have downloaded it while this one waited for the lock.
            if not blob.exists():
                partial = self._partial(remote)
                self._download(remote, partial, watcher)
                if _checksum(partial, remote.checksum) != remote.checksum:
                    partial.unlink()
                    raise HubError(
                        f"The downloaded file {remote.file} had a wrong checksum and was deleted; "
                        "pull it again."
                    )
                blob.parent.mkdir(parents=True, exist_ok=True)
                partial.replace(blob)
                with suppress(OSError):
                    partial.parent.rmdir()
            watcher.has(remote.size)
            return self._link(remote, blob)

    def _link(self, remote: Remote, blob: Path) -> Path:
        """Create the link from the file's name and commit to its blob, and return its path.

        huggingface_hub would request the file's headers again, and use them without validation: a
        hub that sends other headers then could make it write any file.
        """
        repository = self._repository(remote.file)
        pointer = repository / "snapshots" / remote.commit / remote.file.path
        pointer.parent.mkdir(parents=True, exist_ok=True)
        # The link is replaced atomically, because another process may create it at the same time.
        link = pointer.with_name(f"{pointer.name}.{os.getpid()}")
        link.unlink(missing_ok=True)
        try:
            link.symlink_to(os.path.relpath(blob, pointer.parent))
        except PermissionError:  # the file system has no links
            shutil.copyfile(blob, link)
        link.replace(pointer)
        if remote.commit != remote.file.revision:
            ref = repository / "refs" / remote.file.revision
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(remote.commit)
        return pointer

    @contextmanager
    def _lock(self, remote: Remote, watcher: Watcher) -> Iterator[None]:
        """Hold the lock that huggingface_hub uses for a blob."""
        path = self._lock_path(remote.file, remote.checksum)
        path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            try:
                stack.enter_context(WeakFileLock(path, timeout=_SHORTLY))
            except TimeoutError:
                watcher.says("another process is downloading it")
                stack.enter_context(WeakFileLock(path))
            yield

    def _download(self, remote: Remote, partial: Path, watcher: Watcher) -> None:
        partial.parent.mkdir(parents=True, exist_ok=True)
        for other in self._partials(remote.file):
            if other != partial:  # a part of another version of the file
                self._discard(remote.file, other)
        self._patiently(
            lambda: _append(remote, partial, watcher), watcher, lambda: self.fetched(remote)
        )

    def _discard(self, file: HubFile, partial: Path) -> None:
        """Delete a partial file, unless another process downloads it now."""
        lock = self._lock_path(file, partial.name.rpartition(".")[2])
        with suppress(TimeoutError), WeakFileLock(lock, timeout=_SHORTLY):
            partial.unlink(missing_ok=True)

    def _patiently(
        self, work: Callable[[], _T], watcher: Watcher, measure: Callable[[], int] = lambda: 0
    ) -> _T:
        """Call ``work``, and retry it after transient errors.

        The pauses become longer with each retry. They start again at the shortest one when the
        result of ``measure`` has increased.
        """
        pauses, before = list(_PAUSES), measure()
        while True:
            try:
                return work()
            except (httpx2.TransportError, HfHubHTTPError, LocalEntryNotFoundError) as error:
                if measure() > before:
                    pauses, before = list(_PAUSES), measure()
                pause = pause_after(cause_of(error), pauses)
                if pause is None:
                    raise
                watcher.says(f"{short(cause_of(error))}; again in {pause} s")
                self._sleep(pause)

    # --- removing -------------------------------------------------------------------------------

    def remove(self, file: HubFile) -> int:
        """Delete a file and its partial downloads, but not a blob that another snapshot links to.

        Returns:
            The number of bytes freed on the disk.
        """
        freed = sum(_unlink(partial) for partial in self._partials(file))
        pointer, repository = self.find(file), self._repository(file)
        if pointer is not None:
            snapshots = repository / "snapshots"
            # Only one link is followed: the blob may be a link to the library's shared store.
            blob = pointer.parent / pointer.readlink() if pointer.is_symlink() else pointer
            freed += _unlink(pointer)
            if blob != pointer and not _is_linked(blob, snapshots):
                freed += _unlink(blob)
            for folder in pointer.relative_to(snapshots).parents[:-2]:
                with suppress(OSError):  # not empty
                    (snapshots / folder).rmdir()
        kept = (repository / name for name in ("snapshots", "blobs", _PARTIAL))
        if not any(not path.is_dir() for folder in kept for path in folder.rglob("*")):
            shutil.rmtree(repository, ignore_errors=True)
        return freed

    def has_any(self, file: HubFile) -> bool:
        """Return True if a file or a part of it is downloaded."""
        return self.find(file) is not None or bool(self._partials(file))

    def _repository(self, file: HubFile) -> Path:
        return self._cache(file) / repo_folder_name(repo_id=file.repo, repo_type="model")

    def _cache(self, file: HubFile) -> Path:
        return self.folder / SITES[file.hub].folder

    def _lock_path(self, file: HubFile, checksum: str) -> Path:
        return self._cache(file) / ".locks" / self._repository(file).name / f"{checksum}.lock"

    def _partial(self, remote: Remote) -> Path:
        name = f"{_digest_of_name(remote.file)}.{remote.checksum}"
        return self._repository(remote.file) / _PARTIAL / name

    def _partials(self, file: HubFile) -> list[Path]:
        return [*(self._repository(file) / _PARTIAL).glob(f"{_digest_of_name(file)}.*")]


def _digest_of_name(file: HubFile) -> str:
    """Return a hash of a file's path, because a path may be too long for a file name."""
    return hashlib.sha256(file.path.encode()).hexdigest()[:16]


def _unlink(path: Path) -> int:
    """Delete a file; return its size in bytes, or 0 for a link."""
    size = 0 if path.is_symlink() else path.stat().st_size
    path.unlink()
    return size


def _is_linked(blob: Path, snapshots: Path) -> bool:
    return any(
        path.is_symlink() and path.readlink().name == blob.name for path in snapshots.rglob("*")
    )


def _append(remote: Remote, partial: Path, watcher: Watcher) -> None:
    """Download the rest of a file.

    Raises:
        httpx2.RemoteProtocolError: The answer ended too early, or has another range of the file.
    """
    done = partial.stat().st_size if partial.exists() else 0
    if done == remote.size and partial.exists():
        return
    # The redirect is requested again each time, because its target address is valid for an hour.
    url, headers = SITES[remote.file.hub].contents(remote.file, remote.commit)
    headers["Accept-Encoding"] = "identity"  # ranges of compressed contents would not fit the file
    if 0 < done < remote.size:
        headers["Range"] = f"bytes={done}-"
    session, patience = get_session(), constants.HF_HUB_DOWNLOAD_TIMEOUT
    with session.stream("GET", url, headers=headers, timeout=patience) as answer:
        hf_raise_for_status(answer)
        if answer.status_code != httpx2.codes.PARTIAL_CONTENT:
            done = 0
        elif _first_byte(answer, done) != done:
            partial.unlink()  # the next try requests the whole file
            raise httpx2.RemoteProtocolError("the server sent another range of the file")
        with partial.open("ab" if done else "wb") as file:
            for chunk in answer.iter_bytes():
                file.write(chunk)
                done += len(chunk)
                watcher.has(min(done, remote.size))
                if done > remote.size:
                    return  # the check of the checksum will fail
    if done < remote.size:
        raise httpx2.RemoteProtocolError(f"{remote.size - done} bytes are missing")


def _first_byte(answer: httpx2.Response, requested: int) -> int:
    """Return the position of a partial answer in the file: by its header, or as requested."""
    sent = re.match(r"bytes (\d{1,18})-", answer.headers.get("Content-Range", ""))
    return int(sent[1]) if sent else requested


# --- checksums ----------------------------------------------------------------------------------


def _algorithm(checksum: str) -> str | None:
    """Return the hash algorithm of a checksum; None if the text is not a checksum."""
    if re.fullmatch(r"[0-9a-f]*", checksum) is None:
        return None
    return {64: "sha256", 40: "sha1"}.get(len(checksum))


def _checksum(path: Path, like: str) -> str:
    """Return the checksum of a file, with the algorithm of ``like``; SHA-1 is git's form of it."""
    digest = hashlib.new(_algorithm(like) or "sha256", usedforsecurity=False)
    if digest.name == "sha1":
        digest.update(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: digest).hexdigest()
