"""Routes of single jobs, and event streams for EventSource.

EventSource sends only GET requests without custom headers. It reconnects even after a stream has
ended normally; only a 204 stops it. When it reconnects, it sends the id of the last event that it
received as Last-Event-ID. Event ids are ``NUMBER`` on the route of a job. They are ``JOB:NUMBER``
on the route that makes a job, so that a reconnect continues that job and does not make another one.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from sdstream.core.errors import (
    GenerationFailed,
    InvalidRequest,
    JobWasCancelled,
    NotFound,
    Reason,
    StorageFull,
    Unavailable,
)
from sdstream.core.job import Job
from sdstream.core.options import ImageParams
from sdstream.dialects.jobs import PING, RETRY, JobEvents
from sdstream.dialects.openai import request as openai
from sdstream.dialects.openai.answers import plain_answer
from sdstream.dialects.rendering import ResponseFormat, compact
from sdstream.imaging.codecs import upload_type
from sdstream.service.live_jobs import LiveJob
from sdstream.web import negotiation, respond
from sdstream.web.route import ApiRoute, Operation
from sdstream.web.routes.images import GENERATION_PATHS, JOB_ERRORS, ImageRoutes
from sdstream.web.schemas import (
    BOOLEAN,
    EVENTS,
    IMAGES,
    INTEGER,
    STRING,
    json_of,
    option_schemas,
    parameter,
    record,
    ref,
)
from sdstream.web.tokens import Tokens

_EVENT_ID: Final = re.compile(r"(?:(job_[\w-]{1,64}):)?(\d{1,15})", re.ASCII)


_LAST_EVENT: Final = (
    parameter("Last-Event-ID", "header", STRING),
    parameter("last_event_id", "query", STRING),
)
_STREAM: Final = {200: EVENTS, 204: {}}
_JOB: Final = {200: json_of(ref("Job"))}
#: A URL has at most 64 KiB, and a character takes up to 12 bytes of it.
_IN_A_URL: Final = {
    "prompt": {**STRING, "maxLength": 2_000, "example": "a red circle"},
    "negative_prompt": {**STRING, "maxLength": 2_000},
}
_QUERY: Final = (
    *(
        parameter(name, "query", _IN_A_URL.get(name, schema), required=name == "prompt")
        for name, schema in option_schemas().items()
        if name in ImageParams.model_fields
    ),
    parameter("priority", "query", {"type": "string", "enum": ["low", "normal", "high"]}),
    parameter("stream_options_preview", "query", BOOLEAN),
    *_LAST_EVENT,
)
_GENERATE: Final = Operation(
    "Generate images and send events (EventSource)",
    _STREAM,
    errors=JOB_ERRORS,
    parameters=_QUERY,
)
_ONE: Final = Operation("Get a job", _JOB, errors=(NotFound,))
_DELETE: Final = Operation(
    "Delete a job and its images",
    {200: json_of(record({"id": STRING, "object": STRING, "deleted": BOOLEAN}))},
    errors=(NotFound, Unavailable, StorageFull),
)
_EVENTS: Final = Operation(
    "Follow a job as server-sent events",
    _STREAM,
    errors=(InvalidRequest, NotFound),
    parameters=_LAST_EVENT,
)
_RESULT: Final = Operation(
    "Get the answer of a job",
    {200: json_of(ref("Images")), 202: json_of(ref("Job"))},
    errors=(InvalidRequest, NotFound, JobWasCancelled, GenerationFailed, Unavailable, StorageFull),
    parameters=(
        parameter(
            "response_format", "query", {"type": "string", "enum": ["b64_json", "url", "both"]}
        ),
    ),
)
_INPUT: Final = Operation(
    "Get an image that was uploaded with a job", {200: IMAGES}, errors=(NotFound,)
)
_CANCEL: Final = Operation("Cancel a job", _JOB, errors=(NotFound,))
_TOKEN: Final = Operation(
    "Get a token for URLs of clients that cannot send headers",
    {200: json_of(record({"token": STRING, "expires": INTEGER}))},
)


@dataclass(frozen=True)
class JobRoutes:
    """The routes of /v1/jobs, and GET /v1/images/generations.

    Attributes:
        draw: The routes that make jobs.
        tokens: Issues tokens for URLs of clients that cannot send headers.
    """

    draw: ImageRoutes
    tokens: Tokens

    def routes(self) -> list[ApiRoute]:
        """Return the routes of this class."""
        return [
            ApiRoute(GENERATION_PATHS[0], self.generate, _GENERATE, same_origin=True),
            ApiRoute("/v1/jobs/{job}", self.one, _ONE),
            ApiRoute("/v1/jobs/{job}", self.delete, _DELETE, method="DELETE"),
            ApiRoute("/v1/jobs/{job}/events", self.events, _EVENTS),
            ApiRoute("/v1/jobs/{job}/result", self.result, _RESULT),
            ApiRoute("/v1/jobs/{job}/inputs/{name}", self.input, _INPUT),
            ApiRoute("/v1/jobs/{job}/cancel", self.cancel, _CANCEL, method="POST"),
            ApiRoute("/v1/tokens", self.token, _TOKEN, method="POST"),
        ]

    async def one(self, request: Request) -> Response:
        """GET /v1/jobs/{id}."""
        live = await self._job_of(request)
        await self.draw.service.settled(live)
        return respond.json_bytes(compact(self.draw.job_fields(request, live.job)))

    async def delete(self, request: Request) -> Response:
        """DELETE /v1/jobs/{id}: delete a job and its images; cancel an unfinished job first."""
        live = await self._job_of(request)
        await self.draw.service.delete(live)
        body = {"id": live.job.id, "object": "image.job.deleted", "deleted": True}
        return respond.json_bytes(compact(body))

    async def cancel(self, request: Request) -> Response:
        """POST /v1/jobs/{id}/cancel: a waiting job ends at once, a running one within a step."""
        live = await self._job_of(request)
        done = "already_ended"
        if not live.over:
            self.draw.service.cancel(live, "The job was cancelled.")
            done = "done" if live.over else "stopping"
        await self.draw.service.settled(live)
        fields = {**self.draw.job_fields(request, live.job), "cancel": done}
        return respond.json_bytes(compact(fields))

    async def result(self, request: Request) -> Response:
        """GET /v1/jobs/{id}/result: return the answer that the POST would have returned."""
        live = await self._job_of(request)
        await self.draw.service.settled(live)
        job = live.job
        headers = {"X-Job-Id": job.id}
        if not job.terminal:
            eta = self.draw.service.seconds_left(job)
            headers["Retry-After"] = str(max(1, min(120, round(eta or 1))))
            return respond.json_bytes(compact(self.draw.job_fields(request, job)), headers, 202)
        error = job.error()
        if error is not None:
            return respond.failure(error, headers)
        form = _form(request, job, self.draw.base_url(request), self.draw.signer(request))
        if not form.as_url:
            job = await self.draw.service.with_files(job)
        created = int(job.ended or time.time())
        return respond.json_bytes(plain_answer(job, form, created), headers)

    async def input(self, request: Request) -> Response:
        """GET /v1/jobs/{id}/inputs/{name}: return a file that was uploaded with the request."""
        live = await self._job_of(request)
        data = await self.draw.service.upload(live.job, request.path_params["name"])
        if data is None:
            raise NotFound("Input not found.", reason=Reason.IMAGE_NOT_FOUND)
        # A browser must not show an uploaded file as anything but an image.
        headers = {
            "Cache-Control": "private, max-age=31536000, immutable",
            "X-Content-Type-Options": "nosniff",
        }
        return Response(data, 200, headers, media_type=upload_type(data))

    async def events(self, request: Request) -> Response:
        """GET /v1/jobs/{id}/events."""
        return self._follow(request, await self._job_of(request), _last_event(request)[1])

    async def generate(self, request: Request) -> Response:
        """GET /v1/images/generations?prompt=…: make a job and follow it."""
        if request.method == "HEAD":  # Starlette routes HEAD here too; it must not make a job
            raise HTTPException(405)
        negotiation.check_takes_events(request)
        job_id, number = _last_event(request)
        if job_id is not None:
            live = await self._find(request, job_id, "Last-Event-ID")
        else:
            in_prompt: bool = request.app.state.options_in_prompt
            query = request.query_params.multi_items()
            ask = openai.parse_query(query, options_in_prompt=in_prompt)
            live = await self.draw.submit(request, ask)
        return self._follow(request, live, number, id_prefix=f"{live.job.id}:")

    async def token(self, request: Request) -> Response:
        """POST /v1/tokens: issue a token for URLs of clients that cannot send headers."""
        token, expires = self.tokens.issue(request.state.owner)
        return respond.json_bytes(compact({"token": token, "expires": expires}))

    # --- parts ----------------------------------------------------------------------------------

    def _follow(
        self, request: Request, live: LiveJob, seen: int | None, id_prefix: str = ""
    ) -> Response:
        job = live.job
        headers = {"X-Job-Id": job.id}
        if seen is not None and job.terminal and seen >= job.last_event:
            return Response(status_code=204, headers=headers)
        if request.method == "HEAD":
            return Response(headers=headers, media_type="text/event-stream")
        service, base_url = self.draw.service, self.draw.base_url(request)
        rendering = JobEvents(job, base_url, lambda: service.seconds_left(job), id_prefix)
        return respond.stream(self._events(live, rendering, seen), headers)

    async def _events(
        self, live: LiveJob, rendering: JobEvents, seen: int | None
    ) -> AsyncIterator[bytes]:
        job = live.job
        yield RETRY
        async for _ in self.draw.service.until_written(live, self.draw.keepalive_seconds):
            yield PING
        if seen is None or not job.first_event <= seen <= job.last_event:
            # The client has seen no event yet, or only events of an earlier run of the server.
            seen = job.last_event
            yield rendering.snapshot()
        start = seen - job.first_event
        number = seen
        async for entry in self.draw.service.follow(live, self.draw.keepalive_seconds, start):
            number += entry is not None
            event = PING if entry is None else rendering.event(number, entry)
            if event is not None:
                yield event

    async def _job_of(self, request: Request) -> LiveJob:
        return await self._find(request, request.path_params["job"], None)

    async def _find(self, request: Request, job_id: str, param: str | None) -> LiveJob:
        live = await self.draw.service.find(job_id, request.state.owner, param)
        request.state.job = live.job
        return live


def _last_event(request: Request) -> tuple[str | None, int | None]:
    """Return job id and number of the last event that the client received, if it sends them."""
    given = request.headers.get("last-event-id") or request.query_params.get("last_event_id")
    if not given:
        return None, None
    match = _EVENT_ID.fullmatch(given)
    if match is None:
        raise InvalidRequest(
            "'Last-Event-ID' is not an event id of this server.", param="Last-Event-ID"
        )
    return match[1], int(match[2])


def _form(request: Request, job: Job, base_url: str, sign: Callable[[str], str]) -> ResponseFormat:
    """Return the form of images in the result: as in the query, or else as in the POST."""
    terms = job.terms
    form = ResponseFormat(terms.as_url, terms.data_url, base_url, terms.both, sign)
    match request.query_params.get("response_format"):
        case None:
            return form
        case "url":
            return replace(form, as_url=True)
        case "b64_json":
            return replace(form, as_url=False, data_url=False, both=False)
        case "both":
            return replace(form, as_url=False, data_url=False, both=True)
        case _:
            raise InvalidRequest(
                "'response_format' must be b64_json, url or both.",
                reason=Reason.INVALID_VALUE,
                param="response_format",
            )
