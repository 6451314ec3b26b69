"""Parsing of models.yaml into a catalogue."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdstream.core.catalog import Catalog
from sdstream.core.catalog_yaml import CatalogError
from sdstream.core.locations import HubFile
from sdstream.core.model_families import FAMILIES
from sdstream.core.runtime_options import RuntimeOptionError
from sdstream.core.size import Size

HEAD = "models:\n - id: a\n   family: sd1\n"

MINIMAL = """
models:
  - id: one
    family: sd1
    files: {model: one.gguf}
"""


def test_what_is_left_out_comes_from_the_family() -> None:
    """An entry of three keys is a complete model."""
    spec = Catalog.parse(MINIMAL).models["one"]
    assert spec.default_size == FAMILIES["sd1"].size
    assert spec.runtime.threads == 0


def test_the_first_model_is_the_default() -> None:
    """Without a ``default`` key, no name, "" and "default" all select the first model."""
    catalog = Catalog.parse(MINIMAL)
    assert {catalog.find(name) for name in (None, "", "default", "one")} == {catalog.models["one"]}
    assert catalog.find("two") is None


def test_aliases() -> None:
    """Aliases of an entry, and of the default model, are found regardless of case."""
    catalog = Catalog.parse(MINIMAL + "    aliases: [dall-e-3]").with_default_aliases(
        ["GPT-Image-1"]
    )
    one = catalog.models["one"]
    assert [catalog.find(name) for name in ("DALL-E-3", "gpt-image-1", "dall-e-2")] == [
        one,
        one,
        None,
    ]
    assert catalog.aliases() == {"dall-e-3": "one", "gpt-image-1": "one"}
    with pytest.raises(CatalogError, match="the alias 'ONE' is the id of a model"):
        catalog.with_default_aliases(["ONE"])


def test_an_alias_of_another_model_is_not_one_of_the_default() -> None:
    """The default model cannot have the alias or the quant of another one, only its own again."""
    named = HUB.replace("  - id: two\n", "  - id: two\n    aliases: [owner/Two]\n")
    catalog = Catalog.parse(named).on_machine(lambda file: file.path)
    with pytest.raises(CatalogError, match="the alias 'OWNER/two' belongs to 'two'"):
        catalog.with_default_aliases(["OWNER/two"])
    with pytest.raises(CatalogError, match="the alias 'two:q4_0' is the id of a model"):
        catalog.with_default_aliases(["two:q4_0"])
    own = catalog.led_by("two:Q4_0").with_default_aliases(["OWNER/two"])
    assert own.find("owner/Two") == own.models["two:Q4_0"]


def test_a_default_that_is_named_by_an_alias() -> None:
    """The default is the model's id, also while the model is not downloaded."""
    named = HUB.replace("  - id: two\n", "  - id: two\n    aliases: [owner/Two]\n")
    absent = Catalog.parse(named).led_by("OWNER/two").with_default_aliases(["owner/two"])
    assert absent.find("owner/two") is None
    assert "'sdstream pull OWNER/two' downloads it" in absent.why_missing("owner/two")
    catalog = absent.on_machine(lambda file: file.path)
    assert catalog.default == "two:Q8_0"
    assert catalog.aliases()["owner/two"] == "two:Q8_0"


def test_aliases_of_what_can_be_pulled() -> None:
    """An alias stands for the id: alone, with a quant, and in messages."""
    named = HUB.replace("  - id: two\n", "  - id: two\n    aliases: [owner/Two]\n")
    catalog = Catalog.parse(named)
    nothing = catalog.on_machine(lambda _file: None)
    assert nothing.find("owner/two") is None
    missing = nothing.led_by("two").with_default_aliases(["gpt-image-1"])
    assert missing.aliases() == nothing.aliases()
    assert "is in the catalogue but not downloaded: 'sdstream pull Owner/two'" in (
        nothing.why_missing("Owner/two")
    )
    assert "'two' has the quants Q8_0, Q4_0" in nothing.why_missing("owner/two:Q2")
    variant = nothing.variant("owner/Two:q4_0")
    assert variant is not None
    assert variant.quant == "Q4_0"
    some = catalog.on_machine(lambda file: file.path if file.path in (VAE, Q4) else None)
    assert some.find("owner/two") == some.find("OWNER/two:q4_0") == some.models["two:Q4_0"]
    assert some.find("owner/two:Q8_0") is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Kolors", "is not in the catalogue: the runtime does not support its architecture."),
        ("Tencent/hunyuandit-v1.2-distilled", "does not support its architecture."),
        ("stabilityai/stable-diffusion-xl-refiner-1.0", "the runtime does not support refiners."),
        ("owner/Three-GGUF", "did you mean two?"),
    ],
)
def test_why_a_name_is_unknown(name: str, words: str) -> None:
    """Models that the runtime does not support have the reason. A repository's name leads to the
    entry with a similar alias."""
    named = HUB.replace("  - id: two\n", "  - id: two\n    aliases: [other/three]\n")
    assert words in Catalog.parse(named).why_unknown(name)
    if "support" in words:
        assert words in Catalog.parse(named).why_missing(name)


