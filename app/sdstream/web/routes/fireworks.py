"""Fireworks' routes, on the one handler of image requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from sdstream.dialects.fireworks import codec
from sdstream.web import bodies, negotiation
from sdstream.web.routes.images import MAX_JSON_BYTES, ImageRoutes, PlainAnswer

#: What a client gets that takes anything: @ai-sdk/fireworks reads the file itself and sends */*.
_USUAL_FILE: Final = "png"


@dataclass(frozen=True)
class FireworksRoutes:
    """POST …/text_to_image and its older form."""

    draw: ImageRoutes

    async def workflow(self, request: Request) -> Response:
        """POST /inference/v1/workflows/accounts/fireworks/models/{model}/text_to_image."""
        return await self._answer(request, codec.workflow_answer)

    async def image_generation(self, request: Request) -> Response:
        """POST /inference/v1/image_generation/accounts/fireworks/models/{model}."""
        return await self._answer(request, codec.list_answer)

    async def _answer(self, request: Request, plain: PlainAnswer) -> Response:
        body = await bodies.read_json(request, MAX_JSON_BYTES)
        ask = codec.read(body, request.path_params["model"])
        usual = ask.params.output_format or _USUAL_FILE
        wanted = negotiation.accepted_image(request, ask.params.n or 1, anything=usual)
        ask = codec.with_headers(ask, wanted, request.headers)
        return await self.draw.deliver(request, ask, wanted, plain)
