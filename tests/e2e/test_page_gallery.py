"""The web page in a real browser: the gallery and the viewer of finished images."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Route, expect

from tests.support.browser import seen
from tests.support.jobs import begin, wait_for
from tests.support.page import (
    PHONE,
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
    """A server with 27 images."""
    with running_server(tmp_path_factory.mktemp("stocked"), engine="fake") as server:
        for number in range(27):
            body = {"prompt": f"picture {number}", "steps": 5, "seed": number, "size": "64x96"}
            wait_for(server, begin(server, body)["id"], "completed")
        yield server


def test_the_gallery(stocked_server: ServerProcess, visit: Visit) -> None:
    """The gallery shows the newest image first; the viewer moves to the next image, reuses its
    settings and downloads it."""
    page = visit(stocked_server).open()
    tiles = page.locator("#tiles button")
    expect(page.locator("#gallery-count")).to_have_text("27")
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


def test_whole_images(stocked_server: ServerProcess, visit: Visit) -> None:
    """A tile shows all of a tall image, and the viewer's image covers no text on a phone."""
    page = visit(stocked_server, **PHONE).open()
    tile = page.locator("#tiles button").first
    expect(tile.locator("img")).to_have_css("object-fit", "contain")
    tile.tap()
    expect(page.get_by_role("dialog")).to_contain_text("picture")
    image, prompt = (page.locator(at).bounding_box() for at in ("#viewer-image", "#viewer-prompt"))
    assert image is not None
    assert prompt is not None
    assert image["height"] > image["width"]
    assert image["y"] + image["height"] <= prompt["y"]


def test_deleting(stocked_server: ServerProcess, visit: Visit) -> None:
    """After a confirmation the job and its image are deleted, and the next image gets the focus."""
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
    """One click opens a finished image on the canvas."""
    page = visit(own_server).open()
    draw(page, "the beginning")
    finished(page)
    page.get_by_role("button", name="Edit this image").click()
    expect(page.locator("#mask")).to_be_visible()
    expect(page.locator("#source-name")).to_have_text(re.compile(r"the-beginning-\d+\.png"))
    page.get_by_role("button", name="Image", exact=True).click()
    expect(page.locator("#image")).to_be_visible()


def test_a_picture_that_was_only_enlarged(
    own_server: ServerProcess, visit: Visit, tmp_path: Path
) -> None:
    """The viewer of an upscaled image shows both sizes and offers no settings to reuse."""
    image = {"image": ("scene.png", scene(tmp_path).read_bytes())}
    assert httpx2.post(f"{own_server.url}/v1/images/upscales", files=image).status_code == 200
    page = visit(own_server).open()
    page.locator("#tiles button").first.click()
    viewer = page.get_by_role("dialog")
    expect(viewer).to_contain_text("Size256 × 256Before enlarging128 × 128")
    expect(viewer.get_by_role("button", name="Download")).to_be_visible()
    expect(viewer.get_by_role("button", name="Use these settings")).to_be_hidden()


def test_a_long_prompt(own_server: ServerProcess, visit: Visit) -> None:
    """The viewer scrolls a long prompt, by keys too, and the facts below it stay in view."""
    prompt = "\n".join(f"line {number} of a long prompt" for number in range(60))
    wait_for(own_server, begin(own_server, {"prompt": prompt})["id"], "completed")
    page = visit(own_server).open()
    page.locator("#tiles button").first.click()
    text = page.locator("#viewer-prompt")
    expect(text).to_have_text(prompt, use_inner_text=True)
    expect(page.locator("#viewer-facts")).to_be_in_viewport()
    text.press("End")
    expect(text).to_have_js_property("tabIndex", 0)
    # The page's content security policy forbids eval, which Playwright's wait_for_function needs.
    wait_until(
        lambda: text.evaluate("text => text.scrollTop + text.clientHeight > text.scrollHeight - 2"),
        10,
        "the end of the prompt stayed out of view",
    )
    accessible(page)()


def test_searching(stocked_server: ServerProcess, visit: Visit) -> None:
    """The gallery filters by words, state and day; a newly finished image appears only if it
    matches."""
    page = visit(stocked_server).open()
    count, tiles = page.locator("#gallery-count"), page.locator("#tiles button")
    expect(count).not_to_be_empty()
    field(page, "Search prompts").fill("PICTURE 13")
    expect(tiles).to_have_count(1)
    expect(tiles.first).to_have_attribute("title", "picture 13")
    page.locator("#filters summary").click()
    page.locator("#filter-status").select_option("failed")
    expect(page.locator("#gallery-empty")).to_have_text("No image matches.")
    wait_for(
        stocked_server, begin(stocked_server, {"prompt": "picture 13 again"})["id"], "completed"
    )
    expect(tiles).to_have_count(0)
    page.locator("#filter-status").select_option("")
    page.locator("#filter-since").fill("2020-01-01")
    page.locator("#filter-until").fill("2020-01-02")
    expect(tiles).to_have_count(0)
    page.locator("#filter-until").fill("")
    expect(tiles).to_have_count(2)
    accessible(page)()
    page.get_by_role("button", name="Clear filters").click()
    expect(field(page, "Search prompts")).to_be_focused()
    expect(tiles.nth(3)).to_be_visible()


