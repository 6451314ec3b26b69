"""MCP's tools: their schemas and arguments."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from sdstream.core.catalog import Catalog
from sdstream.core.errors import InvalidRequest
from sdstream.core.model_options import options_of
from sdstream.core.options import OPTIONS
from sdstream.core.request import NO_ASSETS, Assets, Limits
from sdstream.dialects.mcp.arguments import Picture, image_call, pictures_of
from sdstream.dialects.mcp.tools import EDIT, GENERATE, tools_of

CATALOG = """
models:
  - id: small
    family: sd1
    files: {model: small.gguf, control_net: canny.gguf}
    defaults: {steps: 20}
  - id: large
    family: sdxl
    files: {model: large.gguf}
    defaults: {steps: 30}
"""


def schemas(catalog: Catalog, assets: Assets = NO_ASSETS) -> dict[str, dict[str, Any]]:
    """Return the tools' schemas by name."""
    return {tool.name: tool.input_schema for tool in tools_of(catalog, assets, Limits())}


def test_one_model() -> None:
    """The options of the edit tool are those of the model, with their defaults."""
    catalog = Catalog.parse(CATALOG.partition("  - id: large")[0])
    properties = schemas(catalog)[EDIT]["properties"]
    options = options_of(catalog.models["small"], NO_ASSETS, Limits())
    assert {name: properties[name] for name in options} == options
    assert properties.keys() - options.keys() == {
        "image", "mask", "control", "prompt", "negative_prompt", "model",
        "priority", "response_format", "wait",
    }  # fmt: skip


def test_several_models() -> None:
    """Defaults that differ between models are omitted; options of any model are listed."""
    catalog = Catalog.parse(CATALOG)
    properties = schemas(catalog)[GENERATE]["properties"]
    assert properties["model"]["enum"] == ["small", "large"]
    assert "default" not in properties["sample_steps"]
    assert properties["output_format"]["default"] == "png"
    assert "multipleOf" in properties["width"] or "maximum" not in properties["width"]
    # Only one model has a ControlNet.
    assert {"control", "control_strength", "fit"} <= properties.keys()


def test_options_without_an_effect_are_not_listed(shipped_catalog: Catalog) -> None:
    """Image options are not listed for generation, nor the LoRA option without LoRAs."""
    found = schemas(shipped_catalog)
    assert "strength" not in found[GENERATE]["properties"]
    assert "lora" not in found[GENERATE]["properties"]
    with_lora = schemas(shipped_catalog, Assets(loras=["detail"]))[GENERATE]
    reference = with_lora["properties"]["lora"]["items"]["$ref"]
    assert reference.removeprefix("#/$defs/") in with_lora["$defs"]


@pytest.mark.parametrize("name", [name for name, option in OPTIONS.items() if option.aliases])
def test_aliases(name: str) -> None:
    """Every alias of the HTTP API is accepted."""
    for alias in OPTIONS[name].aliases:
        assert image_call(GENERATE, {"prompt": "a", alias: None}, []).ask.params.prompt == "a"


@pytest.mark.parametrize(
    ("text", "job", "is_path", "is_url"),
    [
        ("job_abc-_9/0", ("job_abc-_9", 0), False, False),
        ("job_abc/12", ("job_abc", 12), False, False),
        ("job_abc", ("job_abc", 0), False, False),
        ("job_abc/0/0", None, False, False),
        ("cat.png", None, True, False),
        ("../cat.png", None, True, False),
        ("/9j/4AAQSkZJRg", None, False, False),
        ("data:image/vnd.x;base64,AAAA", None, False, False),
        ("DATA:image/png;base64,AAAA", None, False, False),
        ("http://host/cat.png", None, False, True),
        ("HTTPS://host", None, False, True),
        ("file:///cat.png", None, False, True),
        ("database:cat", None, False, True),
    ],
)
def test_what_an_image_is(
    text: str, job: tuple[str, int] | None, is_path: bool, is_url: bool
) -> None:
    """Each text is an image id, a path, a URL or base64."""
    picture = Picture("image", text)
    assert (picture.job_image, picture.is_path, picture.is_url) == (job, is_path, is_url)


def test_images_of_a_call() -> None:
    """Images come in the order of their arguments, and null is ignored."""
    found = pictures_of(EDIT, {"image": ["QQ==", "Qg=="], "mask": " Qw== ", "control": None})
    assert [(one.param, one.decoded().data) for one in found] == [
        ("image", b"A"), ("image", b"B"), ("mask", b"C")
    ]  # fmt: skip
    with pytest.raises(InvalidRequest, match="'mask' must be a string"):
        pictures_of(EDIT, {"mask": ["QQ=="]})
    with pytest.raises(InvalidRequest, match="'image' is an argument of edit_image"):
        pictures_of(GENERATE, {"image": base64.b64encode(b"A").decode()})
    assert [one.param for one in pictures_of(GENERATE, {"control": "QQ=="})] == ["control"]
