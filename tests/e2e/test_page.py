"""The web page in a real browser: what people do with it, end to end."""

from __future__ import annotations

import http.client
import io
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from json import dumps
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo
from playwright.sync_api import Browser, Locator, Page, Route, expect

from sdstream.core.options import MAX_IMAGES, MAX_STEPS
from tests.e2e.conftest import KEY
from tests.support.browser import PATIENCE, SCREENSHOTS, Visitor, chromium, seen
from tests.support.jobs import begin, wait_for
from tests.support.pictures import opened
from tests.support.servers import ServerProcess, free_port, running_server, wait_until
from tests.support.upscalers import write_upscaler

Visit = Callable[..., Visitor]

expect.set_options(timeout=PATIENCE)

SIDE = 128
SLOW = "slowly step=0.3"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for this module."""
    with chromium() as found:
        yield found


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """Makes visitors; at the end none of their browsers may have complained."""
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
    """A server on the fake engine whose gallery is this module's, with a LoRA and an upscaler."""
    folder = tmp_path_factory.mktemp("page")
    for name in ("loras", "upscalers"):
        (folder / name).mkdir()
    (folder / "loras" / "shapes.safetensors").write_bytes(b"not read by the fake engine")
    write_upscaler(folder / "upscalers" / "twice.safetensors", 2)
    dirs: dict[str, Any] = {"lora_dir": folder / "loras", "upscaler_dir": folder / "upscalers"}
    with running_server(folder, engine="fake", **dirs) as server:
        yield server


def field(page: Page, label: str) -> Locator:
    """A control of the form."""
    return page.get_by_label(label, exact=True)


def draw(page: Page, prompt: str) -> None:
    """Ask for a picture."""
    field(page, "Prompt").fill(prompt)
    page.get_by_role("button", name="Generate").click()


def finished(page: Page) -> Locator:
    """The stage's picture, once it is finished."""
    expect(page.get_by_role("button", name="Edit this image").first).to_be_visible()
    picture = page.locator("#picture")
    expect(picture).to_have_attribute("src", re.compile("/v1/images/"))
    expect(picture).to_have_js_property("complete", True)
    return picture


def bytes_of(page: Page, picture: Locator) -> bytes:
    """The file that an image shows."""
    answer = page.request.get(str(picture.get_attribute("src")))
    assert answer.ok
    return answer.body()


# --- drawing --------------------------------------------------------------------------------------


def test_from_prompt_to_picture(native_server: ServerProcess, visit: Visit) -> None:
    """The bar moves to the end, previews sharpen, and the picture is on the stage and in the
    gallery; screen readers hear the start, the quarters and the end, and no more."""
    page = visit(native_server).open()
    field(page, "Prompt").fill("a red circle on a blue background")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#status")).to_have_text(
        re.compile(r"Step \d+ of 12 · .* (steps/s|s a step) · \d+ s left")
    )
    picture = finished(page)
    assert picture.evaluate("image => image.naturalWidth") == SIDE
    record = seen(page)
    assert len(set(record["bar"])) >= 6
    assert record["bar"] == sorted(record["bar"])
    assert sum(address.startswith("data:image/png") for address in record["picture"]) >= 6
    told = [text.split(":")[0] for text in record["told"]]
    assert told == [word for word in HEARD if word in told]
    assert {"Drawing", "Finished"} <= set(told)
    tile = page.locator("#tiles img").first
    expect(tile).to_have_attribute("src", str(picture.get_attribute("src")))


HEARD = ["Waiting", "Drawing", "25 percent", "50 percent", "75 percent", "Finished"]


def test_asking_before_the_models_are_known(own_server: ServerProcess, visit: Visit) -> None:
    """A prompt that is sent while the page still loads is drawn, not the prompt of last time."""
    person = visit(own_server)
    page = person.open()
    draw(page, "the picture of yesterday")
    finished(page)
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/v1/models", hold, times=2)
    page.reload()
    draw(page, "the picture of today")
    for route in held:
        route.continue_()
    expect(page.locator("#stage")).to_contain_text("the picture of today")
    expect(field(page, "Prompt")).to_have_value("the picture of today")
    expect(page.locator("#form")).not_to_contain_text("A number from")


def test_an_example_is_a_beginning(own_server: ServerProcess, visit: Visit) -> None:
    """An empty stage offers prompts that work, and one press draws the first picture."""
    page = visit(own_server).open()
    page.get_by_role("button", name="three yellow stars").click()
    expect(field(page, "Prompt")).to_have_value("three yellow stars")
    finished(page)


def test_several_pictures(own_server: ServerProcess, visit: Visit) -> None:
    """All pictures of a job can be looked at, each with its own seed."""
    page = visit(own_server).open()
    field(page, "Pictures").fill("3")
    field(page, "Seed").fill("9223372036854775797")  # more than a number holds
    draw(page, "three of a kind")
    finished(page)
    expect(page.locator("#details")).to_contain_text("seed 9223372036854775797")
    page.get_by_role("button", name="Picture 3").click()
    expect(page.locator("#details")).to_contain_text("seed 9223372036854775799")
    page.get_by_role("button", name="A random seed").click()
    page.get_by_role("button", name="The last picture’s seed again").click()
    expect(field(page, "Seed")).to_have_value("9223372036854775797")


def test_cancel(own_server: ServerProcess, visit: Visit) -> None:
    """A press ends the job, and the page says so."""
    page = visit(own_server).open()
    draw(page, SLOW)
    expect(page.locator("#status")).to_contain_text(re.compile("Step [2-9] of 12"))
    page.get_by_role("button", name="Cancel", exact=True).click()
    expect(page.locator("#status")).to_have_text("Cancelled")
    job = httpx2.get(f"{own_server.url}/v1/jobs?limit=1").json()["data"][0]
    assert job["status"] == "cancelled"


