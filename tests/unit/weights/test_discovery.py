"""The start of a server: the files of models.yaml, and those of the default model."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from sdstream.core.catalog_yaml import CatalogError
from sdstream.settings import Settings
from sdstream.weights import embedded
from sdstream.weights.discovery import ModelError, load_catalog, read_catalog
from sdstream.weights.llama_box import runtime_renames
from tests.support.weight_files import DIFFUSION, prefixed, vae, write_safetensors


def settings_of(
    folder: Path, files: Mapping[str, str], family: str = "sd1", *, tae: bool = True
) -> Settings:
    """Return settings whose models.yaml in a folder has one entry with these files."""
    models = folder / "models.yaml"
    runtime = json.dumps({"tae": tae})
    entry = f"id: a, family: {family}, files: {json.dumps(files)}, runtime: {runtime}"
    models.write_text(f"models: [{{{entry}}}]")
    return Settings(models=models, data_dir=folder, cache_dir=folder / "cache")


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("gone.gguf", "no such file: /.*/gone.gguf"),
        ("gone.gguf/x", "no such file: /.*/gone.gguf/x"),
        ("x" * 5000, "x cannot be read: File name too long"),
        ("locked/x.gguf", "/locked/x.gguf cannot be read: Permission denied"),
        (".", "is a folder; name a .gguf or .safetensors file in it"),
        ("/dev/null", "/dev/null is not a regular file"),
        ("~/gone.gguf", "no such file: /home/someone/gone.gguf$"),
        ("~nosuchuser/x", "no such file: /.*; there is no user 'nosuchuser'"),
        ("${SD_A}/${SD_B}/${SD_A}", "the environment variable SD_A is not set and the environment "
         "variable SD_B is not set"),
        ("${SD_EMPTY}/x.gguf", "the environment variable SD_EMPTY is empty"),
        ("${SD_A:-/tmp}/x", r"no such file: /.*; only the form \$\{NAME\} of environment"),
        ("$HOME/x", r"no such file: /.*; only the form \$\{NAME\} of environment"),
        ("${HOME", r"no such file: /.*; only the form \$\{NAME\} of environment"),
        ("${HOME}/x", "no such file: /home/someone/x$"),
    ],
)  # fmt: skip
def test_a_location_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str, words: str
) -> None:
    """The error contains the reason, and which part of the location was not expanded."""
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("SD_EMPTY", "")
    refuse_locked(monkeypatch)
    settings = settings_of(tmp_path, {"model": location})
    with pytest.raises(CatalogError, match=rf"line 1: models\.a\.files\.model: (/.*)?{words}"):
        load_catalog(settings)
    if location[0] not in "$~.":
        with pytest.raises(ModelError, match=r"^--model: .*\.$"):
            read_catalog(usable(tmp_path, model=str(tmp_path / location)))


def refuse_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse access to each path in a folder "locked", as the system does for users but root."""
    plain = Path.stat

    def stat(path: Path, **options: bool) -> object:
        if path.parent.name == "locked":
            raise PermissionError(13, "Permission denied")
        return plain(path, **options)

    monkeypatch.setattr(Path, "stat", stat)


def usable(folder: Path, **settings: str | Path) -> Settings:
    """Return settings with the built-in model."""
    whole = settings_of(folder, {"model": "builtin:drawings"}, "ovis_image")
    return whole.model_copy(update=settings)


def test_a_file_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``~`` in a location, and in the name of a file for --model, is the user's home folder."""
    (tmp_path / "x.gguf").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_catalog(settings_of(tmp_path, {"model": "~/x.gguf"})).default == "a"
    with pytest.raises(ModelError, match=r"^x\.gguf is empty\.$"):
        read_catalog(usable(tmp_path, model="~/x.gguf"))
    with pytest.raises(ModelError, match=r"no such file: ~nosuchuser/x\.gguf"):
        read_catalog(usable(tmp_path, model="~nosuchuser/x.gguf"))


def test_a_long_name_of_no_model(tmp_path: Path) -> None:
    """A name that is too long for a file is the unknown name of a model."""
    with pytest.raises(ModelError, match=f"The model '{'x' * 128}' is not in the catalogue"):
        read_catalog(usable(tmp_path, model="x" * 5000))


@pytest.mark.parametrize(
    ("family", "tae", "files", "words"),
    [
        ("sd1", True, {}, "The weights are those of Ovis-Image but the family in the catalogue is"),
        ("ovis_image", False, {}, "Ovis-Image needs vae, which no file has"),
        ("ovis_image", True, {"vae": "words"}, "The file of 'vae' is text, not a model"),
        ("ovis_image", True, {"vae": "builtin:drawings"}, "The file of 'vae' is Ovis-Image"),
    ],
)
def test_the_built_in_model_is_checked_too(
    tmp_path: Path, builtin_file: Path, family: str, tae: bool, files: dict[str, str], words: str
) -> None:
    """An entry with a built-in file that the runtime cannot load ends the start."""
    (tmp_path / "words").write_text("words")
    settings = settings_of(tmp_path, {"model": "builtin:drawings", **files}, family, tae=tae)
    settings = settings.model_copy(update={"cache_dir": builtin_file.parent})
    with pytest.raises(ModelError, match=f"The default model 'a' cannot be used. {words}"):
        load_catalog(settings)


