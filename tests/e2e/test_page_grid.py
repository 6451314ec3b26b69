"""The web page in a real browser: groups of jobs in a grid, for comparisons and lists of
prompts."""

from __future__ import annotations

import io
import re
import time
from contextlib import nullcontext
from pathlib import Path

import httpx2
import pytest
from PIL import Image
from playwright.sync_api import Route, expect

from tests.support.browser import SCREENSHOTS
from tests.support.page import Visit, accessible, field, scene
from tests.support.servers import ServerProcess


def test_a_grid(own_server: ServerProcess, visit: Visit, tmp_path: Path) -> None:
    """The cells have one seed, the sheet contains the settings in its text, and a reload keeps the
    grid."""
    page = visit(own_server).open()
    field(page, "Prompt").fill("a cat, step=0.05")
    page.locator("#compare summary").click()
    field(page, "Columns").select_option("sample_steps")
    field(page, "Values of the columns").fill("3, 5, 7")
    field(page, "Rows").select_option("word")
    field(page, "Values of the rows").fill("cat, dog")
    page.get_by_role("button", name="Compare 6 images").click()
    expect(page.locator("#grid-status")).to_contain_text("of 6 finished")
    expect(page.locator("#grid-table img")).to_have_count(6)
    expect(page.locator("#grid-status")).to_contain_text("6 images, seed")
    page.screenshot(path=SCREENSHOTS / "grid.png")
    accessible(page)()
    group = httpx2.get(f"{own_server.url}/v1/jobs?limit=1").json()["data"][0]["group"]
    jobs = httpx2.get(f"{own_server.url}/v1/jobs?group={group}").json()["data"]
    made = {(job["parameters"]["sample_steps"], job["parameters"]["prompt"]) for job in jobs}
    assert made == {(s, f"a {word}, step=0.05") for s in (3, 5, 7) for word in ("cat", "dog")}
    assert len({job["parameters"]["seed"] for job in jobs}) == 1
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the sheet").click()
    download.value.save_as(tmp_path / "grid.png")
    data = (tmp_path / "grid.png").read_bytes()
    with Image.open(io.BytesIO(data)) as sheet:
        sheet.load()
        assert sheet.width >= 3 * 128
        assert sheet.height >= 2 * 128
        text = str(sheet.text["parameters"])  # type: ignore[attr-defined]
    assert 'X axis: "sample_steps 3, 5, 7"' in text
    read = httpx2.post(
        f"{own_server.url}/v1/images/parameters", files={"image": ("grid.png", data)}
    ).json()
    assert read["parameters"]["prompt"] == "a cat, step=0.05"
    page.reload()
    page.get_by_role("button", name="Grid").click()
    expect(page.locator("#grid-table img")).to_have_count(6)
    page.locator("#grid-table button").first.click()
    expect(page.get_by_role("dialog")).to_contain_text("Steps3")


def test_places_in_the_queue(own_server: ServerProcess, visit: Visit) -> None:
    """The page follows the events of each job in turn, and requests the queue whenever a job starts
    or ends, even while an earlier request is unanswered."""
    page = visit(own_server).open()
    lists = "**/v1/jobs?status=queued*"
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route(lists, hold)
    field(page, "Prompt").fill("in turn step=0.2")
    page.locator("#compare summary").click()
    field(page, "Columns").select_option("seed")
    field(page, "Values of the columns").fill("1, 2, 3")
    page.get_by_role("button", name="Compare 3 images").click()
    cells = page.locator("#grid-table td")
    for place in range(3):
        with page.expect_request(lists) if place < 2 else nullcontext():
            expect(cells.nth(place).locator("img")).to_be_visible()
    expect(page.locator("#grid-status")).to_contain_text("3 images, seed")
    # The cells of a small grid are larger than those of a large one.
    box = cells.first.bounding_box()
    assert box is not None
    assert box["width"] > 150


def test_warnings_of_the_cells(own_server: ServerProcess, visit: Visit) -> None:
    """A warning stands once below the grid, and goes with its grid."""
    page = visit(own_server).open()
    field(page, "Prompt").fill("a cat")
    field(page, "Negative prompt").fill("a dog")
    page.locator("#compare summary").click()
    field(page, "Columns").select_option("cfg_scale")
    field(page, "Values of the columns").fill("1, 1.0, 3")
    page.get_by_role("button", name="Compare 3 images").click()
    expect(page.locator("#grid-status")).to_contain_text("3 images, seed")
    expect(page.locator("#grid-warnings li")).to_have_text(
        ["negative_prompt has no effect at cfg_scale 1."]
    )
    accessible(page)()
    field(page, "Values of the columns").fill("2, 3")
    page.get_by_role("button", name="Compare 2 images").click()
    expect(page.locator("#grid-status")).to_contain_text("2 images, seed")
    expect(page.locator("#grid-warnings")).to_be_hidden()


