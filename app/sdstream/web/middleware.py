"""Middleware of every request: ids, log lines, metrics, CORS, and checks of keys and origins."""

from __future__ import annotations

import hmac
import logging
import re
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from typing import Any, Final
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sdstream.core.errors import Forbidden, ImageServiceError, Reason, Unauthorized
from sdstream.core.job import Job, JobStatus
from sdstream.core.text import printable
from sdstream.service.metrics import Metrics
from sdstream.service.service import ImageService
from sdstream.service.tracing import NO_SPAN, Span, Tracing
from sdstream.web import credentials, respond
from sdstream.web.route import dialect_of, is_probe, is_quiet, is_same_origin, needs_key
from sdstream.web.tokens import Tokens

logger = logging.getLogger("sdstream.requests")

#: Limits of the list of unknown fields, in the log and in X-Ignored-Fields.
_MOST_NAMES: Final = 20
_MOST_CHARACTERS: Final = 1024
#: Response headers that pages of other origins may read, in addition to CORS's default ones.
_EXPOSED: Final = (
    *("X-Request-Id", "X-Job-Id", "Location", "Seed", "Finish-Reason"),
    *("X-Ignored-Fields", "X-Warnings", "Preference-Applied", "Mcp-Session-Id"),
    *("Retry-After", "x-should-retry"),
)

#: Values of Sec-Fetch-Site for requests from a page of this server or directly from the user.
_OWN_SITES: Final = ("same-origin", "none")