def test_an_unknown_name_can_become_one() -> None:
    """The message suggests an alias of the default model, except for a likely typing error."""
    catalog = Catalog.parse(MINIMAL)
    assert catalog.why_missing("gpt-image-1").endswith(
        "available: one. 'sdstream serve --alias gpt-image-1' makes it an alias of the default "
        "model."
    )
    assert catalog.why_missing("on").endswith("Did you mean 'one'?")
    assert "alias" not in catalog.why_missing("a name $(with) spaces")


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (HEAD + "   files: {model: m}\n   colour: 1", 5, "unknown key"),
        ("models:\n - id: a\n   family: sd9\n   files: {model: m}", 3, "unknown family 'sd9'"),
        (HEAD, 2, "'models.a.files' is missing"),
        ("models:\n - family: sd1", 2, "'models.0.id' is missing"),
        (HEAD + "   files: {vae: m}", 4, "'model' or 'diffusion"),
        (HEAD + "   files: {model: m}\n   runtime:\n     threads: x", 6, "whole number, not 'x'"),
        (HEAD + "   files: {model: m}\n   defaults:\n     size: 10x10", 6, "multiple|between"),
        (HEAD + "   files: {model: m}\n   defaults:\n     size: big", 6, "WIDTHxHEIGHT"),
        (HEAD + "   files: {model: m}\n   defaults:\n     sampler: x", 6, "unknown sampler"),
        (HEAD + "   files: {model: m}\n   size: {min: 512, max: 256}", 5, "larger"),
        (MINIMAL + "  - id: one\n    family: sd1\n    files: {model: m}", 6, "duplicate"),
        (HEAD + "   files: {model: m}\n   id: b", 5, "duplicate"),
        ("default: two\n" + MINIMAL, 1, "no model has the id 'two'"),
        (HEAD + "   files: {model: m}\n   defaults:\n     step: 4", 6, "did you mean 'steps'"),
        (HEAD + "   files: {model: m}\n   aliases: [A]", 5, "is the id of a model"),
        (MINIMAL + "    aliases: [x]\n  - {id: two, family: sd1, files: {model: m}, aliases: [X]}",
         7, "belongs to two models"),
        ("models: []", 1, "must have at least 1 item, not 0"),
        ("models: 3", 1, "must be a list"),
        (HEAD + "   files: {model: m}\n   defaults: 3", 5, "must be keys with values"),
        (HEAD + "   files: {model: m}\n   defaults: {size: 512}", 5, "WIDTHxHEIGHT"),
        (HEAD + "   files: {model: m}\n   defaults: {guidance: 3}", 5, "no distilled guidance"),
        (HEAD + "   files: {model: m}\n   license: 3", 5, "must be a string, not 3"),
        (HEAD + "   files: {model: m}\n   description: !ENV x", 5, "tag '!ENV'"),
        (HEAD + "   files: {model: m}\n   replicas: !!int x", 5, "'x' cannot be read as !!int"),
        ("models:\n - id: default\n   family: sd1\n   files: {model: m}", 2, "reserved"),
        ("? [a]", 1, "unhashable key"),
        ("[" * 3000, 1, "nested too deep"),
        ("models: [", 1, "expected"),
        ("models:\n\t- id: a", 2, "YAML allows no tab here; use spaces"),
        ("default: on\n" + MINIMAL, 1, "no model has the id 'on'; did you mean 'one'"),
        ("default: true\n" + MINIMAL, 1, "default: must be a string, not true"),
        ("default: onee\n" + MINIMAL, 1, "no model has the id 'onee'; did you mean 'one'"),
        ("", 1, "keys with values"),
        ("7", 1, "keys with values"),
        ("models:\n - id: ../a\n   family: sd1\n   files: {model: m}", 2, "at most 128 letters"),
        (HEAD + "   files: {model: m}\n   device: gpu", 5, "must be 'cpu', or a GPU such as"),
        (HEAD + "   files: {model: m}\n   replicas: 0", 5, "'auto' or from 1 to 1024, not 0"),
        (HEAD + "   files: {model: m}\n   runtime:\n     prediction: v\n     zero_cond_t: true", 7,
         "Qwen-Image-Edit"),
        ("models:\n - id: a\n   family: sd3\n   files: {model: m}\n   defaults: {schedule: ays}", 5,
         "The schedule 'ays' has tables for older models"),
        ("models:\n - id: a\n   family: SDXL\n   files: {model: m}", 3, "did you mean 'sdxl'"),
    ],
)  # fmt: skip
def test_a_fault_names_its_line(text: str, line: int, words: str) -> None:
    """The error contains the line and the problem."""
    with pytest.raises(CatalogError, match=words) as caught:
        Catalog.parse(text)
    assert caught.value.line == line


