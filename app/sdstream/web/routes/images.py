"""The routes of image requests, and the code that submits and answers the requests of all APIs."""

from __future__ import annotations

import asyncio
import re
import time
from collections import OrderedDict, defaultdict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from starlette.requests import Request
from starlette.responses import Response

from sdstream.core.ask import Hints, ParsedRequest, StreamDialect
from sdstream.core.errors import (
    ImageServiceError,
    InvalidRequest,
    KeyReused,
    NotAcceptable,
    NotFound,
    PayloadTooLarge,
    QueueFull,
    StorageFull,
    Unavailable,
    UnsupportedMediaType,
)
from sdstream.core.job import Entry, Job, JobStatus, Terms
from sdstream.core.options import OutputFormat
from sdstream.core.queue import Priority
from sdstream.dialects.fireworks.codec import finish_reason
from sdstream.dialects.jobs import job_fields
from sdstream.dialects.openai import request as openai
from sdstream.dialects.openai.answers import plain_answer
from sdstream.dialects.openai.image_chunk import ChunkOptions, ImageChunkStream
from sdstream.dialects.openai.request import EDITS, EditRoute
from sdstream.dialects.openai.stream import OpenAIStream
from sdstream.dialects.rendering import JsonObject, ResponseFormat, compact
from sdstream.imaging.codecs import MEDIA_TYPES
from sdstream.service.live_jobs import LiveJob, deferred_error
from sdstream.service.service import ImageService
from sdstream.web import bodies, negotiation, respond
from sdstream.web.addresses import Links
from sdstream.web.route import ApiRoute, Content, Operation, dialect_of
from sdstream.web.schemas import EVENTS, IMAGES, STRING, form_of, json_of, parameter, ref
from sdstream.web.tokens import Tokens

#: Two prompts of 32,000 characters, escaped as \\uXXXX, take 400 kB.
MAX_JSON_BYTES: Final = 2**20

MAX_KEY_CHARACTERS: Final = 255

#: Maximum number of an owner's jobs that clients can find by ``request_id``.
_MOST_NAMED: Final = 256

_OPENAI_AGENT: Final = re.compile(r"(Async)?OpenAI/")


PlainAnswer = Callable[[Job, ResponseFormat, int], bytes]


class Frames(Protocol):
    """Renders a job as the stream of a dialect."""

    def frames(self, entry: Entry) -> list[bytes]:
        """Return the frames of one entry."""

    def keep_alive(self) -> list[bytes]:
        """Return the frames that are sent when there is no new entry."""

    def failure(self, error: ImageServiceError) -> list[bytes]:
        """Return the last frames of a stream whose job does not end before the server stops."""


Renderer = Callable[[Job, ResponseFormat], Frames]

#: Errors of every route that makes a job.
JOB_ERRORS: Final = (
    InvalidRequest, NotFound, NotAcceptable, PayloadTooLarge, UnsupportedMediaType, KeyReused,
    QueueFull, Unavailable, StorageFull,
)  # fmt: skip
JOB_HEADERS: Final = (
    parameter("Prefer", "header", STRING),
    parameter("Idempotency-Key", "header", {**STRING, "maxLength": MAX_KEY_CHARACTERS}),
)
_DIALECT: Final = parameter(
    "dialect", "query", {"type": "string", "enum": ["image.chunk", "openai", "both"]}
)

#: The three paths in the middle are GPUStack's, the last one is OpenVINO Model Server's.
GENERATION_PATHS: Final = (
    "/v1/images/generations",
    "/v1-openai/images/generations",
    "/v1-openai/image/generate",
    "/v1/image/generate",
    "/v3/images/generations",
)
_EDIT_PATHS: Final = (
    "/v1/images/edits",
    "/v1-openai/images/edits",
    "/v1-openai/image/edit",
    "/v1/image/edit",
    "/v3/images/edits",
)


def _operation(summary: str, body: Content) -> Operation:
    answers = {200: {**json_of(ref("Images")), **EVENTS, **IMAGES}, 202: json_of(ref("Job"))}
    return Operation(summary, answers, body, JOB_ERRORS, (_DIALECT, *JOB_HEADERS))


