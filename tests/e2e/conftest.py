"""Fixtures shared by the tests of clients and of the web page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import Browser

from tests.support.browser import Visitor, chromium
from tests.support.page import Visit
from tests.support.servers import ServerProcess, running_server
from tests.support.upscalers import write_upscaler

KEY = "the-right-key"


@pytest.fixture(scope="session")
def keyed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server on the fake engine that requires KEY."""
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


# --- the web page ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for a whole module."""
    with chromium() as found:
        yield found


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """A function that opens the page as a new visitor; at the end, no browser may have had
    problems."""
    visitors: list[Visitor] = []

    def come(server: ServerProcess, **options: Any) -> Visitor:
        wide = {"viewport": {"width": 1440, "height": 900}}
        visitors.append(Visitor(browser, server.url, {**wide, **options}))
        return visitors[-1]

    yield come
    for visitor in visitors:
        visitor.leave()


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server on the fake engine for one module, with a LoRA, an upscaler and its own gallery."""
    folder = tmp_path_factory.mktemp("page")
    for name in ("loras", "upscalers"):
        (folder / name).mkdir()
    (folder / "loras" / "shapes.safetensors").write_bytes(b"not read by the fake engine")
    write_upscaler(folder / "upscalers" / "twice.safetensors", 2)
    dirs: dict[str, Any] = {"lora_dir": folder / "loras", "upscaler_dir": folder / "upscalers"}
    with running_server(folder, engine="fake", **dirs) as server:
        yield server
