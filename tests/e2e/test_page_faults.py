"""The web page in a real browser: faults, the queue, machines, and next steps."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Page, Route, expect

from tests.support.browser import SCREENSHOTS
from tests.support.jobs import begin, wait_for
from tests.support.machines import MACHINE
from tests.support.page import PHONE, SLOW, Visit, accessible, draw, field, finished, scene
from tests.support.servers import ServerProcess, free_port, running_server, wait_until

#: The longest value of each number field.
LONGEST = {
    "strength": "0.75", "sample_steps": "150", "cfg_scale": "12.75", "n": "10", "width": "4096",
    "height": "4096", "only_masked_padding": "4096", "seed": str(2**53 - 1),
}  # fmt: skip

MODELS = """
default: embedded
models:
  - id: embedded
    family: ovis_image
    files: {model: "builtin:drawings"}
    runtime: {tae: true, preview: decode}
    size: {min: 64, max: 512}
    defaults: {size: 128x128, steps: 4}
  - id: larger
    family: ovis_image
    files: {model: "builtin:drawings"}
    runtime: {tae: true, preview: decode}
    size: {min: 64, max: 512}
    defaults: {size: 128x128, steps: 4}
"""


#: tests/integration/test_cluster.py compares the fields of MACHINE with those of a cluster.
LACK = "The machine lacks files: /models/large.safetensors."
IDLE: dict[str, Any] = {**MACHINE, "name": "127.0.0.4", "free_slots": 2, "workers": []}
SHUNNED = {**IDLE, "name": "127.0.0.5", "state": "shunned", "reason": LACK, "free_slots": 0}
LOST = {**IDLE, "state": "lost", "reason": "It became unreachable.", "free_slots": 0}


def bottom_of(page: Page) -> float:
    """Distance from the top of the window to the lower edge of the focused element, in pixels."""
    edge: float = page.evaluate("document.activeElement.getBoundingClientRect().bottom")
    return edge


def clipped(page: Page, name: str) -> float:
    """Pixels by which a field is too narrow for its value; negative if the value fits."""
    over: float = page.locator(f"#{name}").evaluate(
        """field => {
            const style = getComputedStyle(field);
            const pen = document.createElement("canvas").getContext("2d");
            pen.font = style.font;
            const room = field.clientWidth
                - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
            return pen.measureText(field.value).width - room;
        }"""
    )
    return over


@pytest.mark.parametrize("width", [360, 800, 1024, 1440])
def test_fields_show_all_digits(
    own_server: ServerProcess, visit: Visit, tmp_path: Path, width: int
) -> None:
    """Every number is completely visible at every width of the window."""
    page = visit(own_server, viewport={"width": width, "height": 800}).open()
    page.locator("#image-file").set_input_files(scene(tmp_path))
    page.locator("#more summary").click()
    field(page, "Free").check()
    for name, value in LONGEST.items():
        page.locator(f"#{name}").evaluate("(field, value) => { field.value = value; }", value)
        assert clipped(page, name) < 0, name


def test_a_dead_server_is_seen_at_once(tmp_path: Path, visit: Visit) -> None:
    """The stage shows that the server is offline; after a restart the job continues
    automatically."""
    settings: dict[str, Any] = {"engine": "fake", "port": free_port()}
    with running_server(tmp_path, **settings) as server:
        person = visit(server)
        person.excuse("ERR_", "status of 503")
        page = person.open()
        draw(page, "patience step=0.4")
        expect(page.locator("#status")).to_contain_text(re.compile("Step [2-9] of 12"))
        server.stop(signal.SIGKILL)
        expect(page.locator("#offline")).to_be_visible(timeout=5_000)
        expect(page.locator("#status")).to_have_text("Waiting for the server")
        accessible(page)()
        page.screenshot(path=SCREENSHOTS / "offline.png")
    with running_server(tmp_path, **settings):
        expect(page.locator("#offline")).to_be_hidden()
        finished(page)
        # The page asks a server without a cluster for its machines only once.
        assert len([one for one in person.requests if one.url.endswith("/v1/cluster")]) == 1
        expect(page.locator("#open-cluster")).to_be_hidden()
        page.close()


def test_an_idle_page_notices_too(tmp_path: Path, visit: Visit) -> None:
    """A page without a job polls the server and shows when it is offline."""
    with running_server(tmp_path, engine="fake") as server:
        person = visit(server)
        person.excuse("ERR_")
        page = person.open()
        server.stop(signal.SIGKILL)
        expect(page.locator("#offline")).to_be_visible(timeout=30_000)
        page.close()


def test_a_page_without_models(own_server: ServerProcess, visit: Visit) -> None:
    """The form explains why there are no models and what to do. The focus stays where the user
    types, and no request is repeated in a loop."""
    person = visit(own_server)
    person.excuse("status of 503", "ERR_FAILED")
    page = person.tab()
    models = "**/v1/models"
    page.route(models, lambda route: route.fulfill(json={"object": "list", "data": []}))
    page.goto(own_server.url)
    problem = page.locator("#model-error")
    expect(problem).to_contain_text("has no models. Download one with ‘sdstream pull’")
    expect(field(page, "Prompt")).to_be_focused()
    draw(page, "no model")
    expect(field(page, "Model")).to_be_focused()
    page.wait_for_timeout(300)
    assert len([one for one in person.requests if one.url.endswith("/v1/models")]) == 2
    page.route(models, lambda route: route.fulfill(status=503))
    page.reload()
    expect(problem).to_contain_text("The server answered 503. This page retries by itself")
    expect(field(page, "Prompt")).to_be_focused()
    page.route(models, lambda route: route.abort())
    draw(page, "no server")
    expect(page.locator("#form-error")).to_contain_text("Try again when it is back.")
    page.unroute(models)
    expect(page.locator("#form-error")).to_be_empty()
    draw(page, "a model")
    finished(page)
    expect(problem).to_be_empty()


def test_a_slow_upload(own_server: ServerProcess, visit: Visit, tmp_path: Path) -> None:
    """The button shows that the request is being sent; until then, further presses are ignored."""
    person = visit(own_server)
    page = person.open()
    page.locator("#image-file").set_input_files(scene(tmp_path))
    expect(page.locator("#mask")).to_be_visible()
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/v1/images/edits", hold)
    field(page, "Prompt").fill("over a slow line")
    button = page.locator("#generate")
    button.click()
    expect(button).to_contain_text("Sending…")
    expect(button).to_have_attribute("aria-disabled", "true")
    page.keyboard.press("Enter")
    page.keyboard.press("Control+Enter")
    held[0].continue_()
    expect(button).to_contain_text("Edit image")
    expect(page.locator("#caption")).to_have_text("over a slow line")
    assert len(held) == 1


def test_what_to_do_next(own_server: ServerProcess, visit: Visit) -> None:
    """A failure suggests the next step, and one click takes it."""
    page = visit(own_server).open()
    draw(page, "no luck crash=1")
    expect(page.locator("#trouble-text")).not_to_be_empty()
    expect(page.locator("#trouble-next")).to_contain_text("generate again")
    before = httpx2.get(f"{own_server.url}/v1/jobs?limit=1").json()["first_id"]
    page.get_by_role("button", name="Generate again").click()
    expect(page.locator("#stage")).to_be_focused()
    expect(page.locator("#work")).to_be_visible()
    wait_for(
        own_server, httpx2.get(f"{own_server.url}/v1/jobs?limit=1").json()["first_id"], "failed"
    )
    assert httpx2.get(f"{own_server.url}/v1/jobs?limit=1").json()["first_id"] != before


def test_the_same_job_again(own_server: ServerProcess, visit: Visit, tmp_path: Path) -> None:
    """The button "Generate again" repeats the request of the failed job, with its images only."""
    page = visit(own_server).open()
    again = page.get_by_role("button", name="Generate again")
    draw(page, "without an image fail=1")
    expect(again).to_be_visible()
    page.locator("#image-file").set_input_files(scene(tmp_path))
    expect(page.locator("#mask")).to_be_visible()
    page.get_by_role("button", name="Image", exact=True).click()
    with page.expect_request("**/v1/images/*") as request:
        again.click()
    assert request.value.url.endswith("/v1/images/generations")
    expect(page.locator("#source")).to_be_hidden()
    expect(again).to_be_visible()
    page.locator("#image-file").set_input_files(scene(tmp_path))
    field(page, "Prompt").fill("with an image fail=1")
    page.get_by_role("button", name="Edit image").click()
    expect(page.locator("#caption")).to_have_text("with an image fail=1")
    page.get_by_role("button", name="Image", exact=True).click()
    expect(again).to_be_visible()
    page.locator("#remove-image").click()
    with page.expect_request("**/v1/images/*") as request:
        again.click()
    assert request.value.url.endswith("/v1/images/edits")


def test_a_job_whose_image_is_gone(own_server: ServerProcess, visit: Visit, tmp_path: Path) -> None:
    """The button "Generate again" generates nothing if an image of the request cannot be loaded; a
    notice says what is missing."""
    person = visit(own_server)
    person.excuse("status of 404")
    page = person.open()
    page.locator("#image-file").set_input_files(scene(tmp_path))
    field(page, "Prompt").fill("with a lost image fail=1")
    page.get_by_role("button", name="Edit image").click()
    page.get_by_role("button", name="Image", exact=True).click()
    again = page.get_by_role("button", name="Generate again")
    expect(again).to_be_visible()
    page.route("**/inputs/**", lambda route: route.fulfill(status=404, json={}))
    asked = len(person.requests)
    again.click()
    expect(page.locator("#notice")).to_contain_text("except for the image to edit")
    page.wait_for_timeout(500)
    assert [one.url for one in person.requests[asked:] if one.method == "POST"] == []


def test_the_whole_queue(own_server: ServerProcess, visit: Visit) -> None:
    """All queued jobs are listed with their number, and one click cancels all of them."""
    page = visit(own_server).open()
    draw(page, f"first {SLOW}")
    for number in range(24):
        begin(own_server, {"prompt": f"waiting {number} step=3"})
    page.reload()
    expect(page.locator("#queue-title")).to_have_text("Queue (24)")
    expect(page.locator("#queue-list li")).to_have_count(24)
    page.screenshot(path=SCREENSHOTS / "queue.png")
    accessible(page)()
    page.get_by_role("button", name="Cancel all").press("Enter")
    expect(page.locator("#queue")).to_be_hidden()
    expect(page.locator("#stage")).to_be_focused()
    listed = httpx2.get(f"{own_server.url}/v1/jobs?limit=100&q=waiting").json()["data"]
    assert {job["status"] for job in listed} == {"cancelled"}


def test_words_that_the_model_does_not_know(tmp_path: Path, visit: Visit) -> None:
    """Unknown words are shown beside the image, with models that may know them."""
    (tmp_path / "models.yaml").write_text(MODELS)
    with running_server(tmp_path, models=tmp_path / "models.yaml") as server:
        page = visit(server).open()
        draw(page, "a xylophone")
        finished(page)
        notes = page.locator("#notes")
        expect(notes).to_contain_text("does not know 'xylophone'")
        expect(notes).to_contain_text("sdstream pull")
        page.screenshot(path=SCREENSHOTS / "unknown-words.png")
        accessible(page)()
        notes.get_by_role("button", name="larger").click()
        expect(field(page, "Model")).to_have_value("larger")
        page.locator("#tiles button").first.click()
        expect(page.locator("#viewer-warnings")).to_contain_text("does not know")
        accessible(page)()


def test_buttons_on_a_phone(own_server: ServerProcess, visit: Visit) -> None:
    """After "Edit this image", the tools and the submit button are in view."""
    page = visit(own_server, **PHONE).open()
    draw(page, "pocket")
    finished(page)
    page.get_by_role("button", name="Edit this image").click()
    expect(page.locator("#mask")).to_be_visible()
    for name in ("Brush", "Eraser", "Undo", "Edit image"):
        button = page.get_by_role("button", name=name).first
        expect(button).to_be_in_viewport(ratio=1)
    page.screenshot(path=SCREENSHOTS / "narrow-after-edit.png")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    accessible(page)()
    # The sticky button at the bottom covers the next control until that control gets the focus.
    edge = page.locator(".go").evaluate("bar => bar.getBoundingClientRect().top")
    page.locator("#seed-random").focus()
    page.evaluate(
        "scrolled => scrollBy({top: scrolled, behavior: 'instant'})", bottom_of(page) - edge
    )
    page.keyboard.press("Tab")
    expect(page.locator("#more summary")).to_be_focused()
    wait_until(lambda: bottom_of(page) <= edge, 5, "the focus is covered")
    page.get_by_role("button", name="Image", exact=True).click()
    page.locator("#enlarge").click()
    boxes = [box.bounding_box() for box in page.locator("#viewer .actions > :visible").all()]
    assert len(boxes) == 6
    # Two rows of three buttons, of one size, and none under 40 pixels.
    assert len({round(box["y"]) for box in boxes if box}) == 2
    assert len({(round(box["width"]), round(box["height"])) for box in boxes if box}) == 1
    assert all(box and min(box["width"], box["height"]) >= 40 for box in boxes)
    # The button that closes the viewer stays in view.
    page.set_viewport_size({"width": 740, "height": 360})
    scrolled = "viewer => { viewer.scrollTop = 1000; return viewer.scrollTop; }"
    assert page.locator("#viewer").evaluate(scrolled) > 100
    expect(page.locator("#viewer-close")).to_be_in_viewport(ratio=1)
    accessible(page)()


def test_buttons_on_a_small_screen(own_server: ServerProcess, visit: Visit) -> None:
    """At 1280 pixels, each group of buttons is in one row, and nothing exceeds its column."""
    page = visit(own_server, viewport={"width": 1280, "height": 800}).open()

    def one_row(group: str) -> bool:
        tops = page.locator(f"{group} > *:visible").evaluate_all(
            "parts => parts.map((part) => { const box = part.getBoundingClientRect();"
            " return (box.top + box.bottom) / 2; })"
        )
        return len(tops) > 1 and max(tops) - min(tops) < 8

    draw(page, "small screen")
    finished(page)
    assert one_row("#actions")
    page.locator("#select").click()
    page.locator("#tiles button").first.click()
    page.locator("#filters summary").click()
    assert one_row("#selection .actions")
    assert page.locator(".side").evaluate("side => side.scrollWidth <= side.clientWidth")
    page.locator("#select").click()
    page.get_by_role("button", name="Edit this image").click()
    expect(page.locator("#mask")).to_be_visible()
    assert one_row(".tools")
    assert one_row(".part")


def rows(page: Page) -> list[list[str]]:
    """Return the texts of the table's cells."""
    found: list[list[str]] = page.locator("#machines tr").evaluate_all(
        "rows => rows.map((row) => [...row.children].map((cell) => cell.innerText))"
    )
    return found


