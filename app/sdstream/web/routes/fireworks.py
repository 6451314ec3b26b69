"""Fireworks' routes, answered by the handler of image requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from sdstream.core.errors import NotFound, Reason
from sdstream.dialects.fireworks import codec
from sdstream.web import bodies, negotiation
from sdstream.web.route import ApiRoute, Operation, Schema
from sdstream.web.routes.images import (
    JOB_ERRORS,
    JOB_HEADERS,
    MAX_JSON_BYTES,
    ImageRoutes,
    PlainAnswer,
    hints_of,
)
from sdstream.web.schemas import IMAGES, INTEGER, STRING, json_of, listing, parameter, record, ref

#: The file format for clients that accept any type. @ai-sdk/fireworks sends */* but reads a file.
_USUAL_FILE: Final = "png"


_WORKFLOW: Final = "/inference/v1/workflows/accounts/fireworks/models/{model:path}"
_IMAGE_GENERATION: Final = "/inference/v1/image_generation/accounts/fireworks/models/{model:path}"

_PARAMETERS: Final = (
    parameter("Jpeg-Quality", "header", {"type": "integer", "minimum": 0, "maximum": 100}),
    parameter(
        "Json-Return-Image-Accept",
        "header",
        {"type": "string", "enum": ["image/png", "image/jpeg"]},
    ),
    *JOB_HEADERS,
)


def _operation(summary: str, answer: Schema) -> Operation:
    answers = {200: {**json_of(answer), **IMAGES}, 202: json_of(ref("Job"))}
    return Operation(summary, answers, json_of(ref("Generation")), JOB_ERRORS, _PARAMETERS)


_OBJECT: Final = _operation(
    "Generate images by a Fireworks workflow",
    record({"id": STRING, "finishReason": STRING, "seed": INTEGER, "base64": listing(STRING)}),
)
_LIST: Final = _operation(
    "Generate images by Fireworks' image_generation",
    listing(record({"finishReason": STRING, "seed": INTEGER, "base64": STRING})),
)
_UNKNOWN: Final = Operation(
    "Not found: only the workflow text_to_image is supported", {}, errors=(NotFound,)
)


@dataclass(frozen=True)
class FireworksRoutes:
    """POST …/text_to_image, and the older image_generation."""

    draw: ImageRoutes

    def routes(self) -> list[ApiRoute]:
        """Return the routes of this class."""
        return [
            ApiRoute(f"{_WORKFLOW}/text_to_image", self.workflow, _OBJECT, method="POST"),
            ApiRoute(_IMAGE_GENERATION, self.image_generation, _LIST, method="POST"),
            ApiRoute(_WORKFLOW, self.unknown_workflow, _UNKNOWN, method="POST"),
        ]

    async def workflow(self, request: Request) -> Response:
        """POST /inference/v1/workflows/accounts/fireworks/models/{model}/text_to_image."""
        return await self._answer(request, codec.workflow_answer)

    async def unknown_workflow(self, request: Request) -> Response:
        """POST to another workflow of Fireworks: answer with a 404 that names what is supported."""
        models = ", ".join(self.draw.service.catalog.models)
        raise NotFound(
            f"Unknown workflow '{request.path_params['model'][:128]}'; this server supports "
            f"text_to_image of {models}.",
            reason=Reason.ROUTE_NOT_FOUND,
        )

    async def image_generation(self, request: Request) -> Response:
        """POST /inference/v1/image_generation/accounts/fireworks/models/{model}."""
        return await self._answer(request, codec.list_answer)

    async def _answer(self, request: Request, plain: PlainAnswer) -> Response:
        body = await bodies.read_json(request, MAX_JSON_BYTES)
        ask = codec.read(body, request.path_params["model"], hints_of(request))
        usual = ask.params.output_format or _USUAL_FILE
        wanted = negotiation.accepted_image(request, ask.params.n or 1, anything=usual)
        ask = codec.with_headers(ask, wanted, request.headers)
        return await self.draw.deliver(request, ask, wanted, plain)
