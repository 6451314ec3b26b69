"""Routes that carry their description, and the dialect of a request before it is routed.

The OpenAPI document is made by walking the routes (web/openapi), and code that serves every dialect
asks the route for what differs: never the path.
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

#: Share of a path that a near one has in common with it.
_NEAR: Final = 0.75
#: Of a path that is compared with others.
_LONGEST_PATH: Final = 128


@dataclass(frozen=True, slots=True)
class Dialect:
    """What differs between the APIs in code that serves all of them.

    Attributes:
        error_body: The whole JSON of an error.
        error_schema: Component of the OpenAPI document that describes it.
        prefix: What the paths of the API begin with, for requests that match no route; empty for
            the API that has the rest.
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
        answers: Status -> what is answered.
        body: Request body, empty for none.
        errors: Kinds of errors, besides those of every route.
        body_required: A request without a body is rejected.
        parameters: Of the query and the headers, in OpenAPI's form; path parameters are derived.
    """

    summary: str
    answers: Mapping[int, Content]
    body: Content | None = None
    errors: Sequence[type[ImageServiceError]] = ()
    parameters: Sequence[JsonObject] = ()
    body_required: bool = True


#: A route may be rejected for the key, the origin or the host of its request.
COMMON_ERRORS: Final = (Unauthorized, Forbidden)


class ApiRoute(Route):
    """One method of one path.

    Attributes:
        operation: Its description.
        dialect: Its API.
        is_open: It needs no key.
        is_probe: It is for orchestrators: any host name is served, and it is logged at debug.
        same_origin: It is a GET that pages of other origins may not send: it makes a job, or
            opens a session.
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
    """Return the path of a route as documents have it: ``{model}`` for ``{model:path}``."""
    return _CONVERTOR.sub("}", route.path)


def route_of(scope: Scope) -> BaseRoute | None:
    """Return the route that will serve a request; None without one.

    It can be asked before the request is routed, as middleware does; the answer is kept.
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
    """Return the dialect that errors of a request are answered in."""
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
    """Return whether a request is an orchestrator's."""
    route = route_of(scope)
    return isinstance(route, ApiRoute) and route.is_probe


def is_quiet(scope: Scope) -> bool:
    """Return whether a request is logged at debug only: an orchestrator's, or for a static file."""
    return isinstance(route_of(scope), Mount) or is_probe(scope)


def is_same_origin(scope: Scope) -> bool:
    """Return whether a GET may not be sent by pages of other origins."""
    route = route_of(scope)
    return isinstance(route, ApiRoute) and route.same_origin


def nearest_route(scope: Scope) -> ApiRoute | None:
    """Return the route that a client of an unknown path may have meant; None when none is near."""
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
    """How alike the words of two paths are, from 0 to 1, and whether they have as many parts.

    Parameters are not compared.
    """
    given, parts = path.split("/"), template.split("/")
    as_many = len(given) == len(parts)
    if as_many:
        given = [word for word, part in zip(given, parts, strict=True) if part[:1] != "{"]
    words = [part for part in parts if part[:1] != "{"]
    return float(OSA.normalized_similarity("/".join(given), "/".join(words))), as_many
