"""Text recognition in images, with the optional extra ``ocr`` (rapidocr on onnxruntime).

The weights (PP-OCRv6, Apache-2.0) are part of rapidocr's wheel. This module passes their paths to
rapidocr, because rapidocr downloads weights that it does not find. onnxruntime sends telemetry
unless an environment variable turns that off before the import.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from importlib import import_module, util
from pathlib import Path
from typing import Any, Final

from PIL import Image

from sdstream.core.errors import NotInstalled, Reason
from sdstream.core.pixels import Pixels

MODEL: Final = "rapidocr"

_INSTALL: Final = "pip install 'sdstream[ocr]'"

#: Part of the pipeline -> its file in the wheel.
_WEIGHTS: Final = {
    "Det.model_path": "*_det_*.onnx",
    "Cls.model_path": "*_cls_*.onnx",
    "Rec.model_path": "*_rec_*.onnx",
}


def installed() -> bool:
    """Return whether the extra is installed."""
    return util.find_spec("rapidocr") is not None and util.find_spec("onnxruntime") is not None


class TextReader:
    """A reader of text in images.

    The first call loads the weights, which takes about a second. Concurrent calls wait for each
    other.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._engine: Any = None

    def read(self, picture: Pixels) -> str:
        """Return the text of an RGB image, with the line breaks of the image.

        The call blocks its thread for seconds.

        Raises:
            NotInstalled: The extra is missing; the message contains the command that installs it.
        """
        if not installed():
            raise NotInstalled(
                f"Reading text needs an extra: {_INSTALL}", reason=Reason.NOT_INSTALLED
            )
        image = Image.frombytes("RGB", picture.size, picture.data)
        with self._lock:
            if self._engine is None:
                self._engine = _load()
            found = self._engine(image)
        return _in_rows(found.txts or (), found.boxes if found.boxes is not None else ())


def _in_rows(texts: Sequence[str], boxes: Sequence[Any]) -> str:
    """Return the texts as lines from top to bottom.

    Texts in the same row are joined by spaces, from left to right.

    Args:
        texts: The recognised texts.
        boxes: The four corners of each text, in pixels.
    """
    rows: list[tuple[float, float, list[tuple[float, str]]]] = []
    for box, text in sorted(zip(boxes, texts, strict=True), key=lambda pair: float(pair[0][0][1])):
        top, bottom = (pick(float(y) for _, y in box) for pick in (min, max))
        middle = (top + bottom) / 2
        for above, below, row in rows:
            if above < middle < below:
                row.append((float(box[0][0]), text))
                break
        else:
            rows.append((top, bottom, [(float(box[0][0]), text)]))
    return "\n".join(" ".join(text for _, text in sorted(row)) for _, _, row in rows)


def _load() -> Any:
    # Otherwise onnxruntime writes a device id to the home folder and contacts its vendor's host.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # noqa: TID251
    rapidocr = import_module("rapidocr")
    folder = Path(str(rapidocr.__file__)).parent / "models"
    weights = {key: str(next(folder.glob(pattern))) for key, pattern in _WEIGHTS.items()}
    # rapidocr's log bypasses the server's log format and contains colour codes.
    return rapidocr.RapidOCR(params={**weights, "Global.log_level": "error"})
