"""What the tests of clients share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from tests.support.servers import ServerProcess, running_server

KEY = "the-right-key"


@pytest.fixture(scope="session")
def keyed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server on the fake engine that asks for KEY."""
    with running_server(tmp_path_factory.mktemp("keyed"), engine="fake", api_keys=KEY) as server:
        yield server


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with input.png, 64x64, and mask.png, transparent in the middle 32x32."""
    folder = tmp_path_factory.mktemp("pictures")
    image = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    ImageDraw.Draw(image).ellipse((8, 8, 40, 40), fill=(220, 30, 30))
    image.save(folder / "input.png")
    mask = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (16, 16, 48, 48))
    mask.save(folder / "mask.png")
    return folder
