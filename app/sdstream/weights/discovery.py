"""The models on this machine: from models.yaml, from the hub's cache, or in a single file."""

from __future__ import annotations

import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from sdstream.core.catalog import Catalog
from sdstream.core.catalog_yaml import CatalogError, Problem
from sdstream.core.errors import ConfigurationError, EngineError
from sdstream.core.locations import BUILTIN, HUBS, HubFile, is_address
from sdstream.core.model_spec import Files, ModelSpec
from sdstream.core.runtime_options import RuntimeOptionError, RuntimeOptions
from sdstream.core.similar import most_similar
from sdstream.settings import Settings, variable
from sdstream.weights.embedded import MODELS as BUILTIN_MODELS
from sdstream.weights.embedded import UPSCALERS, materialise
from sdstream.weights.folders import expanded, weight_files
from sdstream.weights.headers import BadFile
from sdstream.weights.hub import Hub
from sdstream.weights.inspection import check, inspect
from sdstream.weights.llama_box import runtime_renames

_WEIGHTS: Final = (".gguf", ".safetensors")
_LONGEST_ID: Final = 64
_VARIABLE: Final = re.compile(r"\$\{(\w+)\}")
#: Maximum length of a path in a message about a path that the system rejects.
_LONGEST_PATH: Final = 256


class ModelError(ConfigurationError):
    """The default model cannot be served; the message contains the remedy."""


def load_catalog(settings: Settings) -> Catalog:
    """Return the catalogue of usable models, which includes the default model.

    Raises:
        CatalogError: models.yaml is invalid, or a file or an upscaler that it names does not exist.
        ModelError: The default model is not downloaded, or the runtime cannot load it.
    """
    catalog = read_catalog(settings, lambda name: _no_upscaler(settings, name))
    default = catalog.find(None)
    if default is None:
        raise ModelError(catalog.why_missing(None))
    _check_files(settings, default)
    return catalog


def _check_files(settings: Settings, spec: ModelSpec) -> None:
    """Raise ModelError if the headers of the files show that the runtime cannot load a model."""
    if settings.engine == "fake":
        return
    files = {component: _on_disk(settings, place) for component, place in spec.files.items()}
    # The machines of a cluster have runtimes of their own, and their workers check the files too.
    renames = settings.cluster is not None or runtime_renames()
    try:
        check(files, spec.family, tae=spec.runtime.tae, renames=renames)
    except EngineError as error:
        raise ModelError(f"The default model '{spec.id}' cannot be used. {error.message}") from None


def _on_disk(settings: Settings, location: str) -> Path:
    """Return the path of a file; a built-in file is unpacked to where the workers find it.

    Raises:
        ModelError: The built-in file cannot be unpacked.
    """
    if not location.startswith(BUILTIN):
        return absolute(settings, location)
    try:
        return materialise(location, settings.cache_dir)
    except OSError as error:
        raise ModelError(
            f"The model {location} cannot be unpacked into {settings.cache_dir}: "
            f"{error.strerror}; --cache-dir selects another folder."
        ) from None
    except ValueError as error:
        raise ModelError(f"The model {location} cannot be unpacked: {error}.") from None


def _no_upscaler(settings: Settings, name: str) -> str | None:
    """Return why no upscaler has a name; None if one has it."""
    names = [*UPSCALERS, *weight_files(settings.upscaler_dir)]
    if name in names:
        return None
    near = most_similar(name, names)
    return f"the upscaler '{name}' is neither built in nor in the folder of --upscaler-dir" + (
        f"; did you mean '{near}'?" if near else ""
    )


def read_catalog(
    settings: Settings, no_upscaler: Callable[[str], str | None] = lambda _: None
) -> Catalog:
    """Return the catalogue of downloaded models, which may lack the default model.

    Args:
        settings: The settings; commands other than "serve" do not have those of upscalers.
        no_upscaler: As for ``Catalog.parse``.

    Raises:
        CatalogError: As in ``load_catalog``.
        ModelError: The settings name an unusable model, or contain an invalid option or alias.
    """
    try:
        catalog = _on_machine(settings, _parsed(settings, no_upscaler))
    except CatalogError as error:
        raise error.of_file(str(settings.models)) from None
    if settings.model is not None:
        catalog = _led_by(settings.model, catalog, Hub(settings.model_dir))
    try:
        catalog = _as_started(settings, catalog)
    except RuntimeOptionError as error:
        raise ModelError(f"--runtime-option: {error}") from None
    try:
        return catalog.with_default_aliases(settings.aliases)
    except CatalogError as error:
        raise ModelError(f"--alias: {error.message}.") from None


def _parsed(settings: Settings, no_upscaler: Callable[[str], str | None]) -> Catalog:
    try:
        text = settings.models.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise CatalogError(Problem(line, "the file is not UTF-8; save it as UTF-8")) from None
    except OSError as error:
        raise CatalogError(Problem(1, f"the file cannot be read: {error}")) from None
    return Catalog.parse(text, lambda location: _missing(settings, location), no_upscaler)


def refresh_catalog(settings: Settings, catalog: Catalog) -> Catalog:
    """Return the catalogue with the models that are downloaded at present."""
    return _as_started(settings, _on_machine(settings, catalog))


