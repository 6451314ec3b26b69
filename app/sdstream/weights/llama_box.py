"""Tensor names in complete models that llama-box has written; GPUStack publishes such models."""

from __future__ import annotations

import importlib.util
import mmap
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final

from sdstream.settings import variable

#: Family -> llama-box's prefix of a text encoder -> the runtime's prefix. A runtime with the
#: project's patches renames the tensors in the same way (engine/patches).
_NAMES: Final[Mapping[str, Mapping[str, str]]] = {
    "sd3": {
        "cond_stage_model.transformer.": "text_encoders.clip_l.transformer.",
        "cond_stage_model.1.transformer.": "text_encoders.clip_g.transformer.",
        "cond_stage_model.2.transformer.": "text_encoders.t5xxl.transformer.",
    },
    "flux": {
        "cond_stage_model.transformer.": "text_encoders.clip_l.transformer.",
        "cond_stage_model.1.transformer.": "text_encoders.t5xxl.transformer.",
    },
}
#: Title of an architecture -> an entry of the shipped catalogue with the runtime's own names.
ENTRIES: Final[Mapping[str, str]] = {
    "Stable Diffusion 3 Medium": "sd3-medium",
    "Stable Diffusion 3.5 Medium": "sd3.5-medium",
    "Stable Diffusion 3.5 Large": "sd3.5-large",
    "FLUX.1 schnell": "FLUX.1-schnell",
    "FLUX.1 dev or Kontext": "FLUX.1-dev",
}
#: A function that the project's patches add to the runtime.
_PATCHED: Final = b"sdstream_set_threads"


def own_name(name: str, families: Sequence[str]) -> str:
    """Return the runtime's name of a tensor that llama-box may have named.

    Other names are returned unchanged.

    Args:
        name: Name of the tensor in the file.
        families: Families of the file's diffusion model.
    """
    names = _NAMES.get(families[0], {}) if families else {}
    for prefix, own in names.items():
        if name.startswith(prefix):
            return own + name.removeprefix(prefix)
    return name


def why_unread(title: str) -> str:
    """Return why a runtime without patches cannot use a file with llama-box's names.

    Args:
        title: Title of the file's architecture.

    Returns:
        A predicate with the remedies.
    """
    entry = ENTRIES.get(title)
    instead = f"; the catalogue's '{entry}' needs no patches" if entry else ""
    return (
        "has the text encoders under the names of llama-box, which only a patched runtime reads; "
        f"'sdstream setup' installs one{instead}"
    )


@cache
def runtime_renames() -> bool:
    """Return whether the runtime installed here reads llama-box's names.

    The library is searched and not loaded: only worker processes load it. The result is True if
    there is no library, because then a worker elsewhere may have one.
    """
    named = variable("STABLE_DIFFUSION_CPP_LIB")  # of the runtime's Python package
    spec = importlib.util.find_spec("stable_diffusion_cpp")
    folders = (spec.submodule_search_locations if spec else None) or ()
    found = [file for folder in folders for file in Path(folder, "lib").glob("*diffusion.*")]
    found = [Path(named)] if named else found
    return any(_contains(file, _PATCHED) for file in found) or not found


def _contains(file: Path, word: bytes) -> bool:
    with (
        suppress(OSError, ValueError),  # an empty file is a ValueError
        file.open("rb") as opened,
        mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        return data.find(word) >= 0
    return False
