"""OpenAI's own stream of images.

- ``image_generation.partial_image`` is the event of a preview.
- ``image_generation.completed`` is the event of a finished image.
- For edits, the types begin with ``image_edit.`` instead.
- Each event also contains the index of the image, because OpenAI's own streams have one image only.
- An event has no ``event:`` line; OpenAI's clients read the type from the data.
- There are no events of progress, because clients expect an image in every event.
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
    """Renders the entries of one job, in order, as OpenAI's events."""

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
        """Return the last frames of a stream that failed."""
        return failure_frames(error)

    def keep_alive(self) -> list[bytes]:
        """Return the frames that keep a silent stream open."""
        return [KEEP_ALIVE]

    def completed(self, created: int, image: ImageResult) -> bytes:
        """Return the event of a finished image as JSON."""
        fields = self._fields("completed", created, image.index)
        fields |= {"seed": image.seed, "usage": usage_fields(self._job.usage())}
        return image_item(fields, self._job.request, image, self._form)

    def _partial(self, created: int, preview: PreviewReady) -> bytes:
        number = self._partials.get(preview.index, 0)
        self._partials[preview.index] = number + 1
        fields = self._fields("partial_image", created, preview.index)
        # A preview is always a PNG, whatever the format of the final image.
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