def test_several_jobs(own_server: ServerProcess, visit: Visit) -> None:
    """Jobs wait in line with their positions; one is taken out, the others are drawn in turn."""
    page = visit(own_server).open()
    draw(page, f"first {SLOW}")
    for prompt in ("second", "third", "fourth"):
        draw(page, prompt)
    rows = page.locator("#queue-list li")
    expect(rows).to_have_count(3)
    expect(rows.nth(0)).to_contain_text("1 job before it")
    expect(rows.nth(2)).to_contain_text("3 jobs before it")
    page.get_by_role("button", name="Cancel: third").click()
    expect(rows).to_have_count(2)
    expect(page.locator("#queue")).to_be_hidden()
    expect(page.locator("#caption")).to_have_text("fourth")
    drawn = page.locator("#tiles button")
    expect(drawn.nth(0)).to_have_attribute("title", "fourth")
    expect(drawn.nth(1)).to_have_attribute("title", "second")
    expect(drawn.nth(2)).to_have_attribute("title", f"first {SLOW}")


def test_two_tabs_on_one_job(own_server: ServerProcess, visit: Visit) -> None:
    """A person's other tabs join the job, and so does another person's when asked; all see it
    end."""
    person = visit(own_server)
    first, second = person.open(), person.open()
    draw(first, "together slowly step=0.9")  # while three more tabs open
    expect(second.locator("#status")).to_contain_text(re.compile("Step [1-9] of 12"))
    third = person.open()
    expect(third.locator("#status")).to_contain_text(re.compile("Step [1-9] of 12"))
    stranger = visit(own_server).open()
    stranger.get_by_role("button", name=re.compile("^together")).click()
    expect(stranger.locator("#status")).to_contain_text(re.compile(r"Step \d+ of 12"))
    pages = (first, second, third, stranger)
    assert len({finished(page).get_attribute("src") for page in pages}) == 1
    assert all(len(seen(page)["bar"]) >= 2 for page in pages)


def test_a_tab_in_the_background(own_server: ServerProcess, visit: Visit) -> None:
    """It holds no connection, of which browsers have six for all tabs, and is up to date."""
    person = visit(own_server)
    page = person.open()
    draw(page, SLOW)
    expect(page.locator("#status")).to_contain_text(re.compile("Step [1-9] of 12"))
    page.evaluate("""
        Object.defineProperty(document, "hidden", {value: true});
        document.dispatchEvent(new Event("visibilitychange"));
    """)
    person.requests.clear()
    finished(page)
    asked = [request.url.removeprefix(own_server.url) for request in person.requests]
    assert any(path.startswith("/v1/jobs?status=queued") for path in asked)
    assert not any("/events" in path for path in asked)


def test_reload_in_the_middle(own_server: ServerProcess, visit: Visit) -> None:
    """The page finds its job again, and what was in the form."""
    page = visit(own_server).open()
    page.locator("#more summary").click()
    field(page, "Steps").fill("9")
    field(page, "Sampler").select_option("heun")
    field(page, "Wide").check()
    draw(page, SLOW)
    expect(page.locator("#status")).to_contain_text(re.compile("Step [1-4] of 9"))
    page.reload()
    expect(page.locator("#status")).to_contain_text(re.compile("Step [2-9] of 9"))
    expect(field(page, "Steps")).to_have_value("9")
    expect(field(page, "Sampler")).to_have_value("heun")
    expect(field(page, "Wide")).to_be_checked()
    picture = finished(page)
    assert picture.evaluate("image => image.naturalWidth / image.naturalHeight") > 1.3


@pytest.mark.parametrize("key", ["", KEY], ids=["open", "keyed"])
def test_a_restart_in_the_middle(
    tmp_path: Path, visit: Visit, key: str, request: pytest.FixtureRequest
) -> None:
    """The server dies and comes back: the page says so meanwhile, and the job goes on to its end,
    with a new token where there are keys."""
    settings: dict[str, Any] = {"engine": "fake", "port": free_port(), "api_keys": key}
    with running_server(tmp_path, **settings) as server:
        person = visit(server)
        person.excuse("ERR_", "status of 401", "status of 503")
        page = person.open()
        if key:
            field(page, "API key").fill(key)
            page.get_by_role("button", name="Use this key").click()
            expect(page.get_by_role("dialog")).to_be_hidden()
        draw(page, "patience step=0.4")
        expect(page.locator("#status")).to_contain_text(re.compile("Step [3-9] of 12"))
        server.stop(signal.SIGKILL)
        expect(page.locator("#notice")).to_contain_text("does not respond")
    with running_server(tmp_path, **settings):
        expect(page.locator("#notice")).to_be_empty()
        finished(page)
        assert max(seen(page)["bar"]) > 80
        page.close()


def test_a_server_that_is_down(tmp_path: Path, visit: Visit) -> None:
    """It is said in words as long as it is so, nothing is lost, and it goes on by itself."""
    settings: dict[str, Any] = {"engine": "fake", "port": free_port()}
    with running_server(tmp_path, **settings) as server:
        person = visit(server)
        person.excuse("ERR_", "status of 503")
        page = person.open()
        expect(page.locator("#gallery-empty")).to_be_visible()
    draw(page, "nobody hears this")
    expect(page.locator("#form-error")).to_have_text("The server does not respond.")
    with running_server(tmp_path, **settings):
        expect(page.locator("#notice")).to_be_empty()
        expect(page.locator("#form-error")).to_be_empty()
        draw(page, "somebody hears this")
        finished(page)
        page.close()


