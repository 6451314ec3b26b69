"""The web page in a real browser: the API key, a server that stops, and how the page is served."""

from __future__ import annotations

import http.client
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Locator, Page, Route, expect

from sdstream.core.options import DEFAULT_MAX_IMAGES, DEFAULT_MAX_STEPS
from tests.e2e.conftest import KEY
from tests.support.browser import seen
from tests.support.page import (
    SIDE,
    Visit,
    accessible,
    bytes_of,
    draw,
    enter_key,
    field,
    finished,
)
from tests.support.servers import ServerProcess, free_port, running_server

#: A second key, whose jobs are not those of KEY.
OTHER = "the-other-key"

#: Header that browsers send for a page.
HTML = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


@pytest.mark.parametrize("key", ["", KEY], ids=["open", "keyed"])
def test_a_restart_in_the_middle(
    tmp_path: Path, visit: Visit, key: str, request: pytest.FixtureRequest
) -> None:
    """After a crash the page shows that the server does not respond; after the restart the job
    continues to its end, also on a server with keys."""
    settings: dict[str, Any] = {"engine": "fake", "port": free_port(), "api_keys": key}
    with running_server(tmp_path, **settings) as server:
        person = visit(server)
        person.excuse("ERR_", "status of 401", "status of 503")
        page = person.open()
        if key:
            enter_key(page, key)
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
    """The page shows the error while the server is down, and removes it when the server is back."""
    settings: dict[str, Any] = {"engine": "fake", "port": free_port()}
    with running_server(tmp_path, **settings) as server:
        person = visit(server)
        person.excuse("ERR_", "status of 503")
        page = person.open()
        expect(page.locator("#gallery-empty")).to_be_visible()
    draw(page, "nobody hears this")
    expect(page.locator("#form-error")).to_have_text(
        "The server does not respond. Try again when it is back."
    )
    with running_server(tmp_path, **settings):
        expect(page.locator("#notice")).to_be_empty()
        expect(page.locator("#form-error")).to_be_empty()
        draw(page, "somebody hears this")
        finished(page)
        page.close()


def is_loaded(picture: Locator) -> None:
    """Wait until an image element shows an image."""
    expect(picture).not_to_have_js_property("naturalWidth", 0)


def test_images_that_are_finished_while_the_server_stops(tmp_path: Path, visit: Visit) -> None:
    """An image that the page could not load appears on the stage, in the grid and in the gallery
    when the server is back."""
    settings: dict[str, Any] = {"engine": "fake", "port": free_port(), "grace_seconds": 15}
    with running_server(tmp_path, **settings) as server:
        person = visit(server)
        person.excuse("ERR_", "status of 503")
        page = person.open()
        field(page, "Prompt").fill("patience step=0.3")
        page.locator("#compare summary").click()
        field(page, "Columns").select_option("seed")
        field(page, "Values of the columns").fill("1, 2")
        page.get_by_role("button", name="Compare 2 images").click()
        cells = page.locator("#grid-table td")
        expect(cells.first).to_contain_text(re.compile("Step [3-9] of 12"))
        server.stop()
        expect(page.locator("#notice")).to_contain_text("does not respond")
    with running_server(tmp_path, **settings):
        for place in range(2):
            is_loaded(cells.nth(place).locator("img"))
            is_loaded(page.locator("#tiles img").nth(place))
        is_loaded(page.locator("#image"))
        page.close()


def test_the_viewer_without_a_server(tmp_path: Path, visit: Visit) -> None:
    """While the server is down, the viewer does not report a deleted image, and it shows the image
    when the server is back."""
    settings: dict[str, Any] = {"engine": "fake", "port": free_port()}
    with running_server(tmp_path, **settings) as server:
        person = visit(server)
        person.excuse("ERR_", "status of 503")
        page = person.open()
        draw(page, "for the viewer")
        finished(page)
        is_loaded(page.locator("#tiles img"))
        browser = page.context.new_cdp_session(page)
        browser.send("Network.setCacheDisabled", {"cacheDisabled": True})
    page.locator("#tiles button").click()
    expect(page.locator("#notice")).to_contain_text("does not respond")
    expect(page.locator("#viewer-gone")).to_be_empty()
    with running_server(tmp_path, **settings):
        is_loaded(page.locator("#viewer-image"))
        expect(page.locator("#viewer-gone")).to_be_empty()
        page.close()


