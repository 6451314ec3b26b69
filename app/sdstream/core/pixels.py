"""Images as plain values, which the codecs and the runtime exchange."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from sdstream.core.size import Size


@dataclass(frozen=True, slots=True)
class Pixels:
    """An image with 8 bits per channel, top row first.

    Attributes:
        width, height: Size in pixels.
        data: width x height x channels bytes; 1 channel is grey, 3 are RGB, 4 are RGBA.
    """

    width: int
    height: int
    data: bytes = field(repr=False)

    @property
    def channels(self) -> int:
        """Number of channels, which is the number of bytes per pixel."""
        return len(self.data) // (self.width * self.height)

    @property
    def size(self) -> Size:
        """Width and height."""
        return Size(self.width, self.height)


@dataclass(frozen=True, slots=True)
class Inputs:
    """The input images of a job, resized for it.

    Attributes:
        image: The image to edit as RGB; None to generate without one.
        mask: One channel: 255 where the runtime paints, 0 where the image stays.
        references: Reference images of any size as RGB, which are not edited.
        control: Control image for a ControlNet as RGB.
        canvas: The input image as RGB at the size of the finished image, if the generated image is
            a part of it or has another size. The runtime does not receive it.
        canvas_mask: Mask of ``canvas``, with the values of ``mask``.
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
    """An uploaded image file and the name of the request's field that contained it."""

    param: str
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class SourceFiles:
    """The input images of a request, as they were uploaded.

    Attributes:
        images: Images to edit or to use as references; empty if only a control image was uploaded.
        mask: Image that shows where to paint; without one the whole image is painted.
        own_alpha: The transparency of the first image is the mask.
        inverted_mask: The mask shows what to keep.
        control: Control image for the model's ControlNet.
    """

    images: tuple[SourceFile, ...]
    mask: SourceFile | None = None
    own_alpha: bool = False
    inverted_mask: bool = False
    control: SourceFile | None = None

    def named(self) -> dict[str, bytes]:
        """Return name -> file: image, image-2 and so on, mask or kept, and control.

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