def test_a_failure_in_words(own_server: ServerProcess, visit: Visit) -> None:
    """What the engine says of a failure is on the stage, and the job in the gallery."""
    page = visit(own_server).open()
    draw(page, "no luck fail=2")
    expect(page.locator("#trouble")).to_contain_text("could not be drawn")
    expect(page.locator("#trouble-text")).to_have_text("The fake engine failed as requested.")
    expect(page.locator("#tiles button").first).to_contain_text("Failed")


def test_errors_stand_at_their_fields(own_server: ServerProcess, visit: Visit) -> None:
    """The page's own and the server's, each where it belongs, with the focus on it."""
    person = visit(own_server)
    person.excuse("status of 400")
    page = person.open()
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#prompt-error")).to_have_text("Say what the picture should show.")
    expect(field(page, "Prompt")).to_be_focused()
    field(page, "Pictures").fill("11")
    draw(page, "too many")
    expect(page.locator("#n-error")).to_have_text(f"A number from 1 to {MAX_IMAGES}.")
    field(page, "Pictures").fill("1")
    draw(page, "words " * 1000)
    expect(page.locator("#prompt-error")).to_contain_text("characters")
    prompt = field(page, "Prompt")
    expect(prompt).to_have_attribute("aria-invalid", "true")
    prompt.fill("short")
    expect(page.locator("#prompt-error")).to_be_empty()


def test_errors_go_with_their_causes(tmp_path: Path, visit: Visit) -> None:
    """A full queue is told until the form is edited or there is room again, and a list of models
    that could not be had until it is there."""
    with running_server(tmp_path, engine="fake", queue_images=1) as server:
        person = visit(server)
        person.excuse("status of 429", "status of 503")
        page = person.open()
        error = page.locator("#form-error")
        draw(page, "slowly step=0.2")
        expect(page.locator("#status")).to_contain_text("Step")
        draw(page, "waiting")
        expect(page.locator("#queue-list li")).to_have_count(1)
        draw(page, "one too many")
        expect(error).to_contain_text("waiting and this server holds 1")
        field(page, "Prompt").fill("another one too many")
        expect(error).to_be_empty()
        page.get_by_role("button", name="Generate").click()
        expect(error).to_contain_text("waiting and this server holds 1")
        expect(page.locator("#caption")).to_have_text("waiting")
        expect(error).to_be_empty()
        # The list of models is missing once, and is asked for again.
        busy = {"status": 503, "json": {"error": {"message": "Not now."}}}
        page.route("**/v1/models", lambda route: route.fulfill(**busy), times=1)
        page.reload()
        expect(page.locator("#model-error")).to_have_text("Not now.")
        expect(page.locator("#model")).to_have_value("embedded")
        expect(page.locator("#model-error")).to_be_empty()


# --- editing --------------------------------------------------------------------------------------


def scene(folder: Path) -> Path:
    """A picture to edit: a circle on a gradient, at the model's own size."""
    image = Image.linear_gradient("L").resize((SIDE, SIDE)).convert("RGB")
    ImageDraw.Draw(image).ellipse((30, 30, 98, 98), fill=(220, 30, 30))
    path = folder / "scene.png"
    image.save(path)
    return path


