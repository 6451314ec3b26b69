"""Images as plain values, between the codecs and the runtime."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from sdstream.core.size import Size


@dataclass(frozen=True, slots=True)
class Pixels:
    """An image of 8 bits a channel, rows from the top.

    Attributes:
        width, height: Pixels.
        data: width x height x channels bytes: 1 channel is grey, 3 are RGB, 4 are RGBA.
    """

    width: int
    height: int
    data: bytes = field(repr=False)

    @property
    def channels(self) -> int:
        """Bytes a pixel."""
        return len(self.data) // (self.width * self.height)

    @property
    def size(self) -> Size:
        """Width and height."""
        return Size(self.width, self.height)


@dataclass(frozen=True, slots=True)
class Inputs:
    """The input images of a job, fitted to its size.

    Attributes:
        image: RGB; the image to edit, or None to generate from the prompt alone.
        mask: One channel, 255 where the runtime paints and 0 where the image stays.
        references: RGB of any size; images to look at, which are not edited.
        control: RGB that a ControlNet follows.
        canvas: RGB of the size of the finished image, where that is not the generated one; the
            runtime does not see it.
        canvas_mask: Where the finished image is painted, as ``mask``.
    """

    image: Pixels | None = None
    mask: Pixels | None = None
    references: tuple[Pixels, ...] = ()
    control: Pixels | None = None
    canvas: Pixels | None = None
    canvas_mask: Pixels | None = None

    @property
    def of_runtime(self) -> Inputs:
        """The inputs that the runtime needs."""
        return replace(self, canvas=None, canvas_mask=None)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """An uploaded image file with the field it came in."""

    param: str
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class SourceFiles:
    """The input images of a request, as they were uploaded.

    Attributes:
        images: To edit or to look at; empty if only a control image was uploaded.
        mask: Where to paint; None is everywhere.
        own_alpha: The first image's own transparency is the mask.
        inverted_mask: The mask shows what to keep.
        control: For the model's ControlNet.
    """

    images: tuple[SourceFile, ...]
    mask: SourceFile | None = None
    own_alpha: bool = False
    inverted_mask: bool = False
    control: SourceFile | None = None

    def named(self) -> dict[str, bytes]:
        """Return the files by their names: image, image-2 and on, mask or kept, and control.

        ``kept`` is a mask that shows what to keep.
        """
        files = {
            "image" if number == 1 else f"image-{number}": file.data
            for number, file in enumerate(self.images, start=1)
        }
        if self.mask is not None:
            files["kept" if self.inverted_mask else "mask"] = self.mask.data
        if self.control is not None:
            files["control"] = self.control.data
        return files
