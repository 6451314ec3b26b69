"""The web page in a real browser. Finished images: the gallery and the large view."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import expect

from tests.support.jobs import begin, wait_for
from tests.support.page import (
    Visit,
    accessible,
    draw,
    field,
    finished,
    scene,
)
from tests.support.pictures import opened
from tests.support.servers import ServerProcess, running_server, wait_until


@pytest.fixture(scope="module")
def stocked_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with 27 pictures."""
    with running_server(tmp_path_factory.mktemp("stocked"), engine="fake") as server:
        for number in range(27):
            body = {"prompt": f"picture {number}", "steps": 5, "seed": number, "size": "64x96"}
            wait_for(server, begin(server, body)["id"], "completed")
        yield server


def test_the_gallery(stocked_server: ServerProcess, visit: Visit) -> None:
    """Newest first, more on demand; a picture is opened, leafed on from, used and deleted."""
    page = visit(stocked_server).open()
    tiles = page.locator("#tiles button")
    expect(tiles).to_have_count(24)
    page.get_by_role("button", name="Show more").click()
    expect(tiles).to_have_count(27)
    expect(page.get_by_role("button", name="Show more")).to_be_hidden()
    tiles.nth(1).click()
    viewer = page.get_by_role("dialog")
    expect(viewer).to_contain_text("picture 25")
    page.keyboard.press("ArrowRight")
    expect(viewer).to_contain_text("picture 24")
    expect(viewer.locator("dl")).to_contain_text("64 × 96")
    viewer.get_by_role("button", name="Use these settings").click()
    expect(viewer).to_be_hidden()
    expect(field(page, "Seed")).to_have_value("24")
    expect(field(page, "Prompt")).to_have_value("picture 24")
    expect(page.locator("#digest")).to_contain_text("5 steps")
    expect(field(page, "Height")).to_have_value("96")
    tiles.nth(2).click()
    with page.expect_download() as download:
        viewer.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == "picture-24-24.png"
    assert opened(Path(download.value.path()).read_bytes()).size == (64, 96)


def test_deleting(stocked_server: ServerProcess, visit: Visit) -> None:
    """After a question the job and its picture are gone, and the focus is on the next one."""
    page = visit(stocked_server).open()
    tile = page.locator("#tiles button").first
    name = str(tile.get_attribute("title"))
    tile.click()
    viewer = page.get_by_role("dialog")
    viewer.get_by_role("button", name="Delete", exact=True).click()
    expect(viewer.get_by_role("button", name="Keep")).to_be_focused()
    viewer.get_by_role("button", name="Delete for good").click()
    expect(viewer).to_be_hidden()
    expect(page.locator("#tiles button").first).not_to_have_attribute("title", name)
    expect(page.locator("#tiles button").first).to_be_focused()
    listed = httpx2.get(f"{stocked_server.url}/v1/jobs?limit=100").json()["data"]
    assert name not in [job["parameters"]["prompt"] for job in listed]


def test_editing_a_picture(own_server: ServerProcess, visit: Visit) -> None:
    """A finished picture goes onto the easel with one press."""
    page = visit(own_server).open()
    draw(page, "the beginning")
    finished(page)
    page.get_by_role("button", name="Edit this image").click()
    expect(page.locator("#mask")).to_be_visible()
    expect(page.locator("#source-name")).to_have_text(re.compile(r"the-beginning-\d+\.png"))
    page.get_by_role("button", name="Picture", exact=True).click()
    expect(page.locator("#picture")).to_be_visible()


def test_a_picture_that_was_only_enlarged(
    own_server: ServerProcess, visit: Visit, tmp_path: Path
) -> None:
    """It has a size before and after, and no settings to be used."""
    image = {"image": ("scene.png", scene(tmp_path).read_bytes())}
    assert httpx2.post(f"{own_server.url}/v1/images/upscales", files=image).status_code == 200
    page = visit(own_server).open()
    page.locator("#tiles button").first.click()
    viewer = page.get_by_role("dialog")
    expect(viewer).to_contain_text("Size256 × 256Before enlarging128 × 128")
    expect(viewer.get_by_role("button", name="Download")).to_be_visible()
    expect(viewer.get_by_role("button", name="Use these settings")).to_be_hidden()


def test_a_long_prompt(own_server: ServerProcess, visit: Visit) -> None:
    """All of it can be read in the viewer, by keys too, and what is below keeps its place."""
    prompt = "\n".join(f"line {number} of a long prompt" for number in range(60))
    wait_for(own_server, begin(own_server, {"prompt": prompt})["id"], "completed")
    page = visit(own_server).open()
    page.locator("#tiles button").first.click()
    text = page.locator("#viewer-prompt")
    expect(text).to_have_text(prompt, use_inner_text=True)
    expect(page.locator("#viewer-facts")).to_be_in_viewport()
    text.press("End")
    expect(text).to_have_js_property("tabIndex", 0)
    # The page's policy forbids eval, which Playwright's own wait_for_function needs.
    wait_until(
        lambda: text.evaluate("text => text.scrollTop + text.clientHeight > text.scrollHeight - 2"),
        10,
        "the end of the prompt stayed out of view",
    )
    accessible(page)()
