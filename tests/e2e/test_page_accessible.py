"""The web page in a real browser: keyboard, screen readers and layout."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import expect

from tests.support.browser import SCREENSHOTS
from tests.support.page import (
    PHONE,
    Visit,
    accessible,
    draw,
    field,
    finished,
    stroke,
)
from tests.support.servers import ServerProcess


def test_by_keyboard_alone(own_server: ServerProcess, visit: Visit) -> None:
    """The keyboard alone reaches every control, generates, opens the viewer and closes it; the
    focus is always visible."""
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


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessible(native_server: ServerProcess, visit: Visit, scheme: str) -> None:
    """axe finds no problem: empty, with an image, while editing, and with the dialog open."""
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


#: Lists the visible controls that are less than 44 px high or wide. The size of a checkbox is that
#: of its label.
SMALL = """() => {
    const controls = document.querySelectorAll(
        "button, summary, select, textarea, input:not([hidden]), #easel [tabindex='0']");
    const places = [...controls].filter((one) => one.checkVisibility()).map((one) => {
        const large = ["checkbox", "radio"].includes(one.type) ? one.labels[0] : one;
        const {width, height} = large.getBoundingClientRect();
        return {name: one.id || one.textContent.trim(), width, height};
    });
    return places.filter(({width, height}) => Math.min(width, height) < 43.9);
}"""


def test_targets_of_a_finger(own_server: ServerProcess, visit: Visit) -> None:
    """On a phone, every control is at least 44 px high and wide, and nothing is wider than the
    page."""
    page = visit(own_server, **PHONE).open()

    def check() -> None:
        assert page.evaluate(SMALL) == []
        assert page.evaluate("document.documentElement.scrollWidth") == 360

    for name in ("more", "extras", "compare", "code", "filters"):
        page.locator(f"#{name} > summary").tap()
    page.locator("#add-lora").select_option(index=1)
    check()
    page.locator('input[name="shape"][value="free"]').check()
    draw(page, "three yellow stars, step=0.05")
    expect(page.locator("#cancel")).to_be_visible()
    check()
    finished(page)
    page.get_by_role("button", name="Edit this image").tap()
    expect(page.locator("#mask")).to_be_visible()
    page.locator("#select").tap()
    check()
    page.locator("#select").tap()
    page.locator("#tiles button").first.tap()
    expect(page.get_by_role("dialog")).to_be_visible()
    check()


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
    """The page is not wider than the window. The theme is the system's until the user switches it.
    Screenshots are saved in tests/screenshots."""
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
