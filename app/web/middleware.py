"""Around every request: an id, a log line, a count, and the question for the key."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Sequence
from typing import Any, Final

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.errors import Reason, Unauthorized
from app.core.job import Job, JobStatus
from app.metrics import Metrics
from app.web import forms, respond

logger = logging.getLogger("app.requests")

#: Probes of orchestrators carry no key, and neither does Xinference's client when it asks whether
#: one is needed; the answers say nothing about users.
_OPEN_PATHS: Final = frozenset({"/health", "/livez", "/readyz", "/v1/cluster/auth"})

_SANE_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class RequestLog:
    """Gives each request its id (X-Request-Id), one log line and its place in the metrics."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Request(scope).headers.get("x-request-id", "")
        request_id = given if _SANE_ID.fullmatch(given) else secrets.token_hex(12)
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request_id"] = request_id
        began = time.monotonic()
        status = 499  # nothing was sent: the client left

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            status = 500
            raise
        finally:
            route = getattr(scope.get("route"), "path", "unmatched")
            self._metrics.requests.labels(scope["method"], route, status).inc()
            seconds = time.monotonic() - began
            level = logging.DEBUG if scope["path"] in _OPEN_PATHS else logging.INFO
            logger.log(
                level,
                "%s %s %d %.3fs request=%s%s",
                scope["method"],
                scope["path"],
                status,
                seconds,
                request_id,
                _facts(state),
            )


class RequireKey:
    """Answers 401 to whoever shows none of the keys; without keys everybody may come in."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        guarded = scope["type"] == "http" and self._keys and scope["path"] not in _OPEN_PATHS
        if guarded and not forms.has_valid_key(Request(scope), self._keys):
            scope.setdefault("state", {})["outcome"] = Reason.INVALID_API_KEY.value
            error = Unauthorized(
                "This server asks for an API key: send 'Authorization: Bearer KEY'.",
                reason=Reason.INVALID_API_KEY,
            )
            answer = respond.failure(error, {"WWW-Authenticate": "Bearer"}, scope["path"])
            await answer(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _facts(state: dict[str, Any]) -> str:
    """What the log says of the job, without its prompt."""
    job: Job | None = state.get("job")
    if job is None:
        return f" outcome={state['outcome']}" if "outcome" in state else ""
    request = job.request
    # Who leaves is logged at once; the worker stops within a step after that.
    outcome = job.status if job.terminal else JobStatus.CANCELLED
    return (
        f" job={job.id} model={request.model} size={request.size} n={request.n}"
        f" steps={request.steps} outcome={outcome.value}"
    )
