"""The commands for the models of the catalogue: ``pull``, ``rm`` and ``models``."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import click
from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from sdstream.cli.console import (
    USUAL_SERVER,
    one_line,
    plain_errors,
    print_table,
    server_options,
)
from sdstream.cli.flags import ForeignFlags, read_settings, setting_flags
from sdstream.client.answers import understanding
from sdstream.client.http import AsyncClient
from sdstream.core.catalog import Catalog
from sdstream.core.locations import HubFile, is_address
from sdstream.core.model_spec import ModelSpec, Variant
from sdstream.settings import Settings
from sdstream.weights.discovery import absolute, read_catalog
from sdstream.weights.folders import size_of
from sdstream.weights.hub import Hub, Remote
from sdstream.weights.hub_errors import HubError

_HEADINGS: Final = ("model", "family", "size", "files", "state", "description")
#: Columns that a narrow terminal does not show.
_SPARE: Final = ("family", "size")

_catalogue_flags: Final = setting_flags("models", "model_dir")


# --- pull ---------------------------------------------------------------------------------------


#: Flags with which OpenVINO Model Server downloads a model -> what to use instead.
_OF_OTHER_PULLS: Final = {
    "pull": "leave it out",
    "source_model": "write MODEL without a flag; OpenVINO IR is the format of another runtime",
    "model": "write MODEL without a flag",
    "model_repository_path": "use --model-dir",
    "model_name": "leave it out; 'sdstream serve --alias NAME' gives a model another name",
    "task": "leave it out",
    "target_device": "leave it out",
    "weight_format": "write MODEL:QUANT",
    "overwrite_models": "use --verify, which replaces damaged files",
    "config_file_path": "use --models FILE, a models.yaml",
}


@click.command("pull", cls=ForeignFlags, foreign=_OF_OTHER_PULLS)
@click.argument("model", metavar="MODEL[:QUANT]")
@click.option(
    "--verify", is_flag=True, help="Verify downloaded files too, and replace damaged ones."
)
@click.option(
    "--offline",
    is_flag=True,
    help="Download nothing, only check for missing files (HF_HUB_OFFLINE).",
)
@_catalogue_flags
def pull_command(model: str, *, verify: bool, offline: bool, **flags: Any) -> None:
    """Download a model.

    MODEL is a model of the catalogue, or a single file: hf:OWNER/REPO/PATH of the Hugging Face hub,
    ms:OWNER/REPO/PATH of ModelScope, or the address of the file's page in a browser. Without
    QUANT, the command downloads the first quantisation that the catalogue lists for the model.

    The command compares the files with the hub's checksums, and stores them in the cache of the
    Hugging Face hub, which the hub's other tools use too. The next pull resumes an interrupted
    download. HF_TOKEN, HF_ENDPOINT, HF_HOME, MODELSCOPE_API_TOKEN, MODELSCOPE_ENDPOINT and the
    proxy variables work as in the hubs' own tools.
    """
    with plain_errors():
        settings = read_settings(**flags)
        hub = Hub(settings.model_dir)
        wanted = _wanted(settings, model)
        if verify:
            _drop_damaged(hub, wanted)
        if offline or hub.offline:
            _say_whether_here(hub, wanted)
        else:
            _pull(hub, wanted)
            size = decimal(sum(path.stat().st_size for path in _found(hub, wanted)))
            serving = f"'sdstream serve --model {wanted.name}' serves it"
            click.echo(f"{wanted.name} is downloaded, {size}; {serving}.")


def pull_default(settings: Settings) -> None:
    """Download the default model if ``--pull`` asks for it and it is missing.

    Raises:
        CatalogError, ModelError: The model does not exist.
        HubError: The model cannot be downloaded.
    """
    if not settings.pull:
        return
    hub = Hub(settings.model_dir)
    if settings.model is not None and is_address(settings.model):
        _pull(hub, _wanted(settings, settings.model))
        return
    catalog = read_catalog(settings)
    if catalog.find(None) is None:
        _pull(hub, _Wanted.variant(_pulled_variant(catalog, catalog.default)))


@dataclass(frozen=True)
class _Wanted:
    """The files that a pull downloads.

    Attributes:
        name: Name of the model or file in commands and messages.
        files: The files, without duplicates.
        page: Web page for accepting the licence; None for the repository's page.
    """

    name: str
    files: Sequence[HubFile]
    page: str | None = None

    @classmethod
    def variant(cls, variant: Variant) -> Self:
        """Return the files of a model in the catalogue."""
        return cls(variant.name, _files(variant), variant.entry.page)


def _wanted(settings: Settings, model: str) -> _Wanted:
    if not is_address(model):
        return _Wanted.variant(_pulled_variant(read_catalog(settings), model))
    file = _file_at(model)
    return _Wanted(file.location, [file])


def _file_at(address: str) -> HubFile:
    try:
        return HubFile.parse(address)
    except ValueError as error:
        raise HubError(f"{error}.") from None


def _pulled_variant(catalog: Catalog, name: str, verb: str = "download") -> Variant:
    variant = catalog.variant(name)
    if variant is not None:
        return variant
    if catalog.find(name) is not None:
        raise HubError(f"The model '{name}' has no files on a hub; nothing to {verb}.")
    hint = (
        " A single file of a hub is written hf:OWNER/REPO/PATH or ms:OWNER/REPO/PATH."
        if "/" in name
        else ""
    )
    raise HubError(catalog.why_unknown(name) + hint)


def _drop_damaged(hub: Hub, wanted: _Wanted) -> None:
    for file in wanted.files:
        if hub.is_damaged(file):
            click.echo(f"{file} is damaged and was deleted.", err=True)
            hub.remove(file)


def _say_whether_here(hub: Hub, wanted: _Wanted) -> None:
    missing = [str(file) for file in wanted.files if hub.find(file) is None]
    if missing:
        raise HubError(f"Files of '{wanted.name}' are missing: {', '.join(missing)}.")
    click.echo(f"{wanted.name} is downloaded.")


def _pull(hub: Hub, wanted: _Wanted) -> None:
    missing = [file for file in wanted.files if hub.find(file) is None]
    with _bars() as bars:
        remotes = [hub.look_up(file, wanted.page, bars.row(file)) for file in missing]
        hub.check_room(remotes)
        for remote in remotes:
            bars.expect(remote, hub.fetched(remote))
        for remote in remotes:
            hub.fetch(remote, bars.row(remote.file))
            bars.done(remote)


def _files(variant: Variant) -> list[HubFile]:
    """Return a variant's files without duplicates: one file may be several components."""
    return [*dict.fromkeys(variant.hub_files.values())]


