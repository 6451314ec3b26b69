"""The web page in a real browser: the API key, a server that stops, and how the page is served."""

from __future__ import annotations

import http.client
import re
import signal
from pathlib import Path
from typing import Any

import httpx2
import pytest
from playwright.sync_api import expect

from sdstream.core.options import DEFAULT_MAX_IMAGES, DEFAULT_MAX_STEPS
from tests.e2e.conftest import KEY
from tests.support.browser import seen
from tests.support.page import (
    SIDE,
    Visit,
    accessible,
    draw,
    enter_key,
    field,
    finished,
)
from tests.support.servers import ServerProcess, free_port, running_server

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
