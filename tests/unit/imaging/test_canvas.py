"""Parts of images on the way to the model and back; kept pixels stay the same byte for byte."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdstream.core.ask import ParsedRequest
from sdstream.core.catalog import Catalog
from sdstream.core.messages import Generate, ImageDrawn, Preview, encode, unframe
from sdstream.core.options import ImageParams, OutputFormat
from sdstream.core.pixels import Inputs, SourceFile, SourceFiles
from sdstream.core.placement import Box
from sdstream.core.request import GenerationRequest, Limits
from sdstream.core.resolve import resolve
from sdstream.core.size import Size
from sdstream.imaging.processor import ImageProcessor
from tests.support.pictures import file_of

Array = np.ndarray[Any, np.dtype[np.uint8]]

CATALOG = Catalog.parse(
    """
models:
  - {id: plain, family: sd1, files: {model: m}, defaults: {size: 64x64}}
  - {id: looker, family: flux_kontext, files: {model: m}, defaults: {size: 64x64}}
"""
)
NOISE: Array = np.random.default_rng(7).integers(0, 256, (93, 151, 3), dtype=np.uint8)
HOLE = Box(101, 10, 124, 31)
GREEN = (0, 255, 0)


class Shelf:
    """A shelf that keeps the last file."""

    data = b""

    def put(self, data: bytes, output_format: OutputFormat) -> str:
        """Keep the file."""
        self.data = data
        return "image_1"


def mask_file(kind: str = "luminance") -> bytes:
    """Build a mask file that selects the hole."""
    mask = Image.new("L", (151, 93), 0)
    mask.paste(255, HOLE)
    if kind == "luminance":
        return file_of(mask)
    alpha = Image.new("RGBA", mask.size, (9, 9, 9, 255))
    alpha.putalpha(mask if kind == "opacity" else mask.point(lambda value: 255 - value))
    return file_of(alpha)


def run(
    *, mask: bytes | None = None, inverted: bool = False, model: str = "plain", **options: Any
) -> tuple[GenerationRequest, Inputs, Array, Array]:
    """Edit the noise with a model that generates plain green.

    Returns the request, the inputs, the finished image and a preview.
    """
    shelf = Shelf()
    processor = ImageProcessor(
        shelf=shelf, checker=None, max_input_pixels=10**6, embed_parameters=False
    )
    params = ImageParams(prompt="a cat", model=model, **options)
    files = SourceFiles(
        (SourceFile("image", file_of(Image.fromarray(NOISE))),),
        SourceFile("mask", mask) if mask else None,
        inverted_mask=inverted,
    )

    async def work() -> tuple[GenerationRequest, Inputs, bytes]:
        pictures = await processor.decode(
            files, only_references=False, mask_mode=params.mask_mode or "auto"
        )
        request = resolve(
            ParsedRequest(params, files=files),
            CATALOG,
            random_seed=lambda: 1,
            limits=Limits(),
            sources=pictures.sources,
        )
        fitted = await processor.fit(pictures, request)
        order = unframe(encode(Generate("job", request, fitted)))
        assert isinstance(order, Generate)
        inputs = order.inputs
        width, height = request.size
        drawn = ImageDrawn(
            "job", 0, 1, width, height, 4, 0.0, 0.0, 0.0, bytes(GREEN) * width * height
        )
        await processor.develop(request, inputs, drawn, must_keep=True)
        preview = Preview(
            "job", 0, 1, width // 8, height // 8, bytes(GREEN) * (width * height // 64)
        )
        return request, inputs, await processor.preview(request, inputs, preview)

    request, inputs, preview = asyncio.run(work())
    processor.close()
    finished, small = (
        np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in (shelf.data, preview)
    )
    return request, inputs, finished, small


def outside(box: Box) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return an array that is True outside a box of the noise."""
    mask = np.ones(NOISE.shape[:2], bool)
    mask[box.top : box.bottom, box.left : box.right] = False
    return mask


@pytest.mark.parametrize("kind", ["luminance", "alpha", "opacity"])
@pytest.mark.parametrize("size", ["64x64", "128x64", "64x192"])
def test_only_the_hole_changes(kind: str, size: str) -> None:
    """For each kind of mask and size of the part, all bytes outside the mask are the input's."""
    mode = {"opacity": "opacity"}.get(kind, "auto")
    request, inputs, finished, _ = run(
        mask=mask_file(kind), only_masked=True, mask_mode=mode, size=size
    )
    assert finished.shape == NOISE.shape
    kept = outside(HOLE)
    assert (finished[kept] == NOISE[kept]).all()
    assert (finished[~kept] == GREEN).all()
    assert inputs.image is not None
    assert inputs.mask is not None
    assert inputs.image.size == inputs.mask.size == request.size == Size.parse(size)


def test_the_part_is_the_inputs_own() -> None:
    """The part is cut out at the input's resolution, then resized to the model's size."""
    request, inputs, _, _ = run(mask=mask_file(), only_masked=True, only_masked_padding=0)
    assert request.placement is not None
    assert request.placement.region == Box(101, 9, 124, 32)
    part = Image.fromarray(NOISE).crop(request.placement.region)
    expected = part.resize((64, 64), Image.Resampling.LANCZOS)
    assert inputs.image is not None
    assert inputs.image.data == expected.tobytes()
    assert inputs.mask is not None
    rows = np.frombuffer(inputs.mask.data, np.uint8).reshape(64, 64)
    assert {*rows[0]} == {0}
    assert {*rows[32]} == {255}


