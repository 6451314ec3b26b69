"""Content negotiation: reads the Accept and Prefer headers of a request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from starlette.requests import Request

from sdstream.core.ask import Handling, ParsedRequest
from sdstream.core.errors import NotAcceptable, Reason
from sdstream.core.options import OutputFormat

#: Media range -> the file formats that it accepts, the default one first.
_IMAGE_TYPES: Final[dict[str, tuple[OutputFormat, ...]]] = {
    "image/*": ("png", "jpeg", "webp"),
    "image/png": ("png",),
    "image/jpeg": ("jpeg",),
    "image/jpg": ("jpeg",),
    "image/webp": ("webp",),
}
#: Media types that browsers put first in Accept for a page and for the files that a page embeds.
_OF_PAGES: Final = (
    "text/html", "application/xhtml+xml", "text/css", "image/", "audio/", "video/", "font/",
)  # fmt: skip
#: Media types that select JSON. A streaming client may send the stream's type with any request.
_JSON_TYPES: Final = ("application/json", "application/*", "text/event-stream")


def accepted_image(
    request: Request,
    images: int,
    *,
    output_format: OutputFormat | None = None,
    anything: OutputFormat | None = None,
) -> OutputFormat | None:
    """Return the format of the image file that Accept asks for, or None for JSON.

    Accept never selects a stream: clients send application/json even when they stream.

    Args:
        request: The client's request.
        images: Number of images that the request asks for.
        output_format: Format that the body asks for; None if Accept may choose it.
        anything: Result for a single image if Accept is ``*/*`` or missing.

    Raises:
        NotAcceptable: The route cannot return any of the types in Accept.
    """
    ranked, refused = _accepted(request)
    taken: list[OutputFormat] = []
    for media_type in ranked:
        if media_type == "*/*":
            return anything if images == 1 else None
        if media_type in _JSON_TYPES:
            return None
        taken += [f for f in _IMAGE_TYPES.get(media_type, ()) if f"image/{f}" not in refused]
        fitting = [f for f in taken if output_format in (None, f)]
        if fitting and images == 1:
            return fitting[0]
    if ranked:
        raise _not_acceptable(taken, images, output_format)
    return None


def check_takes_events(request: Request) -> None:
    """Reject a request for server-sent events if a browser sent it to load a page or part of one.

    Raises:
        NotAcceptable: Accept prefers a page, a style sheet, a font, an image, sound or video.
    """
    ranked, _ = _accepted(request)
    if ranked and ranked[0].startswith(_OF_PAGES):
        raise NotAcceptable(
            f"This route returns text/event-stream, and Accept prefers {ranked[0][:64]}; "
            "send 'Accept: text/event-stream', or a POST to the same path.",
            reason=Reason.NOT_ACCEPTABLE,
            param="Accept",
        )


def with_format(ask: ParsedRequest, wanted: OutputFormat | None) -> ParsedRequest:
    """Return the request with the format that Accept selects, unless its body names a format."""
    if wanted is None or ask.params.output_format is not None:
        return ask
    return replace(ask, params=ask.params.model_copy(update={"output_format": wanted}))


def _not_acceptable(
    taken: Sequence[OutputFormat], images: int, output_format: OutputFormat | None
) -> NotAcceptable:
    message = "This route answers application/json, image/png, image/jpeg and image/webp."
    param = None
    if taken and images > 1:
        message = f"{images} images do not fit into one answer of type image/{taken[0]}."
        param = "n"
    elif taken:
        message = f"'output_format' is {output_format}, and Accept allows {' or '.join(taken)}."
        param = "output_format"
    return NotAcceptable(message, reason=Reason.NOT_ACCEPTABLE, param=param)


def prefers(request: Request, media_type: str, other: str) -> bool:
    """Return whether Accept contains a media type and does not rank the other one higher."""
    ranked, _ = _accepted(request)
    return next((t == media_type for t in ranked if t in (media_type, other)), False)


def _accepted(request: Request) -> tuple[list[str], set[str]]:
    """Return the media ranges of Accept, best first, and those that it rejects with q=0."""
    ranked: list[tuple[float, str]] = []
    refused = set()
    for part in listed(request, "accept", "*/*"):
        media_type, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = _quality(parameters)
        if media_type and quality > 0:
            ranked.append((-quality, media_type))
        else:
            refused.add(media_type)
    return [media_type for _, media_type in sorted(ranked, key=lambda pair: pair[0])], refused


def _quality(parameters: Sequence[str]) -> float:
    """Return ``q`` from the parameters of a media range: 1 by default, 0 if it is not a number."""
    quality = 1.0
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name == "q":
            try:
                quality = float(value)
            except ValueError:
                quality = 0.0
    return quality


def prefers_no_wait(request: Request) -> bool:
    """Return whether the client wants an answer at once: ``Prefer: respond-async`` (RFC 7240)."""
    return _wishes(request, "respond-async")


def handling_of(request: Request) -> Handling:
    """Return how to treat unknown fields, according to ``Prefer: handling`` or the setting."""
    for handling in (Handling.STRICT, Handling.LENIENT):
        if _wishes(request, f"handling={handling.value}"):
            return handling
    usual: Handling = request.app.state.handling
    return usual


def _wishes(request: Request, preference: str) -> bool:
    """Return whether Prefer contains a preference, and note it for Preference-Applied."""
    wishes = (wish.partition(";")[0] for wish in listed(request, "prefer"))
    found = any("".join(wish.lower().replace('"', "").split()) == preference for wish in wishes)
    applied: list[str] = request.scope["state"].setdefault("preferences", [])
    if found and preference not in applied:
        applied.append(preference)
    return found


def report(request: Request, unknown: Sequence[str]) -> None:
    """Note a request's unknown fields for the log and for a header of its answer."""
    request.state.ignored_fields = tuple(unknown)


def listed(request: Request, name: str, usual: str = "") -> list[str]:
    """Return the items of a list header, which a request may contain several times."""
    return ",".join(request.headers.getlist(name) or [usual]).split(",")