def test_all_faults_at_once() -> None:
    """All problems are reported together, each with the entry's id and its line, in line order."""
    text = """\
models:
  - id: first
    family: sd1
    files: {model: m}
    default: {steps: 4}
  - id: second
    family: sd9
    files: {model: m}
    runtime: {threads: many}
"""
    with pytest.raises(CatalogError) as caught:
        Catalog.parse(text)
    assert str(caught.value).splitlines() == [
        "models.yaml has 3 problems:",
        "  line 5: unknown key 'models.first.default'; did you mean 'defaults'?",
        *(f"  line {line}: {words}" for line, words in caught.value.problems[1:]),
    ]
    assert [line for line, _ in caught.value.problems] == [5, 7, 9]
    assert "models.second.runtime.threads" in caught.value.problems[2].message
    twice = MINIMAL + MINIMAL.replace("models:", "").replace("files", "aliases: [one]\n    files")
    with pytest.raises(CatalogError, match="has 2 problems") as caught:
        Catalog.parse(twice)
    assert [words for _, words in caught.value.problems] == [
        "duplicate id 'one'", "the alias 'one' is the id of a model",
    ]  # fmt: skip


def test_an_invalid_entry_hides_no_other_fault() -> None:
    """Next to an invalid entry, these are reported: an unknown default, duplicates, missing files,
    and every value that does not fit to the entry's family, each with its own line."""
    text = """\
default: frist
models:
  - id: first
    family: sdx
    files: {model: gone.gguf}
  - id: second
    family: flux
    files: {diffusion_model: here.gguf}
    runtime:
      prediction: v
      control_net_on_cpu: true
  - id: third
    family: sd1
    files: {model: gone.gguf}
    aliases: [one]
    aliases: [second]
"""
    with pytest.raises(CatalogError) as caught:
        Catalog.parse(text, lambda path: "no such file" if "gone" in path else None)
    expected = {
        1: ["no model has the id 'frist'; did you mean 'first'?"],
        4: [f"models.first.family: unknown family 'sdx'; available: {', '.join(FAMILIES)}; "
            "did you mean 'sdxl'?"],
        5: ["models.first.files.model: no such file"],
        10: ["models.second.runtime.prediction: it is for models with a U-Net, not for the family "
             "'flux'"],
        11: ["models.second.runtime.control_net_on_cpu: it needs files.control_net"],
        14: ["models.third.files.model: no such file"],
        16: ["duplicate key 'aliases'", "the alias 'second' is the id of a model"],
    }  # fmt: skip
    found: dict[int, list[str]] = {}
    for line, message in caught.value.problems:
        found.setdefault(line, []).append(message)
    assert found == expected


INVALID = " - {id: a, family: sdx, files: {model: m}, aliases: [b, 3], quants: {Q8: 1}}\n"