def stroke(page: Page, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Paint on the mask; places are shares of the image."""
    expect(page.locator("#mask")).to_be_visible()
    box = page.locator("#mask").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + start[0] * box["width"], box["y"] + start[1] * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + end[0] * box["width"], box["y"] + end[1] * box["height"], steps=10)
    page.mouse.up()


def changed(page: Page, original: Path) -> np.ndarray[Any, Any]:
    """Which pixels of the finished picture differ from the image it was made from."""
    drawn = np.asarray(opened(bytes_of(page, finished(page))).convert("RGB"), dtype=int)
    with Image.open(original) as image:
        return np.abs(drawn - np.asarray(image.convert("RGB"), dtype=int)).max(axis=2) > 0


def test_a_painted_mask(native_server: ServerProcess, visit: Visit, tmp_path: Path) -> None:
    """What is painted is drawn anew, what is erased or outside stays as it was, to the pixel."""
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
    page.get_by_role("button", name="Redraw").click()
    different = changed(page, original)
    assert different[56:72, 34:66].mean() > 0.5
    outside = np.ones_like(different)
    outside[54:74, 28:100] = False  # the stroke, with the brush's half width and a pixel more
    outside[:, 72:82] = True  # what was erased again
    assert not different[outside].any()


def test_an_image_without_a_mask(own_server: ServerProcess, visit: Visit, tmp_path: Path) -> None:
    """All of it is drawn anew, as far as the strength says; a pasted image works like a chosen
    one, and can be put away again."""
    page = visit(own_server).open()
    data = scene(tmp_path).read_bytes()
    hand_over(page, "paste", "body", data, "pasted.png")
    expect(page.locator("#source-name")).to_have_text("pasted.png")
    field(page, "Strength").fill("0.4")
    field(page, "Prompt").fill("softer")
    page.get_by_role("button", name="Redraw").click()
    finished(page)
    job = httpx2.get(f"{own_server.url}/v1/jobs?limit=1").json()["data"][0]
    assert job["operation"] == "edit"
    assert job["parameters"]["strength"] == 0.4
    page.get_by_role("button", name="Draw without this image").click()
    expect(page.get_by_role("button", name="Generate")).to_be_visible()


def test_a_mask_by_keys(own_server: ServerProcess, visit: Visit, tmp_path: Path) -> None:
    """Arrows move the brush, Space puts it down and lifts it, and the mask is where it went."""
    original = scene(tmp_path)
    page = visit(own_server).open()
    page.locator("#image-file").set_input_files(original)
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
    """Strokes and Clear are undone and redone by keys and buttons, up to the next stroke."""
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
    """A picture to edit of a size that no model generates."""
    image = Image.linear_gradient("L").resize((250, 170)).convert("RGB")
    ImageDraw.Draw(image).ellipse((60, 30, 160, 130), fill=(220, 30, 30))
    path = folder / "photo.png"
    image.save(path)
    return path


def test_only_the_masked_part(own_server: ServerProcess, visit: Visit, tmp_path: Path) -> None:
    """The switch beside the mask: the picture keeps its size, and the code has the two options."""
    original = photo(tmp_path)
    page = visit(own_server).open()
    page.locator("#image-file").set_input_files(original)
    switch, padding = field(page, "Only masked"), field(page, "Padding")
    expect(switch).to_be_disabled()
    stroke(page, (0.4, 0.5), (0.6, 0.5))
    expect(padding).to_be_disabled()
    switch.check()
    expect(page.locator("#size-hint")).to_contain_text("The part")
    padding.fill("9999")
    field(page, "Prompt").fill("a yellow star")
    page.get_by_role("button", name="Redraw").click()
    expect(page.locator("#form-error")).to_have_text("A number from 0 to 4096.")
    padding.fill("16")
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOTS / "only-masked.png")
    expect(page.locator("#snippet-text")).to_contain_text("only_masked_padding=16")
    page.get_by_role("button", name="Redraw").click()
    different = changed(page, original)
    assert different.shape == (170, 250)
    assert different[78:92, 100:150].mean() > 0.5
    outside = np.ones_like(different)
    outside[72:98, 87:163] = False
    assert not different[outside].any()
    job = newest(own_server)["parameters"]
    assert (job["only_masked"], job["only_masked_padding"], job["size"]) == (True, 16, "128x128")
    # The settings of the picture bring the two back.
    page.get_by_role("button", name="Canvas").click()
    switch.uncheck()
    page.get_by_role("button", name="Picture", exact=True).click()
    page.get_by_role("button", name="Use these settings").click()
    page.get_by_role("button", name="Canvas").click()
    expect(switch).to_be_checked()
    page.get_by_role("button", name="Redraw").click()
    assert changed(page, original).shape == (170, 250)


def drag(page: Page, handle: str, dx: float, dy: float) -> None:
    """Draw a handle of the border with the mouse, in pixels of the screen."""
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
    """Drawn out at the edges; the picture gets larger and keeps what it had, to the pixel."""
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
    # Taken away, brought back by the settings of the picture, and gone with another image.
    page.get_by_role("button", name="Canvas").click()
    page.get_by_role("button", name="No border").click()
    expect(page.locator("#border-size")).to_have_text("none")
    expect(page.get_by_role("button", name="Redraw")).to_be_visible()
    page.get_by_role("button", name="Picture", exact=True).click()
    page.get_by_role("button", name="Use these settings").click()
    page.get_by_role("button", name="Canvas").click()
    expect(page.locator("#border-size")).to_have_text("298 × 226")
    page.locator("#image-file").set_input_files(original)
    expect(page.locator("#border-size")).to_have_text("none")
    # With a mask both are painted, and nothing else.
    top.focus()
    page.keyboard.press("ArrowUp")
    stroke(page, (0.4, 0.5), (0.6, 0.5))
    page.get_by_role("button", name="Redraw").click()
    drawn = np.asarray(opened(bytes_of(page, finished(page))).convert("RGB"))
    assert drawn.shape == (178, 250, 3)
    with Image.open(original) as image:
        different = (drawn[8:] != np.asarray(image.convert("RGB"))).any(axis=2)
    assert different[80:90, 105:145].mean() > 0.5
    assert not different[:70].any()
    assert not different[100:].any()


def test_a_border_by_touch(own_server: ServerProcess, visit: Visit, tmp_path: Path) -> None:
    """A finger draws it out, and the page does not scroll meanwhile; nothing is cut off."""
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

    scrolled = page.evaluate("scrollY")
    touch("touchStart", (x, y))
    for part in range(1, 9):
        touch("touchMove", (x, y + 40 * scale * part / 8))
    touch("touchEnd")
    expect(handle).to_have_attribute("aria-valuenow", "40")
    assert page.evaluate("scrollY") == scrolled
    page.screenshot(path=SCREENSHOTS / "border-narrow.png")
    assert page.evaluate("document.documentElement.scrollWidth") == 360


# --- finished pictures ----------------------------------------------------------------------------


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


FURTHER: dict[str, Any] = {
    "prompt": "FURTHER", "size": "128x128", "seed": 2**60 + 1, "sampler": "euler_a", "eta": 0.5,
    "flow_shift": 2.5, "vae_tiling": True, "cache_mode": "easycache", "hires_scale": 2,
    "cache_options": {"threshold": 0.3}, "slg_scale": 2.5, "slg_layers": [1, 2],
    "lora": [{"id": "shapes", "scale": 0.8}], "upscaler": "twice", "hires_upscaler": "lanczos",
}  # fmt: skip


def newest(server: ServerProcess) -> dict[str, Any]:
    """The job that was asked for last."""
    job: dict[str, Any] = httpx2.get(f"{server.url}/v1/jobs?limit=1").json()["data"][0]
    return job


def redrawn(server: ServerProcess, page: Page) -> dict[str, Any]:
    """The parameters of the picture that the form asks for now."""
    before = newest(server)["id"]
    page.get_by_role("button", name=re.compile("Generate|Redraw")).click()
    wait_until(lambda: newest(server)["id"] != before, 30, "no job came")
    found: dict[str, Any] = newest(server)["parameters"]
    return found


def test_options_without_a_field(own_server: ServerProcess, visit: Visit) -> None:
    """A picture's further options are shown, kept with the form, sent along, and can be dropped;
    the size is the picture's."""
    drawn = wait_for(own_server, begin(own_server, FURTHER)["id"], "completed")["parameters"]
    page = visit(own_server).open()
    page.locator("#tiles button").first.click()
    facts = page.locator("#viewer-facts")
    expect(facts).to_contain_text("Size512 × 512Before enlarging128 × 128")
    expect(facts).to_contain_text("LoRAshapes 0.8")
    expect(facts).to_contain_text("SLG layers1, 2")
    expect(facts).to_contain_text("Cache optionsthreshold 0.3")
    expect(facts).to_contain_text("Hires scale2")
    page.get_by_role("dialog").get_by_role("button", name="Use these settings").click()
    expect(page.locator("#notice")).to_have_text("The settings of this picture are in the form.")
    line = page.locator("#further")
    expect(line).to_contain_text("flow_shift 2.5 · ")
    expect(line).to_contain_text("lora shapes 0.8")
    assert redrawn(own_server, page) == drawn
    page.reload()
    expect(line).to_contain_text("hires_scale 2")
    expect(page.locator("#snippet-text")).to_contain_text('"hires_scale": 2')
    page.get_by_role("button", name="Draw without these options").click()
    expect(page.locator("#more summary")).to_be_focused()
    expect(line).to_be_hidden()
    assert "hires_scale" not in redrawn(own_server, page)


def test_settings_on_a_phone(own_server: ServerProcess, visit: Visit) -> None:
    """Who takes settings out of the gallery, far below, is brought to the form."""
    wait_for(own_server, begin(own_server, {"prompt": "POCKET"})["id"], "completed")
    small = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}
    page = visit(own_server, **small).open()
    page.locator("#tiles button").first.click()
    page.get_by_role("dialog").get_by_role("button", name="Use these settings").click()
    expect(page.locator("#notice")).to_be_in_viewport()
    expect(field(page, "Prompt")).to_be_in_viewport()


