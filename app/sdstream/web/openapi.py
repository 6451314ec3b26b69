"""The API's description, made from the models that validate the requests."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from sdstream import __version__
from sdstream.core.ask import ReplyOptions
from sdstream.core.errors import (
    Forbidden,
    ImageServiceError,
    InvalidRequest,
    KeyReused,
    MethodNotAllowed,
    NotAcceptable,
    NotFound,
    NotInstalled,
    PayloadTooLarge,
    QueueFull,
    Reason,
    StorageFull,
    Unauthorized,
    Unavailable,
    UnsupportedMediaType,
)
from sdstream.core.options import ALIASES, ImageParams
from sdstream.dialects.a1111 import controlnet
from sdstream.dialects.fields import UNSUPPORTED_FIELDS, Unsupported

#: The two in the middle are GPUStack's, the last one is OpenVINO Model Server's.
GENERATION_PATHS: Final = (
    "/v1/images/generations",
    "/v1-openai/images/generations",
    "/v1-openai/image/generate",
    "/v3/images/generations",
)
EDIT_PATHS: Final = (
    "/v1/images/edits",
    "/v1-openai/images/edits",
    "/v1-openai/image/edit",
    "/v3/images/edits",
)
MODELS_PATHS: Final = ("/v1/models", "/v1-openai/models", "/v3/models")
FIREWORKS_PATHS: Final = (
    "/inference/v1/workflows/accounts/fireworks/models/{model}/text_to_image",
    "/inference/v1/image_generation/accounts/fireworks/models/{model}",
)
A1111_PREFIX: Final = "/sdapi/v1/"
CONTROLNET_PREFIX: Final = "/controlnet/"
#: What AUTOMATIC1111's clients ask for and this server has none of -> what is answered.
A1111_EMPTY: Final[dict[str, list[str] | dict[str, Any]]] = {
    "sd-vae": [],
    "hypernetworks": [],
    "face-restorers": [],
    "realesrgan-models": [],
    "prompt-styles": [],
    "script-info": [],
    "extensions": [],
    "scripts": {"txt2img": [], "img2img": []},
    "cmd-flags": {},
}
_A1111_POSTS: Final = {
    "txt2img": "Draw a prompt, as AUTOMATIC1111 does",
    "img2img": "Draw over an image, as AUTOMATIC1111 does",
    "interrupt": "Stop the job that runs; its answer has what was finished",
    "skip": "Leave out the last image of the job that runs",
    "options": "Choose the checkpoint and the layers of CLIP of later requests",
    "png-info": "What is written into an image file",
    "extra-single-image": "Enlarge an image, as AUTOMATIC1111 does",
    "refresh-checkpoints": "Nothing: GET sd-models looks at what is here by itself",
}
_A1111_GETS: Final = {
    "progress": "How far the oldest unfinished job is",
    "samplers": "Samplers by AUTOMATIC1111's names",
    "schedulers": "Schedules by AUTOMATIC1111's names",
    "sd-models": "The catalogue",
    "options": "The checkpoint, the layers of CLIP, and settings that cannot be changed",
    "upscalers": "Upscalers of the operator's folder",
    "loras": "LoRAs of the operator's folder",
    "embeddings": "Embeddings that the checkpoint reads, once it is loaded",
    "latent-upscale-modes": "What a hires fix may enlarge with, beside plain resizing",
    **dict.fromkeys(A1111_EMPTY, "None of these"),
}

_JSON_BODY: Final = {
    "application/json": {"schema": {"$ref": "#/components/schemas/Generation"}},
    "multipart/form-data": {"schema": {"$ref": "#/components/schemas/ControlledGeneration"}},
}
_UPSCALE_BODY: Final = {"multipart/form-data": {"schema": {"$ref": "#/components/schemas/Upscale"}}}
_FORM_BODY: Final = {"multipart/form-data": {"schema": {"$ref": "#/components/schemas/Edit"}}}
_ERROR: Final = {"$ref": "#/components/schemas/Error"}
_IMAGE: Final = {"schema": {"type": "string", "format": "binary"}}
_GENERATION_ERRORS: Final[tuple[type[ImageServiceError], ...]] = (
    InvalidRequest,
    Unauthorized,
    Forbidden,
    NotFound,
    NotAcceptable,
    PayloadTooLarge,
    UnsupportedMediaType,
    KeyReused,
    QueueFull,
    ImageServiceError,
    Unavailable,
    StorageFull,
)


_FILE: Final = {"type": "string", "format": "binary"}
_CONTROL: Final = {"control": {**_FILE, "description": "What the model's ControlNet follows."}}
_PICTURES: Final = {
    "image": {**_FILE, "description": "The picture; several as image[]."},
    "image[]": {"type": "array", "items": _FILE},
    "mask": {**_FILE, "description": "Where to draw; also mask_image."},
    **_CONTROL,
}
_ENLARGING: Final = (
    "model", "upscaler", "upscale", "output_format", "output_compression", "safety_check",
    "response_format", "stream", "priority", "on_disconnect", "webhook_url",
)  # fmt: skip
_QUERY_OPTIONS: Final = ImageParams.model_fields.keys()
_TEXT: Final = {"type": "string"}
_JOB_HEADERS: Final = (
    {"name": "Prefer", "in": "header", "schema": {"enum": ["respond-async"]}},
    {"name": "Idempotency-Key", "in": "header", "schema": {**_TEXT, "maxLength": 255}},
)
_LAST_EVENT: Final = {"name": "Last-Event-ID", "in": "header", "schema": _TEXT}
_ALREADY_TOLD: Final = {"204": {"description": "The job's end was told already: do not reconnect"}}


@cache
def openapi_document() -> dict[str, Any]:
    """The OpenAPI 3.1 document of all routes."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "sdstream",
            "version": __version__,
            "description": "Images from GGUF-quantised diffusion models, streamed step by step.",
        },
        "paths": {
            **{path: {"post": _drawing("Draw a prompt", _JSON_BODY)} for path in GENERATION_PATHS},
            **_jobs(),
            **{path: {"post": _drawing("Draw over an image", _FORM_BODY)} for path in EDIT_PATHS},
            "/v1/images/variations": {"post": _drawing("Draw an image again", _FORM_BODY)},
            "/v1/images/inpainting": {"post": _drawing("Draw where a mask is", _FORM_BODY)},
            "/v1/images/upscales": {"post": _drawing("Enlarge an image", _UPSCALE_BODY)},
            **{path: {"post": _fireworks()} for path in FIREWORKS_PATHS},
            "/v1/images/ocr": {"post": _ocr()},
            "/v1/images/parameters": {"post": _parameters()},
            **_a1111(),
            "/v1/images/{image}/content": {"get": _get("An image", _images(), "image")},
            **{path: {"get": _get("The catalogue", _json())} for path in MODELS_PATHS},
            **{
                f"{path}/{{model}}": {"get": _get("One model", _json(), "model")}
                for path in MODELS_PATHS
            },
            "/v1/models/{model}/load": {
                "post": _get("Load a model", _json(), "model", unready=True)
            },
            "/v1/models/{model}/unload": {"post": _get("Unload a model", _json(), "model")},
            "/v1/loras": {"get": _get("LoRAs that requests may name", _json())},
            "/v1/upscalers": {"get": _get("Upscalers that requests may name", _json())},
            "/v1/config": {"get": _get("States in OpenVINO Model Server's form", _json())},
            "/v1/cluster/auth": {"get": _get("Whether clients need a key (Xinference)", _json())},
            "/livez": {"get": _get("The process answers", _json())},
            "/readyz": {"get": _get("The default model is drawn with", _json(), unready=True)},
            "/health": {"get": _get("The same as /readyz", _json(), unready=True)},
            "/metrics": {"get": _get("Prometheus metrics", {"text/plain": {"schema": {}}})},
            "/openapi.json": {"get": _get("This document", _json())},
        },
        "components": {
            "schemas": {
                "Generation": _options_schema("Generation"),
                "ControlledGeneration": _form_schema("ControlledGeneration", _CONTROL, ("prompt",)),
                "Edit": _form_schema("Edit", _PICTURES, ("image",)),
                "Upscale": _upscale_schema(),
                "Error": _error_schema(),
            },
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _drawing(summary: str, body: dict[str, Any]) -> dict[str, Any]:
    errors = {str(kind.status): _error(kind) for kind in _GENERATION_ERRORS}
    answer = {
        "application/json": {"schema": {"type": "object"}},
        "text/event-stream": {"schema": {"type": "string"}},
        **_images(),
    }
    return {
        "summary": summary,
        "parameters": [
            _parameter("dialect", "query", {"enum": ["image.chunk", "openai", "both"]}),
            *_JOB_HEADERS,
        ],
        "requestBody": {"required": True, "content": body},
        "responses": {
            "200": {"description": "The images", "content": answer},
            "202": {"description": "The job, for Prefer: respond-async", "content": _json()},
            **errors,
        },
    }


def _jobs() -> dict[str, Any]:
    """Jobs as resources, and the generation that EventSource asks for."""
    stream = {"text/event-stream": {"schema": {"type": "string"}}}
    events = _get("What happens to a job, as events", stream, "job")
    drawn = _drawing("Draw a prompt and tell of it as events", {})
    del drawn["requestBody"]
    drawn["responses"]["200"]["content"] = stream
    drawn["responses"] |= _ALREADY_TOLD
    template = "#/components/schemas/Generation/$defs/{model}"
    options = ImageParams.model_json_schema(ref_template=template)["properties"].items()
    drawn["parameters"] = [
        *(_parameter(name, "query", schema) for name, schema in options if name in _QUERY_OPTIONS),
        _parameter("priority", "query", {"enum": ["low", "normal", "high"]}),
        _parameter("stream_options_preview", "query", {"type": "boolean"}),
        _LAST_EVENT,
    ]
    drawn["parameters"][0]["required"] = True  # the prompt
    events["responses"] |= _ALREADY_TOLD
    events["parameters"].append(_LAST_EVENT)
    page = _get("An owner's jobs, newest first", _json())
    page["parameters"] = [
        _parameter("status", "query", {"type": "string"}),
        _parameter("limit", "query", {"type": "integer", "minimum": 1, "maximum": 100}),
        _parameter("after", "query", {"type": "string"}),
    ]
    page["responses"] |= {"400": _error(InvalidRequest), "404": _error(NotFound)}
    result = _get("What the POST would have been answered", _json(), "job")
    result["responses"]["202"] = {"description": "The job, not ended yet", "content": _json()}
    result["parameters"].append(
        _parameter("response_format", "query", {"enum": ["b64_json", "url"]})
    )
    return {
        GENERATION_PATHS[0]: {
            "get": drawn,
            "post": _drawing("Draw a prompt", _JSON_BODY),
        },
        "/v1/jobs": {"get": page},
        "/v1/jobs/{job}": {
            "get": _get("One job", _json(), "job"),
            "delete": _get("Delete a job and its images", _json(), "job"),
        },
        "/v1/jobs/{job}/events": {"get": events},
        "/v1/jobs/{job}/result": {"get": result},
        "/v1/jobs/{job}/cancel": {"post": _get("Stop a job", _json(), "job")},
        "/v1/tokens": {"post": _get("A token for the URLs of GETs, good for an hour", _json())},
    }


def _parameter(name: str, place: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": place, "schema": schema}


def _fireworks() -> dict[str, Any]:
    """As a generation, but what is answered is told by headers and never streamed."""
    operation = _drawing("Draw a prompt, as Fireworks does", _JSON_BODY)
    del operation["responses"]["200"]["content"]["text/event-stream"]
    text = {"type": "string"}
    operation["parameters"] = [
        {"name": "model", "in": "path", "required": True, "schema": text},
        {"name": "Jpeg-Quality", "in": "header", "schema": {"type": "integer"}},
        {
            "name": "Json-Return-Image-Accept",
            "in": "header",
            "schema": {"enum": ["image/png", "image/jpeg"]},
        },
    ]
    return operation


def _ocr() -> dict[str, Any]:
    file = {"type": "string", "format": "binary"}
    form = {"type": "object", "required": ["image"], "properties": {"image": file}}
    kinds = (InvalidRequest, Unauthorized, NotFound, PayloadTooLarge, NotInstalled)
    text = {"schema": {"type": "string"}}
    return {
        "summary": "Read the text off an image",
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}},
        "responses": {
            "200": {
                "description": "The text, a line for each found",
                "content": {"application/json": text, "text/plain": text},
            },
            **{str(kind.status): _error(kind) for kind in kinds},
        },
    }


