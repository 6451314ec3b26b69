"""The tools of MCP clients, run on the service; independent of transport and protocol."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sdstream.core.ask import Hints
from sdstream.core.errors import NotFound, Reason
from sdstream.core.job import Job, Terms
from sdstream.core.pixels import SourceFile
from sdstream.core.queue import Priority
from sdstream.dialects.mcp import arguments as parsing
from sdstream.dialects.mcp import tools
from sdstream.dialects.mcp.answers import (
    Answer,
    Link,
    ProgressReports,
    cancel_answer,
    job_answer,
    models_answer,
    view_bytes,
)
from sdstream.dialects.mcp.arguments import Content, ImageCall, Picture
from sdstream.dialects.openai.request import NO_HINTS
from sdstream.dialects.rendering import JsonObject
from sdstream.imaging.codecs import MEDIA_TYPES
from sdstream.service.live_jobs import LiveJob, deferred_error
from sdstream.service.service import ImageService
from sdstream.storage.job_store import JobStore

#: The end of an image's address: a URL of the HTTP API, or the path of a file.
_IMAGE_ADDRESS: Final = re.compile(r"/([\w-]{8,64})(?:/content|\.(?:png|jpeg|webp))", re.ASCII)


def _ignore(_job: Job) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Caller:
    """The client of one call.

    Attributes:
        owner: Owner of its jobs, empty without API keys.
        link: Returns the address of an image.
        report: Sends a percentage and a message as a progress notification.
        note: Called with the job of the call.
        left: Set when the client closes its connection; the call then cancels its job.
        traceparent: Span of the request (W3C Trace Context), empty without one.
    """

    owner: str
    link: Link
    report: Callable[[float, str], Awaitable[None]]
    note: Callable[[Job], None] = _ignore
    left: asyncio.Event | None = None
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class Toolbox:
    """The tools.

    Attributes:
        service: Runs the jobs.
        store: Stores the images.
        keepalive_seconds: Seconds without an event after which a call repeats its last progress.
        hints: Settings for the parsing of every call.
    """

    service: ImageService
    store: JobStore
    keepalive_seconds: float
    hints: Hints = NO_HINTS

    async def tools(self) -> list[tools.Tool]:
        """Return the tools, with the options of the models that are on this machine."""
        catalog = await self.service.refresh_catalog()
        assets = await asyncio.to_thread(self.service.assets)
        return tools.tools_of(catalog, assets, self.service.limits)

    async def call(self, tool: str, arguments: JsonObject, caller: Caller) -> Answer | None:
        """Call a tool; return None if no tool has that name.

        Cancelling the task cancels the job that it waits for.

        Raises:
            ImageServiceError: The request is invalid, or the job failed.
        """
        match tool:
            case tools.GENERATE | tools.EDIT:
                return await self._image(tool, arguments, caller)
            case tools.MODELS:
                return await self._models(arguments)
            case tools.STATUS:
                return await self._status(arguments, caller)
            case tools.CANCEL:
                return await self._cancel(arguments, caller)
            case _:
                return None

    async def image(self, address: str) -> tuple[bytes, str]:
        """Return the file and the media type of an image; raises NotFound.

        Args:
            address: Address of the image from a result.
        """
        match = _IMAGE_ADDRESS.search(address)
        found = await self.store.image(match[1]) if match else None
        if found is None:
            raise NotFound("Image not found; it may have expired.", reason=Reason.IMAGE_NOT_FOUND)
        data, output_format = found
        return data, MEDIA_TYPES[output_format]

    async def _image(self, tool: str, arguments: JsonObject, caller: Caller) -> Answer:
        pictures = parsing.pictures_of(tool, arguments)
        files = [await self._file(picture, caller.owner) for picture in pictures]
        call = parsing.image_call(tool, arguments, files, self.hints)
        live = await self.service.submit(call.ask, _terms(call, caller))
        caller.note(live.job)
        if not call.waits:
            return job_answer(live.job, self.service.seconds_left(live.job), caller.link)
        job = await self._finished(live, caller)
        return job_answer(
            job, None, caller.link, call.content, await self._views(job, call.content)
        )

    async def _views(self, job: Job, content: Content) -> dict[int, bytes]:
        """Return smaller copies of a completed job's images; empty if they are small enough."""
        size = view_bytes(job, content)
        if size is None:
            return {}
        return {
            index: await self.service.processor.reduced(image.content, size)
            for index, image in job.images.items()
        }

    async def _file(self, picture: Picture, owner: str) -> SourceFile:
        picture.check()
        named = picture.job_image
        if named is None:
            # In a thread: decoding megabytes of base64 takes time.
            return await asyncio.to_thread(picture.decoded)
        job_id, index = named
        live = await self.service.find(job_id, owner, picture.param)
        await self.service.settled(live)
        image = live.job.images.get(index)
        if image is None:
            count = len(live.job.images)
            raise picture.rejected(f"names image {index} of a job that has {count} images.")
        if image.data is None:
            try:
                image = await self.store.with_file(image, live.job.request.output_format)
            except FileNotFoundError:
                raise NotFound(
                    "Image not found; it may have expired.",
                    reason=Reason.IMAGE_NOT_FOUND,
                    param=picture.param,
                ) from None
        return SourceFile(picture.param, image.content)

    async def _finished(self, live: LiveJob, caller: Caller) -> Job:
        reports = ProgressReports(live.job)
        leaving = asyncio.ensure_future(self._cancel_when_left(live, caller.left))
        try:
            async for entry in self.service.follow(live, self.keepalive_seconds):
                report = reports.report(entry)
                if report is not None:
                    await caller.report(*report)
        finally:
            leaving.cancel()
            if not live.over:
                self.service.cancel(live, "The client cancelled the request.")
        return await self._with_files(live)

    async def _cancel_when_left(self, live: LiveJob, left: asyncio.Event | None) -> None:
        if left is not None:
            await left.wait()
            self.service.cancel(live, "The client disconnected.")

    async def _with_files(self, live: LiveJob) -> Job:
        """Return a completed job with its images; raises the error of any other job."""
        if live.deferred:
            raise deferred_error(live.job)
        error = live.job.error()
        if error is not None:
            raise error
        return await self.service.with_files(live.job)

    async def _models(self, arguments: Mapping[str, Any]) -> Answer:
        parsing.no_arguments(arguments)
        catalog = await self.service.refresh_catalog()
        found = [(spec, self.service.model_state(spec.id)) for spec in catalog.models.values()]
        return models_answer(found, catalog.default, self.service.limits)

    async def _status(self, arguments: Mapping[str, Any], caller: Caller) -> Answer:
        live = await self._find(arguments, caller)
        job = live.job
        if not job.terminal or job.error() is not None:
            return job_answer(job, self.service.seconds_left(job), caller.link)
        job = await self._with_files(live)
        return job_answer(job, None, caller.link, views=await self._views(job, "auto"))

    async def _cancel(self, arguments: Mapping[str, Any], caller: Caller) -> Answer:
        live = await self._find(arguments, caller)
        outcome = "already_ended"
        if not live.over:
            self.service.cancel(live, "The job was cancelled.")
            outcome = "done" if live.over else "stopping"
        await self.service.settled(live)
        return cancel_answer(live.job, outcome)

    async def _find(self, arguments: Mapping[str, Any], caller: Caller) -> LiveJob:
        live = await self.service.find(parsing.job_of(arguments), caller.owner)
        await self.service.settled(live)
        caller.note(live.job)
        return live


def _terms(call: ImageCall, caller: Caller) -> Terms:
    return Terms(
        operation=call.ask.operation,
        owner=caller.owner,
        priority=Priority(call.ask.reply.priority),
        background=not call.waits,
        as_url=call.content == "url",
        both=call.content == "both",
        traceparent=caller.traceparent,
    )