def test_a_seed_fits_its_field(own_server: ServerProcess, visit: Visit) -> None:
    """All digits of a random one can be read, also where the form is narrow."""
    page = visit(own_server, viewport={"width": 1024, "height": 768}).open()
    field(page, "Seed").fill(str(2**53 - 1))
    assert field(page, "Seed").evaluate("seed => seed.scrollWidth <= seed.clientWidth")


def test_noise_levels_without_a_field(own_server: ServerProcess, visit: Visit) -> None:
    """They stand in place of steps and schedule, until one of these is set."""
    body = {"prompt": "LEVELS", "sigmas": [1.0, 0.6, 0.2, 0.0]}
    drawn = wait_for(own_server, begin(own_server, body)["id"], "completed")["parameters"]
    page = visit(own_server).open()
    page.locator("#tiles button").first.click()
    page.get_by_role("dialog").get_by_role("button", name="Use these settings").click()
    expect(page.locator("#further")).to_have_text("sigmas 1, 0.6, 0.2, 0")
    assert redrawn(own_server, page) == drawn
    page.locator("#more summary").click()
    field(page, "Steps").fill("5")
    expect(page.locator("#further")).to_be_hidden()
    assert redrawn(own_server, page)["sample_steps"] == 5


def test_what_settings_do_not_hold(own_server: ServerProcess, visit: Visit, tmp_path: Path) -> None:
    """Pictures that a picture was made from are missed by name, and so is what no form can say;
    options that the model does not take are told beside them."""
    person = visit(own_server)
    person.excuse("status of 400")
    page = person.open()
    image = {"image": ("scene.png", scene(tmp_path).read_bytes())}
    lora = '[{"id": "shapes", "scale": 0.5}]'
    fields = {"prompt": "MADE", "strength": "0.5", "fit": "pad", "lora": lora}
    edits = f"{own_server.url}/v1/images/edits"
    drawn = httpx2.post(edits, files=image, data=fields).json()["parameters"]
    page.reload()
    page.locator("#tiles button").first.click()
    reuse = page.get_by_role("dialog").get_by_role("button", name="Use these settings")
    reuse.click()
    expect(page.locator("#notice")).to_have_text(
        "The settings of this picture are in the form, but not the image that it was made from."
    )
    expect(page.locator("#further")).to_have_text("lora shapes 0.5")
    page.locator("#image-file").set_input_files(scene(tmp_path))
    expect(page.locator("#source")).to_be_visible()
    page.locator("#tiles button").first.click()
    reuse.click()
    expect(page.locator("#further")).to_have_text("fit pad · lora shapes 0.5")
    assert redrawn(own_server, page) == drawn
    page.get_by_role("button", name="Draw without this image").click()
    text = (
        "MADE\nSteps: 4, Clip skip: 2, Denoising strength: 0.5, ControlNet weight: 1, Eta: much, "
        "Mask blur: 4, Distilled CFG Scale: 3, ENSD: 1, Model hash: ab, Version: 1"
    )
    hand_over(page, "drop", "#drop-read", with_parameters(text), "theirs.png")
    expect(page.locator("#notice")).to_have_text(
        "The settings inside the picture are in the form, but not the distilled guidance, the "
        "image that it was made from, its control picture, its mask, Eta and ENSD."
    )
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#further-error")).to_contain_text("'clip_skip' would have no effect")
    page.get_by_role("button", name="Draw without these options").click()
    expect(page.locator("#further-error")).to_be_empty()


