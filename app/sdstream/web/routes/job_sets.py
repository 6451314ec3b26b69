"""Routes that list, cancel or delete several jobs, or mark a job as a favorite."""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from sdstream.core.errors import (
    InvalidRequest,
    NotFound,
    Reason,
    StorageFull,
    Unavailable,
    UnsupportedMediaType,
)
from sdstream.core.job import JobStatus
from sdstream.core.job_filter import UNFINISHED, JobFilter
from sdstream.core.text import is_unicode
from sdstream.dialects.fields import Taken, take
from sdstream.dialects.rendering import compact
from sdstream.service.live_jobs import LiveJob
from sdstream.service.service import ImageService
from sdstream.web import bodies, negotiation, respond
from sdstream.web.route import ApiRoute, Operation
from sdstream.web.routes.images import MAX_JSON_BYTES, ImageRoutes
from sdstream.web.schemas import BOOLEAN, STRING, json_of, listing, parameter, record, ref

_MAX_PAGE: Final = 100
_USUAL_PAGE: Final = 20
_MAX_IDS: Final = 1000
_MAX_WORDS: Final = 16

#: A number in a query. int() would also accept digits of other scripts.
_NUMBER: Final = re.compile(r"\d{1,3}", re.ASCII)
_SECONDS: Final = re.compile(r"\d{1,12}(?:\.\d{1,9})?", re.ASCII)

#: Query parameter of the list -> its schema.
_QUERY: Final[Mapping[str, Mapping[str, Any]]] = {
    "status": STRING,
    "q": {**STRING, "maxLength": 500},
    "model": STRING,
    "group": STRING,
    "favorite": BOOLEAN,
    "since": STRING,
    "until": STRING,
    "limit": {"type": "integer", "minimum": 1, "maximum": _MAX_PAGE},
    "after": STRING,
}
_PAGE: Final = Operation(
    "List jobs, newest first",
    {200: json_of(ref("JobPage"))},
    errors=(InvalidRequest, NotFound),
    parameters=[parameter(name, "query", schema) for name, schema in _QUERY.items()],
)
_IDS: Final = {"type": "array", "items": STRING, "maxItems": _MAX_IDS}
_WHICH: Final = {**record({"ids": _IDS, "group": STRING}, ()), "example": {"group": "steps"}}
_DONE: Final = json_of(
    record({"object": STRING, "ids": _IDS, "missing": _IDS, "warnings": listing(STRING)})
)
_ERRORS: Final = (InvalidRequest, UnsupportedMediaType, Unavailable, StorageFull)
_CANCEL: Final = Operation(
    "Cancel several jobs", {200: _DONE}, json_of(_WHICH), (InvalidRequest, UnsupportedMediaType)
)
_DELETE: Final = Operation(
    "Delete several jobs with their images", {200: _DONE}, json_of(_WHICH), _ERRORS
)
_MARK: Final = Operation(
    "Mark a job as a favorite, which does not expire",
    {200: json_of(ref("Job"))},
    json_of(record({"favorite": BOOLEAN})),
    (*_ERRORS, NotFound),
)


