"""The stream of GPUStack and llama-box: ``image.chunk`` items in ``data:`` frames.

- A frame is a single ``data:`` line that ends with LF. There are no ``event:``, ``id:``,
  ``retry:`` or comment lines, because each of them breaks some client.
- As in llama-box, decoding counts as a step: with N sampling steps, the progress after step k is
  100·k/(N+1). Only the frame of a finished image has progress 100 and step N+1.
- A silent stream repeats its last progress frame.
- A failure is sent twice. GPUStack's client reads the ``error:`` line, and OpenAI's clients read
  ``data: {"error": …}``. A failed stream ends with ``[DONE]``, as a successful one does.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass

from sdstream.core.errors import ImageServiceError
from sdstream.core.job import (
    Completed,
    Entry,
    ImageReady,
    ImageResult,
    Job,
    JobCancelled,
    JobFailed,
    JobStatus,
    Loading,
    PreviewReady,
    Queued,
    Running,
)
from sdstream.core.messages import Progress, counted_phase
from sdstream.dialects.rendering import (
    DONE,
    JsonObject,
    ResponseFormat,
    answer_fields,
    compact,
    error_fields,
    failure_frames,
    image_item,
    usage_fields,
    with_base64,
    with_data,
)


@dataclass(frozen=True, slots=True)
class ChunkOptions:
    """The client's options for the frames (see StreamOptions).

    Attributes:
        form: The form in which frames contain images.
        include_usage: The frame of the last image contains the usage.
        chunk_size: Characters of base64 in one frame; None puts an image into one frame.
        completed_type: Type of OpenAI's event for a finished image. If it is set, the frame of an
            image is also an event of this type.
    """

    form: ResponseFormat
    include_usage: bool = True
    chunk_size: int | None = None
    completed_type: str | None = None


class ImageChunkStream:
    """Renders the entries of one job, in order, as frames."""

    def __init__(self, job: Job, options: ChunkOptions) -> None:
        self._job = job
        self._options = options
        self._counted = counted_phase(job.request)
        self._preview: PreviewReady | None = None
        self._images_sent = 0
        #: Tiles of an image that is only upscaled; they count as its steps.
        self._enlarging_steps = 0
        self._last = b""

    def frames(self, entry: Entry) -> list[bytes]:
        """Return the frames of one entry; each is sent separately."""
        created = int(entry.at)
        match entry.event:
            case Queued(position):
                return self._standing(created, JobStatus.QUEUED, {"queue_position": position})
            case Loading():
                return self._standing(created, JobStatus.LOADING, {})
            case Running():
                return self._standing(created, JobStatus.RUNNING, {})
            case PreviewReady() as preview:
                # The step's progress follows at once; one frame contains both.
                self._preview = preview if preview.data else None
                return []
            case Progress(phase=self._counted) as progress if progress.step:
                return [self._progress(created, progress)]
            case ImageReady(image):
                return self._image(created, image)
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
        line = b"error: " + compact(error_fields(error)) + b"\n\n"
        return [line, *failure_frames(error)]

    def keep_alive(self) -> list[bytes]:
        """Return the frames that keep a silent stream open."""
        return [self._last] if self._last else []

    def _standing(self, created: int, status: JobStatus, extra: JsonObject) -> list[bytes]:
        """Return a frame with the job's status, for the first image that is not yet sent."""
        if self._images_sent == self._job.request.n:
            # After the last image, a keep-alive with less progress would be wrong.
            self._last = b""
            return []
        item = self._item(self._images_sent, 0.0, 0, self._job.request.steps)
        self._last = self._frame(created, compact({**item, "status": status.value, **extra}))
        return [self._last]

    def _progress(self, created: int, progress: Progress) -> bytes:
        if not self._job.request.draws:
            self._enlarging_steps = progress.steps
        percent = round(100 * progress.share, 2)
        item = self._item(progress.index, percent, progress.step, progress.steps)
        item["status"] = JobStatus.RUNNING.value
        self._last = self._frame(created, compact(item))
        preview, self._preview = self._preview, None
        if preview is None or preview.index != progress.index:
            return self._last
        pictured = with_base64({**item, "preview": True}, "b64_json", "", preview.data)
        return self._frame(created, pictured)

    def _image(self, created: int, image: ImageResult) -> list[bytes]:
        self._images_sent += 1
        self._standing(created, JobStatus.RUNNING, {})  # sets the keep-alive until the next step
        steps = self._steps_of(image)
        final = {
            **self._item(image.index, 100.0, steps + 1, steps),
            "finish_reason": "stop",
            "seed": image.seed,
        }
        if self._options.chunk_size is not None and not self._options.form.as_url:
            return self._pieces(created, image, final, self._options.chunk_size)
        item = image_item(final, self._job.request, image, self._options.form)
        if self._options.completed_type is not None:
            return [self._union(created, image, item, self._options.completed_type)]
        return [self._final_frame(created, item)]

    def _union(self, created: int, image: ImageResult, item: bytes, kind: str) -> bytes:
        """Return one frame for both kinds of clients; each kind reads its own copy of the image."""
        fields = {
            **answer_fields(self._job),
            "created_at": created,
            "seed": image.seed,
            "usage": usage_fields(self._job.usage()),
        }
        tail = image_item(fields, self._job.request, image, self._options.form)
        return self._frame(created, item, tail, kind)

    def _pieces(
        self, created: int, image: ImageResult, final: JsonObject, size: int
    ) -> list[bytes]:
        """Return frames with pieces of the image's base64; the last one has progress 100."""
        prefix = f"data:image/{self._job.request.output_format};base64,"
        text = prefix if self._options.form.data_url else ""
        text += base64.b64encode(image.content).decode()
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        steps = self._steps_of(image)
        start = 100 * steps / (steps + 1)
        frames = []
        for number, piece in enumerate(pieces[:-1], start=1):
            percent = round(start + (100 - start) * number / len(pieces), 2)
            item = self._item(image.index, min(percent, 99.99), steps, steps)
            frames.append(self._frame(created, compact({**item, "b64_json": piece})))
        last = compact({**final, "b64_json": pieces[-1]})
        return [*frames, self._final_frame(created, last)]

    def _steps_of(self, image: ImageResult) -> int:
        return image.steps or self._enlarging_steps

    def _final_frame(self, created: int, item: bytes) -> bytes:
        tail: JsonObject = {"usage": None}
        if self._images_sent == self._job.request.n:
            tail = answer_fields(self._job)
            tail["usage"] = usage_fields(self._job.usage()) if self._options.include_usage else None
        return self._frame(created, item, compact(tail))

    def _item(self, index: int, percent: float, step: int, steps: int) -> JsonObject:
        """Return the fields of the item in a frame, after ``step`` of ``steps`` sampling steps."""
        return {
            "index": index,
            "object": "image.chunk",
            "progress": percent,
            "progressed_steps": step,
            "progress_steps": steps + 1,
            "finish_reason": None,
        }

    def _frame(
        self,
        created: int,
        item: bytes,
        tail: bytes = b'{"usage":null}',
        kind: str = "image_generation.progress",
    ) -> bytes:
        head = {
            "created": created,
            "model": self._job.request.model,
            "object": "list",
            "type": kind,
            "job_id": self._job.id,
        }
        return b"data: " + with_data(head, [item], tail) + b"\n\n"