def _found(hub: Hub, wanted: _Wanted) -> list[Path]:
    return [path for file in wanted.files if (path := hub.find(file)) is not None]


class _Bars:
    """A progress bar for each file, and one for all files if there are several.

    Without a terminal, lines of text replace the bars.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self._all = progress.add_task("all", total=0.0, visible=False)
        self._rows: dict[HubFile, _Row] = {}

    def row(self, file: HubFile) -> _Row:
        """Return the row of a file."""
        if file not in self._rows:
            name = file.path.rpartition("/")[2]
            self._rows[file] = _Row(self, name, self.progress.add_task(name, total=None))
        return self._rows[file]

    def expect(self, remote: Remote, fetched: int) -> None:
        """Set the size of a file and the number of bytes that are already downloaded."""
        row = self.row(remote.file)
        self.progress.update(row.task, total=float(remote.size), completed=float(fetched))
        self.tally()

    def done(self, remote: Remote) -> None:
        """Print a line about a downloaded file if there is no terminal."""
        if not self.progress.console.is_terminal:
            self.line(f"{remote.file}: {decimal(remote.size)}, {remote.checksum[:12]}…")

    def line(self, words: str) -> None:
        """Print a line above the bars."""
        self.progress.console.print(
            words, markup=False, emoji=False, highlight=False, soft_wrap=True
        )

    def tally(self) -> None:
        """Update the bar for all files."""
        rows = [task for task in self.progress.tasks if task.id != self._all]
        self.progress.update(
            self._all,
            total=sum(task.total or 0.0 for task in rows),
            completed=sum(task.completed for task in rows),
            visible=len(rows) > 1,
        )


@dataclass(frozen=True)
class _Row:
    """The bar of one file; implements the hub's Watcher."""

    bars: _Bars
    name: str
    task: TaskID

    def has(self, octets: int) -> None:
        self.bars.progress.update(self.task, completed=float(octets))
        self.bars.tally()

    def says(self, words: str) -> None:
        self.bars.line(f"{self.name}: {words}")


@contextmanager
def _bars() -> Iterator[_Bars]:
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        yield _Bars(progress)


# --- rm -----------------------------------------------------------------------------------------