def test_the_built_in_model_is_unpacked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check leaves the unpacked file where a worker looks for it."""
    settings = usable(tmp_path)
    assert load_catalog(settings).default == "a"
    monkeypatch.setattr(lzma, "decompress", lambda _: pytest.fail("it is unpacked again"))
    load_catalog(settings)
    assert embedded.materialise("builtin:drawings", settings.cache_dir).is_file()


def test_a_built_in_model_that_cannot_be_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unusable cache folder and a damaged package end the start with a message."""
    settings = usable(tmp_path)
    (tmp_path / "cache").touch()
    words = f"cannot be unpacked into {tmp_path}/cache: .*; --cache-dir selects another folder."
    with pytest.raises(ModelError, match=words):
        load_catalog(settings)
    (tmp_path / "cache").unlink()
    (tmp_path / "drawings.json").write_text((embedded._FOLDER / "drawings.json").read_text())
    (tmp_path / "drawings.gguf.xz").write_bytes(b"\xfd7zXZ\0 no more")
    monkeypatch.setattr(embedded, "_FOLDER", tmp_path)
    with pytest.raises(ModelError, match="the packed model 'drawings' differs from its card"):
        load_catalog(settings)


@pytest.fixture
def plain_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A runtime that was compiled without the project's patches."""
    library = tmp_path / "libstable-diffusion.so"
    library.write_bytes(b"ELF" * 1000)
    monkeypatch.setenv("STABLE_DIFFUSION_CPP_LIB", str(library))
    runtime_renames.cache_clear()
    yield
    runtime_renames.cache_clear()


@pytest.mark.usefixtures("plain_runtime")
def test_a_model_of_llama_box_needs_the_patches(tmp_path: Path) -> None:
    """Without the patches the start ends with the remedies, except in a cluster, whose machines
    have runtimes of their own."""
    encoder = "transformer.text_model.embeddings.token_embedding.weight"
    shapes = {
        **prefixed("model.diffusion_model.", DIFFUSION["Stable Diffusion 3 Medium"]),
        f"cond_stage_model.{encoder}": (768, 8),
        f"cond_stage_model.1.{encoder}": (1280, 8),
        **prefixed("first_stage_model.", vae(16)),
    }
    path = write_safetensors(tmp_path / "mine.safetensors", shapes)
    settings = usable(tmp_path, model=str(path))
    words = "The default model 'mine' cannot be used. .* 'sdstream setup' installs one; the cat.*"
    with pytest.raises(ModelError, match=words):
        load_catalog(settings)
    with pytest.raises(ModelError, match=r"The default model 'a' .* llama-box"):
        load_catalog(settings_of(tmp_path, {"model": str(path)}, "sd3", tae=False))
    assert load_catalog(settings.model_copy(update={"cluster": "head:6379"})).default == "mine"


def test_the_installed_runtime_has_the_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    """scripts/install applies the patches; a library that is elsewhere is not judged."""
    runtime_renames.cache_clear()
    assert runtime_renames()
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    runtime_renames.cache_clear()
    assert runtime_renames()
    runtime_renames.cache_clear()


def test_an_upscaler_that_does_not_exist(tmp_path: Path) -> None:
    """A wrong upscaler ends the start, for every entry; other commands do not know the folder."""
    settings = usable(tmp_path)
    rule = "{enlarge: {sizes: [64x64],\n upscaler: mine}}"
    other = f"id: b, family: ovis_image, files: {{model: builtin:drawings}}, size: {rule}"
    whole = settings.models.read_text()
    settings.models.write_text(f"{whole[:-1]}, {{{other}}}]")
    words = r"line 2: models\.b\.size\.enlarge\.upscaler: the upscaler 'mine' is neither built in"
    with pytest.raises(CatalogError, match=words):
        load_catalog(settings)
    assert [*read_catalog(settings).models] == ["a", "b"]
    (tmp_path / "mine.safetensors").touch()
    assert load_catalog(settings.model_copy(update={"upscaler_dir": tmp_path})).default == "a"


def test_a_folder_of_a_user_who_does_not_exist(tmp_path: Path) -> None:
    """A wrong ~USER in --model-dir is an empty folder of models, as in other settings."""
    assert read_catalog(usable(tmp_path, model_dir=Path("~nosuchuser/hub"))).default == "a"
