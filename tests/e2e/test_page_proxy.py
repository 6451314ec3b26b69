"""The web page in a real browser, on a sub-path behind nginx."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import expect

from tests.support.browser import PATIENCE, Visitor, chromium
from tests.support.nginx import BLOCKS, nginx
from tests.support.servers import running_server


def test_drawing_on_a_sub_path(tmp_path: Path) -> None:
    """The page requests only addresses below the prefix, and shows the generated image."""
    with (
        chromium() as browser,
        running_server(tmp_path, engine="fake", trusted_proxies="127.0.0.1") as server,
        nginx(tmp_path, BLOCKS[1], server) as proxy,
    ):
        visitor = Visitor(browser, f"{proxy}/images", {})
        page = visitor.open()
        page.get_by_label("Prompt", exact=True).fill("a red circle")
        page.get_by_role("button", name="Generate").click()
        tile = page.locator("#tiles img").first
        expect(tile).to_have_js_property("complete", True, timeout=PATIENCE)
        assert tile.evaluate("image => image.naturalWidth") > 0
        assert all(request.url.startswith(f"{proxy}/images/") for request in visitor.requests)
        visitor.leave()