def _parameters() -> dict[str, Any]:
    operation = _ocr()
    kinds = (InvalidRequest, Unauthorized, PayloadTooLarge)
    errors = {str(kind.status): _error(kind) for kind in kinds}
    answer = {"200": {"description": "Options by the names of the API", "content": _json()}}
    summary = "Read the options out of an image file"
    return {**operation, "summary": summary, "responses": {**answer, **errors}}


def _a1111() -> dict[str, Any]:
    """AUTOMATIC1111's routes; the fields are described by that project."""
    paths: dict[str, Any] = {}
    for name, summary in _A1111_GETS.items():
        paths.setdefault(A1111_PREFIX + name, {})["get"] = _get(summary, _json())
    for name in controlnet.LISTS:
        summary = f"{name} of AUTOMATIC1111's ControlNet extension"
        paths[CONTROLNET_PREFIX + name] = {"get": _get(summary, _json())}
    errors = {str(kind.status): _error(kind) for kind in _GENERATION_ERRORS}
    for name, summary in _A1111_POSTS.items():
        answer = {"200": {"description": summary, "content": _json()}}
        paths.setdefault(A1111_PREFIX + name, {})["post"] = {
            "summary": summary,
            "requestBody": {"content": _json()},
            "responses": {**answer, **errors},
        }
    return paths


