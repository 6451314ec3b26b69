"""Routes with descriptions for OpenAPI, and functions that look up the route of a request.

web/openapi.py generates the OpenAPI document from the descriptions. Code that serves several APIs
reads the differences between them from the route, not from the path.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from rapidfuzz.distance import OSA
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Mount, Route
from starlette.types import Scope

from sdstream.core.errors import Forbidden, ImageServiceError, Unauthorized
from sdstream.dialects.rendering import JsonObject, error_body

#: A JSON Schema.
Schema = Mapping[str, Any]
#: Media type -> its schema.
Content = Mapping[str, Schema]

Endpoint = Callable[[Request], Awaitable[Response]]

_STATE: Final = "api_route"
_CONVERTOR: Final = re.compile(r":\w+}")

#: Minimum similarity, from 0 to 1, at which an error suggests a route for an unknown path.
_NEAR: Final = 0.75
#: Maximum number of characters of a path that is compared with the routes.
_LONGEST_PATH: Final = 128


@dataclass(frozen=True, slots=True)
class Dialect:
    """The properties of an API that code for several APIs needs.

    Attributes:
        error_body: Renders an error as a JSON object.
        error_schema: Component of the OpenAPI document that describes this object.
        prefix: Prefix of the API's paths, which selects the dialect of requests that match no
            route; empty for the default dialect.
    """

    error_body: Callable[[ImageServiceError], JsonObject]
    error_schema: str
    prefix: str = ""


DEFAULT: Final = Dialect(error_body, "Error")


@dataclass(frozen=True, slots=True)
class Operation:
    """The description of one method of a route in the OpenAPI document.

    Attributes:
        summary: One line.
        answers: Status -> content of the answer.
        body: Content of the request body; None without a body.
        errors: Error classes, in addition to those of every route.
        body_required: Requests without a body are rejected.
        parameters: Parameters of the query and the headers in OpenAPI's form. Path parameters are
            derived from the path.
    """

    summary: str
    answers: Mapping[int, Content]
    body: Content | None = None
    errors: Sequence[type[ImageServiceError]] = ()
    parameters: Sequence[JsonObject] = ()
    body_required: bool = True


#: Errors of every route: a request may be rejected for its key, its origin or its host.
COMMON_ERRORS: Final = (Unauthorized, Forbidden)


class ApiRoute(Route):
    """One method of one path.

    Attributes:
        operation: Description of the method.
        dialect: Dialect of the method's errors.
        is_open: Requests need no key.
        is_probe: Requests are probes of orchestrators. They need no key, may use any host name,
            and are logged at debug.
        same_origin: Pages of other origins may not send this GET, because it makes a job or opens
            a session.
    """

    def __init__(
        self,
        path: str,
        endpoint: Endpoint,
        operation: Operation,
        *,
        method: Literal["GET", "POST", "DELETE"] = "GET",
        dialect: Dialect = DEFAULT,
        is_open: bool = False,
        is_probe: bool = False,
        same_origin: bool = False,
    ) -> None:
        super().__init__(path, endpoint, methods=[method])
        self.method = method
        self.operation = operation
        self.dialect = dialect
        self.is_open = is_open or is_probe
        self.is_probe = is_probe
        self.same_origin = same_origin


def plain_path(route: ApiRoute) -> str:
    """Return the path of a route in OpenAPI's form: ``{model}`` for ``{model:path}``."""
    return _CONVERTOR.sub("}", route.path)


def route_of(scope: Scope) -> BaseRoute | None:
    """Return the route that matches a request, at least by its path, or None.

    Middleware calls this function before Starlette routes the request. The result is stored in the
    state of the request.
    """
    state: dict[str, Any] = scope.setdefault("state", {})
    if _STATE not in state:
        state[_STATE] = _match(scope)
    found: BaseRoute | None = state[_STATE]
    return found


def _match(scope: Scope) -> BaseRoute | None:
    partial = None
    for route in scope["app"].routes:
        match, _ = route.matches(scope)
        if match is Match.FULL:
            matched: BaseRoute = route
            return matched
        if match is Match.PARTIAL and partial is None:
            partial = route
    return partial


def dialect_of(scope: Scope) -> Dialect:
    """Return the dialect of the errors that a request is answered with."""
    route = route_of(scope)
    if isinstance(route, ApiRoute):
        return route.dialect
    every = (route.dialect for route in scope["app"].routes if isinstance(route, ApiRoute))
    path: str = scope["path"]
    return next((d for d in every if d.prefix and path.startswith(d.prefix)), DEFAULT)


def needs_key(scope: Scope) -> bool:
    """Return whether a request must carry a key; the page and the probes need none."""
    route = route_of(scope)
    return not (isinstance(route, Mount) or (isinstance(route, ApiRoute) and route.is_open))


def is_probe(scope: Scope) -> bool:
    """Return whether a request is a probe of an orchestrator."""
    route = route_of(scope)
    return isinstance(route, ApiRoute) and route.is_probe


def is_quiet(scope: Scope) -> bool:
    """Return whether a request is logged at debug only: a probe, or one for a static file."""
    return isinstance(route_of(scope), Mount) or is_probe(scope)


def is_same_origin(scope: Scope) -> bool:
    """Return whether pages of other origins may not send a GET to the route."""
    route = route_of(scope)
    return isinstance(route, ApiRoute) and route.same_origin


def nearest_route(scope: Scope) -> ApiRoute | None:
    """Return the route whose path is most similar to an unknown path; None if all differ much."""
    path: str = scope["path"]
    if len(path) > _LONGEST_PATH:
        return None
    method = "GET" if scope["method"] == "HEAD" else scope["method"]
    near = [
        (*_likeness(path, route.path), route.method == method, -number, route)
        for number, route in enumerate(scope["app"].routes)
        if isinstance(route, ApiRoute)
    ]
    likeness, *_, nearest = max(near)
    return nearest if likeness >= _NEAR else None


def _likeness(path: str, template: str) -> tuple[float, bool]:
    """Return the similarity of two paths, from 0 to 1, and whether they have as many parts.

    Path parameters are not compared.
    """
    given, parts = path.split("/"), template.split("/")
    as_many = len(given) == len(parts)
    if as_many:
        given = [word for word, part in zip(given, parts, strict=True) if part[:1] != "{"]
    words = [part for part in parts if part[:1] != "{"]
    return float(OSA.normalized_similarity("/".join(given), "/".join(words))), as_many
