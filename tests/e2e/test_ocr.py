"""Text recognition, with and without the extra."""

from __future__ import annotations

import io
import socket
import threading

import httpx2
import pytest
from PIL import Image, ImageDraw

from sdstream.core.errors import NotInstalled
from sdstream.core.pixels import Pixels
from sdstream.imaging import ocr
from tests.support.servers import ServerProcess


def sign(text: str, mode: str = "RGB") -> bytes:
    """Return a PNG with a line of text."""
    image = Image.new("RGB", (420, 90), "white")
    ImageDraw.Draw(image).text((12, 20), text, fill="black", font_size=36)
    file = io.BytesIO()
    image.convert(mode).save(file, "PNG")
    return file.getvalue()


def test_text_as_json_and_as_text(fake_server: ServerProcess) -> None:
    """The response is a JSON string, or plain text if Accept prefers it; grey images are
    accepted."""
    url = f"{fake_server.url}/v1/images/ocr"
    answer = httpx2.post(url, files={"image": sign("Hello 42", "L")}, timeout=60)
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == "Hello 42"
    plain = {"Accept": "text/plain, application/json;q=0.5"}
    answer = httpx2.post(url, files={"image": sign("Hello 42")}, headers=plain, timeout=60)
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.text == "Hello 42"


def test_options_of_xinference(fake_server: ServerProcess) -> None:
    """In kwargs, an id of the request and the usual task are ignored, unknown names reported."""
    kwargs = '{"request_id": "mine", "ocr_type": "ocr", "foo": 1}'
    url = f"{fake_server.url}/v1/images/ocr"
    for text, ignored in ((kwargs, "foo"), ("{}", None), ("null", None), ("", None)):
        data = {"model": "rapidocr", "kwargs": text}
        answer = httpx2.post(url, files={"image": sign("Hi")}, data=data, timeout=60)
        assert (answer.json(), answer.headers.get("X-Ignored-Fields")) == ("Hi", ignored)


@pytest.mark.parametrize(
    ("files", "data", "status", "param"),
    [
        ({"image": b"no image"}, {}, 400, "image"),
        ({"picture": sign("x")}, {}, 400, "image"),
        ({"image": sign("x")}, {"model": "GOT-OCR"}, 404, "model"),
        ({"image": sign("x")}, {"image_url": "en"}, 400, "image_url"),
        ({"image": sign("x")}, {"kwargs": '{"ocr_type": "format"}'}, 400, "ocr_type"),
        ({"image": sign("x")}, {"kwargs": "[]"}, 400, "kwargs"),
    ],
)
def test_faults(
    fake_server: ServerProcess,
    files: dict[str, bytes],
    data: dict[str, str],
    status: int,
    param: str,
) -> None:
    """An error names its field."""
    answer = httpx2.post(f"{fake_server.url}/v1/images/ocr", files=files, data=data, timeout=60)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


def test_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights come from the installed package, without any connection."""

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    picture = Pixels(40, 40, bytes([255]) * 4800)
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(ocr.TextReader().read(picture)))
    thread.start()
    thread.join()
    assert found == [""]


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error contains the command that installs the extra."""
    monkeypatch.setattr(ocr, "installed", lambda: False)
    with pytest.raises(NotInstalled, match=r"pip install 'sdstream\[ocr\]'") as caught:
        ocr.TextReader().read(Pixels(1, 1, b"\0\0\0"))
    assert caught.value.status == 501
