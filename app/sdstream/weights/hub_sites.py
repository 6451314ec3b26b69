"""The hubs: how each is asked about a file, where the contents are, and how a file gets its name.

weights/hub.py moves the bytes, checks and removes them, in the same way for all hubs. ModelScope is
asked by its own API (``/api/v1/models/…``), as its client modelscope_hub does: the list of a folder
has the SHA-256 and the size of each file, and the address of the contents redirects to a server
that takes no token.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import quote, urlencode

import httpx2
from huggingface_hub import (  # noqa: TID251
    constants,
    get_hf_file_metadata,
    get_session,
    hf_hub_download,
    hf_hub_url,
    hf_raise_for_status,
)
from huggingface_hub.errors import (  # noqa: TID251
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # noqa: TID251
from rich.filesize import decimal

from sdstream import __version__
from sdstream.core.locations import HubFile
from sdstream.settings import variable
from sdstream.weights.hub_errors import Answer, HubError, Service

#: ModelScope's code of a repository that has no such branch or tag. Other codes of a 404 say that a
#: repository does not exist or may not be read.
_NO_REVISION: Final = 10990101004


class Site(Protocol):
    """One hub."""

    @property
    def service(self) -> Service:
        """Its names and addresses, for messages."""

    @property
    def folder(self) -> str:
        """Its folder inside the cache; empty is the cache itself."""

    def page(self, file: HubFile) -> str:
        """The web page of a file's repository."""

    def ask(self, file: HubFile) -> Answer:
        """Ask about a file.

        Raises:
            HubError: The answer is not that of a hub.
            HfHubHTTPError, httpx2.HTTPError: There is no answer, or a refusal.
        """

    def contents(self, file: HubFile, commit: str) -> tuple[str, dict[str, str]]:
        """The address of a file's contents, and the headers to ask with."""

    def link(self, file: HubFile, blob: Path, cache: Path) -> Path:
        """Enter a blob under the file's name and revision; returns the path of that name."""


class HuggingFace:
    """The Hugging Face hub, or the mirror that HF_ENDPOINT names."""

    folder: Final = ""

    @property
    def service(self) -> Service:
        """Its names and addresses, for messages."""
        return Service(
            "https://huggingface.co",
            constants.ENDPOINT,
            "HF_ENDPOINT",
            "HF_TOKEN",
            "https://huggingface.co/settings/tokens",
        )

    def page(self, file: HubFile) -> str:
        """The web page of a file's repository."""
        return f"{constants.ENDPOINT}/{file.repo}"

    def ask(self, file: HubFile) -> Answer:
        """Ask for the headers of a file."""
        url = hf_hub_url(file.repo, file.path, revision=file.revision)
        found = get_hf_file_metadata(url, library_name="sdstream", library_version=__version__)
        if found.size is not None and found.size > constants.MAX_HTTP_DOWNLOAD_SIZE:
            raise HubError(
                f"{file} has {decimal(found.size)}, and the hub sends no more than "
                f"{decimal(constants.MAX_HTTP_DOWNLOAD_SIZE)} by HTTP: "
                f"'hf download {file.repo} {file.path}' fetches it, and it is found then."
            )
        return Answer(found.etag, found.size, found.commit_hash)

    def contents(self, file: HubFile, commit: str) -> tuple[str, dict[str, str]]:
        """By commit, so that both halves of a download that was cut are of one version."""
        headers = build_hf_headers(library_name="sdstream", library_version=__version__)
        return hf_hub_url(file.repo, file.path, revision=commit), headers

    def link(self, file: HubFile, blob: Path, cache: Path) -> Path:
        """Have the library make the link, which asks the hub for the commit again."""
        pointer = hf_hub_download(
            file.repo,
            file.path,
            revision=file.revision,
            cache_dir=cache,
            library_name="sdstream",
            library_version=__version__,
        )
        return Path(pointer)