def test_a_proxy_without_its_server(own_server: ServerProcess, visit: Visit) -> None:
    """If a proxy answers in place of the server, the page shows that the server does not respond,
    until it is back."""
    person = visit(own_server)
    person.excuse("status of 502")
    page = person.open()
    expect(page.locator("#gallery-empty, #tiles li").first).to_be_attached()
    page.route("**/*", lambda route: route.fulfill(status=502, body="<html>502 Bad Gateway"))
    draw(page, "nobody hears this")
    expect(page.locator("#form-error")).to_have_text(
        "The server does not respond. Try again when it is back."
    )
    expect(page.locator("#notice")).to_contain_text("does not respond")
    expect(page.locator("#offline")).to_be_attached()
    page.unroute("**/*")
    expect(page.locator("#notice")).to_be_empty()
    expect(page.locator("#form-error")).to_be_empty()


#: The page's time limit of a request becomes a second, and the end of an image takes three.
SLOW_LINE = """
const {setTimeout: later, fetch: ask} = window;
window.setTimeout = (act, wait, ...rest) => later(act, wait === 30_000 ? 1_000 : wait, ...rest);
window.fetch = async (url, options) => {
    const answer = await ask(url, options);
    if (options.method !== "GET" || !url.pathname.startsWith("/v1/images/")) return answer;
    const slowly = new TransformStream({flush: () => new Promise((end) => later(end, 3_000))});
    return new Response(answer.body.pipeThrough(slowly, {signal: options.signal}), answer);
};
"""


def test_a_download_over_a_slow_line(own_server: ServerProcess, visit: Visit) -> None:
    """The time limit of a request ends when the response begins, so a large image can take longer;
    a server that sends no response is still noticed."""
    page = visit(own_server).tab()
    page.add_init_script(SLOW_LINE)
    page.goto(own_server.url)
    draw(page, "by and by")
    drawn = bytes_of(page, finished(page))
    with page.expect_download() as download:
        page.locator("#download").click()
    assert Path(download.value.path()).read_bytes() == drawn
    page.route("**/v1/images/generations", lambda route: None)
    with page.expect_event("requestfailed") as failed:
        draw(page, "never answered")
    assert failed.value.url.endswith("/v1/images/generations")


