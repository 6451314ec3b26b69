"""Where a weight file of the catalogue comes from: a path, the package, or the hub."""

from __future__ import annotations

import re
from typing import Annotated, Final, NamedTuple, Self
from urllib.parse import unquote

from pydantic import AfterValidator

BUILTIN: Final = "builtin:"
"""Prefix of a file that the package makes itself instead of reading it from disk."""

HUB: Final = "hf:"
"""Prefix of a file that is pulled from the Hugging Face hub into its cache."""

QUANT: Final = "{quant}"
"""Stands for the name of a quant in the location of a hub file."""


class HubFile(NamedTuple):
    """A file of a repository of the hub.

    Attributes:
        repo: OWNER/NAME.
        path: Inside the repository, with slashes.
        revision: A branch, a tag or a commit.
    """

    repo: str
    path: str
    revision: str

    def __str__(self) -> str:
        return f"{self.repo}/{self.path}"

    @classmethod
    def parse(cls, location: str) -> Self:
        """Read "hf:OWNER/REPO[@REVISION]/PATH", or the address of a file in a browser.

        Args:
            location: The address may be that of the file's page (``/blob/``) or of its contents
                (``/resolve/``).

        Raises:
            ValueError: It has another form; the message contains an example.
        """
        if _WEB.match(location):
            return cls._of_web(location)
        plain = location.replace(f"{HUB}//", HUB, 1)
        match = _HUB_LOCATION.fullmatch(plain)
        if match is None or {"", ".", ".."} & {*match["path"].split("/")}:
            raise ValueError(f"'{location}' is not a file on the hub; write {_FORMS}")
        return cls(match["repo"], match["path"], match["revision"] or "main")

    @classmethod
    def _of_web(cls, address: str) -> Self:
        match = _HUB_PAGE.fullmatch(address)
        if match is None:
            raise ValueError(
                f"'{address}' is not an address of the Hugging Face hub; download the file and "
                f"write its path, or write {_FORMS} (HF_ENDPOINT names a mirror)"
            )
        found = _HUB_FILE_PAGE.fullmatch(match["path"] or "")
        if found is None:
            raise ValueError(
                f"'{address}' names no file; write "
                f"https://huggingface.co/OWNER/REPO/resolve/main/PATH or {_FORMS}"
            )
        revision, path = unquote(found["revision"]), unquote(found["path"])
        return cls.parse(f"{HUB}{found['repo']}@{revision}/{path}")

    @property
    def location(self) -> str:
        """The file in the form that ``parse`` reads and documents use."""
        revision = "" if self.revision == "main" else f"@{self.revision}"
        return f"{HUB}{self.repo}{revision}/{self.path}"


_WORD: Final = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_FORMS: Final = f"{HUB}OWNER/REPO/PATH or {HUB}OWNER/REPO@REVISION/PATH"
_HUB_LOCATION: Final = re.compile(
    rf"{HUB}(?P<repo>{_WORD}/{_WORD})(?:@(?P<revision>{_WORD}))?/(?P<path>[^\\\s][^\\\n]*)"
)
_WEB: Final = re.compile(r"https?://", re.IGNORECASE)
_HUB_PAGE: Final = re.compile(
    r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)(?P<path>/[^?#]*)?(?:[?#].*)?", re.IGNORECASE
)
_HUB_FILE_PAGE: Final = re.compile(
    rf"/(?P<repo>{_WORD}/{_WORD})/(?:resolve|blob|raw)/(?P<revision>[^/]+)/(?P<path>.+)"
)


def is_address(text: str) -> bool:
    """Return whether a text is meant as a file of the hub, be it written rightly or not."""
    return text.startswith(HUB) or _WEB.match(text) is not None


def _a_location(value: str) -> str:
    if is_address(value):
        file = HubFile.parse(value)
        if re.search(r"[{}]", file.path.replace(QUANT, "")):
            raise ValueError(f"{QUANT} is the only placeholder")
        return file.location
    if QUANT in value:
        raise ValueError(f"{QUANT} is allowed only in files on the hub (hf:OWNER/REPO/PATH)")
    return value


Location = Annotated[str, AfterValidator(_a_location)]