@pytest.mark.parametrize("padding", [0, 5])
def test_a_soft_edge_stays_inside(padding: int) -> None:
    """mask_blur fades inside the mask only, in pixels of the image."""
    _, _, finished, _ = run(
        mask=mask_file(), only_masked=True, mask_blur=3, only_masked_padding=padding
    )
    kept = outside(HOLE)
    assert (finished[kept] == NOISE[kept]).all()
    inner = finished[HOLE.top : HOLE.bottom, HOLE.left : HOLE.right]
    assert (inner[10, 11] == GREEN).all()
    assert not (inner[0] == GREEN).all()


def test_an_inverted_mask() -> None:
    """Everything but the hole is repainted, and the part is the whole image, padded to fit."""
    request, inputs, finished, _ = run(mask=mask_file(), inverted=True, only_masked=True)
    kept = ~outside(HOLE)
    assert (finished[kept] == NOISE[kept]).all()
    assert (finished[~kept] == GREEN).all()
    assert request.placement is not None
    assert request.placement.region == Box(0, 0, 151, 93)
    assert request.placement.inner == Box(0, 12, 64, 51)
    assert inputs.image is not None
    rows = np.frombuffer(inputs.image.data, np.uint8).reshape(64, 64, 3)
    assert (rows[:12] == rows[12]).all(), "the edge is drawn out"


@pytest.mark.parametrize("painted", [[(0, 0)], [(150, 92)], [(0, 0), (150, 92)]])
def test_single_pixels(painted: list[tuple[int, int]]) -> None:
    """A single masked pixel at a corner is repainted, and no other one."""
    mask = Image.new("L", (151, 93), 0)
    for place in painted:
        mask.putpixel(place, 255)
    _, inputs, finished, _ = run(mask=file_of(mask), only_masked=True)
    changed = np.argwhere((finished != NOISE).any(axis=2)).tolist()
    assert changed == [[y, x] for x, y in painted]
    assert inputs.mask is not None
    assert 255 in inputs.mask.data


@pytest.mark.parametrize("expand", ["7,0,0,0", "0,9,0,0", "11,5,3,40", "1,1,1,1", "64,64,64,64"])
def test_expand_keeps_every_pixel(expand: str) -> None:
    """The result is the unchanged image with a border of exactly the given widths."""
    left, top, right, bottom = map(int, expand.split(","))
    request, inputs, finished, _ = run(expand=expand)
    assert finished.shape == (93 + top + bottom, 151 + left + right, 3)
    inner = finished[top : top + 93, left : left + 151]
    assert (inner == NOISE).all()
    border = finished.copy()
    border[top : top + 93, left : left + 151] = GREEN
    assert (border == GREEN).all()
    assert inputs.image is not None
    assert inputs.image.size == request.size
    sheet = np.frombuffer(inputs.image.data, np.uint8).reshape(*request.size[::-1], 3)
    assert request.placement is not None
    at = request.placement.inner
    part = sheet[at.top + top : at.top + top + 93, at.left + left : at.left + left + 151]
    assert (part == NOISE).all(), "the model sees the image at its own scale"


@pytest.mark.parametrize("only", [True, None])
def test_a_border_beside_a_mask(only: bool | None) -> None:
    """The border and the masked area are repainted, and nothing else."""
    _, _, finished, _ = run(mask=mask_file(), expand="5,0,0,9", only_masked=only)
    assert finished.shape == (102, 156, 3)
    inner = finished[:93, 5:]
    kept = outside(HOLE)
    assert (inner[kept] == NOISE[kept]).all()
    assert (inner[~kept] == GREEN).all()
    assert (finished[:, :5] == GREEN).all()
    assert (finished[93:] == GREEN).all()


def test_pad_keeps_the_fitted_image() -> None:
    """The image is scaled to fit, and its edges are extended into the border for the model."""
    request, inputs, finished, _ = run(fit="pad", size="128x128")
    assert request.placement is not None
    kept = request.placement.kept
    assert kept == Box(0, 24, 128, 103)
    fitted = Image.fromarray(NOISE).resize(kept.size, Image.Resampling.LANCZOS)
    assert (finished[24:103] == np.asarray(fitted)).all()
    assert (finished[:24] == GREEN).all()
    assert (finished[103:] == GREEN).all()
    assert inputs.image is not None
    sheet = np.frombuffer(inputs.image.data, np.uint8).reshape(128, 128, 3)
    assert (sheet[0] == sheet[24]).all()
    assert (sheet[127] == sheet[102]).all()


def test_previews_are_of_the_whole_image() -> None:
    """A preview shows the whole image at a small size, with the part in its place."""
    _, _, _, small = run(mask=mask_file(), only_masked=True, size="192x192")
    assert small.shape == (15, 24, 3)
    assert (small[3, 18] == GREEN).all()
    assert not (small == GREEN).all(axis=2)[:, :15].any()
    _, _, _, border = run(expand="0,0,151,0")
    assert border.shape[1] > 30
    assert (border[:, -2:] == GREEN).all()


def test_references_at_the_models_area() -> None:
    """References get about the model's number of pixels, or keep their size on request."""
    processor = ImageProcessor(
        shelf=Shelf(), checker=None, max_input_pixels=10**6, embed_parameters=False
    )
    files = SourceFiles((SourceFile("image", file_of(Image.fromarray(NOISE))),))

    async def sizes(**options: Any) -> list[Size]:
        params = ImageParams(prompt="a cat", model="looker", **options)
        pictures = await processor.decode(files, only_references=True)
        request = resolve(
            ParsedRequest(params, files=files),
            CATALOG,
            random_seed=lambda: 1,
            limits=Limits(),
            sources=pictures.sources,
        )
        inputs = await processor.fit(pictures, request)
        return [picture.size for picture in inputs.references]

    assert asyncio.run(sizes()) == [Size(80, 48)]
    assert asyncio.run(sizes(reference_size="original")) == [Size(151, 93)]
    processor.close()