@dataclass(frozen=True)
class ImageRoutes:
    """The POST routes that generate images.

    Attributes:
        service: Accepts the jobs.
        links: Base URL of links to this server.
        keepalive_seconds: Seconds without an event after which a stream sends a keep-alive frame.
        max_form_bytes: Largest body with images, in bytes.
        check_webhook: Raises InvalidRequest for a webhook URL that is not allowed.
        usual_form: response_format of requests that do not set it.
        tokens: Issues tokens for links to images; None on a server without keys.
        by_request_id: Owner -> request_id of the client -> job id, for the owner's newest jobs.
    """

    service: ImageService
    links: Links
    keepalive_seconds: float
    max_form_bytes: int
    check_webhook: Callable[[str], None]
    usual_form: str = "both"
    tokens: Tokens | None = None
    by_request_id: defaultdict[str, OrderedDict[str, str]] = field(
        default_factory=lambda: defaultdict(OrderedDict)
    )

    def routes(self) -> list[ApiRoute]:
        """Return the routes of this class."""
        both = {**json_of(ref("Generation")), **form_of(ref("ControlledGeneration"))}
        generate = _operation("Generate images from a prompt", both)
        edit = {**form_of(ref("Edit")), **json_of(ref("JsonEdit"))}
        variation = {**form_of(ref("Variation")), **json_of(ref("JsonVariation"))}
        upscale = {**form_of(ref("Upscale")), **json_of(ref("JsonUpscale"))}
        change = _operation("Edit an image", edit)
        return [
            *(ApiRoute(p, self.generations, generate, method="POST") for p in GENERATION_PATHS),
            *(ApiRoute(p, self.edits, change, method="POST") for p in _EDIT_PATHS),
            ApiRoute(
                "/v1/images/variations",
                self.variations,
                _operation("Generate variations of an image", variation),
                method="POST",
            ),
            ApiRoute(
                "/v1/images/inpainting",
                self.inpainting,
                _operation("Paint where a mask is white", edit),
                method="POST",
            ),
            ApiRoute(
                "/v1/images/upscales",
                self.upscales,
                _operation("Upscale an image", upscale),
                method="POST",
            ),
        ]

    async def generations(self, request: Request) -> Response:
        """POST /v1/images/generations: JSON, or a form with a control image."""
        if request.headers.get("content-type", "").lower().startswith("multipart/"):
            form = await bodies.read_form(request, self.max_form_bytes)
            ask = openai.parse_generation_form(form.fields, form.files, hints_of(request))
        else:
            body = await bodies.read_json(request, MAX_JSON_BYTES)
            ask = openai.parse(body, hints_of(request))
        return await self.answer(request, ask)

    async def edits(self, request: Request) -> Response:
        """POST /v1/images/edits: a form or JSON with image and optionally mask."""
        return await self._edit_answer(request)

    async def variations(self, request: Request) -> Response:
        """POST /v1/images/variations: a form or JSON with image and optionally prompt."""
        return await self._edit_answer(request, EditRoute(prompt=""))

    async def inpainting(self, request: Request) -> Response:
        """POST /v1/images/inpainting: Xinference's form with image and mask_image."""
        return await self._edit_answer(request, EditRoute(mask_mode="luminance"))

    async def upscales(self, request: Request) -> Response:
        """POST /v1/images/upscales: a form or JSON with image, optionally upscaler and upscale."""
        return await self._edit_answer(request, EditRoute(prompt="", only_upscale=True))

    async def _edit_answer(self, request: Request, route: EditRoute = EDITS) -> Response:
        hints = hints_of(request)
        if bodies.declares_json(request):
            body = await bodies.read_json(request, self.max_form_bytes)
            # In a thread: decoding many megabytes of base64 would block the event loop.
            ask = await asyncio.to_thread(openai.parse_edit, body, hints, route)
        else:
            form = await bodies.read_form(request, self.max_form_bytes)
            ask = openai.parse_form(form.fields, form.files, hints=hints, route=route)
        return await self.answer(request, ask)

    async def answer(
        self, request: Request, ask: ParsedRequest, plain: PlainAnswer = plain_answer
    ) -> Response:
        """Run a parsed request and answer it in the form that its client wants.

        Args:
            request: The client's request.
            ask: The request as its dialect parsed it.
            plain: Renders a finished job as the dialect's JSON.
        """
        wanted = None
        if not ask.reply.stream:
            asked = ask.params.output_format
            wanted = negotiation.accepted_image(request, ask.params.n or 1, output_format=asked)
        ask = negotiation.with_format(ask, wanted)
        return await self.deliver(request, ask, wanted, plain)

    async def deliver(
        self,
        request: Request,
        ask: ParsedRequest,
        wanted: OutputFormat | None,
        plain: PlainAnswer,
        render: Renderer | None = None,
    ) -> Response:
        """Run a parsed request and answer it in a given form.

        Args:
            request: The client's request.
            ask: The request as its dialect parsed it.
            wanted: Format of the image file that is the answer; None for JSON or a stream.
            plain: Renders a finished job as the dialect's JSON.
            render: Makes the dialect's stream; None for the stream that ``stream_options`` select.
        """
        form = self._form(request, ask)
        live = await self.submit(request, ask, form)
        if negotiation.prefers_no_wait(request):
            return self.accepted(request, live)
        if ask.reply.stream:
            rendering = render(live.job, form) if render else _rendering(ask, live.job, form)
            frames = self._frames(live, rendering)
            return respond.stream(frames, {"X-Job-Id": live.job.id})
        job = await self.finished(request, live)
        if job is None:
            return Response(status_code=499)
        headers = {"X-Job-Id": job.id}
        error = job.error()
        if error is not None:
            return respond.failure(error, headers, dialect_of(request.scope))
        if wanted is not None:
            return _bytes_answer(job, headers)
        return respond.json_bytes(plain(job, form, int(time.time())), headers)

    def _form(self, request: Request, ask: ParsedRequest) -> ResponseFormat:
        wanted: str | None = ask.reply.response_format
        if wanted is None:
            # OpenAI's models of this name return base64 only. A frame cannot contain both forms.
            only_data = ask.reply.stream or (ask.params.model or "").startswith("gpt-image")
            wanted = "b64_json" if only_data else self.usual_form
        return ResponseFormat.of(wanted, self.base_url(request), self.signer(request))

    def signer(self, request: Request) -> Callable[[str], str]:
        """Return a function that adds a token to the path of a link, if the server has keys."""
        tokens, owner = self.tokens, request.state.owner
        if tokens is None:
            return str
        return lambda path: f"{path}?token={tokens.issue(owner, path)[0]}"

    async def submit(
        self, request: Request, ask: ParsedRequest, form: ResponseFormat | None = None
    ) -> LiveJob:
        """Submit a request as a job; raises the errors of ImageService.submit.

        Args:
            request: The client's request.
            ask: The request as its dialect parsed it.
            form: Form of the images in the result; None for the form that the request chooses.
        """
        negotiation.report(request, ask.unknown)
        if ask.reply.webhook_url is not None:
            self.check_webhook(ask.reply.webhook_url)
        terms = _terms(request, ask, form or self._form(request, ask))
        live = await self.service.submit(ask, terms)
        request.state.job = live.job
        if ask.reply.request_id is not None:
            named = self.by_request_id[request.state.owner]
            named[ask.reply.request_id] = live.job.id
            named.move_to_end(ask.reply.request_id)
            if len(named) > _MOST_NAMED:
                named.popitem(last=False)
        return live

    def base_url(self, request: Request) -> str:
        """Return the base URL of links to this server, without a trailing slash."""
        return self.links.base(request)

    def job_fields(self, request: Request, job: Job) -> JsonObject:
        """Return the JSON of a job, with links for the client of a request."""
        return job_fields(job, self.base_url(request), self.service.seconds_left(job))

    def accepted(self, request: Request, live: LiveJob) -> Response:
        """Return a 202 with the job, for a client that does not wait."""
        fields = self.job_fields(request, live.job)
        headers = {
            "Location": fields["status_url"],
            "X-Job-Id": live.job.id,
        }
        return respond.json_bytes(compact(fields), headers, 202)

    async def _frames(self, live: LiveJob, rendering: Frames) -> AsyncIterator[bytes]:
        try:
            for earlier in await self.service.earlier_images(live):
                for frame in rendering.frames(earlier):
                    yield frame
            async for entry in self.service.follow(live, self.keepalive_seconds):
                frames = rendering.frames(entry) if entry else rendering.keep_alive()
                for frame in frames:
                    yield frame
            if live.deferred:
                for frame in rendering.failure(deferred_error(live.job)):
                    yield frame
        finally:
            if not live.over and not live.job.terms.background:
                self.service.cancel(live, "The client disconnected.")

    async def finished(self, request: Request, live: LiveJob) -> Job | None:
        """Wait until a job has ended, and return it; None if the client disconnected first.

        Raises:
            Unavailable: The server is shutting down, and runs the job after its next start.
        """
        try:
            job = await respond.unless_client_leaves(self.service.finished(live), request.receive)
        except respond.ClientLeft:
            if not live.job.terms.background:
                self.service.cancel(live, "The client disconnected.")
            return None
        if not job.terminal:
            raise deferred_error(job)
        # Images from an earlier run of the server are in the store only.
        return await self.service.with_files(job)


