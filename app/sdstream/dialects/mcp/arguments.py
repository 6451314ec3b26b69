"""Arguments of MCP tools: options, and images as base64 or ids of earlier images."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from sdstream.core.ask import Hints, ParsedRequest
from sdstream.core.errors import InvalidRequest, Reason
from sdstream.core.options import ALIASES, OPTIONS
from sdstream.core.pixels import SourceFile
from sdstream.dialects.fields import meant_by, unknown
from sdstream.dialects.mcp.tools import EDIT
from sdstream.dialects.openai import request as openai
from sdstream.dialects.pictures import file_of

#: The form of images in a result. "auto" and "both" are content and links; "auto" reduces large
#: images. "b64_json" is content alone, "url" is links alone.
Content = Literal["auto", "both", "b64_json", "url"]

#: Arguments that contain images.
PICTURES: Final = ("image", "mask", "control")
#: The other arguments of image tools: options under all their names, and options of the result.
_NAMES: Final = (*OPTIONS, *ALIASES, "priority", "response_format", "wait")

#: The start of a URL of any scheme except data.
_URL: Final = re.compile(r"(?!data:)[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_JOB_IMAGE: Final = re.compile(r"(job_[\w-]{1,64})(?:/(\d{1,2}))?", re.ASCII)
_WAYS: Final = "Send base64, a data: URL or the id of a job's image (job_…/0)."


@dataclass(frozen=True, slots=True)
class Picture:
    """An image argument.

    Attributes:
        param: Name of the argument.
        text: What the client sent.
    """

    param: str
    text: str

    @property
    def is_path(self) -> bool:
        """True if the text is a file path: it has a dot and is neither a URL nor a data: URL."""
        is_data = self.text[:5].lower() == "data:"
        return "." in self.text and not (is_data or self.is_url)

    @property
    def is_url(self) -> bool:
        """True if the text is a URL, except a data: URL."""
        return bool(_URL.match(self.text))

    @property
    def job_image(self) -> tuple[str, int] | None:
        """Job and index, if the text is the id of a job's image; None otherwise."""
        match = _JOB_IMAGE.fullmatch(self.text)
        return (match[1], int(match[2] or 0)) if match else None

    def decoded(self) -> SourceFile:
        """Decode the text from base64 or a data: URL; raises InvalidRequest."""
        return file_of(self.param, self.text)

    def rejected(self, problem: str) -> InvalidRequest:
        """Return the error for this image; ``problem`` follows the name of the argument."""
        message = f"'{self.param}' {problem}"
        return InvalidRequest(message, reason=Reason.INVALID_IMAGE, param=self.param)

    def check(self) -> None:
        """Raise InvalidRequest for a URL or a path, because a server reads neither."""
        if self.is_url:
            raise self.rejected(f"is a URL, and URLs are not downloaded. {_WAYS}")
        if self.is_path:
            raise self.rejected(
                f"is a path, and files are read only by 'sdstream mcp' with --root. {_WAYS}"
            )


@dataclass(frozen=True, slots=True)
class ImageCall:
    """A call of generate_image or edit_image.

    Attributes:
        ask: The request.
        waits: The call returns after the job has ended.
        content: The form of the images in the result.
    """

    ask: ParsedRequest
    waits: bool
    content: Content


def pictures_of(tool: str, arguments: Mapping[str, Any]) -> list[Picture]:
    """Return the image arguments of a call that are not null.

    Raises:
        InvalidRequest: An argument is not a string, or the tool does not have it.
    """
    found: list[Picture] = []
    for name in PICTURES:
        value = arguments.get(name)
        if value is None:
            continue
        if tool != EDIT and name != "control":
            raise InvalidRequest(
                f"'{name}' is an argument of {EDIT}, not of {tool}.",
                reason=Reason.NOT_SUPPORTED,
                param=name,
            )
        several = value if name == "image" and isinstance(value, list) else [value]
        for one in several:
            if not isinstance(one, str):
                raise InvalidRequest(f"'{name}' must be a string. {_WAYS}", param=name)
            found.append(Picture(name, one.strip()))
    return found


def image_call(
    tool: str,
    arguments: Mapping[str, Any],
    files: Sequence[SourceFile],
    hints: Hints = openai.NO_HINTS,
) -> ImageCall:
    """Parse the arguments of generate_image or edit_image.

    Args:
        tool: Name of the tool.
        arguments: The client's arguments; those that contain images are skipped.
        files: The images.
        hints: Settings that are not in the arguments.

    Raises:
        InvalidRequest: An argument is rejected; the error names it.
    """
    given = {name: value for name, value in arguments.items() if name not in PICTURES}
    for name in given:
        if name not in _NAMES:
            raise unknown(name, meant_by(name, _NAMES))
    waits, content = _waits(given.pop("wait", None)), _content(given.pop("response_format", None))
    if tool == EDIT:
        ask = openai.parse_form(given, files, hints=hints)
    elif files:
        ask = openai.parse_generation_form(given, files, hints)
    else:
        ask = openai.parse(given, hints)
    return ImageCall(ask, waits, content)


def job_of(arguments: Mapping[str, Any]) -> str:
    """Return the job id in the arguments of job_status or cancel_job; raises InvalidRequest."""
    for name in arguments:
        if name != "job":
            raise unknown(name)
    job = arguments.get("job")
    if job is None:
        raise InvalidRequest("'job' is required.", reason=Reason.MISSING_FIELD, param="job")
    if not isinstance(job, str):
        raise InvalidRequest("'job' must be a string.", param="job")
    # Clients may send the id of an image, which begins with the id of its job.
    return job.strip().partition("/")[0]


def no_arguments(arguments: Mapping[str, Any]) -> None:
    """Raise InvalidRequest if a tool without arguments receives one."""
    for name in arguments:
        raise unknown(name)


def _waits(value: object) -> bool:
    if value is not None and not isinstance(value, bool):
        raise InvalidRequest("'wait' must be true or false.", param="wait")
    return value is not False


def _content(value: object) -> Content:
    match value:
        case None:
            return "auto"
        case "both" | "b64_json" | "url":
            return value
        case _:
            raise InvalidRequest(
                "'response_format' must be both, b64_json or url.", param="response_format"
            )