def with_parameters(text: str) -> bytes:
    """A picture with a text inside, as AUTOMATIC1111 writes them."""
    chunk = PngInfo()
    chunk.add_text("parameters", text)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=chunk)
    return file.getvalue()


def test_further_options_out_of_a_file(own_server: ServerProcess, visit: Visit) -> None:
    """All that shaped a picture of ours is read from its file, and draws it again."""
    job = wait_for(own_server, begin(own_server, FURTHER)["id"], "completed")
    data = httpx2.get(job["images"][0]["url"]).content
    page = visit(own_server).open()
    hand_over(page, "drop", "#drop-read", data, "ours.png")
    drawn = job["parameters"]
    assert drawn.pop("vae_tiling")  # which changes nothing that can be seen
    again = redrawn(own_server, page)
    assert again == drawn
    levels = {"prompt": "LEVELS", "sigmas": [1.0, 0.5, 0.0]}
    job = wait_for(own_server, begin(own_server, levels)["id"], "completed")
    data = httpx2.get(job["images"][0]["url"]).content
    hand_over(page, "drop", "#drop-read", data, "ours.png")
    expect(field(page, "Prompt")).to_have_value("LEVELS")
    assert redrawn(own_server, page) == job["parameters"]


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


def hand_over(page: Page, how: str, target: str, data: bytes, name: str) -> None:
    """Drop or paste a file, as the browser would tell the page of it."""
    page.evaluate(
        """([how, target, data, name]) => {
            const transfer = new DataTransfer();
            const bytes = Uint8Array.from(data);
            transfer.items.add(new File([bytes], name, {type: "image/" + name.split(".").pop()}));
            const fire = (type, at) => document.querySelector(at).dispatchEvent(
                type === "paste"
                    ? new ClipboardEvent(type, {bubbles: true, clipboardData: transfer})
                    : new DragEvent(type, {bubbles: true, dataTransfer: transfer}));
            if (how === "drop") { fire("dragenter", "body"); fire("dragover", target); }
            fire(how, target);
        }""",
        [how, target, list(data), name],
    )


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("prompt", ["plain", "Größe, a 猫\nof: two lines"])
def test_settings_out_of_a_file(
    own_server: ServerProcess, visit: Visit, kind: str, prompt: str
) -> None:
    """A picture of ours that is dropped onto the page tells what it was drawn with."""
    body = {
        "prompt": prompt, "negative_prompt": "dull, grey", "steps": 7, "cfg_scale": 4.5,
        "sampler": "dpm++2m", "schedule": "karras", "seed": 2**62 + 1, "size": "80x64",
        "output_format": kind,
    }  # fmt: skip
    job = wait_for(own_server, begin(own_server, body)["id"], "completed")
    data = httpx2.get(job["images"][0]["url"]).content
    page = visit(own_server).open()
    hand_over(page, "drop", "#drop-read", data, f"ours.{kind}")
    expect(page.locator("#notice")).to_contain_text("are in the form")
    page.locator("#more summary").click()
    for label, value in {
        "Prompt": prompt, "Negative prompt": "dull, grey", "Steps": "7", "CFG scale": "4.5",
        "Sampler": "dpm++2m", "Schedule": "karras", "Seed": str(2**62 + 1), "Width": "80",
        "Height": "64",
    }.items():  # fmt: skip
        expect(field(page, label)).to_have_value(value)


def test_a_file_without_settings(own_server: ServerProcess, visit: Visit, tmp_path: Path) -> None:
    """Somebody else's picture, or none at all, is no fault."""
    person = visit(own_server)
    person.excuse("status of 400")
    page = person.open()
    for data in (
        scene(tmp_path).read_bytes(),
        b"\x89PNG\r\n\x1a\nbroken",
        b"",
        b"\xff\xd8\xff\xe1",
    ):
        hand_over(page, "drop", "#drop-read", data, "theirs.png")
        expect(page.locator("#notice")).to_have_text("There are no settings inside this file.")
    hand_over(page, "drop", "#drop-edit", b"no image", "broken.png")
    expect(page.locator("#image-error")).to_contain_text("not an image")


# --- the key --------------------------------------------------------------------------------------


def test_the_key(keyed_server: ServerProcess, visit: Visit) -> None:
    """It is asked for, tried, kept for the tab, and in no address; pictures come with a token."""
    person = visit(keyed_server)
    person.excuse("status of 401")
    page = person.open()
    dialog = page.get_by_role("dialog")
    accessible(page)()
    field(page, "API key").fill("a wrong key")
    page.keyboard.press("Enter")
    expect(page.locator("#key-error")).to_have_text("The server does not take this key.")
    field(page, "API key").fill(KEY)
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    draw(page, "with a key")
    picture = finished(page)
    assert picture.evaluate("image => image.naturalWidth") == SIDE
    expect(page.locator("#snippet-text")).to_contain_text("$SDSTREAM_CLIENT_KEY")
    assert KEY not in str(page.locator("#snippet-text").text_content())
    page.reload()
    expect(page.locator("#tiles img").first).to_be_visible()
    expect(dialog).to_be_hidden()
    assert not any(KEY in request.url for request in person.requests)
    assert any("token=" in request.url for request in person.requests)
    assert page.evaluate("Object.values(localStorage).join()").find(KEY) == -1
    other_tab = person.open()
    expect(other_tab.get_by_role("dialog")).to_be_visible()


