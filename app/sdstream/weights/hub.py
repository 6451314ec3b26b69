"""The hubs' cache on this machine: finding files in it, fetching them into it, removing them.

The folder has the layout of huggingface_hub, so that what other tools fetched is found, and they
find what was fetched here: blobs named by their checksum, and snapshots that link to them. The
library names the files, asks the hub about them, signs requests and makes the links; the bytes are
moved here, because of what it does not do (huggingface_hub 2.4). Files of ModelScope have the same
layout in the folder ``modelscope``; weights/hub_sites.py has what differs.

1. It resumes a file that was cut only while it runs: what a killed or failed download has got
   it deletes. Here that stays, under a name made of path and checksum, until the next pull.
2. It checks the size and no checksum. Here a file gets the blob's name when it has that checksum.
3. It tries again after a timeout, a 408 and a 429, however long Retry-After is, and not after a
   reset connection or a 500 in the middle of a file.

Files move by plain HTTP: the hub's chunked protocol (Xet) is faster and cannot go on where it was
cut. Both take the same lock, so that nothing is fetched twice at the same time.
"""

from __future__ import annotations

import hashlib
import logging
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
from sdstream.weights.hub_errors import HubError, cause_of, pause_after, sentences, short
from sdstream.weights.hub_sites import SITES

#: What names a version of a repository.
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
#: Seconds before each new try, as long as no bytes arrive.
_PAUSES: Final = (1, 2, 4, 8)
#: Seconds that a lock is waited for before the watcher is notified.
_SHORTLY: Final = 0.2
_PARTIAL: Final = ".incomplete"

_T = TypeVar("_T")

# The library warns of each new try on stderr; here the watcher is notified instead.
logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


class Watcher(Protocol):
    """Is notified of the progress of a download."""

    def has(self, octets: int) -> None:
        """Note how many bytes of the file are downloaded."""

    def says(self, words: str) -> None:
        """Note why no bytes arrive at present."""


@dataclass(frozen=True)
class Remote:
    """A hub's facts about a file.

    Attributes:
        page: Where its licence is accepted.
        checksum: SHA-256 in hex, or the SHA-1 that git gives a small file; also the blob's name.
        size: Bytes.
        commit: That the revision was when the hub was asked; of ModelScope the revision itself.
    """

    file: HubFile
    page: str
    checksum: str
    size: int
    commit: str


