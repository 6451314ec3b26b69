"""Image requests as Python values: the route, the options and the uploaded files."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

from sdstream.client.answers import APIError
from sdstream.client.results import ImageFile, JsonObject, content_of, reject_answer_options

GENERATIONS: Final = "/v1/images/generations"
EDITS: Final = "/v1/images/edits"
UPSCALES: Final = "/v1/images/upscales"


@dataclass(frozen=True, slots=True)
class Call:
    """One request for images.

    Attributes:
        path: Route of the request.
        options: Options of the HTTP API.
        files: Pairs of a form field's name and an image file, in the order of the upload.
    """

    path: str
    options: Mapping[str, Any]
    files: Sequence[tuple[str, ImageFile]] = field(default=(), repr=False)

    @classmethod
    def generation(
        cls,
        options: Mapping[str, Any],
        *,
        images: Sequence[ImageFile] = (),
        mask: ImageFile | None = None,
        control: ImageFile | None = None,
    ) -> Self:
        """Return a request that generates images, or edits ``images`` if there are any.

        Args:
            options: Options of the HTTP API; ``prompt`` is one of them.
            images: Input images of an edit.
            mask: Image file that marks the area to repaint.
            control: Image file that the model's ControlNet follows.
        """
        named = [("mask", mask), ("control", control)]
        files = [("image", image) for image in images]
        files += [(name, file) for name, file in named if file is not None]
        return cls(EDITS if images else GENERATIONS, options, files)

    @classmethod
    def upscale(cls, options: Mapping[str, Any], image: ImageFile) -> Self:
        """Return a request that upscales an image and generates nothing."""
        return cls(UPSCALES, options, [("image", image)])

    @property
    def output_format(self) -> str:
        """Format of the image files that the server returns."""
        return str(self.options.get("output_format") or "png")

    async def plain(self) -> JsonObject:
        """Return the body of a request as arguments of the HTTP library.

        Raises:
            APIError: An option is infinite or not a number, which no request can contain.
            OSError: An image file cannot be read.
        """
        return await self._body(dict(self.options))

    async def streamed(self, *, previews: bool) -> JsonObject:
        """Return the body of a request for a streamed answer, as ``plain`` does."""
        reject_answer_options(dict(self.options))
        form = {"dialect": "image.chunk", "preview": previews}
        options = {**self.options, "stream": True, "stream_options": form}
        return await self._body(options)

    async def _body(self, options: JsonObject) -> JsonObject:
        for name, number in _not_finite(options):
            # JSON has no such numbers. The error is the one for a form, which can contain them.
            error = {"reason": "invalid_value", "param": name}
            raise APIError(400, f"'{name}' must be a finite number, not {number}.", error)
        if not self.files:
            return {"json": options}
        files = await asyncio.to_thread(self._read)
        for name, value in options.pop("stream_options", {}).items():
            options[f"stream_options[{name}]"] = value
        data = {name: _text(value) for name, value in options.items() if value is not None}
        return {"data": data, "files": files}

    def _read(self) -> list[tuple[str, tuple[str, bytes]]]:
        return [(name, (name, content_of(file))) for name, file in self.files]


def _not_finite(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Yield the name and the value of each option that is infinite or not a number."""
    if isinstance(value, float) and not math.isfinite(value):
        yield name, value
    if isinstance(value, Mapping | list | tuple):
        for key, part in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _not_finite(part, f"{name}.{key}" if name else str(key))


def _text(value: Any) -> str:
    """Return the value of an option as the text of a form field."""
    if isinstance(value, list | tuple) and not any(isinstance(part, dict) for part in value):
        return ",".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value)