def test_the_order_is_that_of_submission(own_server: ServerProcess, visit: Visit) -> None:
    """Jobs are ordered by submission, not by their end; a reload does not change the order."""
    slow = {"sample_steps": 10}  # longer than the interval at which the page polls the queue
    begin(own_server, {"prompt": "in front step=0.3", **slow})
    older = begin(own_server, {"prompt": "older step=0.3", "priority": "low", **slow})
    newer = begin(own_server, {"prompt": "newer", "priority": "high"})
    page = visit(own_server).open()
    for prompt in ("newer", "older step=0.3"):
        expect(page.locator(f'#tiles button[title="{prompt}"]')).to_be_visible()
    ends = [wait_for(own_server, job["id"], "completed")["ended"] for job in (newer, older)]
    assert ends == sorted(ends)
    drawn = page.locator("#tiles button")
    for _ in range(2):
        for place, name in enumerate(("newer", "older step=0.3", "in front step=0.3")):
            expect(drawn.nth(place)).to_have_attribute("title", name)
        page.reload()


def test_favorites(stocked_server: ServerProcess, visit: Visit) -> None:
    """A favorite is set in the viewer and found by the filter after a reload."""
    page = visit(stocked_server).open()
    page.locator("#tiles button").nth(1).click()
    mark = page.get_by_role("dialog").get_by_role("button", name="Favorite")
    mark.click()
    expect(mark).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Escape")
    expect(page.locator("#tiles li.favorite")).to_have_count(1)
    page.reload()
    page.locator("#filters summary").click()
    field(page, "Favorites only").check()
    expect(page.locator("#tiles li")).to_have_count(1)
    expect(page.locator("#tiles li.favorite")).to_have_count(1)


def test_an_old_image_becomes_a_favorite(own_server: ServerProcess, visit: Visit) -> None:
    """The mark changes neither the seed of the last image nor the stage, and is not announced as an
    end."""
    page = visit(own_server).open()
    for seed in ("111", "222"):
        field(page, "Seed").fill(seed)
        draw(page, f"with seed {seed}")
        expect(page.locator("#caption")).to_have_text(f"with seed {seed}")
        finished(page)
    for again in (False, True):
        if again:
            page.reload()
            expect(page.locator("#details")).to_contain_text("seed 222")
        told = len(seen(page)["told"])
        page.locator("#tiles button[title='with seed 111']").click()
        mark = page.get_by_role("dialog").get_by_role("button", name="Favorite")
        pressed = mark.get_attribute("aria-pressed")
        mark.click()
        expect(mark).not_to_have_attribute("aria-pressed", str(pressed))
        page.locator("#viewer-close").click()
        page.locator("#seed-again").click()
        expect(field(page, "Seed")).to_have_value("222")
        assert seen(page)["told"][told:] == []


def test_the_last_image_is_deleted(own_server: ServerProcess, visit: Visit) -> None:
    """After the only image that matches the filter is deleted, the stage gets the focus."""
    page = visit(own_server).open()
    draw(page, "the only one of its kind")
    finished(page)
    field(page, "Search prompts").fill("only one of its kind")
    expect(page.locator("#tiles li")).to_have_count(1)
    page.locator("#tiles button").press("Enter")
    page.locator("#viewer-delete").press("Enter")
    page.get_by_role("dialog").get_by_role("button", name="Delete for good").press("Enter")
    expect(page.locator("#gallery-empty")).to_have_text("No image matches.")
    expect(page.locator("#stage")).to_be_focused()


def test_many_jobs_without_an_image(stocked_server: ServerProcess, visit: Visit) -> None:
    """The gallery loads on if its first pages have only jobs that are not shown."""
    job = httpx2.get(f"{stocked_server.url}/v1/jobs?limit=1").json()["data"][0]
    cancelled = {**job, "status": "cancelled", "images": []}
    jobs = [{**cancelled, "id": f"job_{number}"} for number in range(300)] + [job]

    def answer(route: Route) -> None:
        after = re.search(r"after=job_(\d+)", route.request.url)
        start = int(after[1]) + 1 if after else 0
        part = jobs[start : start + 100]
        more = start + 100 < len(jobs)
        route.fulfill(json={"data": part, "has_more": more, "last_id": part[-1]["id"]})

    page = visit(stocked_server).tab()
    page.route(re.compile(r"/v1/jobs\?status=completed"), answer)
    page.goto(stocked_server.url)
    expect(page.locator("#tiles li")).to_have_count(1)
    expect(page.locator("#gallery-count")).to_have_text("1")