class Hub:
    """The hubs and their cache.

    Args:
        folder: Of the cache; None is where HF_HUB_CACHE or HF_HOME say, as for other tools.
        sleep: Waits so many seconds.
    """

    def __init__(self, folder: Path | None, sleep: Callable[[float], None] = time.sleep) -> None:
        self.folder = folder.expanduser() if folder else Path(constants.HF_HUB_CACHE)
        self._sleep = sleep

    @property
    def offline(self) -> bool:
        """True when HF_HUB_OFFLINE forbids every request."""
        return bool(constants.is_offline_mode())

    # --- what is here ---------------------------------------------------------------------------

    def find(self, file: HubFile) -> Path | None:
        """Return the path of a downloaded file, or None. Sends no request."""
        cache = self._cache(file)
        found = try_to_load_from_cache(file.repo, file.path, cache, file.revision)
        return Path(found) if isinstance(found, str) else None

    def is_damaged(self, file: HubFile) -> bool:
        """Read a file that is here and compare it with its checksum.

        Where the cache has copies in place of links there is no checksum: False.
        """
        pointer = self.find(file)
        if pointer is None or not pointer.is_symlink():
            return False
        name = pointer.readlink().name
        return _algorithm(name) is not None and _checksum(pointer, name) != name

    # --- fetching -------------------------------------------------------------------------------

    def look_up(self, file: HubFile, page: str | None, watcher: Watcher) -> Remote:
        """Ask the hub about a file.

        Args:
            file: It.
            page: Where its licence is accepted; None is the repository's own page.
            watcher: Is notified of retries.

        Raises:
            HubError: It cannot be downloaded.
        """
        site = SITES[file.hub]
        page, hub = page or site.page(file), site.service
        with sentences(hub, file, page):
            found = self._patiently(lambda: site.ask(file), watcher)
        if found.checksum is None or found.size is None or found.commit is None:
            raise HubError(f"{hub} is not a hub: it sent no checksum of {file}.")
        if _algorithm(found.checksum) is None:
            raise HubError(f"{hub} sent '{found.checksum}' in place of a checksum of {file}.")
        known = _COMMIT.fullmatch(found.commit) or found.commit == file.revision
        if not known or found.size < 0:
            raise HubError(
                f"{hub} sent the commit '{found.commit[:64]}' and the size "
                f"{found.size} of {file}; a hub sends 40 hexadecimal digits and a size from 0."
            )
        return Remote(file, page, found.checksum, found.size, found.commit)

    def check_room(self, remotes: Iterable[Remote]) -> None:
        """Verify that the disk has room for what is missing of these files.

        Raises:
            HubError: It has not, and how much more it takes.
        """
        need = sum(remote.size - self.fetched(remote) for remote in remotes)
        place = self.folder
        while not place.exists():
            place = place.parent
        free = shutil.disk_usage(place).free
        if need > free:
            raise HubError(
                f"{decimal(need)} are to be fetched and the disk of {self.folder} has "
                f"{decimal(free)} free: {decimal(need - free)} are missing."
            )

    def fetched(self, remote: Remote) -> int:
        """Bytes that an earlier pull left of a file."""
        partial = self._partial(remote)
        return min(partial.stat().st_size, remote.size) if partial.exists() else 0

    def fetch(self, remote: Remote, watcher: Watcher) -> Path:
        """Bring a file into the cache, going on where an earlier pull was cut.

        Raises:
            HubError: It did not come, or not as it should be. What came stays for the next time,
                unless it was wrong.
        """
        blob = self._repository(remote.file) / "blobs" / remote.checksum
        service = SITES[remote.file.hub].service
        with sentences(service, remote.file, remote.page), self._lock(remote, watcher):
            # Another process may have brought it while this one waited.
            if not blob.exists():
                partial = self._partial(remote)
                self._download(remote, partial, watcher)
                if _checksum(partial, remote.checksum) != remote.checksum:
                    partial.unlink()
                    raise HubError(
                        f"{remote.file} came with other contents than the hub has (its checksum is "
                        "wrong) and was deleted; pull it again."
                    )
                blob.parent.mkdir(parents=True, exist_ok=True)
                partial.replace(blob)
                with suppress(OSError):
                    partial.parent.rmdir()
        watcher.has(remote.size)
        return self._link(remote, blob, watcher)

    def _link(self, remote: Remote, blob: Path, watcher: Watcher) -> Path:
        """Enter a blob that is here under the file's name and revision."""
        file = remote.file
        site = SITES[file.hub]
        with sentences(site.service, file, remote.page):
            pointer = self._patiently(lambda: site.link(file, blob, self._cache(file)), watcher)
        # The revision may have moved on since it was looked up, and the library does not compare.
        if self.is_damaged(file):
            self.remove(file)
            raise HubError(f"{file} has changed meanwhile and came damaged; pull it again.")
        return pointer

    @contextmanager
    def _lock(self, remote: Remote, watcher: Watcher) -> Iterator[None]:
        """The library's own lock of a blob."""
        name = self._repository(remote.file).name
        path = self._cache(remote.file) / ".locks" / name / f"{remote.checksum}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            try:
                stack.enter_context(WeakFileLock(path, timeout=_SHORTLY))
            except TimeoutError:
                watcher.says("another process is fetching it")
                stack.enter_context(WeakFileLock(path))
            yield

    def _download(self, remote: Remote, partial: Path, watcher: Watcher) -> None:
        partial.parent.mkdir(parents=True, exist_ok=True)
        for other in self._partials(remote.file):
            if other != partial:  # of a version that is no longer the latest
                other.unlink()
        self._patiently(
            lambda: _append(remote, partial, watcher), watcher, lambda: self.fetched(remote)
        )

    def _patiently(
        self, work: Callable[[], _T], watcher: Watcher, measure: Callable[[], int] = lambda: 0
    ) -> _T:
        """Try again after faults that pass, with growing pauses unless ``measure`` has grown."""
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
        """Delete a file, whole or cut, but no blob that another snapshot links to.

        Returns:
            Bytes that the disk has got back.
        """
        freed = sum(_unlink(partial) for partial in self._partials(file))
        pointer, repository = self.find(file), self._repository(file)
        if pointer is not None:
            snapshots = repository / "snapshots"
            # One step only: the library may keep the blob itself in a store that is shared.
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
        """True when a file, or a part of it, is downloaded."""
        return self.find(file) is not None or bool(self._partials(file))

    def _repository(self, file: HubFile) -> Path:
        return self._cache(file) / repo_folder_name(repo_id=file.repo, repo_type="model")

    def _cache(self, file: HubFile) -> Path:
        return self.folder / SITES[file.hub].folder

    def _partial(self, remote: Remote) -> Path:
        name = f"{_digest_of_name(remote.file)}.{remote.checksum}"
        return self._repository(remote.file) / _PARTIAL / name

    def _partials(self, file: HubFile) -> list[Path]:
        return [*(self._repository(file) / _PARTIAL).glob(f"{_digest_of_name(file)}.*")]


