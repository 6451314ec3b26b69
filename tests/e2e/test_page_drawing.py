"""The web page in a real browser: from a prompt to images, with progress, tabs and errors."""

from __future__ import annotations

import re
from pathlib import Path

import httpx2
from playwright.sync_api import Route, expect

from sdstream.core.options import DEFAULT_MAX_IMAGES
from tests.support.browser import seen
from tests.support.page import (
    SIDE,
    SLOW,
    Visit,
    draw,
    field,
    finished,
)
from tests.support.servers import ServerProcess, running_server


def test_from_prompt_to_picture(native_server: ServerProcess, visit: Visit) -> None:
    """The progress bar only grows, previews appear, and the image is on the stage and in the
    gallery; screen readers announce only the start, the quarters and the end."""
    page = visit(native_server).open()
    field(page, "Prompt").fill("a red circle on a blue background")
    page.locator("#more summary").click()
    field(page, "Steps").fill("60")  # long enough for an estimate of the time left
    page.keyboard.press("Control+Enter")
    picture = finished(page)
    assert picture.evaluate("image => image.naturalWidth") == SIDE
    record = seen(page)
    step = re.compile(r"Step \d+ of 60 · .* (steps/s|s a step) · \d+ s left")
    assert any(map(step.fullmatch, record["status"])), record["status"]
    assert len(set(record["bar"])) >= 6
    assert record["bar"] == sorted(record["bar"])
    assert sum(address.startswith("data:image/png") for address in record["image"]) >= 6
    told = [text.split(":")[0] for text in record["told"]]
    assert told == [word for word in HEARD if word in told]
    assert {"Generating", "Finished"} <= set(told)
    tile = page.locator("#tiles img").first
    expect(tile).to_have_attribute("src", str(picture.get_attribute("src")))


HEARD = ["Waiting", "Generating", "25 percent", "50 percent", "75 percent", "Finished"]


def test_asking_before_the_models_are_known(own_server: ServerProcess, visit: Visit) -> None:
    """A request sent while the page loads uses the form's values, not those of the last visit."""
    person = visit(own_server)
    page = person.open()
    field(page, "Seed").fill("1")
    draw(page, "the picture of yesterday")
    finished(page)
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/v1/models", hold, times=2)
    page.reload()
    field(page, "Seed").fill("2")
    field(page, "Images").fill("3")
    draw(page, "the picture of today")
    for route in held:
        route.continue_()
    expect(page.locator("#stage")).to_contain_text("the picture of today")
    expect(field(page, "Prompt")).to_have_value("the picture of today")
    expect(field(page, "Seed")).to_have_value("2")
    expect(field(page, "Images")).to_have_value("3")
    expect(page.locator("#form")).not_to_contain_text("Enter a number from")


def test_an_example_is_a_beginning(own_server: ServerProcess, visit: Visit) -> None:
    """An empty stage offers example prompts; one click generates the first image."""
    page = visit(own_server).open()
    page.get_by_role("button", name="three yellow stars").click()
    expect(field(page, "Prompt")).to_have_value("three yellow stars")
    finished(page)


def test_several_pictures(own_server: ServerProcess, visit: Visit) -> None:
    """Each image of a job can be shown, with its own seed."""
    page = visit(own_server).open()
    field(page, "Images").fill("3")
    field(page, "Seed").fill("9223372036854775797")  # more than a JavaScript number can represent
    draw(page, "three of a kind")
    finished(page)
    expect(page.locator("#details")).to_contain_text("seed 9223372036854775797")
    page.get_by_role("button", name="Image 3").click()
    expect(page.locator("#details")).to_contain_text("seed 9223372036854775799")
    page.get_by_role("button", name="Random seed").click()
    page.get_by_role("button", name="Seed of the last image").click()
    expect(field(page, "Seed")).to_have_value("9223372036854775797")


def test_cancel(own_server: ServerProcess, visit: Visit) -> None:
    """Cancel ends the job, and the page shows that."""
    page = visit(own_server).open()
    draw(page, SLOW)
    expect(page.locator("#status")).to_contain_text(re.compile("Step [2-9] of 12"))
    page.get_by_role("button", name="Cancel", exact=True).click()
    expect(page.locator("#status")).to_have_text("Cancelled")
    job = httpx2.get(f"{own_server.url}/v1/jobs?limit=1").json()["data"][0]
    assert job["status"] == "cancelled"


def test_cancel_between_images(own_server: ServerProcess, visit: Visit) -> None:
    """The finished images stay, without placeholders for the others."""
    page = visit(own_server).open()
    field(page, "Images").fill("4")
    draw(page, "in part step=0.2")
    expect(page.locator("#status")).to_contain_text("Image 3 of 4")
    page.get_by_role("button", name="Cancel", exact=True).click()
    expect(page.locator("#status")).to_have_text("Cancelled after 2 of 4 images")
    expect(page.locator("#strip li:visible")).to_have_count(2)


