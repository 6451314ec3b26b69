"""The web page in a real browser: the canvas with zoom, masks as files, and repeated edits."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import Page, expect

from tests.support.browser import SCREENSHOTS
from tests.support.page import PHONE, Visit, accessible, field, finished, newest, scene, stroke
from tests.support.servers import ServerProcess


def saved_mask(page: Page, folder: Path) -> np.ndarray[Any, Any]:
    """Return where the mask that the page saves is white."""
    with page.expect_download() as download:
        page.get_by_role("button", name="Save mask", exact=True).click()
    download.value.save_as(folder / "saved.png")
    with Image.open(folder / "saved.png") as image:
        return np.asarray(image.convert("L")) >= 128


def center(page: Page) -> tuple[float, float]:
    """Return the middle of the canvas on the screen."""
    box = page.locator("#easel-room").bounding_box()
    assert box is not None
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_zoom_by_wheel_keys_and_buttons(
    own_server: ServerProcess, visit: Visit, tmp_path: Path
) -> None:
    """A zoomed stroke is at the right place of the mask; the wheel zooms only with the focus."""
    page = visit(own_server).open()
    page.locator("#image-file").set_input_files(scene(tmp_path))
    expect(page.locator("#mask")).to_be_visible()
    zoom = page.locator("#zoom")
    page.mouse.move(*center(page))
    page.mouse.wheel(0, -400)
    expect(zoom).to_have_text("100 %")
    page.locator("#mask").focus()
    page.mouse.wheel(0, -400)
    expect(zoom).to_have_text("200 %")
    x, y = center(page)
    page.mouse.click(x, y)
    painted = saved_mask(page, tmp_path)
    rows, columns = np.nonzero(painted)
    assert abs(rows.mean() - 64) < 4
    assert abs(columns.mean() - 64) < 4
    page.screenshot(path=SCREENSHOTS / "zoom.png")
    accessible(page)()
    page.locator("#mask").focus()
    before = page.locator("#mask").bounding_box()
    page.keyboard.press("Alt+ArrowRight")
    after = page.locator("#mask").bounding_box()
    assert before is not None
    assert after is not None
    assert after["x"] < before["x"]
    page.keyboard.press("-")
    expect(zoom).to_have_text("160 %")
    page.keyboard.press("0")
    expect(zoom).to_have_text("100 %")
    page.get_by_role("button", name="Zoom in").click()
    expect(zoom).to_have_text("125 %")
    page.get_by_role("button", name="Zoom out").click()
    expect(zoom).to_have_text("100 %")


def test_pinch(own_server: ServerProcess, visit: Visit, tmp_path: Path) -> None:
    """Two fingers zoom and do not paint; one finger paints."""
    page = visit(own_server, **PHONE).open()
    page.locator("#image-file").set_input_files(scene(tmp_path))
    expect(page.locator("#mask")).to_be_visible()
    page.locator("#easel-room").scroll_into_view_if_needed()
    x, y = center(page)
    finger = page.context.new_cdp_session(page)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        places = [{"x": at[0], "y": at[1], "id": n} for n, at in enumerate(points)]
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})

    touch("touchStart", (x - 20, y))
    touch("touchStart", (x - 20, y), (x + 20, y))
    for part in range(1, 6):
        touch("touchMove", (x - 20 - 8 * part, y), (x + 20 + 8 * part, y))
    touch("touchEnd")
    expect(page.locator("#zoom")).to_have_text(re.compile("(2[5-9]|3[0-5]). %"))
    expect(page.locator("#source-note")).not_to_contain_text("with a mask")
    page.screenshot(path=SCREENSHOTS / "pinch.png")
    touch("touchStart", (x, y))
    touch("touchMove", (x + 30, y))
    touch("touchEnd")
    expect(page.locator("#source-note")).to_contain_text("with a mask")


def test_masks_as_files(own_server: ServerProcess, visit: Visit, tmp_path: Path) -> None:
    """The white or transparent part of a file becomes the mask, which can be undone, erased and
    saved."""
    page = visit(own_server).open()
    page.locator("#image-file").set_input_files(scene(tmp_path))
    expect(page.locator("#mask")).to_be_visible()
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[8:24, 16:48] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    page.locator("#mask-file").set_input_files(tmp_path / "mask.png")
    expect(page.locator("#source-note")).to_contain_text("with a mask")
    found = saved_mask(page, tmp_path)
    assert (found == (mask.repeat(2, 0).repeat(2, 1) > 0)).all()
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#source-note")).not_to_contain_text("with a mask")
    clear = np.dstack([np.full((64, 64, 3), 255, dtype=np.uint8), 255 - mask])
    Image.fromarray(clear).save(tmp_path / "clear.png")
    page.locator("#mask-file").set_input_files(tmp_path / "clear.png")
    assert (saved_mask(page, tmp_path) == found).all()
    page.get_by_role("button", name="Eraser").click()
    stroke(page, (0.1, 0.25), (0.9, 0.25))
    assert saved_mask(page, tmp_path).sum() < found.sum()
    (tmp_path / "text.png").write_text("no image")
    page.locator("#mask-file").set_input_files(tmp_path / "text.png")
    expect(page.locator("#image-error")).to_contain_text("not an image")


def test_an_edit_is_repeated(own_server: ServerProcess, visit: Visit, tmp_path: Path) -> None:
    """After a reload, the gallery restores the image, its mask and the settings."""
    page = visit(own_server).open()
    page.locator("#image-file").set_input_files(scene(tmp_path))
    stroke(page, (0.3, 0.5), (0.7, 0.5))
    field(page, "Prompt").fill("an edit")
    field(page, "Seed").fill("7")
    painted = saved_mask(page, tmp_path)
    page.get_by_role("button", name="Edit image").click()
    finished(page)
    first = newest(own_server)
    page.reload()
    page.locator("#tiles button").first.click()
    page.get_by_role("dialog").get_by_role("button", name="Use these settings").click()
    expect(page.locator("#source-note")).to_contain_text("with a mask")
    assert (saved_mask(page, tmp_path) == painted).all()
    page.get_by_role("button", name="Edit image").click()
    finished(page)
    again = newest(own_server)
    assert again["id"] != first["id"]
    assert again["parameters"] == first["parameters"]
    assert [one["name"] for one in again["inputs"]] == ["image", "mask"]