def _digest_of_name(file: HubFile) -> str:
    """A path may be longer than a name, so that a digest has to stand for it."""
    return hashlib.sha256(file.path.encode()).hexdigest()[:16]


def _unlink(path: Path) -> int:
    """Delete a file; returns its bytes, 0 for a link."""
    size = 0 if path.is_symlink() else path.stat().st_size
    path.unlink()
    return size


def _is_linked(blob: Path, snapshots: Path) -> bool:
    return any(
        path.is_symlink() and path.readlink().name == blob.name for path in snapshots.rglob("*")
    )


def _append(remote: Remote, partial: Path, watcher: Watcher) -> None:
    """Fetch the rest of a file."""
    done = partial.stat().st_size if partial.exists() else 0
    if done == remote.size and partial.exists():
        return
    # The address behind the redirect is requested each time, since it is signed for an hour.
    url, headers = SITES[remote.file.hub].contents(remote.file, remote.commit)
    headers["Accept-Encoding"] = "identity"  # or the count of bytes would be that of packed ones
    if 0 < done < remote.size:
        headers["Range"] = f"bytes={done}-"
    session, patience = get_session(), constants.HF_HUB_DOWNLOAD_TIMEOUT
    with session.stream("GET", url, headers=headers, timeout=patience) as answer:
        hf_raise_for_status(answer)
        if answer.status_code != httpx2.codes.PARTIAL_CONTENT:
            done = 0
        with partial.open("ab" if done else "wb") as file:
            for chunk in answer.iter_bytes():
                file.write(chunk)
                done += len(chunk)
                watcher.has(min(done, remote.size))
                if done > remote.size:
                    return  # the checksum will tell
    if done < remote.size:
        raise httpx2.RemoteProtocolError(f"{remote.size - done} bytes too few came")


# --- checksums ----------------------------------------------------------------------------------


def _algorithm(checksum: str) -> str | None:
    """What a checksum was made by, None when it is something else."""
    if re.fullmatch(r"[0-9a-f]*", checksum) is None:
        return None
    return {64: "sha256", 40: "sha1"}.get(len(checksum))


def _checksum(path: Path, like: str) -> str:
    """The checksum of a file's contents, made as another one was; of SHA-1 it is git's."""
    digest = hashlib.new(_algorithm(like) or "sha256", usedforsecurity=False)
    if digest.name == "sha1":
        digest.update(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
