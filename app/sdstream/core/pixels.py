"""Pictures as plain values, between the codecs and the runtime."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from sdstream.core.size import Size


@dataclass(frozen=True, slots=True)
class Pixels:
    """A picture of 8 bits a channel, rows from the top.

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
    """The pictures that a job starts from, fitted to its size.

    Attributes:
        image: RGB; drawn over, or None for a picture from nothing.
        mask: One channel, 255 where the runtime paints and 0 where the image stays.
        references: RGB of any size; looked at, not drawn over.
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
        """Those that the runtime needs."""
        return replace(self, canvas=None, canvas_mask=None)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """An uploaded image file with the field it came in."""

    param: str
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class SourceFiles:
    """The input pictures of a request, as they came.

    Attributes:
        images: To draw over or to look at; none when only a control picture came.
        mask: Where to draw; None is everywhere.
        own_alpha: The first image's own transparency is the mask.
        inverted_mask: The mask shows what to keep.
        control: For the model's ControlNet.
    """

    images: tuple[SourceFile, ...]
    mask: SourceFile | None = None
    own_alpha: bool = False
    inverted_mask: bool = False
    control: SourceFile | None = None