@pytest.mark.parametrize(
    ("head", "entry", "words"),
    [
        ("", "id: A", "line 3: duplicate id 'A'"),
        ("", "id: c, aliases: [a]", "line 3: the alias 'a' is the id of a model"),
        ("", "id: b", "line 2: the alias 'b' is the id of a model"),
        ("", "id: c, aliases: [B]", "line 3: the alias 'B' belongs to two models"),
        ("", "id: a:q8", "line 3: the id 'a:q8' is also a quant of 'a'"),
        ("default: a:Q4\n", "id: c", "line 1: no model has the id 'a:Q4'"),
    ],
)
def test_the_names_of_an_invalid_entry_are_taken(head: str, entry: str, words: str) -> None:
    """A name that an invalid entry has too is reported, together with the fault of that entry."""
    with pytest.raises(CatalogError, match="unknown family 'sdx'") as caught:
        Catalog.parse(f"{head}models:\n{INVALID} - {{{entry}, family: sd1, files: {{model: m}}}}")
    assert words in str(caught.value)


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
    """The size keeps the image's shape as far as the model's bounds and multiples allow."""
    spec = Catalog.parse(MINIMAL).models["one"]
    near = spec.size_near(Size(*source), 4_194_304)
    assert near == size
    assert spec.size_problem(near) is None


@given(st.integers(1, 9000), st.integers(1, 9000), st.integers(64 * 2048, 4_194_304))
def test_a_size_near_a_picture_has_no_more_pixels_than_allowed(
    width: int, height: int, most: int
) -> None:
    """For any image, the size is within the pixel limit and one that the model can generate."""
    spec = Catalog.parse(MINIMAL).models["one"]
    near = spec.size_near(Size(width, height), most)
    assert near.width * near.height <= most
    assert spec.size_problem(near) is None


def test_words_for_booleans() -> None:
    """on, off, yes and no are booleans only where a boolean is expected; `kernels: off` is text."""
    runtime = "    runtime: {kernels: off, offload: on, vae_tiling: no, conv_direct: true}\n"
    catalog = Catalog.parse(MINIMAL.replace("id: one", "id: off") + runtime)
    options = catalog.models["off"].runtime
    assert (options.kernels, options.offload, options.vae_tiling) == ("off", True, False)
    assert options.conv_direct is True


@pytest.mark.parametrize("word", ["true", "false"])
@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("keep_alive", "{}", "keep_alive: must be a number, not {}"),
        ("prompt_characters", "{}", "prompt_characters: must be a whole number, not {}"),
        ("replicas", "{}", "replicas: must be 'auto' or from 1 to 1024, not {}"),
        ("license", "{}", "license: must be a string, not {}"),
        ("quants", "{{Q8: {}}}", "quants.Q8: must be a number, not {}"),
        ("runtime", "{{threads: {}}}", "runtime.threads: must be a whole number, not {}"),
        ("runtime", "{{max_vram: {}}}", "runtime.max_vram: must be a number, not {}"),
        ("runtime", "{}", "runtime: must be keys with values, not {}"),
        ("defaults", "{{cfg_scale: {}}}", "defaults.cfg_scale: must be a number, not {}"),
        ("size", "{{max: {}}}", "size.max: must be a whole number, not {}"),
    ],
)  # fmt: skip
def test_a_boolean_is_no_number(key: str, value: str, words: str, word: str) -> None:
    """A boolean is an error where a number is expected, with the value as it is in the file."""
    with pytest.raises(CatalogError) as caught:
        Catalog.parse(f"{MINIMAL}    {key}: {value.format(word)}")
    assert f"models.one.{words.format(word)}" in str(caught.value)


def test_a_boolean_is_no_number_in_a_request_to_load_a_model() -> None:
    """The runtime options of a request are checked like those of models.yaml."""
    spec = Catalog.parse(MINIMAL).models["one"]
    with pytest.raises(RuntimeOptionError, match=r"^threads: must be a whole number, not true\.$"):
        spec.with_runtime({"threads": True})
    assert spec.with_runtime({"offload": True, "threads": 2}).runtime.threads == 2


def test_nothing_is_a_date() -> None:
    """Text that YAML would read as a date stays text, even if the date does not exist."""
    catalog = Catalog.parse(MINIMAL + "    license: 2024-99-99")
    assert catalog.models["one"].license == "2024-99-99"


@pytest.mark.parametrize("text", ["512x256", "512*256", " 512 X 256 ", "512×256"])
def test_sizes_as_people_write_them(text: str) -> None:
    """WxH and Xinference's W*H mean the same size."""
    assert Size.parse(text) == Size(512, 256)
    assert str(Size.parse(text)) == "512x256"