def _terms(request: Request, ask: ParsedRequest, form: ResponseFormat) -> Terms:
    """Return the terms of a job; raises InvalidRequest for an invalid Idempotency-Key.

    A client with an Idempotency-Key can send its request again after a disconnect, so by default
    the job continues without the client.
    """
    name = request.headers.get("idempotency-key")
    if name is not None and not 1 <= len(name) <= MAX_KEY_CHARACTERS:
        raise InvalidRequest(
            f"'Idempotency-Key' must have 1 to {MAX_KEY_CHARACTERS} characters.",
            param="Idempotency-Key",
        )
    reply = ask.reply
    leaving = reply.on_disconnect or ("cancel" if name is None else "continue")
    return Terms(
        operation=ask.operation,
        owner=request.state.owner,
        priority=Priority(reply.priority),
        background=negotiation.prefers_no_wait(request) or leaving == "continue",
        as_url=form.as_url,
        data_url=form.data_url,
        both=form.both,
        idempotency_key=name,
        fingerprint=ask.fingerprint if name is not None else "",
        webhook_url=reply.webhook_url,
        group=reply.group,
        base_url=form.base_url,
        traceparent=getattr(request.state, "traceparent", ""),
    )


def hints_of(request: Request) -> Hints:
    """Return the hints of a request, from its headers, its query and the server's settings."""
    headers = request.headers
    is_openais = "x-stainless-lang" in headers or _OPENAI_AGENT.match(headers.get("user-agent", ""))
    library: StreamDialect | None = "openai" if is_openais else None
    handling = negotiation.handling_of(request)
    in_prompt: bool = request.app.state.options_in_prompt
    match request.query_params.get("dialect"):
        case None:
            return Hints(None, library, handling, in_prompt)
        case ("image.chunk" | "openai" | "both") as named:
            return Hints(named, library, handling, in_prompt)
        case _:
            raise InvalidRequest("'dialect' must be image.chunk, openai or both.", param="dialect")


def _rendering(ask: ParsedRequest, job: Job, form: ResponseFormat) -> Frames:
    chosen = ask.reply.stream_options
    # A frame contains an image in one form; clients of streams read its bytes.
    form = replace(form, both=False)
    if chosen.dialect == "openai":
        return OpenAIStream(job, form, ask.operation)
    both = chosen.dialect == "both"
    options = ChunkOptions(
        form=form,
        include_usage=chosen.include_usage,
        chunk_size=chosen.chunk_size if chosen.chunk_result else None,
        completed_type=f"image_{ask.operation}.completed" if both else None,
    )
    return ImageChunkStream(job, options)


def _bytes_answer(job: Job, headers: dict[str, str]) -> Response:
    assert job.status is JobStatus.COMPLETED
    image = job.images[0]
    headers |= {"Seed": str(image.seed), "Finish-Reason": finish_reason([image])}
    headers |= respond.warning_headers(job.request.warnings)
    return Response(image.content, 200, headers, media_type=MEDIA_TYPES[job.request.output_format])
