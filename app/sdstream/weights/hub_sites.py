"""The differences between the hubs: requests about a file, and the address of its contents.

weights/hub.py downloads, verifies and removes files in the same way for all hubs. For ModelScope
this module uses the API of ModelScope (``/api/v1/models/…``), like its client modelscope_hub. The
list of a folder contains the SHA-256 and the size of each file. The address of a file's contents
redirects to a server that needs no token.
"""

from __future__ import annotations

from typing import Any, Final, Protocol
from urllib.parse import quote, urlencode

import httpx2
from huggingface_hub import (  # noqa: TID251
    constants,
    get_hf_file_metadata,
    get_session,
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

#: ModelScope's error code for a missing branch or tag. Other codes with the status 404 mean that
#: the repository does not exist, or that the account may not read it.
_NO_REVISION: Final = 10990101004


class Site(Protocol):
    """Interface of a hub."""

    @property
    def service(self) -> Service:
        """The hub's names and addresses, for messages."""

    @property
    def folder(self) -> str:
        """The hub's folder inside the cache; empty for the cache folder itself."""

    def page(self, file: HubFile) -> str:
        """Return the address of the web page of a file's repository."""

    def ask(self, file: HubFile) -> Answer:
        """Request the checksum, size and commit of a file.

        Raises:
            HubError: The server's answer is not valid for a hub.
            HfHubHTTPError, httpx2.HTTPError: There is no answer, or it is an error.
        """

    def contents(self, file: HubFile, commit: str) -> tuple[str, dict[str, str]]:
        """Return the address of a file's contents, and the headers of the request."""


class HuggingFace:
    """The Hugging Face hub, or the mirror that HF_ENDPOINT names."""

    folder: Final = ""

    @property
    def service(self) -> Service:
        """The hub's names and addresses, for messages."""
        return Service(
            "https://huggingface.co",
            constants.ENDPOINT,
            "HF_ENDPOINT",
            "HF_TOKEN",
            "https://huggingface.co/settings/tokens",
        )

    def page(self, file: HubFile) -> str:
        """Return the address of the web page of a file's repository."""
        return f"{constants.ENDPOINT}/{file.repo}"

    def ask(self, file: HubFile) -> Answer:
        """Request the headers of a file, which contain its checksum, size and commit."""
        url = hf_hub_url(file.repo, file.path, revision=file.revision)
        found = get_hf_file_metadata(url, library_name="sdstream", library_version=__version__)
        if found.size is not None and found.size > constants.MAX_HTTP_DOWNLOAD_SIZE:
            raise HubError(
                f"{file} has {decimal(found.size)}, and the hub sends at most "
                f"{decimal(constants.MAX_HTTP_DOWNLOAD_SIZE)} by HTTP: "
                f"'hf download {file.repo} {file.path}' downloads it to where sdstream finds it."
            )
        return Answer(found.etag, found.size, found.commit_hash)

    def contents(self, file: HubFile, commit: str) -> tuple[str, dict[str, str]]:
        """Return the address by commit, so that a resumed download continues the same version."""
        headers = build_hf_headers(library_name="sdstream", library_version=__version__)
        return hf_hub_url(file.repo, file.path, revision=commit), headers


class ModelScope:
    """ModelScope, or the server that MODELSCOPE_ENDPOINT names."""

    #: A separate folder: Hugging Face may have other contents under the same repository name.
    folder: Final = "modelscope"

    _HOME: Final = "https://modelscope.cn"

    @property
    def service(self) -> Service:
        """The hub's names and addresses, for messages."""
        endpoint = (variable("MODELSCOPE_ENDPOINT") or self._HOME).rstrip("/")
        return Service(
            self._HOME,
            endpoint,
            "MODELSCOPE_ENDPOINT",
            "MODELSCOPE_API_TOKEN",
            "https://modelscope.cn/my/myaccesstoken",
        )

    def page(self, file: HubFile) -> str:
        """Return the address of the web page of a file's repository."""
        return f"{self.service.endpoint}/models/{file.repo}"

    def ask(self, file: HubFile) -> Answer:
        """Request the list of the file's folder.

        The list of a whole repository would be limited to 3000 entries.
        """
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
                f" the size {str(size)[:64]!r} of {file}, which are not a string and a "
                "whole number."
            )
        # The API reports only the last commit that changed each file, which differs between files,
        # so the revision is used in its place.
        return Answer(checksum, size, file.revision)

    def contents(self, file: HubFile, commit: str) -> tuple[str, dict[str, str]]:
        """Return the address by revision; the checksum reveals a change during the download."""
        return self._url(file, "repo", Revision=commit, FilePath=file.path), self._headers()

    def _url(self, file: HubFile, what: str, **query: str) -> str:
        base = f"{self.service.endpoint}/api/v1/models/{quote(file.repo)}/{what}"
        return f"{base}?{urlencode(query)}"

    def _headers(self) -> dict[str, str]:
        headers = {"User-Agent": f"sdstream/{__version__}"}
        token = variable("MODELSCOPE_API_TOKEN")
        if token:
            # Older routes of the API read the cookie, and newer routes read the header.
            headers["Authorization"] = f"Bearer {token}"
            headers["Cookie"] = f"m_session_id={token}"
        return headers


def _entry(body: Any, file: HubFile) -> dict[str, Any] | None:
    """Return the entry of a file in ModelScope's list of files; None if it has no such file.

    Raises:
        HubError: The answer is not a list of files.
    """
    try:
        listed = [entry for entry in body["Data"]["Files"] if entry["Path"] == file.path]
    except (KeyError, TypeError):
        raise HubError(
            f"{SITES[file.hub].service} is not ModelScope: it sent no list of files for {file}."
        ) from None
    return next((entry for entry in listed if entry.get("Type") == "blob"), None)


#: Prefix of locations -> hub.
SITES: Final[dict[str, Site]] = {"hf:": HuggingFace(), "ms:": ModelScope()}
