"""Around every request: an id, a log line, a count, and the question for the key."""

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
from sdstream.service.metrics import Metrics
from sdstream.service.service import ImageService
from sdstream.service.tracing import NO_SPAN, Span, Tracing
from sdstream.web import credentials, respond
from sdstream.web.route import dialect_of, is_probe, is_quiet, is_same_origin, needs_key
from sdstream.web.tokens import Tokens

logger = logging.getLogger("sdstream.requests")

#: Bounds of the list of fields without effect, in the log and in X-Ignored-Fields.
_MOST_NAMES: Final = 20
_MOST_CHARACTERS: Final = 1024
#: Headers that pages of other origins may read, besides those that every page may.
_EXPOSED: Final = (
    *("X-Request-Id", "X-Job-Id", "Location", "Seed", "Finish-Reason"),
    *("X-Ignored-Fields", "Preference-Applied", "Mcp-Session-Id"),
    *("Retry-After", "x-should-retry"),
)

#: Of Sec-Fetch-Site: a page of this server, and what a person opens without any page.
_OWN_SITES: Final = ("same-origin", "none")

_SANE_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
#: https://www.w3.org/TR/trace-context/: version, trace id, span id and flags; zeros are no ids.
_TRACE_PARENT: Final = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})(?P<trace>[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-(?P<flags>[0-9a-f]{2})"
)
#: Others are named _OTHER in a trace, since a client may send any word.
_METHODS: Final = frozenset(
    {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"}
)
#: Of an owner, in the log: enough to tell keys apart.
_LABEL_CHARACTERS: Final = 8


class RequestLog:
    """Gives each request its id (X-Request-Id), a log line, a span and its place in the metrics."""

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
        status = 499  # nothing was sent: the client left
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
            # A GET only looks on: a client that leaves one ends nothing.
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
            *("%s %s %d %.3fs %s", method, path, status, seconds, told),
            extra={"fields": {**fields, **facts}},
        )


class StoreGate:
    """Answers 503 to requests while another server has the jobs, or may have; probes continue."""

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
    """Find the owner of a request (``state.owner``), or answer 401.

    Without keys every client may come in, and all are one owner. A GET may show a token instead.
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
        # With the first request: the store, whose secret they depend on, is open by then.
        return {self._owner_of(key): key.encode() for key in self._keys}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or reject it."""
        # Probes have no owner, and a server that stands by has no secret to find one with.
        if scope["type"] != "http" or is_probe(scope):
            await self._app(scope, receive, send)
            return
        owner = self._owner(Request(scope)) if self._owners else ""
        # OPTIONS returns methods, which /openapi.json of every server does.
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
        # All are compared, wherever the right one stands.
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
    """Lets pages of other origins call the server and read its answers.

    Browsers ask further whether a page of the internet may call a private address; an origin that
    is allowed may.
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
        """Answer a preflight; one of another origin gets no header for private networks."""
        response = super().preflight_response(request_headers)
        if not self.is_allowed_origin(request_headers["origin"]):
            del response.headers["Access-Control-Allow-Private-Network"]
        return response


class SameOrigin:
    """Rejects requests that pages of other origins send, unless CORS allows them.

    A browser sends a page's POST, and its EventSource, before CORS has a say; on a server without
    keys any page in the world could generate images. Browsers report the origin of a request in
    Sec-Fetch-Site, but only to servers with HTTPS or on localhost. To others they report it in
    Origin, which a GET has in CORS mode only: an image, a script, a form or a fetch in no-cors
    mode, whose Accept the page chooses, has none. Such a GET must have a Referer of this server; a
    page can leave Referer out, but not forge it. Clients that are not browsers send none of these.
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
        """Why a request is rejected; empty for one that is served."""
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
                "GET of a browser rejected: no Sec-Fetch-Site, Origin or Referer shows that a page "
                "of this server sent it. Send a POST, or serve the page over HTTPS."
            )
        return ""

    def _is_ours(self, request: Request, address: str | None) -> bool:
        """True for an address, or an origin, of this server or an allowed one."""
        try:
            scheme, place = urlsplit(address or "")[:2]
        except ValueError:
            return False
        return place == request.headers.get("host") or f"{scheme}://{place}" in self._allowed


def _is_browser(request: Request) -> bool:
    """True for a User-Agent of browsers, which a page cannot change in no-cors mode."""
    return request.headers.get("user-agent", "").startswith("Mozilla/")


def refusal(
    error: ImageServiceError, scope: Scope, headers: Mapping[str, str] | None = None
) -> Response:
    """The answer to a request that goes no further; the log has it too."""
    scope.setdefault("state", {})["outcome"] = error.reason.value
    return respond.failure(error, headers, dialect_of(scope))


def _told(state: dict[str, Any]) -> dict[str, str]:
    """The headers of every answer: ids, applied preferences, fields without effect."""
    headers = {"X-Request-Id": state["request_id"]}
    if "traceparent" in state:
        headers["traceparent"] = state["traceparent"]
    if state.get("preferences"):
        headers["Preference-Applied"] = ", ".join(state["preferences"])
    if ignored := _ignored(state):
        headers["X-Ignored-Fields"] = ignored
    return headers


def _next_span(traceparent: str) -> str:
    """Return the traceparent of a span below the given one; empty if the latter is not valid."""
    given = _TRACE_PARENT.fullmatch(traceparent)
    return f"00-{given['trace']}-{secrets.token_hex(8)}-{given['flags']}" if given else ""


def _end_span(
    span: Span, scope: Scope, status: int, route: str, facts: Mapping[str, object]
) -> None:
    """End the span of a request, with attributes of OpenTelemetry's conventions for HTTP.

    It has neither path nor query: an image's path is enough to read it, and either may contain a
    prompt.
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
    """The names of unknown fields, percent-encoded; values may be prompts and are left out."""
    given: Sequence[str] = state.get("ignored_fields", ())[:_MOST_NAMES]
    names = [quote(name, safe="", errors="replace") for name in given]
    return ",".join(names)[:_MOST_CHARACTERS]


def _caller(scope: Scope, state: dict[str, Any]) -> dict[str, str]:
    """Return what the log has of the client: its address, a label of its key, its trace."""
    client = scope.get("client")
    found = {"client": client[0]} if client else {}
    if state.get("owner"):
        found["key"] = str(state["owner"])[:_LABEL_CHARACTERS]
    if "trace" in state:
        found["trace"] = state["trace"]
    return found


def _facts(state: dict[str, Any], *, left: bool) -> dict[str, object]:
    """Return what the log has of the job, without its prompt.

    Args:
        state: Of the request.
        left: Its client went away before the answer was complete.
    """
    ignored = _ignored(state)
    fields = {"ignored_fields": ignored} if ignored else {}
    job: Job | None = state.get("job")
    if job is None:
        return {**fields, **({"outcome": state["outcome"]} if "outcome" in state else {})}
    request = job.request
    outcome = job.status
    if left and not job.terminal and not job.terms.background:
        # A client that leaves is logged at once; the worker stops up to a step later.
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
