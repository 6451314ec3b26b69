"""Requests of Hugging Face's inference API, ``{"inputs": …, "parameters": {…}}``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from sdstream.core.ask import Hints, ParsedRequest
from sdstream.core.errors import InvalidRequest, Reason
from sdstream.core.pixels import SourceFile, SourceFiles
from sdstream.dialects.fields import holds_picture
from sdstream.dialects.openai.request import NO_HINTS, EditRoute, parse, parse_edit
from sdstream.dialects.pictures import image_of
from sdstream.dialects.rendering import compact

_SIDES: Final = frozenset({"width", "height"})
#: Stands for the input image while the options are parsed.
_ANY_IMAGE: Final = "data:,AAAA"


def read(body: Mapping[str, Any] | bytes, model: str, hints: Hints = NO_HINTS) -> ParsedRequest:
    """Parse a text-to-image or an image-to-image request.

    ``inputs`` is the prompt. If ``parameters`` contains a prompt, or if ``inputs`` is an image in
    base64, ``inputs`` is the input image. The client sends an image without parameters as a file.

    Args:
        body: The client's JSON object, or an image file.
        model: The model in the path.
        hints: Choices of the client outside of the body.

    Raises:
        InvalidRequest: A field is rejected; the error names it as the client spelled it.
    """
    if isinstance(body, bytes):
        return _edit({"model": model}, SourceFile("inputs", body), hints)
    inputs, parameters = body.get("inputs"), body.get("parameters") or {}
    if not isinstance(inputs, str):
        raise InvalidRequest("'inputs' is required.", reason=Reason.MISSING_FIELD, param="inputs")
    if not isinstance(parameters, Mapping):
        raise InvalidRequest("'parameters' must be an object.", param="parameters")
    rest = {k: v for k, v in body.items() if k not in ("inputs", "parameters", "options")}
    given = {**rest, **_flat(parameters), "model": model}
    if given.get("prompt") is None and not holds_picture(inputs):
        return parse({**given, "prompt": inputs}, hints, client_names={"prompt": "inputs"})
    return _edit(given, image_of("inputs", inputs), hints)


def _edit(given: Mapping[str, Any], image: SourceFile, hints: Hints) -> ParsedRequest:
    """Parse the options of an edit; ``image`` has the client's field name, which errors show."""
    ask = parse_edit({**given, "image": _ANY_IMAGE}, hints, EditRoute(prompt=""))
    files = ask.files or SourceFiles(())
    return replace(ask, files=replace(files, images=(image,)))


def _flat(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters with ``target_size`` replaced by width and height."""
    found = {name: value for name, value in parameters.items() if value is not None}
    target = found.pop("target_size", None)
    if target is None:
        return found
    if not isinstance(target, Mapping) or target.keys() - _SIDES:
        raise InvalidRequest(
            "'parameters.target_size' must be an object of 'width' and 'height', not "
            f"{compact(target).decode()[:64]}.",
            param="parameters.target_size",
        )
    return {**found, **target}