@pytest.mark.parametrize("text", ["", "512", "x", "512x", "-1x5", "1e3x5", "512x512x3", "999999x1"])
def test_what_is_no_size(text: str) -> None:
    """Text in any other form is rejected as a size."""
    with pytest.raises(ValueError, match="WIDTHxHEIGHT"):
        Size.parse(text)


def test_the_shipped_catalogue(shipped_catalog: Catalog) -> None:
    """The project's models.yaml parses, and its default model needs no download."""
    spec = shipped_catalog.models[shipped_catalog.default]
    assert all(location.startswith("builtin:") for _, location in spec.files.items())


# --- files of the hub ---------------------------------------------------------------------------

HUB = """
models:
  - id: one
    family: sd1
    files: {model: one.gguf}
  - id: two
    family: sd1
    page: https://example.org/two
    license: mit
    gated: true
    quants:
      Q8_0: 1.5
      Q4_0: null
    files:
      model: hf:them/two-GGUF/two-{quant}.gguf
      vae: hf:them/vae@v1/deep/vae.safetensors
      clip_l: clip.safetensors
"""


def here(*paths: str) -> Catalog:
    """The catalogue on a machine that has only these files of the hub."""
    return Catalog.parse(HUB).on_machine(
        lambda file: f"/cache/{file.path}" if file.path in paths else None
    )


VAE, Q8, Q4 = "deep/vae.safetensors", "two-Q8_0.gguf", "two-Q4_0.gguf"


def test_the_quants_of_an_entry() -> None:
    """Each quant is a variant with its own files, found regardless of case.

    The first is the default.
    """
    catalog = Catalog.parse(HUB)
    usual, small = catalog.entries["two"].variants
    assert [usual.name, small.name] == ["two:Q8_0", "two:Q4_0"]
    assert (usual.gigabytes, small.gigabytes) == (1.5, None)
    assert usual.hub_files == {
        "model": HubFile("them/two-GGUF", Q8, "main"),
        "vae": HubFile("them/vae", VAE, "v1"),
    }
    assert catalog.variant("two") == usual
    assert catalog.variant("two:q4_0") == small
    assert catalog.variant("TWO") == usual
    assert catalog.variant("Two:q4_0") == small
    assert [catalog.variant(name) for name in ("one", "two:Q2", "three", "two:")] == [None] * 4


def test_files_by_their_address() -> None:
    """The URL that a browser shows stands for the same file, also with {quant} in it."""
    text = HUB.replace("hf:them/two-GGUF/", "https://huggingface.co/them/two-GGUF/resolve/main/")
    text = text.replace("hf:them/vae@v1/", "https://hf.co/them/vae/blob/v1/")
    assert text.count("https://h") == 2
    assert Catalog.parse(text).entries == Catalog.parse(HUB).entries


@pytest.mark.parametrize(
    "address",
    [
        "ms:them/two/deep/x y.gguf",
        "ms://them/two@master/deep/x y.gguf",
        "https://www.modelscope.cn/models/them/two/resolve/master/deep/x%20y.gguf",
        "https://modelscope.cn/models/them/two/file/view/master/deep%2Fx%20y.gguf?status=2",
        "https://modelscope.cn/models/them/two/file/view/master?fileName=deep%2Fx%20y.gguf&status=1",
    ],
)
def test_files_of_modelscope(address: str) -> None:
    """A ModelScope location is parsed, and differs from the same path on the Hugging Face hub."""
    file = HubFile.parse(address)
    assert file == HubFile("them/two", "deep/x y.gguf", "master", "ms:")
    assert file != HubFile("them/two", "deep/x y.gguf", "master")
    assert file.location == "ms:them/two/deep/x y.gguf"
    text = HUB.replace("hf:them/vae@v1/deep/vae.safetensors", f'"{address}"')
    assert Catalog.parse(text).entries["two"].variants[0].hub_files["vae"] == file
    tag = HubFile.parse("ms:them/two@v1/x")
    assert (tag.revision, tag.location) == ("v1", "ms:them/two@v1/x")


@pytest.mark.parametrize(
    "address",
    ["https://example.org/x.gguf", "https://huggingface.co/them/two-GGUF/tree/main", "http://"],
)
def test_addresses_of_no_file(address: str) -> None:
    """A URL that does not lead to a file is an error with its line and the remedy."""
    with pytest.raises(CatalogError, match="hf:OWNER/REPO/PATH") as caught:
        Catalog.parse(HUB.replace("one.gguf", f'"{address}"'))
    assert caught.value.line == 5


