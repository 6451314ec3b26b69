"""models.yaml to a catalogue."""

from __future__ import annotations

import pytest

from app.core.catalog import FAMILIES, Catalog, CatalogError, Size

HEAD = "models:\n - id: a\n   family: sd1\n"

MINIMAL = """
models:
  - id: one
    family: sd1
    files: {model: one.gguf}
"""


def test_what_is_left_out_comes_from_the_family() -> None:
    """An entry of three keys is a whole model."""
    spec = Catalog.parse(MINIMAL).models["one"]
    assert spec.default_size == FAMILIES["sd1"].size
    assert spec.runtime.threads == 0


def test_the_first_model_is_the_default() -> None:
    """Without a ``default`` key, no name, "" and "default" all mean the first."""
    catalog = Catalog.parse(MINIMAL)
    assert {catalog.find(name) for name in (None, "", "default", "one")} == {catalog.models["one"]}
    assert catalog.find("two") is None


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (HEAD + "   files: {model: m}\n   colour: 1", 5, "unknown key"),
        ("models:\n - id: a\n   family: sd9\n   files: {model: m}", 3, "unknown family 'sd9'"),
        (HEAD, 2, "'models.0.files' is missing"),
        (HEAD + "   files: {vae: m}", 4, "'model' or 'diffusion"),
        (HEAD + "   files: {model: m}\n   runtime:\n     threads: x", 6, "integer"),
        (HEAD + "   files: {model: m}\n   defaults:\n     size: 10x10", 2, "multiple|between"),
        (HEAD + "   files: {model: m}\n   defaults:\n     size: big", 6, "WIDTHxHEIGHT"),
        (HEAD + "   files: {model: m}\n   defaults:\n     sampler: x", 6, "unknown sampler"),
        (HEAD + "   files: {model: m}\n   size: {min: 512, max: 256}", 5, "larger"),
        (MINIMAL + "  - id: one\n    family: sd1\n    files: {model: m}", 6, "there twice"),
        ("models:\n - id: a\n   id: b", 3, "there twice"),
        ("default: two\n" + MINIMAL, 1, "no model has the id 'two'"),
        ("models: []", 1, "at least 1"),
        ("models: [", 1, "expected"),
        ("models:\n\t- id: a", 2, "tab|token"),
        ("", 1, "dictionary"),
        ("7", 1, "dictionary"),
        ("models:\n - id: ../a\n   family: sd1\n   files: {model: m}", 2, "pattern"),
    ],
)  # fmt: skip
def test_a_fault_names_its_line(text: str, line: int, words: str) -> None:
    """Whatever is wrong, the error says where and what."""
    with pytest.raises(CatalogError, match=words) as caught:
        Catalog.parse(text)
    assert caught.value.line == line


@pytest.mark.parametrize(
    ("source", "size"),
    [
        ((512, 512), (512, 512)),
        ((500, 300), (512, 320)),
        ((4000, 2000), (2048, 1024)),
        ((100, 20), (320, 64)),
        ((5000, 10), (2048, 64)),
    ],
)
def test_a_size_near_a_picture(source: tuple[int, int], size: tuple[int, int]) -> None:
    """Its shape as far as possible, within the bounds and multiples of the model."""
    spec = Catalog.parse(MINIMAL).models["one"]
    near = spec.size_near(Size(*source))
    assert near == size
    assert spec.size_problem(near) is None


def test_line_of_a_file() -> None:
    """A missing file can be reported with the line that names it."""
    assert Catalog.parse(MINIMAL).line_of("one", "model") == 5


@pytest.mark.parametrize("text", ["512x256", "512*256", " 512 X 256 ", "512×256"])
def test_sizes_as_people_write_them(text: str) -> None:
    """WxH and Xinference's W*H are one size."""
    assert Size.parse(text) == Size(512, 256)
    assert str(Size.parse(text)) == "512x256"


@pytest.mark.parametrize("text", ["", "512", "x", "512x", "-1x5", "1e3x5", "512x512x3", "999999x1"])
def test_what_is_no_size(text: str) -> None:
    """Anything else is refused."""
    with pytest.raises(ValueError, match="WIDTHxHEIGHT"):
        Size.parse(text)


def test_the_shipped_catalogue(shipped_catalog: Catalog) -> None:
    """models.yaml of the project parses and its default needs no download."""
    spec = shipped_catalog.models[shipped_catalog.default]
    assert all(location.startswith("builtin:") for _, location in spec.files.items())
