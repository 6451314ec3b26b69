"""The rule for fields without effect: which are accepted, reported or rejected."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from typing import Any

import pytest

from sdstream.core.ask import Handling, Hints
from sdstream.core.errors import InvalidRequest, Reason
from sdstream.dialects.fields import (
    FOREIGN,
    SPELLINGS,
    Foreign,
    holds_picture,
    is_nothing,
    meant_by,
    only,
    take,
)
from sdstream.dialects.openai.chat import parse_chat
from sdstream.dialects.openai.request import parse, parse_edit, parse_form, parse_query
from tests.support.client_fields import CLIENT_FIELDS
from tests.support.pictures import png

DATA_URL = "data:image/png;base64,iVBORw0KGgo="


def rejected(fields: Mapping[str, Any], handling: Handling = Handling.SUGGEST) -> InvalidRequest:
    """Return the error with which a body is rejected."""
    with pytest.raises(InvalidRequest) as caught:
        parse({"prompt": "a cat", **fields}, Hints(handling=handling))
    return caught.value


def test_unknown_fields_are_reported() -> None:
    """Each unknown field gives a warning, and its name is kept for the log and a header."""
    ask = parse({"prompt": "a cat", "keep_alive": "5m", "negative": None, "x" * 90: 1})
    assert ask.unknown == ("keep_alive", "x" * 64)
    assert ask.warnings[0] == "Unknown field 'keep_alive' has no effect."
    assert ask.params == parse({"prompt": "a cat"}).params


def test_no_more_than_twenty_are_named() -> None:
    """A body with many unknown fields gets a short list of warnings."""
    ask = parse({"prompt": "a cat", **{f"foreign{number:04}": 1 for number in range(50)}})
    assert len(ask.warnings) == 21
    assert ask.warnings[-1] == "30 more fields have no effect."


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("sampel_steps", "sample_steps"),
        ("negativ_prompt", "negative_prompt"),
        ("negativePrompt", "negative_prompt"),
        ("sed", "seed"),
        ("promt", "prompt"),
        ("cfg_scal", "cfg_scale"),
        ("numInferenceSteps", "num_inference_steps"),
    ],
)
def test_near_misses_are_rejected_with_the_suggestion(name: str, meant: str) -> None:
    """A likely misspelling is rejected with a suggestion; lenient handling only reports it."""
    error = rejected({name: 7})
    assert (error.reason, error.param) == (Reason.UNKNOWN_FIELD, name)
    assert error.message == f"Unknown field '{name}'. Did you mean '{meant}'?"
    lenient = parse({"prompt": "a cat", name: 7}, Hints(handling=Handling.LENIENT))
    assert lenient.warnings == (f"Unknown field '{name}' has no effect. Did you mean '{meant}'?",)


def test_strict_handling_rejects_every_unknown_field() -> None:
    """Strict handling still accepts known fields without effect."""
    assert rejected({"keep_alive": "5m"}, Handling.STRICT).param == "keep_alive"
    strict = Hints(handling=Handling.STRICT)
    assert parse({"prompt": "a cat", "user": "me"}, strict).warnings == ()
    assert rejected({"stream_options": {"x": 1}}, Handling.STRICT).param == "stream_options.x"


@pytest.mark.parametrize("handling", Handling)
@pytest.mark.parametrize(
    "fields",
    [
        {"ip_adapter": "face"},
        {"reference_strength": 0.4},
        {"thing": DATA_URL},
        {"thing": DATA_URL.upper().replace("IVBORW0KGGO=", "iVBORw0KGgo=")},
        {"thing": {"deep": [{"down": DATA_URL}]}},
        {"thing": base64.b64encode(png(8, 8)).decode()},
        {"thing": "https://host.example/face.JPG?size=1"},
    ],
)
def test_a_picture_is_never_dropped(fields: dict[str, Any], handling: Handling) -> None:
    """A value that may be an image is rejected, as ignoring it would change the result."""
    error = rejected(fields, handling)
    assert error.param == next(iter(fields))
    assert "may contain or select an image" in error.message or handling is Handling.STRICT


@pytest.mark.parametrize(
    "value", [None, "", 5, True, "a cat", "https://host.example/page", {"a": ["b"]}, "ab" * 64]
)
def test_other_values_are_no_pictures(value: object) -> None:
    """Words, numbers and links to pages are not taken for images."""
    assert not holds_picture(value)


def test_pictures_are_looked_for_to_a_depth() -> None:
    """Deeply nested values are searched to a limited depth, without a stack overflow."""
    value: Any = DATA_URL
    for _ in range(2000):
        value = [value]
    assert not holds_picture(value)


@pytest.mark.parametrize("value", [0, "0", 0.0, "0.0", False, "False", "none", "None", "off", [""]])
def test_values_that_switch_a_field_off(value: object) -> None:
    """Every spelling of an off value counts as off."""
    assert is_nothing(value)


def test_neutral_values_replace_the_usual_ones() -> None:
    """For a field that is on by default, only its neutral value is accepted."""
    taken = take({"round": "True"}, (), foreign={"round": only(True)}, handling=Handling.STRICT)
    assert taken.warnings == taken.unknown == ()
    with pytest.raises(InvalidRequest, match="'round' must be true"):
        take({"round": 0}, (), foreign={"round": only(True)}, handling=Handling.LENIENT)
    noted = {"a": Foreign(note=" has no effect.")}
    taken = take({"a": 7}, (), foreign=noted, handling=Handling.SUGGEST, where="o.")
    assert taken.warnings == ("'o.a' has no effect.",)


def test_kernels_are_not_an_option_of_a_request() -> None:
    """A value that a response reports is ignored silently; any other gives a warning."""
    for reported in ("avx512 f32 int8", "off", None):
        assert parse({"prompt": "a cat", "kernels": reported}).warnings == ()
    (warning,) = parse({"prompt": "a cat", "kernels": "exact"}).warnings
    assert "'kernels' has no effect; set SDSTREAM_KERNELS" in warning


def test_no_foreign_field_of_a_known_client_is_a_near_miss() -> None:
    """No field that a known client sends is taken for a misspelled option."""
    ours = SPELLINGS | FOREIGN.keys()
    assert {name: meant for name in CLIENT_FIELDS - ours if (meant := meant_by(name))} == {}


def test_queries_reject_no_unknown_name() -> None:
    """Unknown names in a query are ignored, and likely misspellings are reported."""
    ask = parse_query(
        [("prompt", "a cat"), ("utm_source", "x"), ("image", ""), ("sampel_steps", "7")]
    )
    assert ask.warnings == (
        "Unknown field 'sampel_steps' has no effect. Did you mean 'sample_steps'?",
    )
    assert ask.unknown == ()


def test_unknown_files_are_rejected_in_every_handling() -> None:
    """An unknown file is rejected even under lenient handling, as files always affect the image."""
    from sdstream.core.pixels import SourceFile

    with pytest.raises(InvalidRequest, match="this route accepts image, "):
        parse_form(
            {"prompt": "a"},
            [SourceFile("image", b"1"), SourceFile("face", b"2")],
            hints=Hints(handling=Handling.LENIENT),
        )


@pytest.mark.parametrize(
    "body",
    [
        {"image": DATA_URL},
        {"image": [DATA_URL]},
        {"images": [{"image_url": DATA_URL}]},
        {"images": [{"image_url": {"url": DATA_URL}}]},
        {"image_url": DATA_URL},
        {"image_url": {"url": DATA_URL}},
        {"image_urls": [DATA_URL]},
        {"image": {"url": DATA_URL, "type": "image_url"}},
        {"image": "iVBORw0K\nGgo"},
        {"image": "DATA:image/png;base64,iVBORw0KGgo"},
    ],
)
def test_edits_in_json(body: dict[str, Any]) -> None:
    """Images in JSON are accepted as text in every form that clients send."""
    ask = parse_edit({"prompt": "a", "mask": {"image_url": DATA_URL}, **body})
    assert ask.files is not None
    assert [file.data for file in ask.files.images] == [b"\x89PNG\r\n\x1a\n"]
    assert ask.files.mask is not None
    assert (ask.files.mask.data, ask.operation) == (b"\x89PNG\r\n\x1a\n", "edit")


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({}, "image", "is required"),
        ({"image": "https://host.example/a.png"}, "image", "does not download URLs"),
        ({"images": ["file:///etc/passwd"]}, "images[0]", "does not download URLs"),
        ({"images": [{"file_id": "file-1"}]}, "images[0].file_id", "not supported"),
        ({"image": "scene.png"}, "image", "Invalid image"),
        ({"image": 7}, "image", "must be base64"),
        ({"images": [DATA_URL] * 17}, "images", "at most 16"),
        ({"image": DATA_URL, "mask": [DATA_URL] * 2}, "mask[1]", "at most one mask"),
    ],
)
def test_edits_in_json_that_cannot_be_read(body: dict[str, Any], param: str, words: str) -> None:
    """The error names the field and item."""
    with pytest.raises(InvalidRequest) as caught:
        parse_edit({"prompt": "a", **body})
    assert caught.value.param == param
    assert words in caught.value.message


@pytest.mark.parametrize("name", ["preferences", "exploration", "cache_control", "unmasked"])
def test_words_inside_of_other_words_are_no_pictures(name: str) -> None:
    """Only whole words in a field's name mark it as an image."""
    assert parse({"prompt": "a cat", name: {"x": 1}}).params.prompt == "a cat"


@pytest.mark.parametrize("name", ["loras", "referenceImage", "ip-adapter", "control_net_mask"])
def test_words_of_a_name(name: str) -> None:
    """Words of a name are found in plural, camel case and with hyphens."""
    assert rejected({name: ["x"]}).param == name


def test_values_that_are_meant_to_take_long() -> None:
    """Deep lists, thousands of fields and long texts are parsed quickly."""
    deep: Any = []
    for _ in range(900):
        deep = [deep]
    began = time.process_time()
    parse({"prompt": "a", "foo": deep, "styles": None})
    assert "limit is 1024" in rejected({f"field{n}": 1 for n in range(20_000)}).message
    parse({"prompt": "a", "foo": "http://" + ".png?" * 100_000 + " x"})
    with pytest.raises(InvalidRequest):
        parse({"prompt": "<sd_cpp_extra_args>" * 20_000}, Hints(options_in_prompt=True))
    parse_chat({"messages": [{"role": "user", "content": "### Task:" + "\n" * 200_000}]})
    assert time.process_time() - began < 10