def _as_started(settings: Settings, catalog: Catalog) -> Catalog:
    """Return the catalogue after applying the settings' runtime options to the default model."""
    values = dict(pair.split("=", 1) for pair in settings.runtime_options)
    return catalog.with_runtime(catalog.default, values)


def _on_machine(settings: Settings, catalog: Catalog) -> Catalog:
    hub = Hub(settings.model_dir)

    def find(file: HubFile) -> str | None:
        path = hub.find(file)
        return None if path is None else str(path)

    return catalog.on_machine(find)


def absolute(settings: Settings, location: str) -> Path:
    """Return the absolute path of a location.

    A relative path is relative to the folder of models.yaml. ``~`` and ``${VARIABLE}`` are
    expanded. Symbolic links are not resolved, because links in the hub's cache point to files
    whose names are checksums.
    """
    path = expanded(_VARIABLE.sub(lambda match: variable(match[1]) or match[0], location))
    return (settings.models.resolve().parent / path).absolute()


def _missing(settings: Settings, location: str) -> str | None:
    if settings.engine == "fake" or location.startswith(HUBS):
        return None
    if location.startswith(BUILTIN):
        name = location.removeprefix(BUILTIN)
        known = ", ".join(BUILTIN + name for name in BUILTIN_MODELS)
        return None if name in BUILTIN_MODELS else f"no such built-in model; available: {known}"
    names = [name for name in dict.fromkeys(_VARIABLE.findall(location)) if not variable(name)]
    if names:
        states = {name: "not set" if variable(name) is None else "empty" for name in names}
        return " and ".join(f"the environment variable {n} is {s}" for n, s in states.items())
    why = _unusable(absolute(settings, location))
    return why if why is None else why + _hint(location)


def _unusable(path: Path) -> str | None:
    """Return why a path does not name a file that can be read; None if it does."""
    try:
        kind = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # a path cannot contain NUL
        return f"no such file: {path}"
    except OSError as error:
        return f"{str(path)[:_LONGEST_PATH]} cannot be read: {error.strerror}"
    if stat.S_ISDIR(kind):
        return f"{path} is a folder; name a .gguf or .safetensors file in it"
    return None if stat.S_ISREG(kind) else f"{path} is not a regular file"


def _hint(location: str) -> str:
    """Return the part of a location that was not expanded although it looks as if it should be."""
    if "$" in _VARIABLE.sub("", location):
        return "; only the form ${NAME} of environment variables is expanded"
    if str(expanded(location)).startswith("~"):
        return f"; there is no user '{location[1:].partition('/')[0]}'"
    return ""


# --- the model that the settings name -------------------------------------------------------------


def _led_by(name: str, catalog: Catalog, hub: Hub) -> Catalog:
    if catalog.find(name) is not None or catalog.variant(name) is not None:
        return catalog.led_by(name)
    if is_address(name):
        return catalog.plus(_lone_model(pulled(name, hub), catalog))
    path = expanded(name)
    why = _unusable(path)
    if why is None:
        return catalog.plus(_lone_model(path.absolute(), catalog))
    if path.suffix.lower() in _WEIGHTS or path.is_absolute():
        raise ModelError(f"--model: {why}.")
    raise ModelError(catalog.why_unknown(name))


def pulled(address: str, hub: Hub) -> Path:
    """Return the path of a downloaded file of a hub.

    Raises:
        ModelError: The address is invalid, or the file is not downloaded.
    """
    try:
        file = HubFile.parse(address)
    except ValueError as error:
        raise ModelError(f"{error}.") from None
    path = hub.find(file)
    if path is None:
        raise ModelError(f"{file} is not downloaded; 'sdstream pull {file.location}' downloads it.")
    return path


def _lone_model(path: Path, catalog: Catalog) -> ModelSpec:
    """Return a catalogue entry for a weight file that the catalogue does not contain.

    Raises:
        ModelError: The file alone is not a usable model.
    """
    try:
        report = inspect(path)
    except BadFile as error:
        raise ModelError(f"{path.name} {error}.") from None
    parts = {share.name for share in report.parts}
    component = "diffusion_model" if parts == {"diffusion_model"} else "model"
    tiny = "tae" in parts and "vae" not in parts
    if not report.families:
        alone = "" if "diffusion_model" in parts else ": it cannot generate images alone"
        raise ModelError(f"{path.name} {report.what}{alone}.")
    family = report.families[0]
    try:
        check({component: path}, family, tae=tiny)
    except EngineError as error:
        raise ModelError(
            f"{path.name}: {error.message} An entry of models.yaml can name several files."
        ) from None
    return ModelSpec(
        id=_id_for(path, catalog),
        description=f"{path.name} {report.what}.",
        family=family,
        files=Files(**{component: str(path)}),
        # The projection of latents to colours is known only for published autoencoders.
        runtime=RuntimeOptions(tae=tiny, preview="decode" if tiny else "projection"),
    )


def _id_for(path: Path, catalog: Catalog) -> str:
    """Return a unique model id that is made from the file's name."""
    word = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("._-")[:_LONGEST_ID] or "model"
    names = [word, *(f"{word}-{number}" for number in range(2, 1000))]
    return next(n for n in names if n not in catalog.entries and catalog.find(n) is None)
