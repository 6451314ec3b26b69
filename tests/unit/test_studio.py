"""What is done to pixels before a job and after it."""

from __future__ import annotations

import asyncio

import pytest

from app.core.errors import InvalidRequest
from app.core.pixels import SourceFile, SourceFiles
from app.core.request import OutputFormat
from app.studio import Studio
from tests.pictures import png


class NoShelf:
    """Keeps nothing."""

    def put(self, data: bytes, output_format: OutputFormat) -> str:
        """Never called here."""
        raise NotImplementedError


def test_pictures_that_are_too_much_together() -> None:
    """Each is allowed alone; all of them are refused by their headers, before any is decoded."""
    studio = Studio(shelf=NoShelf(), checker=None, max_input_pixels=4096, embed_parameters=False)
    one = SourceFile("image", png(64, 64))
    three = asyncio.run(studio.decode(SourceFiles((one,) * 3), only_references=True))
    assert len(three.references) == 3
    with pytest.raises(InvalidRequest, match="16384 pixels together; at most 12288") as caught:
        asyncio.run(studio.decode(SourceFiles((one,) * 3, control=one), only_references=True))
    assert caught.value.param == "image"
    studio.close()
