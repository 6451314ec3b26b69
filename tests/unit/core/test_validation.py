"""Validation errors: the field, what it must be, and the value."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest

from sdstream.core.ask import ReplyOptions
from sdstream.core.errors import InvalidRequest
from sdstream.core.options import ImageParams
from sdstream.dialects.a1111 import generation
from sdstream.dialects.openai.request import parse

NESTED = "alwayson_scripts.controlnet.args[0]"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": "a" * 100_000}, "'prompt' must have at most 32000 characters, not 100000."),
        ({"prompt": 5}, "'prompt' must be a string, not 5."),
        ({"prompt": "a\0"}, "'prompt' must not contain a NUL character."),
        ({}, "'prompt' is required."),
        ({"steps": 5000}, "'steps' must be at most 1000, not 5000."),
        ({"steps": "ten"}, "'steps' must be a whole number, not 'ten'."),
        ({"steps": 1.5}, "'steps' must be a whole number, not 1.5."),
        ({"steps": True}, "'steps' must be a whole number, not true."),
        ({"cfg_scale": 30.000001}, "'cfg_scale' must be at most 30, not 30.000001."),
        ({"cfg_scale": {"a": 1}}, "'cfg_scale' must be a number, not an object."),
        ({"hires_scale": 0.5}, "'hires_scale' must be more than 1, not 0.5."),
        ({"seed": -2}, "'seed' must be at least -1, not -2."),
        ({"output_format": "gif"}, "'output_format' must be 'png', 'jpeg' or 'webp', not 'gif'."),
        ({"stream": "x" * 90}, f"'stream' must be true or false, not '{'x' * 63}…'."),
        ({"sigmas": [1]}, "'sigmas' must have at least 2 items, not 1."),
        ({"sigmas": "7, many"}, "'sigmas.1' must be a number, not ' many'."),
        ({"cache_options": {f"k{i}": i for i in range(17)}},
         "'cache_options' must have at most 16 items, not 17."),
        ({"stream_options": 3}, "'stream_options' must be an object, not 3."),
        ({"lora": [{"id": "a"}] * 9}, "'lora' must have at most 8 items, not 9."),
        ({"lora": [{"id": "a", "weight": 99}]}, "'lora.0.weight' must be at most 10, not 99."),
        ({"lora": [{"id": "a", "scal": 1}]},
         "Unknown field 'lora.0.scal'. Did you mean 'scale'?"),
    ],
)  # fmt: skip
def test_messages(fields: dict[str, Any], message: str) -> None:
    """The message contains the field, what it must be, and the value."""
    with pytest.raises(InvalidRequest) as error:
        parse({"prompt": "a", **fields} if fields else {})
    assert str(error.value) == message


@pytest.mark.parametrize("name", [*ImageParams.model_fields, *ReplyOptions.model_fields])
def test_no_words_of_pydantic(name: str) -> None:
    """No error message for a wrong type or size contains Pydantic's wording."""
    values: list[Any] = [True, 7, -1e9, 1e9, "x", "x" * 40_000, ["x"], [[1]] * 200, {"x": "y"}]
    for value in values:
        assert_plain(name, {"prompt": "a", name: value})


@pytest.mark.parametrize("field", ["image", "weight", "resize_mode", "enabled"])
def test_no_words_of_pydantic_on_a_unit(field: str) -> None:
    """An error about a ControlNet unit names the field as the client sent it."""
    unit = {"image": "aGFsbG8=", field: 99 if field == "weight" else [5]}
    body = {"alwayson_scripts": {"controlnet": {"args": [unit]}}}
    with pytest.raises(InvalidRequest) as error:
        generation.parse(body, over_image=False)
    assert error.value.param == f"{NESTED}.{field}"


def assert_plain(name: str, fields: Mapping[str, Any]) -> None:
    """Assert that the options are accepted, or rejected without Pydantic's wording."""
    try:
        parse(fields)
    except InvalidRequest as error:
        message = str(error)
        assert message.startswith((f"'{name}", "Unknown field"))
        assert not re.search(r"should|valid|[Ii]nput|parse|tuple|dictionary|instance", message)
        assert len(message) < 250
