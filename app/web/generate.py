"""The one handler of image requests: parse, submit, answer as a stream, as JSON or as bytes."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Final, Protocol

from starlette.requests import Request
from starlette.responses import Response

from app.core.errors import InvalidRequest, NotSupportedYet
from app.core.job import Entry, Job, JobStatus
from app.core.request import OutputFormat
from app.dialects import openai
from app.dialects.fireworks import finish_reason
from app.dialects.image_chunk import ChunkOptions, ImageChunkStream
from app.dialects.openai_stream import OpenAIStream
from app.dialects.shapes import ImageForm
from app.images import MEDIA_TYPES
from app.service import ImageService, LiveJob
from app.web import forms, respond

#: Two prompts of 32,000 characters, escaped as \\uXXXX, are 400 kB.
MAX_JSON_BYTES: Final = 2**20

_OPENAI_AGENT: Final = re.compile(r"(Async)?OpenAI/")


PlainAnswer = Callable[[Job, ImageForm, int], bytes]


class Frames(Protocol):
    """A dialect's stream."""

    def frames(self, entry: Entry) -> list[bytes]:
        """The frames of one entry."""

    def keep_alive(self) -> list[bytes]:
        """What is sent when nothing happens."""


@dataclass(frozen=True)
class ImageRoutes:
    """The POST routes that draw.

    Attributes:
        service: Takes the jobs.
        public_url: What links begin with; None means as the client addressed the server.
        keepalive_seconds: A silent stream says something after this.
        max_form_bytes: Largest body with pictures.
    """

    service: ImageService
    public_url: str | None
    keepalive_seconds: float
    max_form_bytes: int

    async def generations(self, request: Request) -> Response:
        """POST /v1/images/generations: JSON."""
        body = await forms.read_json(request, MAX_JSON_BYTES)
        return await self.answer(request, openai.parse(body, _dialect(request)))

    async def edits(self, request: Request) -> Response:
        """POST /v1/images/edits: a form with image and perhaps mask."""
        return await self._form_answer(request)

    async def variations(self, request: Request) -> Response:
        """POST /v1/images/variations: a form with image and perhaps prompt."""
        return await self._form_answer(request, prompt="")

    async def inpainting(self, request: Request) -> Response:
        """POST /v1/images/inpainting: Xinference's form with image and mask_image."""
        return await self._form_answer(request, mask_mode="luminance")

    async def _form_answer(
        self, request: Request, *, prompt: str | None = None, mask_mode: str | None = None
    ) -> Response:
        form = await forms.read_form(request, self.max_form_bytes)
        ask = openai.parse_form(
            form.fields,
            form.files,
            dialect=_dialect(request),
            mask_mode=mask_mode,
            prompt=prompt,
        )
        return await self.answer(request, ask)

    async def answer(
        self, request: Request, ask: openai.Ask, plain: PlainAnswer = openai.plain_answer
    ) -> Response:
        """Run a parsed request and answer it in the form that its client wants.

        Args:
            request: Of the client.
            ask: What its dialect made of it.
            plain: The dialect's JSON of a finished job.
        """
        wanted = None
        if not ask.reply.stream:
            wanted = forms.accepted_image(request, ask.draft.n or 1)
        if wanted is not None and ask.draft.output_format is None:
            ask = replace(ask, draft=ask.draft.model_copy(update={"output_format": wanted}))
        return await self.deliver(request, ask, wanted, plain)

    async def deliver(
        self, request: Request, ask: openai.Ask, wanted: OutputFormat | None, plain: PlainAnswer
    ) -> Response:
        """Run a request whose answer's form is known.

        Args:
            request: Of the client.
            ask: What its dialect made of it.
            wanted: The kind of file that is the answer; None for JSON or a stream.
            plain: The dialect's JSON of a finished job.
        """
        if "respond-async" in request.headers.get("prefer", "").lower():
            raise NotSupportedYet("Prefer: respond-async")
        form = ask.form(self.public_url or str(request.base_url).rstrip("/"))
        keep = form.as_url and wanted is None
        live = await self.service.submit(ask.draft, ask.files, keep_images=keep)
        request.state.job = live.job
        if ask.reply.stream:
            frames = self._frames(live, _rendering(ask, live.job, form))
            return respond.stream(frames, {"X-Job-Id": live.job.id})
        job = await self.finished(request, live)
        if job is None:
            return Response(status_code=499)
        headers = {"X-Job-Id": job.id}
        error = job.error()
        if error is not None:
            return respond.failure(error, headers)
        if wanted is not None:
            return _bytes_answer(job, headers)
        return respond.json_bytes(plain(job, form, int(time.time())), headers)

    async def _frames(self, live: LiveJob, rendering: Frames) -> AsyncIterator[bytes]:
        try:
            async for entry in self.service.follow(live, self.keepalive_seconds):
                frames = rendering.frames(entry) if entry else rendering.keep_alive()
                for frame in frames:
                    yield frame
        finally:
            if not live.job.terminal:
                # The response is being cancelled: the clean-up must not be cancelled with it.
                await asyncio.shield(self.service.cancel(live, "The client left."))

    async def finished(self, request: Request, live: LiveJob) -> Job | None:
        """The ended job, None when its client left first."""
        try:
            return await respond.unless_client_leaves(self.service.finished(live), request.receive)
        except respond.ClientLeft:
            await self.service.cancel(live, "The client left.")
            return None


def _dialect(request: Request) -> str | None:
    """The form of streams that the query names or that the client's library reads."""
    named = request.query_params.get("dialect")
    if named is not None:
        if named not in ("image.chunk", "openai", "both"):
            raise InvalidRequest("'dialect' is image.chunk, openai or both.", param="dialect")
        return named
    headers = request.headers
    if "x-stainless-lang" in headers or _OPENAI_AGENT.match(headers.get("user-agent", "")):
        return "openai"
    return None


def _rendering(ask: openai.Ask, job: Job, form: ImageForm) -> Frames:
    chosen = ask.reply.stream_options
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
    return Response(image.data, 200, headers, media_type=MEDIA_TYPES[job.request.output_format])