def _form_schema(name: str, pictures: dict[str, Any], required: tuple[str, ...]) -> dict[str, Any]:
    """The options of a generation as form fields, with pictures."""
    schema = _options_schema(name)
    schema["properties"] = {**pictures, **schema["properties"]}
    return {**schema, "required": [*required]}


def _upscale_schema() -> dict[str, Any]:
    """The options of an enlargement, which are few."""
    options = {n: f for n, f in _options_schema("Upscale")["properties"].items() if n in _ENLARGING}
    properties = {"image": _PICTURES["image"], **options}
    return {"type": "object", "required": ["image"], "properties": properties}


def _options_schema(name: str) -> dict[str, Any]:
    template = f"#/components/schemas/{name}/$defs/{{model}}"
    draft = ImageParams.model_json_schema(ref_template=template)
    reply = ReplyOptions.model_json_schema(ref_template=template)
    properties = {
        name: {**schema, "x-aliases": [a for a, target in ALIASES.items() if target == name]}
        for name, schema in {**draft["properties"], **reply["properties"]}.items()
    }
    ignored = [name for name, fate in UNSUPPORTED_FIELDS.items() if fate is Unsupported.IGNORED]
    return {
        "type": "object",
        "required": ["prompt"],
        "properties": properties,
        "description": "null means not given. Accepted without effect: " + ", ".join(ignored),
        "$defs": {**draft.get("$defs", {}), **reply.get("$defs", {})},
    }


