"""JSON Schemas of bodies and answers: the components of the OpenAPI document.

The schemas of requests are generated from the models that validate them. The schemas of answers are
written here, and the tests check them against a running server.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sdstream.core.ask import ReplyOptions
from sdstream.core.errors import Reason
from sdstream.core.job import JobStatus
from sdstream.core.options import ALIASES, ImageParams
from sdstream.dialects.fields import FOREIGN
from sdstream.web.route import Content, Schema

STRING: Final[Schema] = {"type": "string"}
NUMBER: Final[Schema] = {"type": "number"}
INTEGER: Final[Schema] = {"type": "integer"}
BOOLEAN: Final[Schema] = {"type": "boolean"}
OBJECT: Final[Schema] = {"type": "object"}
FILE: Final[Schema] = {"type": "string", "format": "binary"}

IMAGES: Final[Content] = {f"image/{kind}": FILE for kind in ("png", "jpeg", "webp")}
#: The schema of one event, since OpenAPI 3.1 cannot describe a stream.
EVENTS: Final[Content] = {
    "text/event-stream": {
        "type": "object",
        "required": ["data"],
        "properties": {"event": STRING, "id": STRING, "data": STRING},
    }
}

_TEMPLATE: Final = "#/components/schemas/{model}"
_UPSCALE_OPTIONS: Final = (
    "model", "upscaler", "upscale", "output_format", "output_compression", "safety_check",
    "response_format", "stream", "priority", "on_disconnect", "webhook_url",
)  # fmt: skip
_CONTROL: Final = {
    "control": {**FILE, "description": "The image that the model's ControlNet follows."}
}
_INPUTS: Final = {
    "image": {
        "type": "array",
        "items": FILE,
        "minItems": 1,
        "description": "The input image; several where the model takes references.",
    },
    "mask": {**FILE, "description": "Where to paint; also mask_image."},
    **_CONTROL,
}
_TEXT_IMAGE: Final = {
    "description": "An image as data: URL or base64, or an object that has one under image_url.",
}
_TEXT_INPUTS: Final = {
    "image": {**_TEXT_IMAGE, "description": "The input image, or a list of them."},
    "mask": _TEXT_IMAGE,
    "control": _TEXT_IMAGE,
}

#: A red circle, 64x64 pixels.
EXAMPLE_IMAGE: Final = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAEAAAABAAQMAAACQp+OdAAAABlBMVEX////cHh7/Hx2WAAAA"
    "gElEQVR42r3QsQ2DQBBE0cdCQGAZSsAduANTEiVQGqVQAiEB8jm4wFi6xAkTjfbPajXLteo2BKZ7HtQpLQQNA0FLT/DkRj"
    "ASeQtUJFRCBbPIcPxmTqaBoYha6IvoL7PDVkQHrEX0huVcx0z6PbHIOV1KG8FONgcrNcnrcXrvlfoAVy4aHSoIu8MAAAAA"
    "SUVORK5CYII="
)


def ref(name: str) -> Schema:
    """Return a reference to a component."""
    return {"$ref": f"#/components/schemas/{name}"}


def json_of(schema: Schema) -> Content:
    """Return the content of a JSON body."""
    return {"application/json": schema}


def form_of(schema: Schema) -> Content:
    """Return the content of a multipart form."""
    return {"multipart/form-data": schema}


def listing(item: Schema) -> Schema:
    """Return the schema of an array."""
    return {"type": "array", "items": item}


def record(properties: dict[str, Schema], required: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the schema of an object; all properties are required unless some are named."""
    names = [*properties] if required is None else [*required]
    return {"type": "object", "required": names, "properties": properties}


def nullable(schema: Schema) -> Schema:
    """Return a schema that also accepts null."""
    return {"anyOf": [schema, {"type": "null"}]}


def parameter(name: str, place: str, schema: Schema, *, required: bool = False) -> dict[str, Any]:
    """Return a parameter of a query, a path or the headers."""
    return {"name": name, "in": place, "schema": schema, "required": required}


def option_schemas() -> dict[str, dict[str, Any]]:
    """Return the schema of every option of a request for images, with its aliases."""
    params = ImageParams.model_json_schema(ref_template=_TEMPLATE)["properties"]
    reply = ReplyOptions.model_json_schema(ref_template=_TEMPLATE)["properties"]
    fields = {
        name: {**schema, "x-aliases": [a for a, target in ALIASES.items() if target == name]}
        for name, schema in {**params, **reply}.items()
    }
    # The server also accepts mistral.rs' spellings. They are left out, because code generators
    # would give two values of the enumeration the same name.
    fields["response_format"]["anyOf"] = [
        {"type": "string", "enum": ["b64_json", "url", "both"]},
        {"type": "null"},
    ]
    return fields


def _generation(
    files: dict[str, Any], required: tuple[str, ...], names: Sequence[str] | None = None
) -> dict[str, Any]:
    options = option_schemas()
    ignored = [name for name, field in FOREIGN.items() if field.refusal is None]
    return {
        "type": "object",
        "required": [*required],
        "properties": {**files, **{name: options[name] for name in names or options}},
        "description": "null means not given. Accepted without effect: " + ", ".join(ignored),
    }


def _definitions() -> dict[str, Any]:
    """Return the definitions that the schemas of the options refer to."""
    found: dict[str, Any] = {}
    for model in (ImageParams, ReplyOptions):
        found |= model.model_json_schema(ref_template=_TEMPLATE).get("$defs", {})
    return found


def _error() -> dict[str, Any]:
    reason = {
        "type": "string",
        "enum": [reason.value for reason in Reason],
        "description": "; ".join(f"{r.value}: {r.meaning}" for r in Reason),
    }
    fields = {"code": INTEGER, "message": STRING, "type": STRING, "param": nullable(STRING)}
    return record({"error": record({**fields, "reason": reason}), "detail": STRING})