@pytest.mark.parametrize(
    "address",
    [
        "https://huggingface.co/them/two/resolve/refs%2Fheads%2Fmain/c.gguf",
        "https://huggingface.co/them/two/resolve/refs/heads/main/c.gguf",
        "https://huggingface.co/them/two/resolve/new%2fpart/c.gguf",
        "https://modelscope.cn/models/them/two/resolve/refs%2Fpr%2F1/c.gguf",
        "https://modelscope.cn/models/them/two/resolve/refs/pr/1/c.gguf",
        "hf:them/two@refs/pr/x/c.gguf",
        "hf:them/two@refs/pr/1x/c.gguf",
        "hf:them/two@new%2Fpart/c.gguf",
        "ms:them/two@refs/pr/1/c.gguf",
        "ms:them/two@refs%2Fpr%2F1/c.gguf",
    ],
)
def test_addresses_whose_revision_has_a_slash(address: str) -> None:
    """A revision with a slash is rejected, as its end would be taken for a folder."""
    with pytest.raises(ValueError, match=r"has a revision with a slash; write its commit hash"):
        HubFile.parse(address)


@pytest.mark.parametrize("revision", ["refs/pr/12", "refs/convert/gguf"])
def test_revisions_of_pull_requests(revision: str) -> None:
    """The Hugging Face hub's revisions of pull requests and conversions are read as it does."""
    file = HubFile("them/two", "deep/c.gguf", revision)
    quoted = revision.replace("/", "%2F")
    for text in (revision, quoted, quoted.lower()):
        for kind in ("resolve", "blob", "raw"):
            address = f"https://huggingface.co/them/two/{kind}/{text}/deep/c.gguf"
            assert HubFile.parse(address) == file
        assert HubFile.parse(f"hf:them/two@{text}/deep/c.gguf") == file
    assert HubFile.parse(file.location) == file


@pytest.mark.parametrize(
    "address",
    [
        "HF:them/two/c.gguf",
        "hf:them/two/c.gguf?download=true",
        "huggingface.co/them/two/resolve/main/c.gguf?download=true",
        "www.huggingface.co/them/two/blob/main/c.gguf",
        "HTTPS://HF.co/them/two/raw/main/c.gguf",
    ],
)
def test_addresses_as_people_copy_them(address: str) -> None:
    """Upper case, an address without https:// and a download's query lead to the same file."""
    assert HubFile.parse(address) == HubFile("them/two", "c.gguf", "main")
    text = HUB.replace("hf:them/vae@v1/deep/vae.safetensors", address)
    vae = Catalog.parse(text).entries["two"].files.vae
    assert vae == "hf:them/two/c.gguf"


def test_what_is_not_here_is_no_model() -> None:
    """An entry with missing files is not served; the message has the command to download them."""
    for catalog in (Catalog.parse(HUB), here(), here(Q8), here(VAE)):
        assert [*catalog.models] == ["one"]
        assert catalog.find("two") is None
    why = "'sdstream pull two' downloads it (1.5 GB)"
    assert why in here().why_missing("two")
    assert "'sdstream pull two:q4_0' downloads it." in here().why_missing("two:q4_0")
    assert "'two' has the quants Q8_0, Q4_0" in here().why_missing("two:Q2")
    assert "available: one." in here().why_missing("three")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tow", "The model 'tow' is not in the catalogue; did you mean two?"),
        ("TW", "; did you mean two?"),
        ("TW:Q8_0", "; did you mean two?"),
        ("TWO:Q2", "'two' has the quants Q8_0, Q4_0."),
        ("nope", "; 'sdstream models --all' lists all models."),
    ],
)
def test_what_the_catalogue_does_not_know(name: str, words: str) -> None:
    """The message suggests similar entries, including those whose files are not downloaded."""
    assert here().why_unknown(name).endswith(words)


