"""The messages about text that is not YAML, and about keys and values in a wrong place."""

from __future__ import annotations

import pytest

from sdstream.core.catalog import Catalog
from sdstream.core.catalog_yaml import CatalogError
from sdstream.core.model_spec import ModelSpec
from sdstream.core.runtime_options import RuntimeOptionError

ENTRY = "models:\n - id: a\n   family: sd1\n   files: {model: m}\n"
TAB = "YAML allows no tab here; use spaces"


def problems(text: str) -> list[tuple[int, str]]:
    """Return the problems of a catalogue: line and message."""
    with pytest.raises(CatalogError) as caught:
        Catalog.parse(text)
    return [(line, message) for line, message in caught.value.problems]


def entry(text: str) -> ModelSpec:
    """Return the first model of a catalogue."""
    return next(iter(Catalog.parse(text).models.values()))


def test_each_line_that_is_indented_by_a_tab_is_named() -> None:
    """All lines with tabs in their indentation are reported, and the other problems too."""
    text = (
        "models:\n\t- id: a\n\t  family: sdx\n\t  files:\n\t\tmodel: m\n\n\t# words\n\t  steps: 4\n"
    )
    found = problems(text)
    assert [line for line, message in found if message == TAB] == [2, 3, 4, 5, 8]
    assert [line for line, message in found if message != TAB] == [3, 8]


def test_tabs_that_make_the_indentation_wrong() -> None:
    """If the text is not YAML even with spaces in place of tabs, all lines with tabs are named."""
    text = "models:\n  - id: a\n\tfamily: sd1\n  - id: b\n\tfamily: sd1\n#\tx\n"
    assert problems(text) == [(3, TAB), (5, TAB)]
    assert problems("models:\n -\tid: a\n   family: sd1\n")[0] == (2, TAB)
    assert problems("models:\n - id: a\n   license: >\tx\n") == [(3, TAB)]
    ((line, message),) = problems(f"{ENTRY}   license: a\tb\n")
    assert line == 5
    assert message.endswith("; the line contains a tab, use spaces")


def test_tabs_where_yaml_allows_them() -> None:
    """Tabs after a colon or a dash, at the end, before a comment, in braces and in quotes are no
    problem."""
    text = (
        "models:\t\n\t\n \t# words\n -  \t# words\n   id:\ta\n"
        "   family: \t'sd1'\t\n   files: {\n\tmodel: m,\n\t}\n   license: 'a\tb\n\tc'\n"
        "   description: |\n     \ta\tb\n"
    )
    spec = entry(text)
    assert (spec.license, spec.description) == ("a\tb c", "\ta\tb\n")
    assert entry(ENTRY + "   aliases:\n   -\tx\n").aliases == ("x",)


@pytest.mark.parametrize(
    ("keys", "hint"),
    [
        ("steps: 4", "models.a.steps'; it belongs under 'defaults'"),
        ("threads: 4", "models.a.threads'; it belongs under 'runtime'"),
        ("vae: x", "models.a.vae'; it belongs under 'files'"),
        ("tae: x", "models.a.tae'; it belongs under 'files' or under 'runtime'"),
        ("upscaler: x", "models.a.upscaler'; it belongs under 'size.enlarge'"),
        ("max: 9", "models.a.max'; it belongs under 'size' or under 'size.enlarge'"),
        ("models: []", "models.a.models'; it belongs at the top of the file"),
        ("alias: b", "models.a.alias'; did you mean 'aliases'?"),
        ("default: {}", "models.a.default'; did you mean 'defaults'?"),
        ("treads: 4", "models.a.treads'; did you mean 'threads', which belongs under 'runtime'?"),
        ("colour: x", "models.a.colour'"),
        ("runtime: {cfg_scael: 1}", "models.a.runtime.cfg_scael'; did you mean 'cfg_scale', which "
         "belongs under 'defaults'?"),
        ("runtime: {keep_alive: 1}", "models.a.runtime.keep_alive'; it belongs directly in an "
         "entry of 'models'"),
        ("size: {enlarge: {sizes: [64x64], upscaler: u, min: 1}}",
         "models.a.size.enlarge.min'; it belongs under 'size'"),
    ],
)  # fmt: skip
def test_a_key_in_the_wrong_place(keys: str, hint: str) -> None:
    """The message says where the key belongs, and suggests no key that is invalid there."""
    assert problems(f"{ENTRY}   {keys}") == [(5, f"unknown key '{hint}")]


