"""The location of a weight file in the catalogue: on the disk, in this package or on a hub."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final, NamedTuple, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

from pydantic import AfterValidator

BUILTIN: Final = "builtin:"
"""Prefix of a model file that the package creates itself."""

HUBS: Final = ("hf:", "ms:")
"""Prefixes of files to download: from the Hugging Face hub, and from ModelScope."""

QUANT: Final = "{quant}"
"""Placeholder for the name of a quant in the location of a hub file."""


class HubFile(NamedTuple):
    """A file in a repository of a hub.

    Attributes:
        repo: OWNER/NAME.
        path: Path inside the repository, with slashes.
        revision: A branch, a tag or a commit; on the Hugging Face hub also refs/pr/N (the files of
            a pull request) or refs/convert/NAME.
        hub: The prefix of the hub, one of HUBS.
    """

    repo: str
    path: str
    revision: str
    hub: str = HUBS[0]

    def __str__(self) -> str:
        return f"{self.repo}/{self.path}"

    @classmethod
    def parse(cls, location: str) -> Self:
        """Read "hf:OWNER/REPO[@REVISION]/PATH", "ms:…", or the web address of a file.

        Args:
            location: The text. A web address may be that of the file's page (``/blob/``,
                ``/file/view/``) or of its contents (``/resolve/``), without "https://" too.

        Raises:
            ValueError: The text has another form; the message contains an example.
        """
        if _WEB.match(location):
            return cls._of_web(location)
        prefix = location[:3].lower()
        # The links to downloads on the web pages of the Hugging Face hub end with a query.
        plain = location[3:].removeprefix("//").removesuffix("?download=true")
        match = _LOCATION.fullmatch(prefix + plain)
        if match is None or {"", ".", ".."} & {*match["path"].split("/")}:
            raise ValueError(f"'{location}' is not a file on the hub; write {_forms(prefix)}")
        revision = unquote(match["revision"] or _PAGES[prefix].revision)
        is_ref = prefix == "hf:" and re.fullmatch(_REF, revision)
        if ("/" in revision and not is_ref) or revision == "refs":
            raise ValueError(
                f"'{location}' has a revision with a slash; write its commit hash instead (only "
                "refs/pr/N and refs/convert/NAME of the Hugging Face hub are supported)"
            )
        return cls(match["repo"], match["path"], revision, prefix)

    @classmethod
    def _of_web(cls, address: str) -> Self:
        url = urlsplit(address if "://" in address else f"https://{address}")
        host = (url.hostname or "").removeprefix("www.")
        prefix = next((name for name, pages in _PAGES.items() if host in pages.hosts), None)
        if prefix is None:
            raise ValueError(
                f"'{address}' is not an address of the Hugging Face hub or of ModelScope; download "
                f"the file and write its path, or write {_forms('hf:')}, or the same with ms: "
                "(to use a mirror, set HF_ENDPOINT or MODELSCOPE_ENDPOINT)"
            )
        pages = _PAGES[prefix]
        found = pages.file.fullmatch(url.path)
        named = parse_qs(url.query).get("fileName", [""])[0]
        if found is None or not (found["path"] or named):
            raise ValueError(
                f"'{address}' names no file; write {pages.example} or {_forms(prefix)}"
            )
        path = unquote(found["path"] or "") or named
        revision = quote(unquote(found["revision"]), safe="")
        return cls.parse(f"{prefix}{found['repo']}@{revision}/{path}")

    @property
    def location(self) -> str:
        """The file as "hf:OWNER/REPO/PATH"; the revision is left out if it is the hub's default."""
        usual = self.revision == _PAGES[self.hub].revision
        revision = "" if usual else f"@{self.revision}"
        return f"{self.hub}{self.repo}{revision}/{self.path}"


@dataclass(frozen=True)
class _Pages:
    """The web pages of a hub.

    Attributes:
        hosts: Host names without "www.".
        revision: Default branch of a repository.
        file: Pattern of the URL paths of a file's page and of its contents. On ModelScope the
            file's path may be in the query instead.
        example: Address of a file, for errors.
    """

    hosts: tuple[str, ...]
    revision: str
    file: re.Pattern[str]
    example: str


_WORD: Final = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_REPO: Final = rf"/(?P<repo>{_WORD}/{_WORD})"
#: Revisions with slashes, as huggingface_hub knows them.
_REF: Final = r"refs/(?:pr/[0-9]+|convert/[A-Za-z0-9_]+)"
_LOCATION: Final = re.compile(
    rf"(?:hf|ms):(?P<repo>{_WORD}/{_WORD})"
    rf"(?:@(?P<revision>{_REF}|{_WORD}(?:%2[Ff]{_WORD})*))?/(?P<path>[^\\\s][^\\\n]*)"
)
_WEB: Final = re.compile(
    r"https?://|(?:www\.)?(?:huggingface\.co|hf\.co|modelscope\.cn)/", re.IGNORECASE
)
_PAGES: Final[Mapping[str, _Pages]] = {
    "hf:": _Pages(
        ("huggingface.co", "hf.co"),
        "main",
        re.compile(rf"{_REPO}/(?:resolve|blob|raw)/(?P<revision>{_REF}|[^/]+)/(?P<path>.+)"),
        "https://huggingface.co/OWNER/REPO/resolve/main/PATH",
    ),
    "ms:": _Pages(
        ("modelscope.cn",),
        "master",
        re.compile(rf"/models{_REPO}/(?:resolve|file/view)/(?P<revision>[^/]+)(?:/(?P<path>.+))?"),
        "https://modelscope.cn/models/OWNER/REPO/resolve/master/PATH",
    ),
}


def _forms(prefix: str) -> str:
    return f"{prefix}OWNER/REPO/PATH or {prefix}OWNER/REPO@REVISION/PATH"


def is_address(text: str) -> bool:
    """Return whether a text is meant as a hub file, even if its form is not valid."""
    return text.lower().startswith(HUBS) or _WEB.match(text) is not None


def _a_location(value: str) -> str:
    if is_address(value):
        file = HubFile.parse(value)
        if re.search(r"[{}]", file.path.replace(QUANT, "")):
            raise ValueError(f"{QUANT} is the only placeholder")
        return file.location
    if QUANT in value:
        raise ValueError(
            f"{QUANT} is allowed only in files on a hub (hf:OWNER/REPO/PATH, ms:OWNER/REPO/PATH)"
        )
    return value


Location = Annotated[str, AfterValidator(_a_location)]
