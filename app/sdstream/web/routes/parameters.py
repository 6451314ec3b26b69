"""The route that reads the options in an image file of this server or of another program."""

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
        max_form_bytes: Largest body, in bytes.
    """

    processor: ImageProcessor
    max_form_bytes: int

    def routes(self) -> list[ApiRoute]:
        """Return the route."""
        return [ApiRoute("/v1/images/parameters", self.read, _OPERATION, method="POST")]

    async def read(self, request: Request) -> Response:
        """Return the options in the file, by their names in this API.

        ``text`` is the parameters text of the file, or null. ``parameters`` contains the options
        in that text, or is null if it contains none. ``unread`` lists the names in the text that
        do not correspond to an option of this API.
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