@dataclass(frozen=True)
class JobSetRoutes:
    """The routes of the job list, of several jobs, and of favorites.

    Attributes:
        draw: The routes that make jobs.
    """

    draw: ImageRoutes

    def routes(self) -> list[ApiRoute]:
        """Return the routes of this class; they stand before the routes of a single job."""
        return [
            ApiRoute("/v1/jobs", self.page, _PAGE),
            ApiRoute("/v1/jobs/cancel", self.cancel, _CANCEL, method="POST"),
            ApiRoute("/v1/jobs/delete", self.delete, _DELETE, method="POST"),
            ApiRoute("/v1/jobs/{job}", self.mark, _MARK, method="POST"),
        ]

    @property
    def _service(self) -> ImageService:
        return self.draw.service

    async def page(self, request: Request) -> Response:
        """GET /v1/jobs: return a page of the list, newest first."""
        taken = _taken(request, dict(request.query_params), {*_QUERY, "token"}, by_name=False)
        query = taken.fields
        after = query.get("after")
        if after is not None:
            await self._service.find(after, request.state.owner, "after")
        page = await self._service.page(
            request.state.owner,
            _filter(query),
            limit=_limit(query.get("limit", str(_USUAL_PAGE))),
            after=after,
        )
        data = [self.draw.job_fields(request, job) for job in page.jobs]
        body = {
            "object": "list",
            "data": data,
            "has_more": page.more,
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
            "warnings": list(taken.warnings),
        }
        return respond.json_bytes(compact(body))

    async def cancel(self, request: Request) -> Response:
        """POST /v1/jobs/cancel: ``ids`` in the answer are the jobs that had not ended before."""
        taken = await self._which(request)
        missing: list[str] = []
        done = []
        async for live in self._chosen(request, taken.fields, missing, UNFINISHED):
            if not live.over:
                self._service.cancel(live, "The job was cancelled.")
                done.append(live)
        for live in done:
            await self._service.settled(live)
        return _answer("image.jobs.cancelled", done, missing, taken)

    async def delete(self, request: Request) -> Response:
        """POST /v1/jobs/delete: delete jobs and their images; cancel unfinished jobs first."""
        taken = await self._which(request)
        missing: list[str] = []
        done = []
        async for live in self._chosen(request, taken.fields, missing, ()):
            await self._service.delete(live)
            done.append(live)
        return _answer("image.jobs.deleted", done, missing, taken)

    async def mark(self, request: Request) -> Response:
        """POST /v1/jobs/{id}: make a job a favorite, or an ordinary job again."""
        body = await bodies.read_json(request, MAX_JSON_BYTES)
        favorite = _taken(request, body, ("favorite",)).fields.get("favorite")
        if not isinstance(favorite, bool):
            raise InvalidRequest("'favorite' must be true or false.", param="favorite")
        live = await self._service.find(request.path_params["job"], request.state.owner)
        await self._service.mark(live, favorite=favorite)
        return respond.json_bytes(compact(self.draw.job_fields(request, live.job)))

    # --- parts ----------------------------------------------------------------------------------

    async def _which(self, request: Request) -> Taken:
        body = await bodies.read_json(request, MAX_JSON_BYTES)
        taken = _taken(request, body, ("ids", "group"))
        ids, group = taken.fields.get("ids"), taken.fields.get("group")
        if (ids is None) == (group is None):
            raise InvalidRequest(
                "Send either 'ids' or 'group'.", reason=Reason.MISSING_FIELD, param="ids"
            )
        if group is not None and not (isinstance(group, str) and group and is_unicode(group)):
            raise InvalidRequest("'group' must be the name of a group.", param="group")
        if ids is not None and not (
            isinstance(ids, list) and len(ids) <= _MAX_IDS and all(isinstance(i, str) for i in ids)
        ):
            raise InvalidRequest(f"'ids' must be a list of at most {_MAX_IDS} ids.", param="ids")
        return taken

    async def _chosen(
        self,
        request: Request,
        which: Mapping[str, Any],
        missing: list[str],
        statuses: tuple[JobStatus, ...],
    ) -> AsyncIterator[LiveJob]:
        """Yield the jobs that a body names, and note the ids that are not found.

        Args:
            request: The request; only jobs of its owner are found.
            which: ``ids`` or ``group``.
            missing: List to which the ids of unknown jobs are added.
            statuses: Statuses of the jobs of a group; empty for all. They do not apply to ``ids``.
        """
        ids = which.get("ids")
        if ids is None:
            wanted = JobFilter(statuses=statuses, group=which["group"])
            ids = await self._all_ids(request.state.owner, wanted)
        for job_id in dict.fromkeys(ids):
            try:
                yield await self._service.find(job_id, request.state.owner)
            except NotFound:
                missing.append(job_id)

    async def _all_ids(self, owner: str, which: JobFilter) -> list[str]:
        ids: list[str] = []
        while True:
            after = ids[-1] if ids else None
            page = await self._service.page(owner, which, limit=_MAX_PAGE, after=after)
            ids += [job.id for job in page.jobs]
            if not page.more:
                return ids


def _taken(request: Request, given: Mapping[str, Any], own: Any, *, by_name: bool = True) -> Taken:
    handling = negotiation.handling_of(request)
    taken = take(given, own, foreign={}, handling=handling, by_name=by_name)
    negotiation.report(request, taken.unknown)
    return taken


def _answer(kind: str, done: list[LiveJob], missing: list[str], taken: Taken) -> Response:
    body = {
        "object": kind,
        "ids": [live.job.id for live in done],
        "missing": missing,
        "warnings": list(taken.warnings),
    }
    return respond.json_bytes(compact(body))


def _filter(query: Mapping[str, str]) -> JobFilter:
    words = query.get("q", "").split()
    if len(words) > _MAX_WORDS:
        raise InvalidRequest(f"'q' must have at most {_MAX_WORDS} words.", param="q")
    return JobFilter(
        statuses=_statuses(query.get("status", "")),
        words=tuple(words),
        model=query.get("model") or None,
        group=query.get("group") or None,
        favorite=_flag(query, "favorite"),
        since=_moment(query, "since"),
        until=_moment(query, "until"),
    )


def _statuses(text: str) -> tuple[JobStatus, ...]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    try:
        return tuple(JobStatus(name) for name in names)
    except ValueError:
        known = ", ".join(JobStatus)
        raise InvalidRequest(f"'status' must be one or more of {known}.", param="status") from None


def _flag(query: Mapping[str, str], name: str) -> bool | None:
    text = query.get(name, "").lower()
    if text not in ("", "true", "1", "false", "0"):
        raise InvalidRequest(f"'{name}' must be true or false.", param=name)
    return text in ("true", "1") if text else None


def _moment(query: Mapping[str, str], name: str) -> float | None:
    """Return the Unix seconds of a date, a date with a time, or a number.

    A time without a time zone is in UTC.
    """
    text = query.get(name, "")
    if not text:
        return None
    if _SECONDS.fullmatch(text):
        return float(text)
    try:
        # A plus sign in a query is decoded to a space.
        moment = datetime.fromisoformat(text.replace(" ", "+") if "T" in text else text)
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        seconds = math.nan
    if math.isnan(seconds):
        raise InvalidRequest(
            f"'{name}' must be a date such as 2026-01-31, a date with a time such as "
            "2026-01-31T12:00:00Z, or Unix seconds.",
            param=name,
        )
    return seconds


def _limit(text: str) -> int:
    if not (_NUMBER.fullmatch(text) and 1 <= int(text) <= _MAX_PAGE):
        raise InvalidRequest(f"'limit' must be a number from 1 to {_MAX_PAGE}.", param="limit")
    return int(text)