def test_remembering_and_forgetting_the_key(keyed_server: ServerProcess, visit: Visit) -> None:
    """Ticked, the key is there in the next tab, until it is forgotten."""
    person = visit(keyed_server)
    person.excuse("status of 401")
    page = person.open()
    page.keyboard.press("Escape")
    expect(page.locator("#notice")).to_have_text("This server asks for an API key.")
    page.get_by_role("button", name="API key").click()
    field(page, "API key").fill(KEY)
    field(page, "Remember it in this browser").check()
    page.get_by_role("button", name="Use this key").click()
    expect(page.locator("#model")).to_have_value("embedded")
    page.close()
    page = person.open()
    expect(page.locator("#model")).to_have_value("embedded")
    page.get_by_role("button", name="API key").click()
    page.get_by_role("button", name="Forget the key").click()
    page.reload()
    expect(page.get_by_role("dialog")).to_be_visible()


# --- keyboard, code, looks ------------------------------------------------------------------------


def test_by_keyboard_alone(own_server: ServerProcess, visit: Visit) -> None:
    """From the prompt through the settings to a picture, its large view and back, without a
    pointer; the focus is always somewhere and to be seen."""
    page = visit(own_server).open()
    expect(field(page, "Prompt")).to_be_focused()
    page.keyboard.type("by hand")
    passed = []
    while "generate" not in passed:
        page.keyboard.press("Tab")
        focus = page.locator(":focus")
        expect(focus).to_have_count(1)
        assert focus.evaluate("element => element.matches(':focus-visible')")
        passed.append(focus.get_attribute("id") or focus.get_attribute("name"))
    wanted = ["negative_prompt", "choose-image", "model", "shape", "n", "seed", "seed-random"]
    assert [name for name in passed if name in wanted] == wanted
    page.keyboard.press("Enter")
    finished(page)
    page.locator("#tiles button").first.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.locator("#tiles button").first).to_be_focused()


def run_snippet(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("edits", [False, True], ids=["generation", "edit"])
def test_the_code_runs(
    own_server: ServerProcess, visit: Visit, tmp_path: Path, edits: bool
) -> None:
    """The curl line and the Python program draw what the form would, quotes and all, with options
    that have no field, without a number of pictures, and by a seed with more digits than a number
    of JavaScript has."""
    page = visit(own_server).open()
    options: dict[str, Any] = {name: FURTHER[name] for name in OF_ALL_PICTURES}
    page.evaluate("options => localStorage.setItem('sdstream.settings', options)", dumps(options))
    page.reload()
    expect(page.locator("#further")).to_contain_text("lora shapes 0.8")
    field(page, "Pictures").fill("")
    field(page, "Seed").fill("09007199254740993")
    field(page, "Prompt").fill('it\'s "quoted" @here\n$HOME `x` 猫')
    page.locator("#code summary").click()
    if edits:
        image = scene(tmp_path).rename(tmp_path / "image.png")
        page.locator("#image-file").set_input_files(image)
        stroke(page, (0.3, 0.5), (0.7, 0.5))
        with page.expect_download() as download:
            page.get_by_role("button", name="Save mask.png").click()
        download.value.save_as(tmp_path / "mask.png")
    run_snippet(["sh", "-c", str(page.locator("#snippet-text").text_content())], tmp_path)
    page.get_by_role("tab", name="curl").press("ArrowRight")
    run_snippet([sys.executable, "-c", str(page.locator("#snippet-text").text_content())], tmp_path)
    first, second = ((tmp_path / name).read_bytes() for name in ("picture.png", "picture-0.png"))
    assert opened(first).tobytes() == opened(second).tobytes()
    listed = httpx2.get(f"{own_server.url}/v1/jobs?limit=2").json()["data"]
    for job in listed:
        assert job["parameters"]["prompt"] == 'it\'s "quoted" @here\n$HOME `x` 猫'
        assert job["parameters"]["seed"] == 9007199254740993
        assert job["parameters"]["n"] == 1
        assert {name: job["parameters"][name] for name in options} == options


OF_ALL_PICTURES = ("vae_tiling", "cache_mode", "cache_options", "slg_scale", "slg_layers", "lora")


@pytest.mark.parametrize("edits", [False, True], ids=["generation", "edit"])
def test_the_javascript_runs(
    own_server: ServerProcess, visit: Visit, tmp_path: Path, edits: bool
) -> None:
    """The EventSource program, in a browser."""
    page = visit(own_server).open()
    options: dict[str, Any] = {name: FURTHER[name] for name in OF_ALL_PICTURES}
    page.evaluate("options => localStorage.setItem('sdstream.settings', options)", dumps(options))
    page.reload()
    field(page, "Prompt").fill("in JavaScript")
    field(page, "Seed").fill("9007199254740993")
    if edits:
        page.locator("#image-file").set_input_files(scene(tmp_path))
        expect(page.locator("#mask")).to_be_visible()
        page.evaluate(
            """() => new Promise((made) => {
                const keep = (blob) => made((window.imageFile = blob) !== null);
                document.querySelector('#mask').toBlob(keep);
            })"""
        )
    page.locator("#code summary").click()
    page.get_by_role("tab", name="JavaScript").click()
    program = str(page.locator("#snippet-text").text_content())
    page.evaluate(f"(async () => {{ {program} }})()")
    picture = page.locator("body > img")
    expect(picture).to_be_attached()
    expect(picture).not_to_have_js_property("naturalWidth", 0)
    drawn = newest(own_server)["parameters"]
    assert drawn["seed"] == 9007199254740993
    assert {name: drawn[name] for name in options} == options


def test_one_line_in_the_console(own_server: ServerProcess, visit: Visit) -> None:
    """An EventSource shows progress to the end, makes one job, and then stays quiet."""
    page = visit(own_server).open()
    before = own_server.metric("sdstream_accepted_jobs_total")
    heard = page.evaluate(
        """() => new Promise((resolve) => {
            const path = '/v1/images/generations?prompt=step%3D0.05+a+red+circle';
            const events = new EventSource(path);
            const heard = [];
            for (const name of ['queued', 'progress', 'image', 'completed', 'failed'])
                events.addEventListener(name, (e) => heard.push([name, JSON.parse(e.data)]));
            events.onerror = () => { if (events.readyState === 2) resolve(heard); };
        })"""
    )
    names = [name for name, _ in heard]
    assert names[-2:] == ["image", "completed"]
    assert names.count("progress") > 3
    shares = [data["progress"] for name, data in heard if "progress" in data]
    assert shares == sorted(shares)
    assert shares[-1] == 100
    assert own_server.metric("sdstream_accepted_jobs_total") == before + 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessible(native_server: ServerProcess, visit: Visit, scheme: str) -> None:
    """axe finds nothing to complain about: empty, drawn, editing, and with dialogs open."""
    page = visit(native_server, color_scheme=scheme, reduced_motion="reduce").open()
    check = accessible(page)
    check()
    page.locator("#more summary").click()
    page.locator("#code summary").click()
    draw(page, "a sunset over the sea")
    finished(page)
    check()
    page.locator("#enlarge").click()
    check()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Edit this image").click()
    expect(page.locator("#mask")).to_be_visible()
    check()


def accessible(page: Page) -> Callable[[], None]:
    """A check of the whole page as it is now."""
    axe = Axe()

    def check() -> None:
        found = axe.run(page)
        assert found.violations_count == 0, found.generate_report()

    return check


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("light", {"color_scheme": "light"}),
        ("dark", {"color_scheme": "dark"}),
        ("middle", {"viewport": {"width": 1024, "height": 768}}),
        (
            "narrow",
            {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True},
        ),
    ],
)
def test_looks(
    native_server: ServerProcess, visit: Visit, name: str, options: dict[str, Any]
) -> None:
    """Nothing is wider than the window, and the theme is the system's until it is switched; the
    pictures are left in tests/screenshots."""
    page = visit(native_server, **options).open()
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}-empty.png")
    draw(page, "three yellow stars")
    finished(page)
    page.screenshot(path=SCREENSHOTS / f"{name}-drawn.png")
    page.get_by_role("button", name="Edit this image").click()
    stroke(page, (0.3, 0.3), (0.7, 0.6))
    page.screenshot(path=SCREENSHOTS / f"{name}-edit.png")
    width = options.get("viewport", {"width": 1440})["width"]
    assert page.evaluate("document.documentElement.scrollWidth") == width
    ground = page.locator("body").evaluate("body => getComputedStyle(body).backgroundColor")
    switch = page.get_by_role("button", name="Theme")
    wanted = "light" if options.get("color_scheme") == "dark" else "dark"
    while switch.text_content() is not None and wanted not in str(switch.text_content()):
        switch.click()
    other = page.locator("body").evaluate("body => getComputedStyle(body).backgroundColor")
    assert other != ground
    page.reload()
    expect(page.locator("html")).to_have_attribute("data-theme", wanted)


