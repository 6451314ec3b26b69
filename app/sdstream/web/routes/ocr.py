"""Xinference's route that reads the text in an image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from sdstream.core.errors import (
    InvalidRequest,
    NotFound,
    NotInstalled,
    PayloadTooLarge,
    QueueFull,
    Reason,
    UnsupportedMediaType,
)
from sdstream.core.pixels import Pixels, SourceFile
from sdstream.dialects.fields import IGNORED, only, take
from sdstream.dialects.openai.request import with_kwargs
from sdstream.dialects.rendering import compact
from sdstream.imaging import codecs, ocr
from sdstream.imaging.one_thread import OneThread
from sdstream.web import bodies, negotiation, respond
from sdstream.web.route import ApiRoute, Operation
from sdstream.web.schemas import FILE, STRING, form_of, json_of, record

#: Options of Xinference's engines, which its clients send in ``kwargs``. The engine of this server
#: reads plain text only, at once and without a job.
_FOREIGN: Final = {"request_id": IGNORED, "ocr_type": only("ocr")}
_NO_KWARGS: Final = ("", "null")
_SECONDS_EACH: Final = 3


_OPERATION: Final = Operation(
    "Read the text of an image",
    {200: {**json_of(STRING), "text/plain": STRING}},
    form_of(record({"image": FILE, "model": STRING}, ("image",))),
    (InvalidRequest, NotFound, PayloadTooLarge, UnsupportedMediaType, QueueFull, NotInstalled),
)


@dataclass(frozen=True)
class OcrRoute:
    """POST /v1/images/ocr.

    Attributes:
        reader: Reads the text; loads its weights at the first image.
        max_form_bytes: Largest body, in bytes.
        max_input_pixels: Largest width x height of the image.
    """

    reader: ocr.TextReader
    max_form_bytes: int
    max_input_pixels: int
    _thread: OneThread = field(default_factory=lambda: OneThread("ocr", "read", _SECONDS_EACH))

    def routes(self) -> list[ApiRoute]:
        """Return the route."""
        return [ApiRoute("/v1/images/ocr", self.read, _OPERATION, method="POST")]

    async def read(self, request: Request) -> Response:
        """Return the text as a JSON string, or as plain text if Accept prefers it."""
        form = await bodies.read_form(request, self.max_form_bytes)
        handling = negotiation.handling_of(request)
        given = {k: v for k, v in form.fields.items() if k != "kwargs" or v not in _NO_KWARGS}
        taken = take(with_kwargs(given), ("model",), foreign=_FOREIGN, handling=handling)
        negotiation.report(request, taken.unknown)
        file = _image_of(form)
        text = await self._thread.run(self._read, file)
        if negotiation.prefers(request, "text/plain", "application/json"):
            return PlainTextResponse(text)
        return respond.json_bytes(compact(text))

    def _read(self, file: SourceFile) -> str:
        picture = codecs.decode(file.data, file.param, self.max_input_pixels)
        flat: Pixels = codecs.fit(picture, picture.size, "crop")
        return self.reader.read(flat)


def _image_of(form: bodies.Form) -> SourceFile:
    model = form.fields.get("model", ocr.MODEL)
    if model not in (ocr.MODEL, "default", ""):
        raise NotFound(
            f"The model '{model[:64]}' cannot read text; use '{ocr.MODEL}'.",
            reason=Reason.MODEL_NOT_FOUND,
            param="model",
        )
    return bodies.only_image(form)
