"""The web page in a real browser: images to edit, with masks, borders and parts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import Page, expect

from tests.support.browser import SCREENSHOTS
from tests.support.page import (
    Visit,
    accessible,
    bytes_of,
    field,
    finished,
    hand_over,
    newest,
    scene,
    stroke,
)
from tests.support.pictures import opened
from tests.support.servers import ServerProcess


def changed(page: Page, original: Path) -> np.ndarray[Any, Any]:
    """Return which pixels of the finished image differ from the original."""
    drawn = np.asarray(opened(bytes_of(page, finished(page))).convert("RGB"), dtype=int)
    with Image.open(original) as image:
        before = np.asarray(image.convert("RGB"), dtype=int)
    return np.asarray(np.abs(drawn - before).max(axis=2) > 0)


def test_a_painted_mask(native_server: ServerProcess, visit: Visit, tmp_path: Path) -> None:
    """Painted pixels are generated; pixels that were erased or are outside of the mask are
    unchanged."""
    original = scene(tmp_path)
    page = visit(native_server).open()
    page.locator("#image-file").set_input_files(original)
    expect(field(page, "Strength")).to_have_value("0.75")
    stroke(page, (0.3, 0.5), (0.7, 0.5))
    expect(field(page, "Strength")).to_have_value("1")
    stroke(page, (0.1, 0.9), (0.9, 0.9))
    page.get_by_role("button", name="Undo").click()
    page.get_by_role("button", name="Eraser").click()
    stroke(page, (0.6, 0.3), (0.6, 0.7))
    field(page, "Prompt").fill("a yellow star")
    page.get_by_role("button", name="Edit image").click()
    different = changed(page, original)
    assert different[56:72, 34:66].mean() > 0.5
    outside = np.ones_like(different)
    outside[54:74, 28:100] = False  # the stroke, half a brush wider, and one more pixel
    outside[:, 72:82] = True  # the erased part
    assert not different[outside].any()


def test_an_image_without_a_mask(own_server: ServerProcess, visit: Visit, tmp_path: Path) -> None:
    """A pasted image is edited as a whole, by the strength, and can be removed."""
    page = visit(own_server).open()
    data = scene(tmp_path).read_bytes()
    hand_over(page, "paste", "body", data, "pasted.png")
    expect(page.locator("#source-name")).to_have_text("pasted.png")
    field(page, "Strength").fill("0.4")
    field(page, "Prompt").fill("softer")
    page.get_by_role("button", name="Edit image").click()
    finished(page)
    job = httpx2.get(f"{own_server.url}/v1/jobs?limit=1").json()["data"][0]
    assert job["operation"] == "edit"
    assert job["parameters"]["strength"] == 0.4
    page.get_by_role("button", name="Remove this image").click()
    expect(page.get_by_role("button", name="Generate")).to_be_visible()


def test_a_mask_by_keys(own_server: ServerProcess, visit: Visit, tmp_path: Path) -> None:
    """Arrow keys move the brush, Space lowers and lifts it, and the mask is where it moved."""
    original = scene(tmp_path)
    page = visit(own_server).open()
    page.locator("#image-file").set_input_files(original)
    expect(page.locator("#mask")).to_be_visible()
    page.locator("#mask").focus()
    for key in ("Shift+ArrowUp", "Shift+ArrowUp", "Space", "Shift+ArrowRight", "Space"):
        page.keyboard.press(key)
    expect(page.locator("#announcer")).to_have_text("Lifted at 60 percent across, 30 percent down")
    page.keyboard.press("Space")
    page.keyboard.press("Space")
    page.keyboard.press("Control+z")
    field(page, "Prompt").fill("by keys")
    page.keyboard.press("Control+Enter")
    rows, columns = np.nonzero(changed(page, original))
    assert 28 <= rows.min() < rows.max() <= 48
    assert 54 <= columns.min() < columns.max() <= 86


def test_undo_and_redo_of_a_mask(own_server: ServerProcess, visit: Visit, tmp_path: Path) -> None:
    """Strokes and Clear are undone and redone by keys and buttons, until the next stroke."""
    page = visit(own_server).open()
    page.locator("#image-file").set_input_files(scene(tmp_path))
    undo, redo = (page.get_by_role("button", name=name) for name in ("Undo", "Redo"))
    note = page.locator("#source-note")
    masked = re.compile("with a mask")
    stroke(page, (0.2, 0.2), (0.4, 0.2))
    stroke(page, (0.2, 0.6), (0.4, 0.6))
    expect(redo).to_be_disabled()
    for key in ("Control+z", "Control+z"):
        page.keyboard.press(key)
    expect(note).not_to_contain_text(masked)
    expect(undo).to_be_disabled()
    page.keyboard.press("Control+Shift+z")
    expect(note).to_contain_text(masked)
    page.keyboard.press("Control+y")
    expect(redo).to_be_disabled()
    page.get_by_role("button", name="Clear").click()
    expect(note).not_to_contain_text(masked)
    undo.click()
    expect(note).to_contain_text(masked)
    expect(redo).to_be_enabled()
    stroke(page, (0.5, 0.5), (0.6, 0.6))
    expect(redo).to_be_disabled()
    page.locator("#remove-image").click()
    page.locator("#image-file").set_input_files(scene(tmp_path))
    expect(undo).to_be_disabled()


def photo(folder: Path) -> Path:
    """Save an image to edit, in a size that no model generates."""
    image = Image.linear_gradient("L").resize((250, 170)).convert("RGB")
    ImageDraw.Draw(image).ellipse((60, 30, 160, 130), fill=(220, 30, 30))
    path = folder / "photo.png"
    image.save(path)
    return path


def test_only_the_masked_part(own_server: ServerProcess, visit: Visit, tmp_path: Path) -> None:
    """With "Only masked", the image keeps its size, and code and job contain the options."""
    original = photo(tmp_path)
    page = visit(own_server).open()
    page.locator("#image-file").set_input_files(original)
    switch, padding = field(page, "Only masked"), field(page, "Padding")
    expect(switch).to_be_disabled()
    stroke(page, (0.4, 0.5), (0.6, 0.5))
    expect(padding).to_be_disabled()
    switch.check()
    expect(page.locator("#size-hint")).to_contain_text("The masked part")
    padding.fill("9999")
    field(page, "Prompt").fill("a yellow star")
    page.get_by_role("button", name="Edit image").click()
    expect(page.locator("#form-error")).to_have_text("Enter a number from 0 to 4096.")
    padding.fill("16")
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOTS / "only-masked.png")
    expect(page.locator("#snippet-text")).to_contain_text("only_masked_padding=16")
    page.get_by_role("button", name="Edit image").click()
    different = changed(page, original)
    assert different.shape == (170, 250)
    assert different[78:92, 100:150].mean() > 0.5
    outside = np.ones_like(different)
    outside[72:98, 87:163] = False
    assert not different[outside].any()
    job = newest(own_server)["parameters"]
    assert (job["only_masked"], job["only_masked_padding"], job["size"]) == (True, 16, "128x128")
    # The settings of the image restore both options.
    page.get_by_role("button", name="Canvas").click()
    switch.uncheck()
    page.get_by_role("button", name="Image", exact=True).click()
    page.get_by_role("button", name="Use these settings").click()
    page.get_by_role("button", name="Canvas").click()
    expect(switch).to_be_checked()
    page.get_by_role("button", name="Edit image").click()
    assert changed(page, original).shape == (170, 250)


def drag(page: Page, handle: str, dx: float, dy: float) -> None:
    """Drag a handle of the border with the mouse, in pixels of the screen."""
    box = page.get_by_role("slider", name=handle).bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + dx, y + dy, steps=8)
    page.mouse.up()


def test_a_border_by_mouse_and_keys(
    own_server: ServerProcess, visit: Visit, tmp_path: Path
) -> None:
    """Dragging an edge or pressing keys adds a border; the image grows and keeps its original
    pixels."""
    original = photo(tmp_path)
    page = visit(own_server).open()
    page.locator("#image-file").set_input_files(original)
    right, top = (page.get_by_role("slider", name=f"{side} border") for side in ("Right", "Top"))
    scale = float(page.locator("#mask").evaluate("mask => mask.clientWidth")) / 250
    drag(page, "Right border", 48 * scale, 0)
    expect(right).to_have_attribute("aria-valuenow", "48")
    top.focus()
    for key in ("Shift+ArrowUp", "ArrowDown", "ArrowUp", "ArrowDown", "PageUp", "PageDown"):
        page.keyboard.press(key)
    expect(top).to_have_attribute("aria-valuetext", "56 pixels")
    expect(page.locator("#border-size")).to_have_text("298 × 226")
    expect(page.locator("#source-note")).to_have_text("250 × 170 → 298 × 226")
    expect(field(page, "Strength")).to_have_value("1")
    expect(page.locator("#snippet-text")).to_contain_text("expand=0,56,48,0")
    box, mask = page.locator("#border").bounding_box(), page.locator("#mask").bounding_box()
    assert box is not None
    assert mask is not None
    assert box["width"] / mask["width"] == pytest.approx(298 / 250, abs=0.02)
    page.screenshot(path=SCREENSHOTS / "border.png")
    accessible(page)()
    field(page, "Prompt").fill("a sunset")
    page.get_by_role("button", name="Expand").click()
    drawn = np.asarray(opened(bytes_of(page, finished(page))).convert("RGB"))
    assert drawn.shape == (226, 298, 3)
    with Image.open(original) as image:
        assert (drawn[56:, :250] == np.asarray(image.convert("RGB"))).all()
    page.screenshot(path=SCREENSHOTS / "border-drawn.png")
    # Remove the border, restore it with the settings of the image, and lose it with another image.
    page.get_by_role("button", name="Canvas").click()
    page.get_by_role("button", name="No border").click()
    expect(page.locator("#border-size")).to_have_text("none")
    expect(page.get_by_role("button", name="Edit image")).to_be_visible()
    page.get_by_role("button", name="Image", exact=True).click()
    page.get_by_role("button", name="Use these settings").click()
    page.get_by_role("button", name="Canvas").click()
    expect(page.locator("#border-size")).to_have_text("298 × 226")
    page.locator("#image-file").set_input_files(original)
    expect(page.locator("#border-size")).to_have_text("none")
    # With a mask, only the border and the masked part are generated.
    top.focus()
    page.keyboard.press("ArrowUp")
    stroke(page, (0.4, 0.5), (0.6, 0.5))
    page.get_by_role("button", name="Edit image").click()
    drawn = np.asarray(opened(bytes_of(page, finished(page))).convert("RGB"))
    assert drawn.shape == (178, 250, 3)
    with Image.open(original) as image:
        different = (drawn[8:] != np.asarray(image.convert("RGB"))).any(axis=2)
    assert different[80:90, 105:145].mean() > 0.5
    assert not different[:70].any()
    assert not different[100:].any()


def test_a_border_by_touch(own_server: ServerProcess, visit: Visit, tmp_path: Path) -> None:
    """A finger drags the border; the canvas stays in place, and the page does not overflow."""
    phone = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}
    page = visit(own_server, **phone).open()
    page.locator("#image-file").set_input_files(photo(tmp_path))
    handle = page.get_by_role("slider", name="Bottom border")
    handle.scroll_into_view_if_needed()
    scale = float(page.locator("#mask").evaluate("mask => mask.clientWidth")) / 250
    box = handle.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    finger = page.context.new_cdp_session(page)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        places = [{"x": at[0], "y": at[1]} for at in points]
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})

    # The page scrolls by the amount by which the form above the canvas grows.
    place = "document.querySelector('#easel').getBoundingClientRect().top"
    before = page.evaluate(place)
    touch("touchStart", (x, y))
    for part in range(1, 9):
        touch("touchMove", (x, y + 40 * scale * part / 8))
    touch("touchEnd")
    expect(handle).to_have_attribute("aria-valuenow", "40")
    assert page.evaluate(place) == pytest.approx(before, abs=1)
    page.screenshot(path=SCREENSHOTS / "border-narrow.png")
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def choose(page: Page, field: str, path: Path) -> None:
    """Choose a file as a user does. Playwright itself may hand over the bytes of a file."""
    browser = page.context.new_cdp_session(page)
    root = browser.send("DOM.getDocument")["root"]["nodeId"]
    found = browser.send("DOM.querySelector", {"nodeId": root, "selector": f"#{field}"})
    files = {"files": [str(path)], "nodeId": found["nodeId"]}
    browser.send("DOM.setFileInputFiles", files)


@pytest.mark.parametrize("after", ["changed", "moved"])
def test_a_file_that_is_not_what_it_was(
    own_server: ServerProcess, visit: Visit, tmp_path: Path, after: str
) -> None:
    """The page sends the image that it shows, even if its file has changed or is gone."""
    page = visit(own_server).open()
    original = scene(tmp_path)
    sent = original.read_bytes()
    choose(page, "image-file", original)
    expect(page.locator("#mask")).to_be_visible()
    if after == "changed":
        Image.new("RGB", (64, 64)).save(original)
    else:
        original.unlink()
    field(page, "Prompt").fill("what was shown")
    page.get_by_role("button", name="Edit image").click()
    finished(page)
    assert httpx2.get(newest(own_server)["inputs"][0]["url"]).content == sent