def test_a_grid_is_cancelled(own_server: ServerProcess, visit: Visit) -> None:
    """The button "Cancel all" cancels the jobs of the grid."""
    page = visit(own_server).open()
    field(page, "Prompt").fill("slowly step=0.3")
    page.locator("#compare summary").click()
    field(page, "Columns").select_option("seed")
    page.get_by_role("button", name="Compare 4 images").click()
    expect(page.locator("#grid-status")).to_have_text("0 of 4 finished")
    page.locator("#grid").get_by_role("button", name="Cancel all").click()
    expect(page.locator("#grid-table")).to_contain_text("Cancelled")
    expect(page.locator("#grid-status")).to_contain_text("Cancelled; 0 images")
    expect(page.locator("#queue")).to_be_hidden()


def test_a_grid_is_cancelled_while_it_is_sent(own_server: ServerProcess, visit: Visit) -> None:
    """A job whose request is being sent is cancelled too, and the remaining requests are not
    sent."""

    def slowly(route: Route) -> None:
        time.sleep(0.7)
        route.continue_()

    page = visit(own_server).open()
    page.route("**/v1/images/generations", slowly)
    field(page, "Prompt").fill("early step=0.3")
    page.locator("#compare summary").click()
    field(page, "Columns").select_option("seed")
    page.get_by_role("button", name="Compare 4 images").click()
    page.locator("#grid").get_by_role("button", name="Cancel all").click()
    expect(page.locator("#grid-table")).to_contain_text("Cancelled")
    # The grid is over when the server has answered, and cancelled, what was sent.
    expect(page.locator("#grid-status")).to_contain_text("Cancelled; 0 images")
    listed = httpx2.get(f"{own_server.url}/v1/jobs?limit=100&q=early").json()["data"]
    assert len(listed) < 4
    assert {job["status"] for job in listed} == {"cancelled"}


def test_a_grid_after_a_cancelled_one(own_server: ServerProcess, visit: Visit) -> None:
    """A grid that begins while the last request of a cancelled grid is unanswered is submitted
    whole, and the cancelled grid gets no more jobs."""

    def slowly(route: Route) -> None:
        time.sleep(0.7)
        route.continue_()

    page = visit(own_server).open()
    page.route("**/v1/images/generations", slowly, times=1)
    field(page, "Prompt").fill("first step=0.1")
    page.locator("#compare summary").click()
    field(page, "Columns").select_option("seed")
    page.get_by_role("button", name="Compare 4 images").click()
    page.locator("#grid").get_by_role("button", name="Cancel all").click()
    field(page, "Prompt").fill("second step=0.05")
    field(page, "Values of the columns").fill("1, 2")
    page.get_by_role("button", name="Compare 2 images").click()
    expect(page.locator("#grid-status")).to_contain_text("2 images")
    for prompt, told in (("first", {"cancelled"}), ("second", {"completed"})):
        listed = httpx2.get(f"{own_server.url}/v1/jobs?limit=100&q={prompt}").json()["data"]
        assert {job["status"] for job in listed} == told
    assert len(listed) == 2