def test_the_key(keyed_server: ServerProcess, visit: Visit) -> None:
    """The page asks for the key, verifies it, keeps it for the tab only, and never puts it into a
    URL; images are loaded with a token."""
    person = visit(keyed_server)
    person.excuse("status of 401")
    page = person.open()
    dialog = page.get_by_role("dialog")
    accessible(page)()
    field(page, "API key").fill("a wrong key")
    page.keyboard.press("Enter")
    expect(page.locator("#key-error")).to_have_text("The server does not accept this key.")
    enter_key(page, KEY)
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
    """A remembered key is used in the next tab, until the user forgets it."""
    person = visit(keyed_server)
    person.excuse("status of 401")
    page = person.open()
    page.keyboard.press("Escape")
    expect(page.locator("#notice")).to_have_text("This server requires an API key.")
    page.get_by_role("button", name="API key").click()
    field(page, "API key").fill(KEY)
    field(page, "Remember the key in this browser").check()
    page.get_by_role("button", name="Use this key").click()
    expect(page.locator("#model")).to_have_value("embedded")
    page.close()
    page = person.open()
    expect(page.locator("#model")).to_have_value("embedded")
    page.get_by_role("button", name="API key").click()
    page.get_by_role("button", name="Forget the key").click()
    page.reload()
    expect(page.get_by_role("dialog")).to_be_visible()


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with two keys."""
    folder = tmp_path_factory.mktemp("shared")
    with running_server(folder, engine="fake", api_keys=f"{KEY},{OTHER}") as server:
        yield server


def sees_nothing(page: Page) -> None:
    """Wait until the page shows no image of a job."""
    expect(page.locator("#tiles li")).to_have_count(0)
    for part in ("#work", "#grid", "#view-grid", "#viewer", "#queue"):
        expect(page.locator(part)).to_be_hidden()


def test_another_key(shared_server: ServerProcess, visit: Visit) -> None:
    """When the user forgets the key or enters another one, the images of the last key leave the
    page; the images of the next key appear."""
    person = visit(shared_server)
    person.excuse("status of 401")
    page = person.open()
    enter_key(page, KEY)
    draw(page, "of the first key")
    finished(page)
    field(page, "One prompt per line").check()
    draw(page, "also of the first key")
    expect(page.locator("#grid-status")).to_contain_text("1 image")
    page.get_by_role("button", name="API key").click()
    page.get_by_role("button", name="Forget the key").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    sees_nothing(page)
    enter_key(page, OTHER)
    expect(page.locator("#gallery-empty")).to_be_visible()
    sees_nothing(page)
    field(page, "One prompt per line").uncheck()
    draw(page, "of the other key")
    finished(page)
    expect(page.locator("#tiles li")).to_have_count(1)
    # The server rejects the key, so the page asks for one in the middle of a request.
    page.route(
        "**/v1/images/generations", lambda route: route.fulfill(status=401, json={}), times=1
    )
    draw(page, "again of the first key")
    enter_key(page, KEY)
    expect(page.locator("#caption")).to_have_text("again of the first key")
    expect(page.locator("#tiles li")).to_have_count(3)
    expect(page.locator("#tiles button[title='of the other key']")).to_have_count(0)


def test_a_key_that_no_header_can_hold(keyed_server: ServerProcess, visit: Visit) -> None:
    """The dialog says that a key has only ASCII characters."""
    person = visit(keyed_server)
    person.excuse("status of 401")
    page = person.open()
    for key in ("ключ", "clé"):
        field(page, "API key").fill(key)
        page.keyboard.press("Enter")
        expect(page.locator("#key-error")).to_have_text(
            "This key has characters other than ASCII. Enter the key as its operator issued it."
        )
    enter_key(page, KEY)


def test_a_key_that_is_rejected_during_its_dialog(
    shared_server: ServerProcess, visit: Visit
) -> None:
    """A request that needs a key while the dialog is open keeps what the user has typed, and
    continues with the entered key."""
    person = visit(shared_server)
    person.excuse("status of 401")
    page = person.open()
    enter_key(page, KEY)
    draw(page, "before the dialog")
    finished(page)
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/v1/images/generations", hold, times=1)
    draw(page, "during the dialog")
    page.get_by_role("button", name="API key").click()
    field(page, "API key").fill(OTHER)
    held.pop().fulfill(status=401, json={})
    expect(page.locator("#key-error")).to_have_text("The server does not accept this key any more.")
    expect(field(page, "API key")).to_have_value(OTHER)
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.locator("#caption")).to_have_text("during the dialog")
    finished(page)


def test_how_the_page_is_served(keyed_server: ServerProcess) -> None:
    """The page and its files need no key and have security headers; the page is revalidated, and no
    other file of the package is served."""
    page = httpx2.get(f"{keyed_server.url}/", headers=HTML)
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["cache-control"] == "no-cache"
    assert page.headers["vary"] == "Accept"
    same = {**HTML, "If-None-Match": page.headers["etag"]}
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
    """Paths outside of the folder are 404. The raw request keeps the path, which HTTP clients would
    normalise."""
    connection = http.client.HTTPConnection(*fake_server.address, timeout=20)
    connection.request("GET", f"/static/{path}")
    assert connection.getresponse().status == 404
    connection.close()


def test_the_bounds_of_the_form() -> None:
    """The form has the same limits as the API."""
    text = (Path(__file__).parents[2] / "app/sdstream/web/static/index.html").read_text()

    def most(name: str) -> float:
        field = re.search(rf'<input[^>]*id="{name}"[^>]*>', text)
        assert field is not None
        bound = re.search(r'max="([\d.]+)"', field[0])
        assert bound is not None
        return float(bound[1])

    assert most("n") == DEFAULT_MAX_IMAGES
    assert most("sample_steps") == DEFAULT_MAX_STEPS
    assert most("cfg_scale") == most("guidance") == 30
    assert most("strength") == 1
