"""Units of AUTOMATIC1111's ControlNet extension."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
import webuiapi
from PIL import Image

from sdstream.core.errors import InvalidRequest, Reason
from sdstream.core.model_spec import Files, ModelSpec
from sdstream.dialects.a1111 import controlnet
from sdstream.dialects.a1111.controlnet import LISTS
from sdstream.dialects.a1111.generation import Drawing, parse

PICTURE = base64.b64encode(b"a picture").decode()
OTHER = base64.b64encode(b"another").decode()


def drawn(*units: Any, **body: Any) -> Drawing:
    """Parse a request with these units; it is an img2img if it has an input image."""
    scripts = {"ControlNet": {"args": [*units]}}
    body = {"prompt": "a cat", "alwayson_scripts": scripts, **body}
    return parse(body, over_image="init_images" in body)


def refused(*units: Any, **body: Any) -> InvalidRequest:
    """Return the error with which these units are rejected."""
    with pytest.raises(InvalidRequest) as caught:
        drawn(*units, **body)
    return caught.value


def spec(control_net: str | None) -> ModelSpec:
    """A model, with or without a ControlNet."""
    files = Files(model="m.gguf", control_net=control_net)
    return ModelSpec(id="sd15", family="sd1", files=files)


def test_a_unit() -> None:
    """A unit sets image, weight, resize mode, module, and the model without its checksum."""
    unit = {"image": PICTURE, "weight": 0.5, "resize_mode": 2, "module": "canny"}
    drawing = drawn({**unit, "model": "sd15-canny [d14c016b]"})
    draft = drawing.ask.params
    assert (draft.control_strength, draft.control_canny, draft.fit) == (0.5, True, "pad")
    assert drawing.ask.files is not None
    assert drawing.ask.files.control is not None
    assert (drawing.ask.files.images, drawing.ask.files.control.data) == ((), b"a picture")
    assert drawing.control is not None
    assert drawing.control.model == "sd15-canny"
    assert drawing.ask.warnings == ()
    assert "alwayson_scripts" not in drawing.echo


def test_webuiapis_unit() -> None:
    """webuiapi's default unit is accepted, with a warning for the thresholds of canny."""
    unit = webuiapi.ControlNetUnit(image=Image.new("RGB", (8, 8)), module="canny").to_dict()
    drawing = drawn(unit)
    assert (drawing.ask.params.control_strength, drawing.ask.params.fit) == (1.0, "pad")
    assert [text.partition(":")[2] for text in drawing.ask.warnings] == [
        " the thresholds of canny have no effect; the runtime uses its own."
    ]
    assert drawn({**unit, "module": "none"}).ask.warnings == ()


def test_over_an_image() -> None:
    """A unit without an image uses the input image, and the request's resize_mode applies."""
    drawing = drawn({"weight": 1}, init_images=[PICTURE], resize_mode=1)
    assert drawing.ask.files is not None
    assert drawing.ask.files.control == drawing.ask.files.images[0]
    assert drawing.ask.params.fit == "crop"
    own = drawn({"input_image": {"image": OTHER}}, init_images=[PICTURE])
    assert own.ask.files is not None
    assert own.ask.files.control is not None
    assert own.ask.files.control.data == b"another"


@pytest.mark.parametrize(
    "unit",
    [{}, None, False, {"enabled": False, "what": "ever"}, {"enabled": "False", "image": "x"}],
)
def test_units_that_are_switched_off(unit: Any) -> None:
    """A disabled unit is ignored, whatever it contains."""
    drawing = drawn(unit, {"enabled": False})
    assert (drawing.control, drawing.ask.files) == (None, None)
    assert drawing.ask.params.control_strength is None


@pytest.mark.parametrize(
    ("unit", "field", "reason"),
    [
        ({"weight": 3}, ".weight", None),
        ({"weight": "much"}, ".weight", None),
        ({"module": "openpose"}, ".module", Reason.NOT_SUPPORTED),
        ({"resize_mode": 7}, ".resize_mode", Reason.NOT_SUPPORTED),
        ({"guidance_end": 0.5}, ".guidance_end", Reason.NOT_SUPPORTED),
        ({"control_mode": 2}, ".control_mode", Reason.NOT_SUPPORTED),
        ({"mask": PICTURE}, ".mask", Reason.NOT_SUPPORTED),
        ({"image": {"image": PICTURE, "mask": PICTURE}}, ".image", Reason.NOT_SUPPORTED),
        ({"image": {"image": 1}}, ".image", Reason.NOT_SUPPORTED),
        (["canny"], "", None),
    ],
)
def test_refusals_name_the_field(unit: Any, field: str, reason: Reason | None) -> None:
    """The error contains the unit's number and the field."""
    full = {"image": PICTURE, **unit} if isinstance(unit, dict) else unit
    error = refused({"enabled": False}, full)
    assert error.param == f"alwayson_scripts.controlnet.args[1]{field}"
    assert reason is None or error.reason is reason


def test_pictures_that_are_none() -> None:
    """A unit without an image, or with one that is not base64, is rejected."""
    assert refused({"weight": 1}).reason is Reason.MISSING_FIELD
    error = refused({"image": "~"})
    assert (error.param, error.reason) == ("alwayson_scripts", Reason.INVALID_IMAGE)


def test_one_unit() -> None:
    """A second unit is rejected, as a model has one ControlNet."""
    error = refused({"image": PICTURE}, {"image": OTHER})
    assert error.param == "alwayson_scripts.controlnet"


def test_the_checkpoints_own() -> None:
    """A unit that names a ControlNet is accepted only if it is the model's own."""
    control = drawn({"image": PICTURE, "model": "lines"}).control
    assert control is not None
    controlnet.check_model(control, spec("nets/lines.gguf"))
    with pytest.raises(InvalidRequest, match="the ControlNet of 'sd15' is 'canny', not 'lines'"):
        controlnet.check_model(control, spec("canny.safetensors"))
    controlnet.check_model(control, spec(None))  # rejected later, with the request
    none = drawn({"image": PICTURE, "model": "None"}).control
    assert none is not None
    controlnet.check_model(none, spec("canny.safetensors"))


def test_lists() -> None:
    """ControlNets are listed by file name, each once."""
    specs = [spec("b.gguf"), spec(None), spec("nets/a.gguf"), spec("b.gguf")]
    told = {name: json.loads(controlnet.listing(name, specs)) for name in LISTS}
    assert told["model_list"] == {"model_list": ["a", "b"]}
    assert told["module_list"]["module_list"] == ["none", "canny"]
    assert told["settings"] == {"control_net_unit_count": 1}
    assert told["version"] == {"version": 3}