def test_axes_that_cannot_be(own_server: ServerProcess, visit: Visit) -> None:
    """Each invalid axis is reported, and no request is sent."""
    page = visit(own_server).open()
    page.locator("#compare summary").click()
    go, error = page.locator("#compare-go"), page.locator("#compare-error")
    go.click()
    expect(error).to_have_text("Enter a prompt.")
    field(page, "Prompt").fill("a cat")
    before = httpx2.get(f"{own_server.url}/v1/jobs?q=a cat&limit=100").json()["data"]
    expect(page.locator('#compare-x option[value="strength"]')).to_be_disabled()
    for axis, values, message in (
        ("cfg_scale", "1, much", "CFG scale: 'much' is not a number."),
        ("seed", "", "Seed: enter values, separated by commas."),
        ("word", "dog, cat", "The prompt does not contain 'dog'"),
        ("seed", ",".join(map(str, range(65))), "A grid has at most 64 images"),
    ):
        field(page, "Columns").select_option(axis)
        field(page, "Values of the columns").fill(values)
        go.click()
        expect(error).to_contain_text(message)
    field(page, "Values of the columns").fill("1, 2, 3, 4, 5, 6, 7, 8, 9")
    field(page, "Rows").select_option("seed")
    go.click()
    expect(error).to_have_text("Choose two different axes.")
    field(page, "Rows").select_option("sample_steps")
    field(page, "Values of the rows").fill("1, 2, 3, 4, 5, 6, 7, 8")
    go.click()
    expect(error).to_have_text("A grid has at most 64 images; this one has 72.")
    assert httpx2.get(f"{own_server.url}/v1/jobs?q=a cat&limit=100").json()["data"] == before


