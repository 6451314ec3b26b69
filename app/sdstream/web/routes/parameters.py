"""Reads the options out of an image file, written here or by another program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from sdstream.core import infotext
from sdstream.core.errors import InvalidRequest, PayloadTooLarge, UnsupportedMediaType
from sdstream.dialects.fields import take
from sdstream.dialects.rendering import compact
from sdstream.imaging.processor import ImageProcessor
from sdstream.web import bodies, negotiation, respond
from sdstream.web.route import ApiRoute, Operation
from sdstream.web.schemas import FILE, OBJECT, STRING, form_of, json_of, listing, nullable, record

_OPERATION: Final = Operation(
    "Read the options out of an image file",
    {
        200: json_of(
            record(
                {
                    "object": STRING,
                    "parameters": nullable(OBJECT),
                    "unread": listing(STRING),
                    "text": nullable(STRING),
                    "warnings": listing(STRING),
                }
            )
        )
    },
    form_of(record({"image": FILE})),
    (InvalidRequest, PayloadTooLarge, UnsupportedMediaType),
)


@dataclass(frozen=True)
class ParametersRoute:
    """POST /v1/images/parameters.

    Attributes:
        processor: Reads the texts of the file.
        max_form_bytes: Largest body.
    """

    processor: ImageProcessor
    max_form_bytes: int

    def routes(self) -> list[ApiRoute]:
        """Return the route."""
        return [ApiRoute("/v1/images/parameters", self.read, _OPERATION, method="POST")]

    async def read(self, request: Request) -> Response:
        """Answer the options of the file by the names of the API.

        ``parameters`` is null for a file without any. ``unread`` lists names of the text that have
        no option here, and ``text`` is the text itself.
        """
        form = await bodies.read_form(request, self.max_form_bytes)
        handling = negotiation.handling_of(request)
        taken = take(form.fields, (), foreign={}, handling=handling)
        negotiation.report(request, taken.unknown)
        texts = await self.processor.texts(bodies.only_image(form))
        text = texts.get("parameters")
        found = infotext.read_options(text) if text is not None else None
        answer = {
            "object": "image.parameters",
            "parameters": found.options if found else None,
            "unread": list(found.unread) if found else [],
            "text": text,
            "warnings": list(taken.warnings),
        }
        return respond.json_bytes(compact(answer))
