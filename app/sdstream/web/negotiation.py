"""Content negotiation: which representation the Accept header of a request selects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from starlette.requests import Request

from sdstream.core.ask import Handling, ParsedRequest
from sdstream.core.errors import NotAcceptable, Reason
from sdstream.core.options import OutputFormat

#: Files by the media ranges that take them, the usual one first.
_IMAGE_TYPES: Final[dict[str, tuple[OutputFormat, ...]]] = {
    "image/*": ("png", "jpeg", "webp"),
    "image/png": ("png",),
    "image/jpeg": ("jpeg",),
    "image/jpg": ("jpeg",),
    "image/webp": ("webp",),
}
#: What browsers put first in Accept for a page, and for what a page embeds.
_OF_PAGES: Final = (
    "text/html", "application/xhtml+xml", "text/css", "image/", "audio/", "video/", "font/",
)  # fmt: skip
#: A client that streams may name the stream's type; a plain answer to it is JSON.
_JSON_TYPES: Final = ("application/json", "application/*", "text/event-stream")


def accepted_image(
    request: Request,
    images: int,
    *,
    output_format: OutputFormat | None = None,
    anything: OutputFormat | None = None,
) -> OutputFormat | None:
    """The format when Accept asks for the image's bytes, None for JSON.

    A stream is never chosen by Accept: clients send application/json even when streaming.

    Args:
        request: Of the client.
        images: That it asks for.
        output_format: What its body asks for, None for whatever Accept names.
        anything: What ``*/*`` or no Accept at all means for a single image.

    Raises:
        NotAcceptable: Nothing that Accept names can be answered.
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
    """Reject a request for server-sent events that browsers send for a page or a part of one.

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
    """Return a request for files of the format that Accept names, where it names none itself."""
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
        message = f"'output_format' is {output_format}, and Accept takes {' or '.join(taken)}."
        param = "output_format"
    return NotAcceptable(message, reason=Reason.NOT_ACCEPTABLE, param=param)


def prefers(request: Request, media_type: str, other: str) -> bool:
    """True when Accept names a type, and not the other one before it."""
    ranked, _ = _accepted(request)
    return next((t == media_type for t in ranked if t in (media_type, other)), False)


def _accepted(request: Request) -> tuple[list[str], set[str]]:
    """The media ranges of Accept, best first, and those that it rejects by q=0."""
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
    """Return ``q`` of the parameters of a media range; 0 when it is not a number."""
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
    """Return whether the client asks to be answered at once (RFC 7240)."""
    return _wishes(request, "respond-async")


def handling_of(request: Request) -> Handling:
    """Return what becomes of a request's unknown fields: ``Prefer: handling``, or the setting."""
    for handling in (Handling.STRICT, Handling.LENIENT):
        if _wishes(request, f"handling={handling.value}"):
            return handling
    usual: Handling = request.app.state.handling
    return usual


def _wishes(request: Request, preference: str) -> bool:
    """True when Prefer contains a preference; Preference-Applied then repeats it."""
    wishes = (wish.partition(";")[0] for wish in listed(request, "prefer"))
    found = any("".join(wish.lower().replace('"', "").split()) == preference for wish in wishes)
    applied: list[str] = request.scope["state"].setdefault("preferences", [])
    if found and preference not in applied:
        applied.append(preference)
    return found


def report(request: Request, unknown: Sequence[str]) -> None:
    """Name a request's unknown fields in the log and in a header of its answer."""
    request.state.ignored_fields = tuple(unknown)


def listed(request: Request, name: str, usual: str = "") -> list[str]:
    """The items of a header that is a list, on however many lines it came."""
    return ",".join(request.headers.getlist(name) or [usual]).split(",")
