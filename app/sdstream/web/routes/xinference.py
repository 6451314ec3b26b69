"""Xinference's routes that report the progress of a request or abort it, by the client's id."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from sdstream.core.errors import NotFound, Reason
from sdstream.dialects.rendering import compact
from sdstream.service.live_jobs import LiveJob
from sdstream.web import respond
from sdstream.web.route import ApiRoute, Operation
from sdstream.web.routes.images import ImageRoutes
from sdstream.web.schemas import NUMBER, STRING, json_of, record

_ABORT: Final = Operation(
    "Cancel a request by the id that its client gave it",
    {200: json_of(record({"msg": STRING}))},
)
_PROGRESS: Final = Operation(
    "Get the progress of a request by the id that its client gave it",
    {200: json_of(record({"progress": NUMBER}))},
    errors=(NotFound,),
)


@dataclass(frozen=True)
class XinferenceRoutes:
    """The routes that find a request by its ``request_id``."""

    draw: ImageRoutes

    def routes(self) -> list[ApiRoute]:
        """Return the routes of this class."""
        abort = "/v1/models/{model:path}/requests/{request_id}/abort"
        return [
            ApiRoute(abort, self.abort, _ABORT, method="POST"),
            ApiRoute("/v1/requests/{request_id}/progress", self.progress, _PROGRESS),
        ]

    async def abort(self, request: Request) -> Response:
        """POST …/abort: return DONE, NO_OP for a request that is over, or NOT_FOUND."""
        live = await self._named(request)
        if live is None:
            outcome = "NOT_FOUND"
        elif live.over:
            outcome = "NO_OP"
        else:
            self.draw.service.cancel(live, "The request was aborted.")
            outcome = "DONE"
        return respond.json_bytes(compact({"msg": outcome}))

    async def progress(self, request: Request) -> Response:
        """GET …/progress: return the progress from 0 to 1."""
        live = await self._named(request)
        if live is None:
            raise NotFound("Request not found.", reason=Reason.JOB_NOT_FOUND, param="request_id")
        return respond.json_bytes(compact({"progress": round(live.job.percent / 100, 4)}))

    async def _named(self, request: Request) -> LiveJob | None:
        owner, name = request.state.owner, request.path_params["request_id"]
        job = self.draw.by_request_id[owner].get(name)
        if job is None:
            return None
        try:
            return await self.draw.service.find(job, owner)
        except NotFound:
            return None  # it was deleted, or has expired