def test_several_are_selected(stocked_server: ServerProcess, visit: Visit, tmp_path: Path) -> None:
    """Selected images are downloaded as one ZIP archive, and deleted after a confirmation, by mouse
    and keyboard."""
    page = visit(stocked_server).open()
    tiles = page.locator("#tiles button")
    expect(tiles.nth(8)).to_be_visible()
    names = [str(tiles.nth(place).get_attribute("title")) for place in range(9)]
    page.get_by_role("button", name="Select", exact=True).click()
    expect(page.locator("#selection-count")).to_contain_text("Shift selects a range")
    page.locator(".side").evaluate("side => { side.scrollTop = 500; }")
    expect(tiles.nth(0)).not_to_be_in_viewport()
    expect(page.locator("#selection-delete")).to_be_in_viewport(ratio=1)
    page.locator(".side").evaluate("side => { side.scrollTop = 0; }")
    tiles.nth(0).click()
    tiles.nth(5).click(modifiers=["Shift"])
    tiles.nth(4).click()
    expect(page.locator("#selection-count")).to_have_text("5 images selected")
    accessible(page)()
    with page.expect_download() as download:
        page.locator("#selection-download").click()
    download.value.save_as(tmp_path / "images.zip")
    with zipfile.ZipFile(tmp_path / "images.zip") as archive:
        assert archive.testzip() is None
        found = archive.namelist()
        assert opened(archive.read(found[0])).size[0] > 0
    assert len(set(found)) == 5
    page.locator("#selection-delete").click()
    expect(page.locator("#selection-question")).to_have_text("Delete 5 images for good?")
    page.locator("#selection-sure").get_by_role("button", name="Delete for good").click()
    expect(tiles.nth(0)).to_have_attribute("title", names[4])
    expect(tiles.nth(0)).to_be_focused()
    # By keys, in a gallery of two columns.
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    expect(tiles.nth(3)).to_be_focused()
    page.keyboard.press("ArrowUp")
    expect(tiles.nth(1)).to_be_focused()
    page.keyboard.press("Delete")
    expect(page.locator("#selection-question")).to_have_text("Delete 1 image for good?")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(tiles.nth(1)).to_have_attribute("title", names[7])
    expect(tiles.nth(1)).to_be_focused()
    page.keyboard.press("End")
    expect(page.locator("#tiles button:focus")).to_be_in_viewport()


def test_five_thousand_images(tmp_path: Path, visit: Visit) -> None:
    """While the gallery scrolls through 5000 images, the page has few elements and no long
    frame."""
    with running_server(tmp_path, engine="fake") as server:
        job = wait_for(server, begin(server, {"prompt": "one", "n": 1})["id"], "completed")
        image = job["images"][0]
        jobs = [
            {**job, "id": f"job_{n}", "images": [{**image, "index": 0, "seed": n}]}
            for n in range(5000)
        ]

        def answer(route: Route) -> None:
            after = re.search(r"after=job_(\d+)", route.request.url)
            start = int(after[1]) + 1 if after else 0
            part = jobs[start : start + 100]
            page_of = {
                "data": part, "has_more": start + 100 < len(jobs), "last_id": part[-1]["id"],
            }  # fmt: skip
            route.fulfill(json=page_of)

        page = visit(server).tab()
        page.route(re.compile(r"/v1/jobs\?status=completed"), answer)
        page.goto(f"{server.url}/")
        expect(page.locator("#tiles li").first).to_be_visible()
        seen = page.evaluate(
            """async () => {
                const side = document.querySelector(".side");
                let most = 0, longest = 0, before = performance.now();
                for (let still = 0; still < 60; ) {
                    const top = side.scrollTop;
                    side.scrollTop += 1500;
                    await new Promise(requestAnimationFrame);
                    const now = performance.now();
                    longest = Math.max(longest, now - before);
                    before = now;
                    most = Math.max(most, document.querySelectorAll("#tiles li").length);
                    still = side.scrollTop === top ? still + 1 : 0;
                }
                return {most, longest, count: document.querySelector("#gallery-count").textContent};
            }"""
        )
        print(seen)
        assert seen["count"] == "5000"
        assert seen["most"] < 150
        assert seen["longest"] < 2_000  # milliseconds between two frames
        page.close()
