"""OpenAI's own stream of images.

``image_generation.partial_image`` for each preview between the steps and
``image_generation.completed`` for each finished one (``image_edit.`` for edits), with the index of
the image added, since OpenAI has no n > 1 here. The events carry no ``event:`` line: their type is
in the data, where OpenAI's clients look. Progress is left out, because loops over this stream take
every event for an image.
"""

from __future__ import annotations

from typing import Literal

from sdstream.core.errors import ImageServiceError
from sdstream.core.job import (
    Completed,
    Entry,
    ImageReady,
    ImageResult,
    Job,
    JobCancelled,
    JobFailed,
    PreviewReady,
)
from sdstream.dialects.rendering import (
    DONE,
    KEEP_ALIVE,
    JsonObject,
    ResponseFormat,
    failure_frames,
    image_item,
    quality_word,
    usage_fields,
    with_base64,
)


class OpenAIStream:
    """Renders one job's entries as OpenAI's events, in order."""

    def __init__(
        self, job: Job, form: ResponseFormat, operation: Literal["generation", "edit"]
    ) -> None:
        self._job = job
        self._form = form
        self._type = f"image_{operation}"
        self._partials: dict[int, int] = {}

    def frames(self, entry: Entry) -> list[bytes]:
        """Return the frames of one entry; each is sent separately."""
        match entry.event:
            case PreviewReady() as preview if preview.data:
                return [self._partial(int(entry.at), preview)]
            case ImageReady(image):
                return [b"data: " + self.completed(int(entry.at), image) + b"\n\n"]
            case Completed():
                return [DONE]
            case JobFailed() | JobCancelled():
                error = self._job.error()
                assert error is not None
                return self.failure(error)
            case _:
                return []

    def failure(self, error: ImageServiceError) -> list[bytes]:
        """The end of a stream that has not all of its images."""
        return failure_frames(error)

    def keep_alive(self) -> list[bytes]:
        """What a silent stream sends."""
        return [KEEP_ALIVE]

    def completed(self, created: int, image: ImageResult) -> bytes:
        """The event of a finished image, as JSON."""
        fields = self._fields("completed", created, image.index)
        fields |= {"seed": image.seed, "usage": usage_fields(self._job.usage())}
        return image_item(fields, self._job.request, image, self._form)

    def _partial(self, created: int, preview: PreviewReady) -> bytes:
        number = self._partials.get(preview.index, 0)
        self._partials[preview.index] = number + 1
        fields = self._fields("partial_image", created, preview.index)
        # A preview is a PNG whatever the final file will be.
        fields |= {"partial_image_index": number, "output_format": "png"}
        return b"data: " + with_base64(fields, "b64_json", "", preview.data) + b"\n\n"

    def _fields(self, kind: str, created: int, index: int) -> JsonObject:
        request = self._job.request
        return {
            "type": f"{self._type}.{kind}",
            "created_at": created,
            "index": index,
            "size": str(request.output_size),
            "quality": quality_word(request.quality),
            "background": "opaque",
            "output_format": request.output_format,
        }
