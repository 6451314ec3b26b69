"""Generates the OpenAPI 3.1 document from the routes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from starlette.routing import BaseRoute

from sdstream import __version__
from sdstream.core.errors import ImageServiceError
from sdstream.dialects.rendering import JsonObject
from sdstream.web.route import COMMON_ERRORS, ApiRoute, Content, plain_path
from sdstream.web.schemas import STRING, components, json_of, parameter, ref

_DESCRIPTIONS: Final = {
    200: "Done",
    202: "Accepted; the job, if there is one, has not ended yet",
    204: "The end of the job was already sent: do not reconnect",
    503: "Not ready",
}

#: Path parameter -> its schema, if it is not any string.
_PATH_PARAMETERS: Final = {"model": {**STRING, "example": "default"}}

#: Routes of web pages, which API clients do not call.
_PAGES: Final = frozenset({"/", "/docs"})


def openapi_document(routes: Iterable[BaseRoute]) -> JsonObject:
    """Return the document of all described routes.

    Args:
        routes: The application's routes; those of web pages are left out.
    """
    paths: dict[str, JsonObject] = {}
    for route in routes:
        if isinstance(route, ApiRoute) and route.path not in _PAGES:
            path = plain_path(route)
            paths.setdefault(path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "sdstream",
            "version": __version__,
            "description": "Images from GGUF-quantised diffusion models, streamed step by step.",
        },
        "paths": paths,
        "components": {
            "schemas": components(),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _operation(route: ApiRoute) -> JsonObject:
    operation = route.operation
    described: JsonObject = {
        "summary": operation.summary,
        "operationId": _operation_id(route),
        # Code generators and readers of the document group operations by the route's module.
        "tags": [route.endpoint.__module__.rpartition(".")[2]],
    }
    own = [
        parameter(name, "path", _PATH_PARAMETERS.get(name, STRING), required=True)
        for name in route.param_convertors
    ]
    if own or operation.parameters:
        described["parameters"] = [*own, *operation.parameters]
    if operation.body is not None:
        described["requestBody"] = {
            "required": operation.body_required,
            "content": _content(operation.body),
        }
    described["responses"] = _responses(route)
    if route.is_open:
        described["security"] = [{}]
    return described


def _operation_id(route: ApiRoute) -> str:
    words = re.findall(r"[A-Za-z0-9]+", plain_path(route))
    return "_".join([route.method.lower(), *words])


def _responses(route: ApiRoute) -> JsonObject:
    responses: JsonObject = {}
    operation = route.operation
    common = () if route.is_open else COMMON_ERRORS
    for kind in (*common, *operation.errors, ImageServiceError):
        summary = (kind.__doc__ or "").partition("\n")[0]
        content = _content(json_of(ref(route.dialect.error_schema)))
        responses[str(kind.status)] = {"description": summary, "content": content}
    for status, answer in operation.answers.items():
        responses[str(status)] = {"description": _DESCRIPTIONS[status]}
        if answer:
            responses[str(status)]["content"] = _content(answer)
    return dict(sorted(responses.items()))


def _content(content: Content) -> JsonObject:
    return {media_type: {"schema": schema} for media_type, schema in content.items()}