_SANE_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
#: https://www.w3.org/TR/trace-context/: version, trace id, span id, flags. Zeros are invalid ids.
_TRACE_PARENT: Final = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})(?P<trace>[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-(?P<flags>[0-9a-f]{2})"
)
#: A trace contains _OTHER in place of other methods, since a client may send any word.
_METHODS: Final = frozenset(
    {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"}
)
#: Characters of an owner in the log, enough to distinguish keys.
_LABEL_CHARACTERS: Final = 8


class RequestLog:
    """Gives each request an id (X-Request-Id), logs it, and adds it to the traces and metrics."""

    def __init__(self, app: ASGIApp, metrics: Metrics, tracing: Tracing) -> None:
        self._app = app
        self._metrics = metrics
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Request(scope).headers
        given = headers.get("x-request-id", "")
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request_id"] = given if _SANE_ID.fullmatch(given) else secrets.token_hex(12)
        span = NO_SPAN if is_quiet(scope) else self._tracing.request(headers)
        if traceparent := span.traceparent or _next_span(headers.get("traceparent", "")):
            _, state["trace"], *_ = traceparent.split("-")
            state["traceparent"] = traceparent
        began = time.monotonic()
        status = 499  # the client disconnected, unless a response is sent
        whole = False

        async def send_with_id(message: Message) -> None:
            nonlocal status, whole
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(_told(state))
            elif message["type"] == "http.response.body":
                whole = not message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            status = 500
            raise
        finally:
            # Only a POST counts: a client that disconnects from a GET does not cancel a job.
            left = scope["method"] == "POST" and (status == 499 or (status == 200 and not whole))
            self._record(scope, state, span, status, time.monotonic() - began, left=left)

    def _record(
        self,
        scope: Scope,
        state: dict[str, Any],
        span: Span,
        status: int,
        seconds: float,
        *,
        left: bool,
    ) -> None:
        method, path = scope["method"], scope["path"]
        route = getattr(scope.get("route"), "path", "unmatched")
        self._metrics.requests.labels(method, route, status).inc()
        self._metrics.request_seconds.labels(method, route).observe(seconds)
        if status >= 400:
            self._metrics.rejected.labels(state.get("outcome", "other")).inc()
        facts = {
            "request": state["request_id"],
            **_caller(scope, state),
            **_facts(state, left=left),
        }
        _end_span(span, scope, status, route, facts)
        told = " ".join(f"{name}={value}" for name, value in facts.items())
        fields = {"method": method, "path": path, "status": status, "seconds": round(seconds, 3)}
        logger.log(
            logging.DEBUG if is_quiet(scope) else logging.INFO,
            # The path is decoded: it may contain line breaks and control sequences.
            *("%s %s %d %.3fs %s", method, printable(path), status, seconds, told),
            extra={"fields": {**fields, **facts}},
        )


class StoreGate:
    """Answers 503 to all requests except probes while another server holds or may hold the jobs."""

    def __init__(self, app: ASGIApp, service: ImageService) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or reject it."""
        error = self._service.why_no_request() if scope["type"] == "http" else None
        if error is None or is_probe(scope):
            await self._app(scope, receive, send)
            return
        await refusal(error, scope)(scope, receive, send)


class RequireKey:
    """Finds the owner of a request (``state.owner``), or answers 401.

    A server without keys accepts every client, and all clients are one owner. A GET may contain a
    token in place of a key.
    """

    def __init__(
        self, app: ASGIApp, keys: Sequence[str], tokens: Tokens, owner_of: Callable[[str], str]
    ) -> None:
        self._app = app
        self._keys = keys
        self._tokens = tokens
        self._owner_of = owner_of

    @cached_property
    def _owners(self) -> dict[str, bytes]:
        # Computed at the first request: owners depend on the store's secret, and it is open then.
        return {self._owner_of(key): key.encode() for key in self._keys}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or reject it."""
        # Probes have no owner. A standby server cannot compute one, since its store is not open.
        if scope["type"] != "http" or is_probe(scope):
            await self._app(scope, receive, send)
            return
        owner = self._owner(Request(scope)) if self._owners else ""
        # OPTIONS needs no key: it returns only the methods of a route, which are not secret.
        if owner is None and needs_key(scope) and scope["method"] != "OPTIONS":
            error = Unauthorized(
                "API key missing or wrong; send 'Authorization: Bearer KEY'.",
                reason=Reason.INVALID_API_KEY,
            )
            answer = refusal(error, scope, {"WWW-Authenticate": "Bearer"})
            await answer(scope, receive, send)
            return
        scope.setdefault("state", {})["owner"] = owner or ""
        await self._app(scope, receive, send)

    def _owner(self, request: Request) -> str | None:
        offered = credentials.offered_key(request).encode()
        # Every key is compared, so that the time does not depend on the position of a match.
        matches = [
            owner for owner, key in self._owners.items() if hmac.compare_digest(offered, key)
        ]
        if matches:
            return matches[0]
        token = request.query_params.get("token")
        if token is None or request.method not in ("GET", "HEAD"):
            return None
        owner = self._tokens.owner(token, request.url.path)
        return owner if owner in self._owners else None


class CrossOrigin(CORSMiddleware):
    """Allows pages of the given origins to call the server and to read its answers.

    Browsers also ask whether a page of a public site may call a private address. The server allows
    this for the same origins.
    """

    def __init__(self, app: ASGIApp, allow_origins: Collection[str]) -> None:
        super().__init__(
            app,
            allow_origins=allow_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            allow_private_network=True,
            expose_headers=_EXPOSED,
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        """Answer a preflight request; only allowed origins get the header for private networks."""
        response = super().preflight_response(request_headers)
        if not self.is_allowed_origin(request_headers["origin"]):
            del response.headers["Access-Control-Allow-Private-Network"]
        return response


class SameOrigin:
    """Rejects requests from pages of other origins, unless CORS allows the origin.

    Browsers send many POSTs and every EventSource request without a CORS preflight. On a server
    without keys, any page on the web could otherwise generate images. GETs are checked only on
    routes with ``same_origin``. Browsers report where a request comes from in these headers:

    - Sec-Fetch-Site, but only to servers with HTTPS or on localhost.
    - Origin. A GET has it in CORS mode only. Images, scripts, forms and fetches in no-cors mode
      send none, and a page can choose the Accept header of such a fetch.
    - Referer, which a page can omit but not forge. A browser's GET without the other two headers
      must have a Referer of this server or of an allowed origin.

    Clients that are not browsers send none of these headers.
    """

    def __init__(self, app: ASGIApp, allowed: Sequence[str]) -> None:
        self._app = app
        self._allowed = frozenset(allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or reject it."""
        message = self._fault(Request(scope)) if scope["type"] == "http" else ""
        if message:
            error = Forbidden(message, reason=Reason.CROSS_ORIGIN)
            await refusal(error, scope)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _fault(self, request: Request) -> str:
        """Return why a request is rejected, or an empty string if it is not."""
        harmless = request.method in ("GET", "HEAD", "OPTIONS")
        if "*" in self._allowed or (harmless and not is_same_origin(request.scope)):
            return ""
        headers = request.headers
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if origin is not None and origin in self._allowed:
            return ""
        if site is not None or origin is not None:
            ours = site in _OWN_SITES if site is not None else self._is_ours(request, origin)
            return "" if ours else "Request from another origin rejected; --cors-origin allows it."
        if harmless and _is_browser(request) and not self._is_ours(request, headers.get("referer")):
            return (
                "Browser's GET request rejected: no Sec-Fetch-Site, Origin or Referer header shows "
                "that a page of this server sent it. Send a POST, or serve the page over HTTPS."
            )
        return ""

    def _is_ours(self, request: Request, address: str | None) -> bool:
        """Return whether a URL or an origin is that of this server or an allowed one."""
        try:
            scheme, place = urlsplit(address or "")[:2]
        except ValueError:
            return False
        return place == request.headers.get("host") or f"{scheme}://{place}" in self._allowed


def _is_browser(request: Request) -> bool:
    """Return whether User-Agent is a browser's; a page cannot change it in no-cors mode."""
    return request.headers.get("user-agent", "").startswith("Mozilla/")


def refusal(
    error: ImageServiceError, scope: Scope, headers: Mapping[str, str] | None = None
) -> Response:
    """Return the answer to a request that middleware rejects, and note the reason for the log."""
    scope.setdefault("state", {})["outcome"] = error.reason.value
    return respond.failure(error, headers, dialect_of(scope))


def _told(state: dict[str, Any]) -> dict[str, str]:
    """Return the headers that every answer gets: ids, applied preferences, unknown fields."""
    headers = {"X-Request-Id": state["request_id"]}
    if "traceparent" in state:
        headers["traceparent"] = state["traceparent"]
    if state.get("preferences"):
        headers["Preference-Applied"] = ", ".join(state["preferences"])
    if ignored := _ignored(state):
        headers["X-Ignored-Fields"] = ignored
    return headers


def _next_span(traceparent: str) -> str:
    """Return the traceparent of a new child span; empty if the given traceparent is not valid."""
    given = _TRACE_PARENT.fullmatch(traceparent)
    return f"00-{given['trace']}-{secrets.token_hex(8)}-{given['flags']}" if given else ""


def _end_span(
    span: Span, scope: Scope, status: int, route: str, facts: Mapping[str, object]
) -> None:
    """End the span of a request, with the attributes of OpenTelemetry's HTTP conventions.

    The path and the query are left out. The path of an image is enough to download it, and both may
    contain a prompt.
    """
    method: str = scope["method"]
    is_known = method in _METHODS
    found: dict[str, str | int] = {
        "http.request.method": method if is_known else "_OTHER",
        "url.scheme": scope["scheme"],
        "network.protocol.version": scope["http_version"],
        "user_agent.original": Headers(scope=scope).get("user-agent", ""),
        "client.address": str(facts.get("client", "")),
        "http.response.status_code": status,
        "sdstream.request.id": str(facts["request"]),
        "sdstream.job.id": str(facts.get("job", "")),
        "sdstream.outcome": str(facts.get("outcome", "")),
    }
    name = method if is_known else "HTTP"
    if route != "unmatched":
        found["http.route"], name = route, f"{name} {route}"
    attributes = {key: value for key, value in found.items() if value != ""}
    span.end(time.time(), attributes, name=name, error=str(status) if status >= 500 else "")


def _ignored(state: dict[str, Any]) -> str:
    """Return the names of unknown fields, percent-encoded; their values may be prompts."""
    given: Sequence[str] = state.get("ignored_fields", ())[:_MOST_NAMES]
    names = [quote(name, safe="", errors="replace") for name in given]
    return ",".join(names)[:_MOST_CHARACTERS]


def _caller(scope: Scope, state: dict[str, Any]) -> dict[str, str]:
    """Return the log's fields about the client: its address, a label of its key, its trace id."""
    client = scope.get("client")
    found = {"client": client[0]} if client else {}
    if state.get("owner"):
        found["key"] = str(state["owner"])[:_LABEL_CHARACTERS]
    if "trace" in state:
        found["trace"] = state["trace"]
    return found


def _facts(state: dict[str, Any], *, left: bool) -> dict[str, object]:
    """Return the log's fields about the job, without its prompt.

    Args:
        state: The state of the request.
        left: The client disconnected before the answer was complete.
    """
    ignored = _ignored(state)
    fields = {"ignored_fields": ignored} if ignored else {}
    job: Job | None = state.get("job")
    if job is None:
        return {**fields, **({"outcome": state["outcome"]} if "outcome" in state else {})}
    request = job.request
    outcome = job.status
    if left and not job.terminal and not job.terms.background:
        # The request is logged at once, but the worker stops up to one step later.
        outcome = JobStatus.CANCELLED
    return {
        "job": job.id,
        "model": request.model,
        "size": str(request.asked_size),
        "n": request.n,
        "steps": request.steps,
        "outcome": outcome.value,
        **fields,
    }
