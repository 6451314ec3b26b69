"""Image processing before and after a job."""

from __future__ import annotations

import asyncio
import threading

import pytest

from sdstream.core.errors import InvalidRequest
from sdstream.core.messages import Preview
from sdstream.core.options import OutputFormat
from sdstream.core.pixels import Inputs, SourceFile, SourceFiles
from sdstream.core.request import GenerationRequest
from sdstream.imaging import codecs
from sdstream.imaging.processor import ImageProcessor
from tests.support.pictures import png

A_REQUEST = GenerationRequest("m", "a cat", "", 8, 8, 4, "euler", "default", 7.0, 1, 1)


class NoShelf:
    """A shelf that keeps nothing."""

    def put(self, data: bytes, output_format: OutputFormat) -> str:
        """Fail, as no test stores a file."""
        raise NotImplementedError


def a_processor() -> ImageProcessor:
    """A processor that accepts only small images."""
    return ImageProcessor(
        shelf=NoShelf(), checker=None, max_input_pixels=4096, embed_parameters=False
    )


def test_pictures_that_are_too_much_together() -> None:
    """Images that are too large together are rejected by their headers before any is decoded."""
    processor = a_processor()
    one = SourceFile("image", png(64, 64))
    three = asyncio.run(processor.decode(SourceFiles((one,) * 3), only_references=True))
    assert len(three.references) == 3
    with pytest.raises(InvalidRequest, match="16384 pixels in total; the limit is 12288") as caught:
        asyncio.run(processor.decode(SourceFiles((one,) * 3, control=one), only_references=True))
    assert caught.value.param == "image"
    processor.close()


def test_uploads_hold_up_no_finished_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished image is encoded even while many uploads are being decoded."""
    release = threading.Event()

    def decode(*_: object) -> None:
        release.wait()
        raise InvalidRequest("no")

    monkeypatch.setattr(codecs, "decode", decode)
    processor = a_processor()

    async def run() -> bytes:
        files = SourceFiles((SourceFile("image", b""),))
        uploads = [
            asyncio.create_task(processor.decode(files, only_references=False)) for _ in range(16)
        ]
        try:
            preview = Preview("job", 0, 1, 1, 1, bytes(3))
            drawn = await processor.preview(A_REQUEST, Inputs(), preview)
        finally:
            release.set()
        faults = await asyncio.gather(*uploads, return_exceptions=True)
        assert all(isinstance(fault, InvalidRequest) for fault in faults)
        return drawn

    assert asyncio.run(asyncio.wait_for(run(), 60)).startswith(b"\x89PNG")
    processor.close()