# --- without a browser ----------------------------------------------------------------------------


def test_how_the_page_is_served(keyed_server: ServerProcess) -> None:
    """To anybody, with headers that bind the browser, fresh after an upgrade, and nothing else of
    the package."""
    page = httpx2.get(f"{keyed_server.url}/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["cache-control"] == "no-cache"
    same = {"If-None-Match": page.headers["etag"]}
    assert httpx2.get(f"{keyed_server.url}/", headers=same).status_code == 304
    for name in re.findall(r'(?:src|href)="(static/[^"]+)"', page.text):
        part = httpx2.get(f"{keyed_server.url}/{name}")
        assert part.status_code == 200
        assert part.headers["content-security-policy"] == policy
        assert re.match("text/(java|css)|image/svg", part.headers["content-type"])
    assert httpx2.post(f"{keyed_server.url}/").status_code == 405
    assert httpx2.get(f"{keyed_server.url}/static/").status_code in (401, 404)


@pytest.mark.parametrize("path", ["../page.py", "..%2fpage.py", "%2e%2e/page.py", "/etc/passwd"])
def test_nothing_outside_of_the_folder(fake_server: ServerProcess, path: str) -> None:
    """Whatever way the path is written; the request is made raw, since clients tidy paths up."""
    connection = http.client.HTTPConnection(*fake_server.address, timeout=20)
    connection.request("GET", f"/static/{path}")
    assert connection.getresponse().status == 404
    connection.close()


def test_the_bounds_of_the_form() -> None:
    """They are the API's."""
    text = (Path(__file__).parents[2] / "app/sdstream/web/static/index.html").read_text()

    def most(name: str) -> float:
        field = re.search(rf'<input[^>]*id="{name}"[^>]*>', text)
        assert field is not None
        bound = re.search(r'max="([\d.]+)"', field[0])
        assert bound is not None
        return float(bound[1])

    assert most("n") == MAX_IMAGES
    assert most("sample_steps") == MAX_STEPS
    assert most("cfg_scale") == most("guidance") == 30
    assert most("strength") == 1
