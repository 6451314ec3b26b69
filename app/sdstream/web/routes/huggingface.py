"""Hugging Face's inference API, at the path of a model."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from sdstream.dialects import huggingface
from sdstream.dialects.openai.answers import plain_answer
from sdstream.web import bodies, negotiation
from sdstream.web.route import ApiRoute, Operation
from sdstream.web.routes.images import JOB_ERRORS, JOB_HEADERS, ImageRoutes, hints_of
from sdstream.web.schemas import IMAGES, OBJECT, STRING, json_of, record, ref

#: The second path is that of Hugging Face's service, for clients that only change the base URL.
PATHS: Final = ("/v1/models/{model:path}", "/models/{model:path}")

_OPERATION: Final = Operation(
    "Generate or edit an image (Hugging Face's InferenceClient)",
    {200: {**IMAGES, **json_of(ref("Images"))}, 202: json_of(ref("Job"))},
    json_of(
        {
            **record({"inputs": STRING, "parameters": OBJECT}, ("inputs",)),
            "example": {"inputs": "a red circle", "parameters": {"num_inference_steps": 4}},
        }
    ),
    JOB_ERRORS,
    JOB_HEADERS,
)


@dataclass(frozen=True)
class HuggingFaceRoutes:
    """POST to a model: text-to-image and image-to-image."""

    draw: ImageRoutes

    def routes(self) -> list[ApiRoute]:
        """Return the routes of this class."""
        return [ApiRoute(path, self.infer, _OPERATION, method="POST") for path in PATHS]

    async def infer(self, request: Request) -> Response:
        """POST /v1/models/{id}: return the image file, or JSON if Accept asks for it."""
        body = await bodies.read_json_or_image(request, self.draw.max_form_bytes)
        model = request.path_params["model"]
        # In a thread: decoding many megabytes of base64 would block the event loop.
        ask = await asyncio.to_thread(huggingface.read, body, model, hints_of(request))
        usual = ask.params.output_format or "png"
        wanted = negotiation.accepted_image(
            request, ask.params.n or 1, output_format=ask.params.output_format, anything=usual
        )
        ask = negotiation.with_format(ask, wanted)
        return await self.draw.deliver(request, ask, wanted, plain_answer)