def test_what_is_here_is_served() -> None:
    """Downloaded quants are served as MODEL:QUANT, and MODEL selects the first of them."""
    catalog = here(VAE, Q4)
    assert [*catalog.models] == ["one", "two:Q4_0"]
    spec = catalog.models["two:Q4_0"]
    assert {catalog.find(name) for name in ("two", "TWO", "two:q4_0", "Two:q4_0")} == {spec}
    assert catalog.find("ONE") == Catalog.parse(HUB).find("One") == catalog.models["one"]
    assert dict(spec.files.items()) == {
        "model": f"/cache/{Q4}",
        "vae": f"/cache/{VAE}",
        "clip_l": "clip.safetensors",
    }
    assert here(VAE, Q4, Q8).find("two") == here(VAE, Q8).models["two:Q8_0"]
    assert catalog.find("two:Q8_0") is None


def test_another_default() -> None:
    """The default may be an entry or a quant, and is replaced by the name that is served."""
    catalog = here(VAE, Q4)
    assert catalog.default == "one"
    assert {catalog.led_by(name).default for name in ("Two", "two:q4_0")} == {"two:Q4_0"}
    assert Catalog.parse(f"default: ONE\n{HUB}").default == "one"
    named = HUB.replace("id: one\n", "id: one\n    aliases: [uno]\n")
    assert Catalog.parse(f"default: Uno\n{named}").default == "one"
    absent = here().led_by("two")
    assert absent.find(None) is None
    assert "'sdstream pull two'" in absent.why_missing(None)
    lone = catalog.plus(catalog.models["one"].model_copy(update={"id": "mine"}))
    assert [*lone.models] == ["one", "two:Q4_0", "mine"]
    assert lone.on_machine(lambda _: None).default == "mine"


TWO = "models:\n - id: a\n   family: sd1\n"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (TWO + "   quants: {Q8: 1}\n   files:\n     model: hf:them/x", 6, "not a file on the hub"),
        (TWO + "   quants: {Q8: 1}\n   files:\n     model: hf:a/b/../c", 6, "not a file on"),
        (TWO + "   quants: {Q8: 1}\n   files:\n     model: hf:a/b/{qant}", 6, "only placeholder"),
        (TWO + "   files:\n     vae: v\n     model: hf:a/b/c", 6, "require 'quants'"),
        (TWO + "   files:\n     model: a-{quant}.gguf", 5, "allowed only in files on a hub"),
        (TWO + "   files: {model: m}\n   quants: {Q8: 1}", 5, "requires files on a hub"),
        (TWO + "   files: {model: hf:a/b/c}\n   quants: {}", 5, "at least 1 item, not 0"),
        (TWO + "   files: {model: hf:a/b/c}\n   quants: {Q8: 1, Q4: 1}", 5, "must contain {quant}"),
        (TWO + "   files: {model: 'hf:a/b/{quant}'}\n   quants: {Q8: 1, q8: 1}", 5, "case"),
        (TWO + "   files: {model: hf:a/b/c}\n   quants:\n     Q8: much", 6, "number"),
        (TWO + "   files: {model: hf:a/b/c}\n   quants:\n     'a:b': 1", 6, "at most 32 letters"),
        (TWO + "   files: {model: m}\n   page: here", 5, "must be an http or https address, not"),
        (
            TWO + "   files: {model: hf:a/b/c}\n   quants: {Q8: 1}\n"
            " - id: a:q8\n   family: sd1\n   files: {model: m}", 6, "also a quant of 'a'",
        ),
        (
            TWO + "   files: {model: m}\n - id: A\n   family: sd1\n   files: {model: m}", 5,
            "duplicate id 'A'",
        ),
        ("default: a:Q4\n" + TWO + "   files: {model: hf:a/b/c}\n   quants: {Q8: 1}", 1, "a:Q4"),
    ],
)  # fmt: skip
def test_a_fault_of_hub_files_names_its_line(text: str, line: int, words: str) -> None:
    """An error in quants or hub files is reported with its line."""
    with pytest.raises(CatalogError, match=words) as caught:
        Catalog.parse(text)
    assert caught.value.line == line


@pytest.mark.parametrize(
    "text",
    [
        "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60)),
        "a0: &a0 {x: 1}\n"
        + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 60)),
        "a0: &a0\n  b: *a0\n",
    ],
    ids=["lists", "merges", "itself"],
)
def test_anchors_that_grow_without_bound(text: str) -> None:
    """Anchors that contain one another many times are a problem, not a parse that never ends."""
    with pytest.raises(CatalogError, match=r"each use of an anchor|too deeply"):
        Catalog.parse(f"{text}models: []\n")
