"""The API's description, made from the models that validate the requests."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from app import __version__
from app.core.errors import (
    ImageServiceError,
    InvalidRequest,
    MethodNotAllowed,
    NotAcceptable,
    NotFound,
    PayloadTooLarge,
    QueueFull,
    Reason,
    Unauthorized,
    Unavailable,
    UnsupportedMediaType,
)
from app.core.request import Draft
from app.dialects.openai import ALIASES, FOREIGN_FIELDS, Foreign, ReplyOptions

_ERROR: Final = {"$ref": "#/components/schemas/Error"}
_IMAGE: Final = {"schema": {"type": "string", "format": "binary"}}
_GENERATION_ERRORS: Final[tuple[type[ImageServiceError], ...]] = (
    InvalidRequest,
    Unauthorized,
    NotFound,
    NotAcceptable,
    PayloadTooLarge,
    UnsupportedMediaType,
    QueueFull,
    ImageServiceError,
    Unavailable,
)


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
            "/v1/images/generations": {"post": _generation()},
            "/v1/images/{image}/content": {"get": _get("An image", _images(), "image")},
            "/v1/models": {"get": _get("The catalogue", _json())},
            "/v1/models/{model}": {"get": _get("One model", _json(), "model")},
            "/livez": {"get": _get("The process answers", _json())},
            "/readyz": {"get": _get("The default model is loaded", _json(), unready=True)},
            "/health": {"get": _get("The same as /readyz", _json(), unready=True)},
            "/metrics": {"get": _get("Prometheus metrics", {"text/plain": {"schema": {}}})},
            "/openapi.json": {"get": _get("This document", _json())},
        },
        "components": {
            "schemas": {"Generation": _generation_schema(), "Error": _error_schema()},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _generation() -> dict[str, Any]:
    errors = {str(kind.status): _error(kind) for kind in _GENERATION_ERRORS}
    answer = {
        "application/json": {"schema": {"type": "object"}},
        "text/event-stream": {"schema": {"type": "string"}},
        **_images(),
    }
    return {
        "summary": "Draw a prompt",
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/Generation"}}
            },
        },
        "responses": {"200": {"description": "The images", "content": answer}, **errors},
    }


def _generation_schema() -> dict[str, Any]:
    draft = Draft.model_json_schema(ref_template="#/components/schemas/Generation/$defs/{model}")
    reply = ReplyOptions.model_json_schema(
        ref_template="#/components/schemas/Generation/$defs/{model}"
    )
    own = ("previews", "spelling")
    properties = {
        name: {**schema, "x-aliases": [a for a, target in ALIASES.items() if target == name]}
        for name, schema in {**draft["properties"], **reply["properties"]}.items()
        if name not in own
    }
    ignored = [name for name, fate in FOREIGN_FIELDS.items() if fate is Foreign.IGNORED]
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