_IMAGE_ITEM: Final = record(
    {
        "index": INTEGER,
        "seed": INTEGER,
        "revised_prompt": nullable(STRING),
        "finish_reason": STRING,
        "b64_json": nullable(STRING),
        "url": nullable(STRING),
    },
    ("index", "seed"),
)
_USAGE: Final = record(
    {
        "generation_per_second": NUMBER,
        "time_per_generation_ms": NUMBER,
        "time_to_process_ms": NUMBER,
        "input_tokens": INTEGER,
        "output_tokens": INTEGER,
        "total_tokens": INTEGER,
        "input_tokens_details": OBJECT,
    }
)
_RESPONSE: Final = record(
    {
        "created": INTEGER,
        "data": listing(_IMAGE_ITEM),
        "model": STRING,
        "size": STRING,
        "quality": STRING,
        "output_format": STRING,
        "background": STRING,
        "parameters": OBJECT,
        "warnings": listing(STRING),
        "usage": _USAGE,
    },
    ("created", "data", "model", "parameters", "usage"),
)
_JOB: Final = record(
    {
        "id": STRING,
        "object": STRING,
        "status": {"type": "string", "enum": [status.value for status in JobStatus]},
        "operation": STRING,
        "model": STRING,
        "priority": STRING,
        "background": BOOLEAN,
        "group": nullable(STRING),
        "favorite": BOOLEAN,
        "queue_position": nullable(INTEGER),
        "progress": NUMBER,
        "index": INTEGER,
        "step": INTEGER,
        "steps": INTEGER,
        "steps_per_second": nullable(NUMBER),
        "eta_seconds": nullable(NUMBER),
        "attempts": INTEGER,
        "created": NUMBER,
        "started": nullable(NUMBER),
        "ended": nullable(NUMBER),
        "output_format": STRING,
        "parameters": OBJECT,
        "warnings": listing(STRING),
        "inputs": listing(OBJECT),
        "images": listing(OBJECT),
        "usage": nullable(OBJECT),
        "error": nullable(OBJECT),
        "status_url": STRING,
        "events_url": STRING,
        "result_url": STRING,
        "cancel_url": STRING,
    }
)
_MODEL: Final = record(
    {
        "id": STRING,
        "object": STRING,
        "created": INTEGER,
        "owned_by": STRING,
        "description": STRING,
        "family": STRING,
        "default": BOOLEAN,
        "state": STRING,
        "defaults": OBJECT,
        "size": OBJECT,
        "capabilities": OBJECT,
        "options": OBJECT,
        "device": nullable(STRING),
        "device_name": nullable(STRING),
        "kernels": nullable(STRING),
        "runtime": OBJECT,
        "error": STRING,
    },
    ("id", "object", "created", "owned_by", "state"),
)

_MCP_MESSAGE: Final = record(
    {
        "jsonrpc": {"const": "2.0"},
        "id": {"type": ["string", "integer"]},
        "method": STRING,
        "params": OBJECT,
        "result": OBJECT,
        "error": OBJECT,
    },
    ("jsonrpc",),
)
_MCP_ERROR: Final = record(
    {
        "jsonrpc": {"const": "2.0"},
        "id": {"type": ["string", "integer", "null"]},
        "error": record({"code": INTEGER, "message": STRING}),
    }
)


def page_of(item: Schema, **more: Schema) -> Schema:
    """Return the schema of a list in OpenAI's form, with additional fields."""
    return record({"object": STRING, "data": listing(item), **more})


#: Examples of requests. They work on every server, since they name no model.
_EXAMPLE: Final = {"prompt": "a red circle", "sample_steps": 4, "seed": 7}
_EDIT_EXAMPLE: Final = {"image": EXAMPLE_IMAGE, "prompt": "a green circle", "sample_steps": 4}
_UPSCALE_EXAMPLE: Final = {"image": EXAMPLE_IMAGE, "upscaler": "drawings-4x"}


def components() -> dict[str, Any]:
    """Return the named schemas of the document."""
    return {
        **_definitions(),
        "Generation": {**_generation({}, ("prompt",)), "example": _EXAMPLE},
        "ControlledGeneration": _generation(_CONTROL, ("prompt",)),
        "Edit": _generation(_INPUTS, ("image", "prompt")),
        "Variation": _generation(_INPUTS, ("image",)),
        "Upscale": _generation({"image": FILE}, ("image",), _UPSCALE_OPTIONS),
        "JsonEdit": {
            **_generation(_TEXT_INPUTS, ("image", "prompt")),
            "example": _EDIT_EXAMPLE,
        },
        "JsonVariation": {
            **_generation(_TEXT_INPUTS, ("image",)),
            "example": _EDIT_EXAMPLE,
        },
        "JsonUpscale": {
            **_generation({"image": _TEXT_IMAGE}, ("image",), _UPSCALE_OPTIONS),
            "example": _UPSCALE_EXAMPLE,
        },
        "Images": _RESPONSE,
        "Job": _JOB,
        "JobPage": record(
            {
                "object": STRING,
                "data": listing(ref("Job")),
                "has_more": BOOLEAN,
                "first_id": nullable(STRING),
                "last_id": nullable(STRING),
                "warnings": listing(STRING),
            }
        ),
        "Model": _MODEL,
        "Models": page_of(ref("Model")),
        "Error": _error(),
        "SdcppError": record(
            {"error": STRING, "message": STRING, "code": INTEGER, "reason": STRING}
        ),
        "A1111Error": {
            "allOf": [ref("Error"), record({"body": STRING, "errors": STRING})],
        },
        "McpMessage": _MCP_MESSAGE,
        "McpError": _MCP_ERROR,
    }
