"""Check the licences of all installed packages against a list; needs no network.

The metadata of a package has its licence in one of three forms: an SPDX expression, classifiers, or
free text. scripts/check runs this in .venv, which has every package of scripts/locks/dev.txt.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import Distribution, distributions
from typing import Final

#: SPDX identifiers of licences that a package may have. Those of the last row are weak copyleft:
#: a program may import such a package and redistribute it unchanged.
ALLOWED: Final = frozenset(
    {
        *("0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "HPND", "ISC", "MIT"),
        *("MIT-0", "MIT-CMU", "PSF-2.0", "Python-2.0", "Unlicense", "Zlib"),
        *("LGPL-3.0-only", "LGPL-3.0-or-later", "MPL-2.0"),
    }
)

#: Classifiers and free texts -> the SPDX identifier.
SPELLINGS: Final = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "GNU Lesser General Public License v3 or later (LGPLv3+)": "LGPL-3.0-or-later",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}

#: Classifiers that do not identify a licence.
_VAGUE: Final = frozenset(
    {
        *("DFSG approved", "OSI Approved"),
        "GNU Library or Lesser General Public License (LGPL)",
    }
)

#: Package whose metadata has no licence -> the licence in its repository.
STATED: Final = {"axe-playwright-python": "MIT"}


def licence_of(package: Distribution) -> str:
    """Return the licence of a package as an SPDX expression, or in the package's own words."""
    metadata = package.metadata
    expression: str = metadata.get("License-Expression") or STATED.get(metadata["Name"], "")
    if expression:
        return expression
    classifiers = metadata.get_all("Classifier") or []
    names = [text.rpartition(" :: ")[2] for text in classifiers if text.startswith("License ::")]
    named = [SPELLINGS.get(name, name) for name in names if name not in _VAGUE]
    if named:
        return " AND ".join(named)  # the metadata does not show which one applies
    text = (metadata.get("License") or "").strip().partition("\n")[0]
    return SPELLINGS.get(text, text)


def is_allowed(expression: str) -> bool:
    """Return whether a licence is on the list.

    In an expression with OR, one part on the list is enough. In an expression with AND, every
    part must be on the list.
    """
    parts = [part.strip("() ") for part in re.split(r"\s+(?:AND|OR)\s+", expression)]
    enough = all if re.search(r"\sAND\s", expression) else any
    return enough(part in ALLOWED for part in parts)


def main() -> int:
    """Print the packages whose licence is not on the list; return the exit code."""
    found = sorted((package.metadata["Name"], licence_of(package)) for package in distributions())
    wrong = [(name, licence) for name, licence in found if not is_allowed(licence)]
    for name, licence in wrong:
        print(
            f"{name}: the licence '{licence}' is not on the list of scripts/licences.py. Read it; "
            "then add it there, or use another package.",
            file=sys.stderr,
        )
    if not wrong:
        print(f"{len(found)} packages have licences of the list")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
