"""The routes of stable-diffusion.cpp's own server, /sdcpp/v1/….

A job of these routes continues without its client. One difference is deliberate: clients can cancel
a job that is generating, while stable-diffusion.cpp's server answers 409.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from sdstream.core.errors import InvalidRequest, NotFound, Reason
from sdstream.core.job import JobStatus
from sdstream.dialects.sdcpp import answers
from sdstream.dialects.sdcpp.request import fitted, parse_img_gen
from sdstream.service.live_jobs import LiveJob
from sdstream.web import bodies, respond
from sdstream.web.route import ApiRoute, Dialect, Operation
from sdstream.web.routes.images import JOB_ERRORS, JOB_HEADERS, ImageRoutes, hints_of
from sdstream.web.schemas import INTEGER, OBJECT, STRING, json_of, nullable, record

_PREFIX: Final = "/sdcpp/v1/"
SDCPP: Final = Dialect(answers.problem, "SdcppError", _PREFIX)

_SUBMITTED: Final = json_of(
    record({"id": STRING, "kind": STRING, "status": STRING, "created": INTEGER, "poll_url": STRING})
)
_JOB: Final = json_of(
    record(
        {
            "id": STRING,
            "kind": STRING,
            "status": STRING,
            "created": INTEGER,
            "started": nullable(INTEGER),
            "completed": nullable(INTEGER),
            "queue_position": INTEGER,
            "result": nullable(OBJECT),
            "error": nullable(OBJECT),
        }
    )
)
_IMG_GEN: Final = Operation(
    "Submit an image generation (sd-server)",
    {202: _SUBMITTED},
    json_of(
        {
            **record({"prompt": STRING}, ()),
            "example": {"prompt": "a red circle", "sample_params": {"sample_steps": 4}},
        }
    ),
    JOB_ERRORS,
    JOB_HEADERS,
)
_VID_GEN: Final = Operation(
    "Not supported: no model here makes videos", {}, json_of(OBJECT), (InvalidRequest,)
)
_LOOK: Final = Operation("Get a job (sd-server)", {200: _JOB}, errors=(NotFound,))
_CANCEL: Final = Operation("Cancel a job (sd-server)", {200: _JOB}, errors=(NotFound,))
_CAPABILITIES: Final = Operation(
    "Get what the default model can do (sd-server)", {200: json_of(OBJECT)}
)


@dataclass(frozen=True)
class SdcppRoutes:
    """img_gen, its jobs and the capabilities."""

    draw: ImageRoutes
    queue_images: int

    def routes(self) -> list[ApiRoute]:
        """Return the routes of this class."""
        job = _PREFIX + "jobs/{job}"
        return [
            ApiRoute(_PREFIX + "capabilities", self.capabilities, _CAPABILITIES, dialect=SDCPP),
            ApiRoute(_PREFIX + "img_gen", self.img_gen, _IMG_GEN, method="POST", dialect=SDCPP),
            ApiRoute(_PREFIX + "vid_gen", self.vid_gen, _VID_GEN, method="POST", dialect=SDCPP),
            ApiRoute(job, self.job, _LOOK, dialect=SDCPP),
            ApiRoute(job + "/cancel", self.cancel, _CANCEL, method="POST", dialect=SDCPP),
        ]

    async def capabilities(self, _request: Request) -> Response:
        """GET capabilities."""
        service = self.draw.service
        spec = await service.get_model("default")
        assets = await asyncio.to_thread(service.assets)
        body = answers.capabilities(
            spec,
            loras=assets.loras,
            upscalers=assets.upscalers,
            limits=service.limits,
            queue_images=self.queue_images,
        )
        return respond.json_bytes(body)

    async def img_gen(self, request: Request) -> Response:
        """POST img_gen: submit a job and return it at once."""
        body = await bodies.read_json(request, self.draw.max_form_bytes)
        hints = replace(hints_of(request), options_in_prompt=True)
        # In a thread: decoding many megabytes of base64 would block the event loop.
        ask = await asyncio.to_thread(parse_img_gen, body, hints)
        ask = fitted(ask, await self.draw.service.get_model(ask.params.model or "default"))
        live = await self.draw.submit(request, ask)
        headers = {"X-Job-Id": live.job.id, "Location": f"{_PREFIX}jobs/{live.job.id}"}
        return respond.json_bytes(answers.submitted(live.job), headers, 202)

    async def vid_gen(self, _request: Request) -> Response:
        """POST vid_gen: reject, since no model of this server generates videos."""
        raise InvalidRequest(
            "The mode vid_gen is not supported; img_gen is.", reason=Reason.NOT_SUPPORTED
        )

    async def job(self, request: Request) -> Response:
        """GET jobs/{id}: return a job, with its images if it is completed."""
        live = await self._find(request)
        await self.draw.service.settled(live)
        return await self._answer(live)

    async def cancel(self, request: Request) -> Response:
        """POST jobs/{id}/cancel: cancel a queued or generating job, and return it when it ends."""
        live = await self._find(request)
        if not live.over:
            self.draw.service.cancel(live, "job cancelled by client")
            ending = self.draw.service.finished(live)
            try:
                await respond.unless_client_leaves(ending, request.receive)
            except respond.ClientLeft:
                return Response(status_code=499)
        return await self._answer(live)

    async def _find(self, request: Request) -> LiveJob:
        return await self.draw.service.find(request.path_params["job"], request.state.owner)

    async def _answer(self, live: LiveJob) -> Response:
        job = live.job
        if job.status is JobStatus.COMPLETED:
            job = await self.draw.service.with_files(job)
        return respond.json_bytes(answers.job_answer(job))