def test_a_key_of_an_entry_at_the_top() -> None:
    """A key of an entry is not one of the file."""
    hint = "'family'; it belongs directly in an entry of 'models'"
    assert problems(f"family: sd1\n{ENTRY}") == [(1, f"unknown key {hint}")]
    assert problems(f"defalt: a\n{ENTRY}") == [(1, "unknown key 'defalt'; did you mean 'default'?")]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("!!int x", "'x' cannot be read as !!int"),
        ("!!int ''", "'' cannot be read as !!int"),
        ("!!float x", "'x' cannot be read as !!float"),
        ("!!bool x", "'x' cannot be read as !!bool"),
        ("!!timestamp x", "'x' cannot be read as !!timestamp"),
        ("9" * 5000, f"'{'9' * 63}…' cannot be read as !!int"),
        ("0x" + "F" * 5000, f"'0x{'F' * 61}…' cannot be read as !!int"),
        ("!ENV x", "could not determine a constructor for the tag '!ENV'"),
        ("!!seq x", "expected a sequence node, but found scalar"),
    ],
)
def test_a_value_that_does_not_fit_to_its_tag(value: str, message: str) -> None:
    """The message has the line of each use, and the other problems are reported too."""
    text = f"{ENTRY}   license: {value}\n   description: {value}\n   family: sdx\n"
    found = problems(text)
    assert [(line, words) for line, words in found if words == message] == [
        (5, message), (6, message),
    ]  # fmt: skip
    assert any("unknown family 'sdx'" in words for _, words in found)


@pytest.mark.parametrize(
    ("character", "code"), [("\0", "U+0000"), ("\x1b", "U+001B"), ("\ufffe", "U+FFFE")]
)
def test_a_character_that_yaml_does_not_allow(character: str, code: str) -> None:
    """The message is one line, with the line of the character."""
    text = f"{ENTRY}   description: a{character}b\n"
    assert problems(text) == [(5, f"YAML does not allow the character {code}")]


@pytest.mark.parametrize("key", ["family", "license", "colour"])
def test_half_a_character(key: str) -> None:
    """An escape for half of a surrogate pair is a problem with its line, in keys and values."""
    message = r"an escape such as \ud800 is half a character; write the character itself"
    assert (5, message) in problems(f'{ENTRY}   {key}: "a\\ud800"\n')
    assert (5, message) in problems(f'{ENTRY}   "{key}\\udfff": a\n')


def test_half_a_character_in_a_runtime_option() -> None:
    """The error of a request to load a model can be sent."""
    with pytest.raises(RuntimeOptionError, match=r"unknown wtype '\\ud800'"):
        entry(ENTRY).with_runtime({"wtype": "\ud800"})
    with pytest.raises(RuntimeOptionError, match=r"without unpaired surrogates, not '\\ud800'"):
        entry(ENTRY).with_runtime({"rng": "\ud800"})


def test_keys_are_text() -> None:
    """A key that looks like a number is unknown like any other, or the name of a quant."""
    assert problems(f"{ENTRY}   3: 4\n   true: 4\n   ~: 4\n") == [
        (5, "unknown key 'models.a.3'"),
        (6, "unknown key 'models.a.true'"),
        (7, "unknown key 'models.a.~'"),
    ]
    text = ENTRY.replace("{model: m}", "{model: 'hf:o/r/x-{quant}'}")
    assert [*(Catalog.parse(f"{text}   quants: {{8: 1.5}}").entries["a"].quants or ())] == ["8"]


def test_the_keys_of_a_duplicate_are_no_duplicates() -> None:
    """Only the outer duplicate key is reported, and the lines of other problems are in the last."""
    text = (
        f"{ENTRY}   runtime: {{threads: 2}}\n   runtime:\n     offload: true\n     threads: x\n"
        "     threads: y\n   aliases: [b]\n   aliases:\n   - 3\n"
    )
    assert problems(text) == [
        (6, "duplicate key 'runtime'"),
        (9, "duplicate key 'threads'"),
        (9, "models.a.runtime.threads: must be a whole number, not 'y'"),
        (11, "duplicate key 'aliases'"),
        (12, "models.a.aliases.0: must be a string, not 3"),
    ]


def test_duplicates_that_grow_without_bound() -> None:
    """Anchors that are used twice under the same key are counted like others."""
    text = "a0: &a0 {x: 1}\n" + "".join(
        f"a{i}: &a{i} {{x: *a{i - 1}, x: *a{i - 1}}}\n" for i in range(1, 60)
    )
    ((_, message),) = problems(text)
    assert "counting each use of an anchor" in message


def test_two_documents() -> None:
    """A second document in the file is named plainly, with its line."""
    assert problems(f"{ENTRY}---\nmodels: []\n") == [
        (5, "a second YAML document begins here; the file may have only one")
    ]