def _error_schema() -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["error", "detail"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["code", "message", "type", "param", "reason"],
                "properties": {
                    "code": {"type": "integer"},
                    "message": {"type": "string"},
                    "type": {"type": "string"},
                    "param": {"type": ["string", "null"]},
                    "reason": {
                        "enum": [reason.value for reason in Reason],
                        "description": "; ".join(f"{r.value}: {r.meaning}" for r in Reason),
                    },
                },
            },
            "detail": {"type": "string"},
        },
    }


def _error(kind: type[ImageServiceError]) -> dict[str, Any]:
    summary = (kind.__doc__ or "").partition("\n")[0]
    return {"description": summary, "content": {"application/json": {"schema": _ERROR}}}


def _get(
    summary: str, content: dict[str, Any], parameter: str | None = None, *, unready: bool = False
) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": summary,
        "responses": {"200": {"description": summary, "content": content}},
    }
    for kind in (Unauthorized, MethodNotAllowed):
        operation["responses"][str(kind.status)] = _error(kind)
    if parameter:
        operation["parameters"] = [
            {"name": parameter, "in": "path", "required": True, "schema": {"type": "string"}}
        ]
        operation["responses"]["404"] = _error(NotFound)
    if unready:
        operation["responses"]["503"] = {"description": "Not yet, or no more", "content": _json()}
    return operation


def _json() -> dict[str, Any]:
    return {"application/json": {"schema": {"type": "object"}}}


def _images() -> dict[str, Any]:
    return {"image/png": _IMAGE, "image/jpeg": _IMAGE, "image/webp": _IMAGE}