class ModelScope:
    """ModelScope, or the server that MODELSCOPE_ENDPOINT names."""

    #: Not beside the others: a repository of the same name may have other contents.
    folder: Final = "modelscope"

    _HOME: Final = "https://modelscope.cn"

    @property
    def service(self) -> Service:
        """Its names and addresses, for messages."""
        endpoint = (variable("MODELSCOPE_ENDPOINT") or self._HOME).rstrip("/")
        return Service(
            self._HOME,
            endpoint,
            "MODELSCOPE_ENDPOINT",
            "MODELSCOPE_API_TOKEN",
            "https://modelscope.cn/my/myaccesstoken",
        )

    def page(self, file: HubFile) -> str:
        """The web page of a file's repository."""
        return f"{self.service.endpoint}/models/{file.repo}"

    def ask(self, file: HubFile) -> Answer:
        """Ask for the list of a file's folder: that of a whole repository is cut after 3000."""
        folder = file.path.rpartition("/")[0]
        root = {"Root": folder} if folder else {}
        url = self._url(file, "repo/files", Revision=file.revision, Recursive="False", **root)
        answer = get_session().get(
            url, headers=self._headers(), timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
        )
        try:
            body = answer.json()
        except ValueError:
            body = None
        if answer.status_code == httpx2.codes.NOT_FOUND and isinstance(body, dict):
            if body.get("Code") == _NO_REVISION:
                raise RevisionNotFoundError("no such revision", response=answer)
            raise RepositoryNotFoundError("not found, or no access", response=answer)
        hf_raise_for_status(answer)
        entry = _entry(body, file)
        if entry is None:
            raise RemoteEntryNotFoundError("not in the list", response=answer)
        checksum, size = entry.get("Sha256"), entry.get("Size")
        if not isinstance(checksum, str | None) or type(size) not in (int, type(None)):
            raise HubError(
                f"{self.service} is not ModelScope: it sent the checksum {str(checksum)[:64]!r} and"
                f" the size {str(size)[:64]!r} of {file}, which are not a text and a whole number."
            )
        # The API names only the last commit that changed each file, which other files do not share.
        return Answer(checksum, size, file.revision)

    def contents(self, file: HubFile, commit: str) -> tuple[str, dict[str, str]]:
        """By revision; the checksum shows when that changed in the middle."""
        return self._url(file, "repo", Revision=commit, FilePath=file.path), self._headers()

    def link(self, file: HubFile, blob: Path, cache: Path) -> Path:
        """Link ``snapshots/REVISION/PATH`` to the blob: the layout of huggingface_hub."""
        pointer = blob.parents[1] / "snapshots" / file.revision / file.path
        pointer.parent.mkdir(parents=True, exist_ok=True)
        # In one step, for another process may do the same at this moment.
        link = pointer.with_name(f"{pointer.name}.{os.getpid()}")
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(blob, pointer.parent))
        return link.replace(pointer)

    def _url(self, file: HubFile, what: str, **query: str) -> str:
        base = f"{self.service.endpoint}/api/v1/models/{quote(file.repo)}/{what}"
        return f"{base}?{urlencode(query)}"

    def _headers(self) -> dict[str, str]:
        headers = {"User-Agent": f"sdstream/{__version__}"}
        token = variable("MODELSCOPE_API_TOKEN")
        if token:
            # Older routes of the API take the cookie, newer ones the header.
            headers["Authorization"] = f"Bearer {token}"
            headers["Cookie"] = f"m_session_id={token}"
        return headers


def _entry(body: Any, file: HubFile) -> dict[str, Any] | None:
    """What a list of files has about a file.

    Raises:
        HubError: The answer is not a list of ModelScope.
    """
    try:
        listed = [entry for entry in body["Data"]["Files"] if entry["Path"] == file.path]
    except (KeyError, TypeError):
        raise HubError(
            f"{SITES[file.hub].service} is not ModelScope: it sent no list of files for {file}."
        ) from None
    return next((entry for entry in listed if entry.get("Type") == "blob"), None)


#: By the prefix of locations.
SITES: Final[dict[str, Site]] = {"hf:": HuggingFace(), "ms:": ModelScope()}
