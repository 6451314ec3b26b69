"""Results of image requests: progress, images and the whole response.

``Client`` and ``Runner`` return the same types, so code written for one works with the other.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from sdstream.core.pixels import SourceFile

JsonObject = dict[str, Any]
#: An image file: its content or its path.
ImageFile = bytes | str | Path

#: File name suffix -> the image format that it stands for.
FORMATS: Final = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of one image.

    Attributes:
        index: Image of the request, from 0.
        percent: Share of this image's work that is done, 0 to 100.
        status: "queued", "loading" or "running".
        step: Finished sampling steps.
        steps: Sampling steps in total.
        preview: The image after this step as a small PNG file, if previews were requested.
    """

    index: int
    percent: float
    status: str
    step: int
    steps: int
    preview: bytes | None = field(default=None, repr=False)


ProgressCallback = Callable[[Progress], object]


@dataclass(frozen=True, slots=True)
class Image:
    """One finished image.

    Attributes:
        index: Image of the request, from 0.
        seed: Seed of this image.
        content: The encoded image file.
        format: "png", "jpeg" or "webp".
        url: Path of the file that a ``Runner`` wrote; None from a ``Client``.
    """

    index: int
    seed: int
    content: bytes = field(repr=False)
    format: str
    url: str | None = None

    @property
    def b64_json(self) -> str:
        """The encoded image file in base64."""
        return base64.b64encode(self.content).decode()

    def save(self, path: str | Path) -> Path:
        """Write the image file.

        Args:
            path: File to write; its suffix must be one of the image's format.

        Returns:
            The path.

        Raises:
            ValueError: The suffix stands for another format.
            OSError: The file cannot be written.
        """
        path = Path(path)
        if FORMATS.get(path.suffix.lower()) != self.format:
            ends = " or ".join(end for end, name in FORMATS.items() if name == self.format)
            raise ValueError(
                f"'{path.name}' must end in {ends}: the image is {self.format.upper()}. "
                "Request another format with output_format."
            )
        path.write_bytes(self.content)
        return path


@dataclass(frozen=True, slots=True)
class ImagesResponse:
    """All images of one request.

    Attributes:
        data: The images by index.
        model: Id of the model.
        parameters: Effective value of every option, under the names of the HTTP API.
        usage: Speed and token counts, under the names of the HTTP API.
        warnings: Options that had no effect, one sentence each.
    """

    data: tuple[Image, ...]
    model: str
    parameters: JsonObject
    usage: JsonObject
    warnings: tuple[str, ...] = ()

    @property
    def seed(self) -> int:
        """Seed of the first image; image i has seed + i."""
        return self.data[0].seed

    def save(self, path: str | Path) -> list[Path]:
        """Write all image files.

        Args:
            path: File to write. Several images get numbered names: ``cat.png`` becomes
                ``cat-1.png`` and ``cat-2.png``.

        Returns:
            The paths by index.

        Raises:
            ValueError: The suffix stands for another format.
            OSError: A file cannot be written.
        """
        path = Path(path)
        if len(self.data) == 1:
            return [self.data[0].save(path)]
        return [image.save(path.with_stem(f"{path.stem}-{image.index + 1}")) for image in self.data]


def reject_answer_options(options: JsonObject, *others: str) -> None:
    """Raise TypeError for options that choose the form of an HTTP answer, or are in ``others``."""
    for name in ("response_format", "stream", "stream_options", "partial_images", *others):
        if name in options:
            raise TypeError(
                f"'{name}' is not an option of this method. Results contain the image bytes; "
                "previews=True adds previews to the progress."
            )


def read_files(image: ImageFile | Sequence[ImageFile], mask: ImageFile | None) -> list[SourceFile]:
    """Read the input images of an edit; raises OSError."""
    images = [image] if isinstance(image, bytes | str | Path) else image
    files = [SourceFile("image", content_of(one)) for one in images]
    return files if mask is None else [*files, SourceFile("mask", content_of(mask))]


def content_of(image: ImageFile) -> bytes:
    """Return the content of an image file; raises OSError."""
    return image if isinstance(image, bytes) else Path(image).read_bytes()
