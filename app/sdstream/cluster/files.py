"""Weight files of a cluster: portable names for the server's files, and each machine's paths.

The server's paths are not valid on other machines. A file of a hub is named by repository, commit
(revision on ModelScope) and path, and a machine downloads it if it is missing there. Any other file
must exist on each machine at the same path and with the same size. The folders of LoRAs, embeddings
and upscalers must contain the same files on each machine, but their paths may differ.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from sdstream.core.locations import BUILTIN, HUBS, HubFile
from sdstream.core.messages import Load
from sdstream.settings import Settings
from sdstream.weights.folders import candidate_files, size_of
from sdstream.weights.hub import Hub
from sdstream.weights.hub_sites import SITES

#: Most file names in a list of differences.
_NAMED: Final = 3

_SNAPSHOT: Final = re.compile(
    r"(?:(?P<folder>[^/]+)/)?models--(?P<owner>.+?)--(?P<name>.+?)"
    r"/snapshots/(?P<revision>[^/]+)/(?P<path>.+)"
)


def needs_of(settings: Settings, load: Load) -> dict[str, Any]:
    """Return the files that a machine needs to load a model, as plain values.

    Args:
        settings: Settings of the server.
        load: The command, with the server's paths.

    Returns:
        ``files``: component -> location.
        ``sizes``: component -> bytes, for files that are named by path.
        ``folders``: setting -> {path below the folder: bytes}, for the folders of the server.
    """
    hub = Hub(settings.model_dir).folder
    files = {component: _portable(hub, place) for component, place in load.files.items()}
    sizes = {
        component: size
        for component, place in files.items()
        if not place.startswith((*HUBS, BUILTIN)) and (size := size_of(Path(place))) is not None
    }
    folders = {name: _listing(folder) for name, folder in settings.asset_folders().items()}
    return {"files": files, "sizes": sizes, "folders": folders}


def _portable(hub: Path, place: str) -> str:
    """Return hf:OWNER/REPO@COMMIT/PATH for a file in the hubs' cache; keep any other path."""
    path = Path(place)
    if path.is_absolute() and path.is_relative_to(hub.absolute()):
        found = _SNAPSHOT.fullmatch(path.relative_to(hub.absolute()).as_posix())
        for prefix, site in SITES.items():
            if found is not None and (found["folder"] or "") == site.folder:
                repo = f"{found['owner']}/{found['name']}"
                return HubFile(repo, found["path"], found["revision"], prefix).location
    return place


def _listing(folder: Path) -> dict[str, int]:
    return {file: path.stat().st_size for file, path in candidate_files(folder).items()}


def problems(settings: Settings, needs: Mapping[str, Any]) -> list[str]:
    """Return why a machine cannot load a model; missing files of a hub are no problem.

    Args:
        settings: Settings of the machine.
        needs: The server's needs, see ``needs_of``.
    """
    found = []
    for component, size in needs["sizes"].items():
        path = Path(needs["files"][component])
        own = size_of(path)
        if own is None:
            found.append(f"{path} does not exist, or this user cannot reach it")
        elif own != size:
            found.append(f"{path} has {own} bytes instead of {size}")
    for name, wanted in needs["folders"].items():
        folder: Path | None = getattr(settings, name)
        flag = f"--{name.replace('_', '-')}"
        if folder is None:
            found.append(f"{flag} is not set")
        else:
            found += _differences(flag, wanted, _listing(folder))
    return found


def _differences(flag: str, wanted: Mapping[str, int], here: Mapping[str, int]) -> list[str]:
    kinds = {
        "lacks": sorted(wanted.keys() - here.keys()),
        "also contains": sorted(here.keys() - wanted.keys()),
        "has different sizes of": sorted(n for n in wanted.keys() & here if wanted[n] != here[n]),
    }
    return [f"{flag} {kind} {_some(names)}" for kind, names in kinds.items() if names]


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def missing(settings: Settings, needs: Mapping[str, Any]) -> list[HubFile]:
    """Return the files of hubs that a machine must download."""
    hub = Hub(settings.model_dir)
    wanted = [HubFile.parse(p) for p in needs["files"].values() if p.startswith(HUBS)]
    return [file for file in dict.fromkeys(wanted) if hub.find(file) is None]


def located(settings: Settings, needs: Mapping[str, Any]) -> dict[str, str]:
    """Return component -> path on this machine; call it when no file is missing."""
    hub = Hub(settings.model_dir)
    found = {}
    for component, place in needs["files"].items():
        path = hub.find(HubFile.parse(place)) if place.startswith(HUBS) else None
        found[component] = place if path is None else str(path)
    return found