def test_machines(own_server: ServerProcess, visit: Visit) -> None:
    """The status line counts machines and faults and opens a table that follows the cluster; a lost
    machine is reported."""
    machines = [MACHINE, IDLE, SHUNNED]
    page = visit(own_server, viewport={"width": 390, "height": 800}, color_scheme="dark").tab()

    def answer(route: Route) -> None:
        route.fulfill(json={"object": "cluster", "machines": machines})

    page.route("**/v1/cluster", answer)
    page.goto(own_server.url)
    line = page.locator("#open-cluster")
    expect(line).to_have_text("3 machines, 1 shunned")
    line.press("Enter")
    expect(page.locator("#cluster")).to_be_visible()
    assert rows(page) == [
        ["127.0.0.3\nfirst", "ready", "a", "1", "1 of 2 slots, 10.5 GB"],
        ["127.0.0.4\nfirst", "ready", "none", "0", "2 of 2 slots, 10.5 GB"],
        ["127.0.0.5\nfirst", f"shunned\n{LACK}", "none", "0", "none"],
    ]
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    accessible(page)()
    machines[1] = LOST
    expect(line).to_have_text("3 machines, 1 shunned, 1 lost")
    expect(page.locator("#notice")).to_have_text(
        "Lost: 127.0.0.4. Running jobs of a lost machine restart on another one."
    )
    expect(page.locator("#machines")).to_contain_text("It became unreachable.")
    page.screenshot(path=SCREENSHOTS / "cluster-narrow.png")
    page.set_viewport_size({"width": 1280, "height": 800})
    page.screenshot(path=SCREENSHOTS / "cluster.png")
    accessible(page)()
    machines[1] = {**LOST, "state": "left", "reason": "It left."}
    expect(line).to_have_text("2 machines, 1 shunned")
    expect(page.locator("#machines")).to_contain_text("It left.")
    page.keyboard.press("Escape")
    expect(page.locator("#cluster")).to_be_hidden()
    machines.clear()
    line.press("Enter")
    expect(line).to_have_text("0 machines")
    expect(page.locator("#no-machines")).to_contain_text("sdstream cluster join")
