"""Requests of Hugging Face's inference API, ``{"inputs": …, "parameters": {…}}``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sdstream.core.ask import Hints, ParsedRequest
from sdstream.core.errors import InvalidRequest, Reason
from sdstream.core.pixels import SourceFiles
from sdstream.dialects.openai.request import NO_HINTS, parse, parse_edit
from sdstream.dialects.pictures import image_of


def read(body: Mapping[str, Any], model: str, hints: Hints = NO_HINTS) -> ParsedRequest:
    """Parse a text-to-image or an image-to-image request.

    ``inputs`` is the prompt. If ``parameters`` contains a prompt, ``inputs`` is the input image in
    base64.

    Args:
        body: The client's JSON object.
        model: The model in the path.
        hints: Choices of the client outside of the body.

    Raises:
        InvalidRequest: A field is rejected; the error names it as the client spelled it.
    """
    inputs, parameters = body.get("inputs"), body.get("parameters") or {}
    if not isinstance(inputs, str):
        raise InvalidRequest("'inputs' is required.", reason=Reason.MISSING_FIELD, param="inputs")
    if not isinstance(parameters, Mapping):
        raise InvalidRequest("'parameters' must be an object.", param="parameters")
    rest = {k: v for k, v in body.items() if k not in ("inputs", "parameters", "options")}
    given = {**rest, **_flat(parameters), "model": model}
    if given.get("prompt") is None:
        return parse({**given, "prompt": inputs}, hints, client_names={"prompt": "inputs"})
    # Decode the image under the client's field name, which errors must show.
    image = image_of("inputs", inputs)
    ask = parse_edit({**given, "image": inputs}, hints)
    files = ask.files or SourceFiles(())
    return replace(ask, files=replace(files, images=(image,)))


def _flat(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters with ``target_size`` replaced by width and height."""
    found = {name: value for name, value in parameters.items() if value is not None}
    target = found.pop("target_size", None)
    if isinstance(target, Mapping):
        found |= {side: target[side] for side in ("width", "height") if side in target}
    return found
