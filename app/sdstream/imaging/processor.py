"""The processing of input images and generated images, in thread pools of fixed size.

Before a job runs, its input images are decoded and resized. The generated pixels are then combined
with the pixels that a mask keeps, checked, encoded as a file and stored.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final, ParamSpec, Protocol, TypeVar

from sdstream.core import infotext
from sdstream.core.errors import InvalidRequest, Reason
from sdstream.core.job import ImageResult, JobFailed
from sdstream.core.messages import ImageDrawn, Preview
from sdstream.core.options import MaskMode, OutputFormat
from sdstream.core.pixels import Inputs, Pixels, SourceFile, SourceFiles
from sdstream.core.placement import Box, Placement
from sdstream.core.request import GenerationRequest, Sources
from sdstream.core.size import Size
from sdstream.imaging import canvas, codecs
from sdstream.imaging.one_thread import OneThread
from sdstream.imaging.safety import SafetyChecker
from sdstream.system import has_no_room

logger = logging.getLogger(__name__)

#: Enough threads to encode on two cores; more threads would only take more memory.
_THREADS: Final = 4

#: Uploads have separate threads, so that no upload delays a finished image.
_UPLOAD_THREADS: Final = 2

#: Seconds to resize and encode an image of the default maximum size on a slow core.
_RESIZING_SECONDS: Final = 6

#: Maximum pixels of all input images of a request, as a multiple of the maximum for one image.
_PICTURES_AT_ONCE: Final = 3

P = ParamSpec("P")
T = TypeVar("T")


class ImageShelf(Protocol):
    """The store for finished images (storage.job_store.JobStore)."""

    def put(self, data: bytes, output_format: OutputFormat) -> str:
        """Store an image and return its id."""


class ImageRejected(Exception):
    """A generated image cannot be delivered; ``ending`` is the event that ends its job."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.ending = JobFailed(reason, message)


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished image.

    Attributes:
        image: The image.
        file_seconds: Time to create the file.
        store_seconds: Time to store the file.
    """

    image: ImageResult
    file_seconds: float
    store_seconds: float


@dataclass(frozen=True, slots=True)
class Pictures:
    """Decoded input images before they are resized for the job.

    Attributes:
        image: The image to edit.
        mask: One channel: 255 where the image is painted, 0 elsewhere.
        painted: The smallest rectangle around the painted area of the mask.
        references: Reference images.
        control: Control image for the ControlNet.
    """

    image: Pixels | None = None
    mask: Pixels | None = None
    painted: Box | None = None
    references: tuple[Pixels, ...] = ()
    control: Pixels | None = None

    @property
    def sources(self) -> Sources:
        """The facts about the images that ``core.resolve`` needs."""
        first = self.image or next(iter(self.references), None) or self.control
        return Sources(
            size=first.size if first else None,
            drawn_over=self.image is not None,
            masked=self.mask is not None,
            painted=self.painted,
            references=tuple(picture.size for picture in self.references),
            control=self.control is not None,
        )


class ImageProcessor:
    """A processor that decodes, resizes, combines, checks and encodes images.

    Args:
        shelf: Store for finished images.
        checker: Checks the finished images of requests that ask for it; None without a checker.
        max_input_pixels: Maximum width x height of an input image.
        embed_parameters: Write the prompt and the options into image files.
    """

    def __init__(
        self,
        *,
        shelf: ImageShelf,
        checker: SafetyChecker | None,
        max_input_pixels: int,
        embed_parameters: bool,
    ) -> None:
        self._shelf = shelf
        self._checker = checker
        self._max_input_pixels = max_input_pixels
        self._embed_parameters = embed_parameters
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="images")
        self._upload_threads = ThreadPoolExecutor(_UPLOAD_THREADS, thread_name_prefix="upload")
        self._resizing = OneThread("resize", "resized", _RESIZING_SECONDS)

    @property
    def can_check(self) -> bool:
        """Return whether a safety checker is configured."""
        return self._checker is not None

    def close(self) -> None:
        """Accept no more work and cancel the work that waits."""
        for threads in (self._threads, self._upload_threads):
            threads.shutdown(wait=False, cancel_futures=True)
        self._resizing.close()

    async def decode(
        self, files: SourceFiles, *, only_references: bool, mask_mode: MaskMode = "auto"
    ) -> Pictures:
        """Decode the input images; the first is the one to edit, unless all are references.

        Args:
            files: The files as the client sent them.
            only_references: The model uses all images as references.
            mask_mode: Which part of a mask is painted.

        Raises:
            InvalidRequest: A file is not an image, an image is too large, or the mask has another
                size than its image.
        """
        return await self._run(
            self._upload_threads, self._decode, files, only_references, mask_mode
        )

    async def fit(self, pictures: Pictures, request: GenerationRequest) -> Inputs:
        """Return the images at the sizes that the request needs."""
        return await self._run(self._upload_threads, _fit, pictures, request)

    async def preview(self, request: GenerationRequest, inputs: Inputs, preview: Preview) -> bytes:
        """Return a preview of the finished image, between two steps, as PNG.

        Args:
            request: The request of the job.
            inputs: The input images of the job.
            preview: Pixels from the runtime.
        """
        return await self._run(self._threads, _preview, request, inputs, preview)

    async def develop(
        self, request: GenerationRequest, inputs: Inputs, drawn: ImageDrawn, *, must_keep: bool
    ) -> Finished:
        """Create and store the finished image from generated pixels.

        Args:
            request: The request of the job.
            inputs: The input images of the job.
            drawn: Pixels from the runtime.
            must_keep: No client waits for the file, so a failure of the store is an error.

        Raises:
            ImageRejected: The safety check flagged the image or failed, or the image must be
                stored and could not be.
        """
        return await self._run(self._threads, self._develop, request, inputs, drawn, must_keep)

    async def enlarge(
        self, file: SourceFile, factor: float, max_pixels: int, *, nearest: bool
    ) -> bytes:
        """Return an image file enlarged without an upscaler, as PNG.

        Args:
            file: The file as the client sent it.
            factor: Factor by which each side is enlarged.
            max_pixels: Maximum width x height of the result.
            nearest: Resample by nearest neighbour instead of Lanczos.

        Raises:
            InvalidRequest: The file is not an image, or the result would be too large.
            QueueFull: Too many images wait to be resized.
        """
        return await self._resizing.run(self._enlarge, file, factor, max_pixels, nearest)

    async def reduced(self, data: bytes, max_bytes: int) -> bytes:
        """Return a finished image as WebP of at most ``max_bytes`` bytes; see codecs.reduced."""
        return await self._run(self._threads, codecs.reduced, data, max_bytes)

    async def texts(self, file: SourceFile) -> dict[str, str]:
        """Return the texts in an image file; raises InvalidRequest as ``codecs.texts`` does."""
        return await self._run(
            self._upload_threads, codecs.texts, file.data, file.param, self._max_input_pixels
        )

    # --- in the threads -------------------------------------------------------------------------

    async def _run(
        self,
        threads: ThreadPoolExecutor,
        work: Callable[P, T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(threads, partial(work, *args, **kwargs))

    def _decode(self, files: SourceFiles, only_references: bool, mask_mode: MaskMode) -> Pictures:
        self._check_all(files)
        pictures = tuple(self._read(file) for file in files.images)
        control = self._read(files.control) if files.control else None
        if not pictures or only_references:
            return Pictures(references=pictures, control=control)
        image, *references = pictures
        mask = image if files.own_alpha else None
        if files.mask is not None:
            mask = self._read(files.mask)
            if mask.size != image.size:
                raise InvalidRequest(
                    f"The mask is {mask.size} and the image {image.size}; "
                    "they must have the same size.",
                    reason=Reason.INVALID_IMAGE,
                    param=files.mask.param,
                )
        if mask is None:
            return Pictures(image, references=tuple(references), control=control)
        opened = codecs.mask_of(mask, mask_mode, inverted=files.inverted_mask)
        return Pictures(image, opened, canvas.painted(opened), tuple(references), control)

    def _check_all(self, files: SourceFiles) -> None:
        """Read the headers, and reject images that are too large individually or in total."""
        every = [*files.images, *(file for file in (files.mask, files.control) if file)]
        sizes = [codecs.pixels_of(file.data) for file in every]
        for file, size in zip(every, sizes, strict=True):
            if size > self._max_input_pixels:
                self._read(file)  # raises the error
        pixels = sum(sizes)
        if pixels > _PICTURES_AT_ONCE * self._max_input_pixels:
            raise InvalidRequest(
                f"The images have {pixels} pixels in total; the limit is "
                f"{_PICTURES_AT_ONCE * self._max_input_pixels}.",
                reason=Reason.INVALID_IMAGE,
                param=every[0].param,
            )

    def _enlarge(self, file: SourceFile, factor: float, max_pixels: int, nearest: bool) -> bytes:
        picture = self._read(file)
        size = Size(*(max(1, round(side * factor)) for side in picture.size))
        if size.width * size.height > max_pixels:
            raise InvalidRequest(
                f"{size} is more than the server's limit of {max_pixels} pixels.",
                param="upscaling_resize",
            )
        return codecs.encode(codecs.resized(picture, size, nearest=nearest), "png")

    def _read(self, file: SourceFile) -> Pixels:
        return codecs.decode(file.data, file.param, self._max_input_pixels)

    def _develop(
        self, request: GenerationRequest, inputs: Inputs, drawn: ImageDrawn, must_keep: bool
    ) -> Finished:
        began = time.monotonic()
        picture = Pixels(drawn.width, drawn.height, drawn.blob)
        original, mask = inputs.image, inputs.mask
        if inputs.canvas is not None:
            original, mask = inputs.canvas, inputs.canvas_mask
            if request.placement is not None:
                picture = canvas.put_back(picture, inputs.canvas, request.placement)
        if original is not None and mask is not None:
            # The autoencoder has changed the pixels that the mask keeps, so restore the originals.
            picture = codecs.composite(picture, original, mask, request.options.mask_blur or 0.0)
        if request.cut is not None:
            picture = codecs.cut(picture, request.cut)
        flagged = self._is_flagged(request, picture)
        if flagged:
            picture = codecs.blank(picture.size)
        text = infotext.write(request, drawn.seed) if self._embed_parameters else None
        data = codecs.encode(picture, request.output_format, request.output_compression, text)
        encoded = time.monotonic()
        image_id = self._store(data, request.output_format, must_keep)
        image = ImageResult(
            index=drawn.index,
            seed=drawn.seed,
            data=data,
            size=len(data),
            steps=drawn.steps,
            encode_seconds=drawn.encode_seconds,
            sample_seconds=drawn.sample_seconds,
            decode_seconds=drawn.decode_seconds,
            id=image_id,
            flagged=flagged,
        )
        return Finished(image, encoded - began, time.monotonic() - encoded)

    def _is_flagged(self, request: GenerationRequest, picture: Pixels) -> bool:
        """Return whether a blank image replaces this one; raises ImageRejected."""
        if request.safety == "off" or self._checker is None:
            return False
        try:
            verdict = self._checker.check(picture)
        except Exception:
            # A check that failed must not count as a check that found nothing.
            logger.exception("the safety checker failed")
            raise ImageRejected(Reason.INTERNAL_ERROR, "The safety check failed.") from None
        if verdict.flagged:
            logger.info("an image was flagged: %s", verdict.why)
            if request.safety == "refuse":
                raise ImageRejected(
                    Reason.CONTENT_POLICY_VIOLATION, "The safety check flagged an image."
                )
        return verdict.flagged

    def _store(self, data: bytes, output_format: OutputFormat, must_keep: bool) -> str | None:
        try:
            return self._shelf.put(data, output_format)
        except OSError as error:
            logger.error("an image could not be stored: %s", error)
            if not must_keep:
                return None  # the waiting client still gets the bytes
            reason = Reason.STORAGE_FULL if has_no_room(error) else Reason.STORAGE_UNAVAILABLE
            raise ImageRejected(reason, "The image could not be stored.") from None


def _preview(request: GenerationRequest, inputs: Inputs, preview: Preview) -> bytes:
    pixels = Pixels(preview.width, preview.height, preview.blob)
    if request.placement is not None and inputs.canvas is not None:
        pixels = canvas.preview_in_place(pixels, inputs, request.placement, request.size)
    return codecs.encode(pixels, "png")


def _fit(pictures: Pictures, request: GenerationRequest) -> Inputs:
    size, how = request.size, request.options.fit or "crop"
    references = tuple(
        codecs.fit(picture, wanted, "stretch")
        for picture, wanted in zip(pictures.references, request.references, strict=True)
    )
    if pictures.image is not None and request.placement is not None:
        return _placed(pictures.image, pictures, request, request.placement, references)
    control = codecs.fit(pictures.control, size, how) if pictures.control else None
    if pictures.image is not None and pictures.mask is not None and request.upscaled is not None:
        # The kept pixels come from the input image, not from the upscaled image.
        whole = codecs.fit(pictures.image, request.upscaled, how)
        opened = codecs.fit_mask(pictures.mask, request.upscaled, how)
        return Inputs(
            image=codecs.fit(whole, size, "stretch"),
            mask=codecs.fit_mask(opened, size, "stretch"),
            references=references,
            control=control,
            canvas=whole,
            canvas_mask=opened,
        )
    image = codecs.fit(pictures.image, size, how) if pictures.image else None
    mask = codecs.fit_mask(pictures.mask, size, how) if pictures.mask else None
    return Inputs(image, mask, references, control)


def _placed(
    image: Pixels,
    pictures: Pictures,
    request: GenerationRequest,
    placement: Placement,
    references: tuple[Pixels, ...],
) -> Inputs:
    """Return the inputs for a part of the image, with the canvas that the part is put into."""
    whole, mask = canvas.canvas_of(image, pictures.mask, placement)
    control = None
    if pictures.control is not None:
        followed = codecs.fit(pictures.control, placement.canvas, request.options.fit or "crop")
        control = canvas.part_of(followed, placement, request.size)
    return Inputs(
        image=canvas.part_of(whole, placement, request.size),
        mask=canvas.mask_part_of(mask, placement, request.size),
        references=references,
        control=control,
        canvas=whole,
        canvas_mask=mask,
    )
