"""A grid of images with labels for rows and columns, for comparisons."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import Final

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

_GAP: Final = 8
_LINE: Final = 22
_FONT: Final = 15
#: Approximate width of a character in pixels, for line breaks.
_CHARACTER: Final = 8
#: Maximum width of the label of a row in pixels.
_MOST_LABEL: Final = 220
_PAPER: Final = (255, 255, 255)
_INK: Final = (20, 20, 20)
_MISSING: Final = (236, 236, 236)


def draw_sheet(
    cells: Sequence[Sequence[bytes | str]],
    columns: Sequence[str],
    rows: Sequence[str],
    parameters: str,
) -> bytes:
    """Return a PNG file with all cells.

    Args:
        cells: Rows of cells; a cell is an image file, or a sentence in place of an image.
        columns: Label of each column.
        rows: Label of each row; if all are empty, they take no space.
        parameters: Text for the PNG text chunk ``parameters``.
    """
    images = [[_opened(cell) for cell in row] for row in cells]
    found = [image for row in images for image in row if image is not None]
    width = max((image.width for image in found), default=128)
    height = max((image.height for image in found), default=128)
    font = ImageFont.load_default(_FONT)
    left = _label_width(rows)
    heads = [_lines(label, width) for label in columns]
    top = max((len(lines) for lines in heads), default=0) * _LINE + _GAP
    size = (
        left + len(columns) * (width + _GAP) + _GAP,
        top + len(cells) * (height + _GAP) + _GAP,
    )
    sheet = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(sheet)
    xs = [left + _GAP + index * (width + _GAP) for index in range(len(columns))]
    for x, lines in zip(xs, heads, strict=True):
        middle = (x + width / 2, top / 2)
        pen.multiline_text(middle, "\n".join(lines), _INK, font, anchor="mm", align="center")
    for index, (row, label) in enumerate(zip(images, rows, strict=True)):
        y = top + _GAP + index * (height + _GAP)
        text = "\n".join(_lines(label, left))
        pen.multiline_text((_GAP, y + height / 2), text, _INK, font, anchor="lm")
        for x, image, cell in zip(xs, row, cells[index], strict=True):
            if image is None:
                pen.rectangle((x, y, x + width - 1, y + height - 1), fill=_MISSING)
                text = "\n".join(_lines(str(cell), width - 2 * _GAP))
                pen.multiline_text((x + width / 2, y + height / 2), text, _INK, font, anchor="mm")
            else:
                sheet.paste(
                    image, (x + (width - image.width) // 2, y + (height - image.height) // 2)
                )
    return _png(sheet, parameters)


def _opened(cell: bytes | str) -> Image.Image | None:
    if isinstance(cell, str):
        return None
    with Image.open(io.BytesIO(cell)) as image:
        return image.convert("RGB")


def _label_width(labels: Sequence[str]) -> int:
    longest = max(map(len, labels), default=0)
    return min(_MOST_LABEL, longest * _CHARACTER + 2 * _GAP) if longest else 0


def _lines(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(4, width // _CHARACTER)) or [""]


def _png(image: Image.Image, parameters: str) -> bytes:
    info = PngInfo()
    info.add_text("parameters", parameters)
    file = io.BytesIO()
    image.save(file, "PNG", pnginfo=info)
    return file.getvalue()
