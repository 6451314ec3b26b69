"""Where a weight file of the catalogue comes from: a path, the package, or the hub."""

from __future__ import annotations

import re
from typing import Annotated, Final, NamedTuple, Self

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
        """Read "hf:OWNER/REPO[@REVISION]/PATH"; raise ValueError on anything else."""
        match = _HUB_LOCATION.fullmatch(location)
        if match is None or {"", ".", ".."} & {*match["path"].split("/")}:
            raise ValueError(
                f"'{location}' is not a file on the hub; write hf:OWNER/REPO/PATH or "
                "hf:OWNER/REPO@REVISION/PATH"
            )
        return cls(match["repo"], match["path"], match["revision"] or "main")


_WORD: Final = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_HUB_LOCATION: Final = re.compile(
    rf"{HUB}(?P<repo>{_WORD}/{_WORD})(?:@(?P<revision>{_WORD}))?/(?P<path>[^\\\s][^\\\n]*)"
)


def _a_location(value: str) -> str:
    if value.startswith(HUB):
        path = HubFile.parse(value).path
        if re.search(r"[{}]", path.replace(QUANT, "")):
            raise ValueError(f"{QUANT} is the only placeholder")
    elif QUANT in value:
        raise ValueError(f"{QUANT} is allowed only in files on the hub (hf:OWNER/REPO/PATH)")
    return value


Location = Annotated[str, AfterValidator(_a_location)]
