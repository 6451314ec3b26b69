"""The one handler of generations: parse, submit, answer as a stream, as JSON or as bytes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from app.core.errors import NotSupportedYet
from app.core.job import Job, JobStatus
from app.core.request import OutputFormat
from app.dialects import openai
from app.dialects.image_chunk import ChunkOptions, ImageChunkStream
from app.dialects.shapes import ImageForm
from app.images import MEDIA_TYPES
from app.service import ImageService, LiveJob
from app.web import forms, respond

#: Two prompts of 32,000 characters, escaped as \\uXXXX, are 400 kB.
_MAX_JSON_BYTES: Final = 2**20


@dataclass(frozen=True)
class GenerateRoute:
    """POST of a text prompt, for pictures.

    Attributes:
        service: Takes the jobs.
        public_url: What links begin with; None means as the client addressed the server.
        keepalive_seconds: A silent stream repeats its last frame after this.
    """

    service: ImageService
    public_url: str | None
    keepalive_seconds: float

    async def post(self, request: Request) -> Response:
        """POST /v1/images/generations."""
        if "respond-async" in request.headers.get("prefer", "").lower():
            raise NotSupportedYet("Prefer: respond-async")
        ask = openai.parse(await forms.read_json(request, _MAX_JSON_BYTES))
        images = ask.draft.n or 1
        wanted = None if ask.reply.stream else forms.accepted_image(request, images)
        if wanted is not None and ask.draft.output_format is None:
            ask = openai.Ask(ask.draft.model_copy(update={"output_format": wanted}), ask.reply)
        form = ask.form(self.public_url or str(request.base_url).rstrip("/"))
        live = self.service.submit(ask.draft, keep_images=form.as_url and wanted is None)
        request.state.job = live.job
        if ask.reply.stream:
            return self._stream(live, ask.reply, form)
        return await self._plain(request, live, form, wanted)

    def _stream(self, live: LiveJob, reply: openai.ReplyOptions, form: ImageForm) -> Response:
        chosen = reply.stream_options
        options = ChunkOptions(
            form=form,
            include_usage=chosen.include_usage,
            chunk_size=chosen.chunk_size if chosen.chunk_result else None,
        )
        frames = self._frames(live, ImageChunkStream(live.job, options))
        return respond.stream(frames, {"X-Job-Id": live.job.id})

    async def _frames(self, live: LiveJob, rendered: ImageChunkStream) -> AsyncIterator[bytes]:
        try:
            async for entry in self.service.follow(live, self.keepalive_seconds):
                frames = rendered.frames(entry) if entry else rendered.keep_alive()
                for frame in frames:
                    yield frame
        finally:
            if not live.job.terminal:
                # The response is being cancelled: the clean-up must not be cancelled with it.
                await asyncio.shield(self.service.cancel(live, "The client left."))

    async def _plain(
        self, request: Request, live: LiveJob, form: ImageForm, wanted: OutputFormat | None
    ) -> Response:
        try:
            job = await respond.unless_client_leaves(self.service.finished(live), request.receive)
        except respond.ClientLeft:
            await self.service.cancel(live, "The client left.")
            return Response(status_code=499)
        headers = {"X-Job-Id": job.id}
        error = job.error()
        if error is not None:
            return respond.failure(error, headers)
        if wanted is not None:
            return _bytes_answer(job, headers)
        body = openai.plain_answer(job, form, int(time.time()))
        return respond.json_bytes(body, headers)


def _bytes_answer(job: Job, headers: dict[str, str]) -> Response:
    assert job.status is JobStatus.COMPLETED
    image = job.images[0]
    headers |= {"Seed": str(image.seed), "Finish-Reason": "SUCCESS"}
    return Response(image.data, 200, headers, media_type=MEDIA_TYPES[job.request.output_format])