def test_several_prompts(own_server: ServerProcess, visit: Visit, tmp_path: Path) -> None:
    """Each line is a job of one group with the settings of the form; a reload keeps the grid and
    the lines."""
    page = visit(own_server).open()
    prompt, go = field(page, "Prompt"), page.locator("#generate")
    prompt.fill("a red boat\n\n  a tree, tall  \na sun\na moon\na star")
    field(page, "One prompt per line").check()
    field(page, "Images").fill("2")
    expect(go).to_contain_text("Generate: 5 prompts")
    expect(page.locator("#snippet-text")).to_contain_text('"prompt": "a red boat"')
    go.click()
    expect(page.locator("#grid-status")).to_have_text("10 images, random seeds")
    expect(page.locator("#grid-table th")).to_have_text(
        ["a red boat", "a tree, tall", "a sun", "a moon", "a star"]
    )
    page.screenshot(path=SCREENSHOTS / "prompts.png")
    group = httpx2.get(f"{own_server.url}/v1/jobs?limit=1").json()["data"][0]["group"]
    jobs = httpx2.get(f"{own_server.url}/v1/jobs?group={group}").json()["data"]
    made = [job["parameters"]["prompt"] for job in reversed(jobs)]
    assert made == ["a red boat", "a tree, tall", "a sun", "a moon", "a star"]
    assert len({job["parameters"]["seed"] for job in jobs}) == 5
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the sheet").click()
    download.value.save_as(tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as sheet:
        sheet.load()
        assert 4 * 128 <= sheet.width < 5 * 128
        assert sheet.height >= 2 * 128
        text = str(sheet.text["parameters"])  # type: ignore[attr-defined]
    assert text.startswith("Steps: ")
    assert 'X axis: "prompt a red boat, a tree' in text
    page.reload()
    expect(go).to_contain_text("Generate: 5 prompts")
    page.get_by_role("button", name="Grid").click()
    page.locator("#grid-table button").nth(4).click()
    expect(page.get_by_role("dialog")).to_contain_text("a star")


def test_prompts_that_are_rejected(own_server: ServerProcess, visit: Visit) -> None:
    """Too many lines are an error at the prompt, one rejected line cancels the other jobs, and a
    rejected option is an error at its field."""
    person = visit(own_server)
    person.excuse("status of 400")
    page = person.open()
    prompt, error = field(page, "Prompt"), page.locator("#prompt-error")
    field(page, "One prompt per line").check()
    prompt.fill("line\n" * 65)
    page.locator("#generate").click()
    expect(error).to_have_text("Enter at most 64 prompts; there are 65.")
    prompt.fill("slowly step=0.3\n" + "words " * 1000)
    page.locator("#generate").click()
    expect(error).to_contain_text("characters")
    expect(page.locator("#grid-status")).to_contain_text("Cancelled")
    rejection = {"message": "'n': 10 images are too many.", "param": "n"}
    page.route(
        "**/v1/images/generations",
        lambda route: route.fulfill(status=400, json={"error": rejection}),
    )
    prompt.fill("one\ntwo")
    page.locator("#generate").click()
    expect(page.locator("#n-error")).to_have_text("10 images are too many.")
    expect(error).to_be_empty()
    page.locator("#compare summary").click()
    page.locator("#compare-go").click()
    expect(page.locator("#compare-error")).to_contain_text("One prompt per line")


def test_the_image_of_a_group(own_server: ServerProcess, visit: Visit, tmp_path: Path) -> None:
    """All jobs use the image that the form contained when the user submitted it."""
    page = visit(own_server).open()
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/v1/images/edits", hold, times=1)
    page.locator("#image-file").set_input_files(scene(tmp_path))
    field(page, "Prompt").fill("first\nsecond")
    field(page, "One prompt per line").check()
    with page.expect_request("**/v1/images/edits"):
        page.locator("#generate").click()
    page.get_by_role("button", name="Remove this image").click()
    expect(page.get_by_role("button", name="Generate: 2 prompts")).to_be_visible()
    held.pop().continue_()
    expect(page.locator("#grid-status")).to_have_text("2 images, random seeds")
    jobs = httpx2.get(f"{own_server.url}/v1/jobs?limit=2").json()["data"]
    assert [job["operation"] for job in jobs] == ["edit", "edit"]


def test_enter_in_the_values(own_server: ServerProcess, visit: Visit) -> None:
    """Enter in the values of an axis compares. Words of the prompt may contain any characters."""
    page = visit(own_server).open()
    field(page, "Prompt").fill("a cat, please")
    page.locator("#compare summary").click()
    field(page, "Columns").select_option("word")
    field(page, "Values of the columns").fill("cat, $$5 bill, $&")
    field(page, "Values of the columns").press("Enter")
    expect(page.locator("#grid-status")).to_contain_text("3 images, seed")
    group = httpx2.get(f"{own_server.url}/v1/jobs?limit=1").json()["data"][0]["group"]
    jobs = httpx2.get(f"{own_server.url}/v1/jobs?group={group}").json()["data"]
    made = [job["parameters"]["prompt"] for job in reversed(jobs)]
    assert made == ["a cat, please", "a $$5 bill, please", "a $&, please"]


@pytest.mark.parametrize("edits", [False, True], ids=["generation", "edit"])
def test_an_outage_while_a_grid_is_sent(
    own_server: ServerProcess, visit: Visit, tmp_path: Path, edits: bool
) -> None:
    """If the server does not respond for a while, the remaining jobs are submitted when it is back,
    each of them once."""
    person = visit(own_server)
    person.excuse("ERR_FAILED", "status of 502")
    page = person.open()
    if edits:
        page.locator("#image-file").set_input_files(scene(tmp_path))
        expect(page.locator("#mask")).to_be_visible()
    sent = 0

    def lose(route: Route) -> None:
        """The second job is accepted, but its response is lost."""
        nonlocal sent
        sent += 1
        if sent == 2:
            route.fetch()
            page.route("**/livez", lambda route: route.fulfill(status=502))
            route.abort()
        elif sent == 3:
            page.unroute("**/livez")
            route.continue_()
        else:
            route.continue_()

    page.route(re.compile("/v1/images/(generations|edits)"), lose)
    field(page, "Prompt").fill(f"an outage {edits}")
    page.locator("#compare summary").click()
    field(page, "Columns").select_option("seed")
    page.locator("#compare-go").click()
    expect(page.locator("#notice")).to_contain_text("does not respond")
    expect(page.locator("#grid-status")).to_contain_text("4 images, seed")
    listed = httpx2.get(f"{own_server.url}/v1/jobs?limit=100&q=an outage {edits}").json()["data"]
    assert [job["status"] for job in listed] == ["completed"] * 4


def test_a_grid_is_cancelled_without_a_server(own_server: ServerProcess, visit: Visit) -> None:
    """A grid that the user cancels while the server does not respond is cancelled when it is
    back."""
    person = visit(own_server)
    person.excuse("ERR_FAILED")
    page = person.open()
    field(page, "Prompt").fill("during an outage step=0.3")
    page.locator("#compare summary").click()
    field(page, "Columns").select_option("seed")
    page.locator("#compare-go").click()
    expect(page.locator("#grid-status")).to_have_text("0 of 4 finished")
    expect(page.locator("#queue-title")).to_have_text("Queue (3)")
    page.route("**/*", lambda route: route.abort())
    page.locator("#grid").get_by_role("button", name="Cancel all").click()
    expect(page.locator("#notice")).to_contain_text("does not respond")
    page.unroute("**/*")
    expect(page.locator("#grid-status")).to_contain_text("Cancelled; 0 images")
    listed = httpx2.get(f"{own_server.url}/v1/jobs?limit=100&q=during an outage").json()["data"]
    assert {job["status"] for job in listed} == {"cancelled"}