def test_several_jobs(own_server: ServerProcess, visit: Visit) -> None:
    """Queued jobs are listed with their positions; one is cancelled, the others run in order."""
    page = visit(own_server).open()
    draw(page, f"first {SLOW}")
    for prompt in ("second", "third", "fourth"):
        draw(page, prompt)
    rows = page.locator("#queue-list li")
    expect(rows).to_have_count(3)
    expect(rows.nth(0)).to_contain_text("1 job ahead")
    expect(rows.nth(2)).to_contain_text("3 jobs ahead")
    page.get_by_role("button", name="Cancel: third").click()
    expect(rows).to_have_count(2)
    expect(page.locator("#queue")).to_be_hidden()
    expect(page.locator("#caption")).to_have_text("fourth")
    drawn = page.locator("#tiles button")
    expect(drawn.nth(0)).to_have_attribute("title", "fourth")
    expect(drawn.nth(1)).to_have_attribute("title", "second")
    expect(drawn.nth(2)).to_have_attribute("title", f"first {SLOW}")


def test_two_tabs_on_one_job(own_server: ServerProcess, visit: Visit) -> None:
    """Other tabs of the user follow the job, and so does another user who opens it; all see its
    end."""
    person = visit(own_server)
    first, second = person.open(), person.open()
    draw(first, "together slowly step=0.9")  # slow enough to open three more tabs
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
    """A hidden tab polls instead of keeping a connection, because browsers allow six connections
    for all tabs."""
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
    """After a reload, the page shows its running job and the values of the form."""
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


def test_a_failure_in_words(own_server: ServerProcess, visit: Visit) -> None:
    """The stage shows the engine's error, and the gallery shows the failed job."""
    page = visit(own_server).open()
    draw(page, "no luck fail=2")
    expect(page.locator("#trouble")).to_contain_text("could not be generated")
    expect(page.locator("#trouble-text")).to_have_text("The fake engine failed as requested.")
    expect(page.locator("#tiles button").first).to_contain_text("Failed")
    trouble = page.locator("#trouble")
    page.locator("#trouble-text").evaluate(
        "text => { text.textContent = 'a long message '.repeat(99) }"
    )
    top = "element => element.getBoundingClientRect().top"
    assert page.locator("#trouble-title").evaluate(top) >= trouble.evaluate(top)


def test_a_script_from_right_to_left(own_server: ServerProcess, visit: Visit) -> None:
    """A prompt is aligned by its script, in the form and where it is shown."""
    page = visit(own_server).open()
    draw(page, "סירה על אגם.")
    finished(page)
    page.locator("#tiles button").first.click()
    for at in ("#prompt", "#caption", "#viewer-prompt"):
        expect(page.locator(at)).to_have_css("unicode-bidi", "plaintext")


def test_errors_stand_at_their_fields(own_server: ServerProcess, visit: Visit) -> None:
    """Errors of the page and of the server are shown at their fields, and the field gets the
    focus."""
    person = visit(own_server)
    person.excuse("status of 400")
    page = person.open()
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#prompt-error")).to_have_text("Enter a prompt.")
    expect(field(page, "Prompt")).to_be_focused()
    field(page, "Images").fill("11")
    draw(page, "too many")
    expect(page.locator("#n-error")).to_have_text(f"Enter a number from 1 to {DEFAULT_MAX_IMAGES}.")
    field(page, "Images").fill("1")
    draw(page, "words " * 1000)
    expect(page.locator("#prompt-error")).to_contain_text("characters")
    prompt = field(page, "Prompt")
    expect(prompt).to_have_attribute("aria-invalid", "true")
    prompt.fill("short")
    expect(page.locator("#prompt-error")).to_be_empty()


def test_errors_go_with_their_causes(tmp_path: Path, visit: Visit) -> None:
    """The error of a full queue disappears when the user edits the form or the queue has room. The
    error of a missing list of models disappears when the list is loaded."""
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
        expect(error).to_contain_text("waiting and the limit of this server is 1")
        field(page, "Prompt").fill("another one too many")
        expect(error).to_be_empty()
        page.get_by_role("button", name="Generate").click()
        expect(error).to_contain_text("waiting and the limit of this server is 1")
        expect(page.locator("#caption")).to_have_text("waiting")
        expect(error).to_be_empty()
        # The first request for the list of models fails, and the page retries it.
        busy = {"status": 503, "json": {"error": {"message": "Not now."}}}
        page.route("**/v1/models", lambda route: route.fulfill(**busy), times=1)
        page.reload()
        expect(page.locator("#model-error")).to_contain_text("Not now. This page retries")
        expect(page.locator("#model")).to_have_value("embedded")
        expect(page.locator("#model-error")).to_be_empty()