@click.command("rm")
@click.argument("model", metavar="MODEL[:QUANT]")
@_catalogue_flags
def rm_command(model: str, **flags: Any) -> None:
    """Delete the files of a downloaded model.

    The command does not ask for confirmation. Without QUANT, it deletes all files of the model. It
    keeps files that another downloaded model needs, and files in the hub's cache that the catalogue
    does not name.
    """
    with plain_errors():
        settings = read_settings(**flags)
        catalog, hub = read_catalog(settings), Hub(settings.model_dir)
        gone = () if is_address(model) else _variants(catalog, model)
        needed = {
            file: variant.name
            for entry in catalog.entries.values()
            for variant in entry.variants
            if variant not in gone and variant.name in catalog.models
            for file in _files(variant)
        }
        asked = [f for v in gone for f in _files(v)] if gone else [_file_at(model)]
        found = [file for file in dict.fromkeys(asked) if hub.has_any(file)]
        mine = [file for file in found if file not in needed]
        if not mine:
            raise HubError(_why_nothing(model, [needed[file] for file in found]))
        freed = sum(hub.remove(file) for file in mine)
        click.echo(f"{model} is deleted: {decimal(freed)} are free again.")


def _variants(catalog: Catalog, model: str) -> Sequence[Variant]:
    """Return all quants of a model, or only the quant that the name contains."""
    usual = _pulled_variant(catalog, model, "delete")
    return usual.entry.variants if model.casefold() == usual.entry.id.casefold() else (usual,)


def _why_nothing(model: str, needing: list[str]) -> str:
    if needing:
        others = ", ".join(dict.fromkeys(needing))
        return f"Other models ({others}) need all downloaded files of '{model}'."
    return f"No file of '{model}' is downloaded."


# --- models -------------------------------------------------------------------------------------


@click.command()
@click.option("--all", "show_all", is_flag=True, help="Also list models that can be downloaded.")
@click.option(
    "--reload",
    "reloads",
    is_flag=True,
    help=f"Tell the server (default {USUAL_SERVER}) to read its models.yaml again.",
)
@_catalogue_flags
@server_options
def models(
    server: str | None, api_key: str | None, *, show_all: bool, reloads: bool, **flags: Any
) -> None:
    """List the models.

    Without --server, the list contains the downloaded models. --all adds models that can be
    downloaded.
    """
    with plain_errors():
        if reloads:
            for line in asyncio.run(_reload(server or USUAL_SERVER, api_key)):
                click.echo(one_line(line))
            return
        if server:
            rows, more = asyncio.run(_server_models(server, api_key)), 0
        else:
            rows, more = _local_models(read_settings(**flags), show_all=show_all)
    print_table(_HEADINGS, rows, spare=_SPARE)
    if more:
        click.echo(f"\n{more} more can be pulled; 'sdstream models --all' shows them.")


async def _reload(server: str, api_key: str | None) -> list[str]:
    async with AsyncClient(server, api_key) as client:
        told = await client.reload_models()
    with understanding():
        kinds = [(kind, told[kind]) for kind in ("added", "removed", "changed")]
        lines = [f"{kind}: {', '.join(names)}" for kind, names in kinds if names]
    return lines or ["No entry changed."]


async def _server_models(server: str, api_key: str | None) -> list[tuple[str, ...]]:
    async with AsyncClient(server, api_key) as client:
        found = await client.models()
    with understanding():
        return [
            (m["id"], m["family"], m["defaults"]["size"], "", m["state"], m["description"])
            for m in found
        ]


def _local_models(settings: Settings, *, show_all: bool) -> tuple[list[tuple[str, ...]], int]:
    """Return the rows of the table and the number of entries that are left out."""
    catalog = read_catalog(settings)
    rows: list[tuple[str, ...]] = []
    left_out = 0
    for entry in catalog.entries.values():
        names = [variant.name for variant in entry.variants] or [entry.id]
        here = [catalog.models[name] for name in names if name in catalog.models]
        rows += [_row(spec, *_at_home(settings, catalog, spec)) for spec in here]
        if show_all:
            absent = [v for v in entry.variants if v.name not in catalog.models]
            state = "gated" if entry.gated else "not pulled"
            rows += [_row(entry, _to_pull(v), state, v.name) for v in absent]
        elif not here:
            left_out += 1
    return rows, left_out


def _row(spec: ModelSpec, size: str, state: str, name: str = "") -> tuple[str, ...]:
    return (name or spec.id, spec.family, str(spec.default_size), size, state, spec.description)


def _at_home(settings: Settings, catalog: Catalog, spec: ModelSpec) -> tuple[str, str]:
    """Return the size of a model's files and the model's state."""
    paths = {absolute(settings, place) for _, place in spec.files.items()}
    size = sum(size_of(path) or 0 for path in paths)
    state = "default" if spec.id == catalog.default else "here"
    return (decimal(size) if size else "", state)


def _to_pull(variant: Variant) -> str:
    return "" if variant.gigabytes is None else f"{variant.gigabytes:g} GB"
