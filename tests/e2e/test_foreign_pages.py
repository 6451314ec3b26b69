"""Pages of other sites in a real browser, with a server that is not localhost for the browser.

Over plain HTTP, a browser sends no Sec-Fetch-Site to such a server. It sends no Origin with an
image, a script, a form's GET or a fetch in no-cors mode.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Browser, Page

from tests.support.browser import PATIENCE, chromium
from tests.support.jobs import eventsource_path
from tests.support.servers import GENERATIONS, ServerProcess, free_port, running_server

#: Resolve every name under .test to 127.0.0.1, as an attacker's name server might.
_NAMES = "--host-resolver-rules=MAP *.test 127.0.0.1"
_QUERY = "?prompt=a&size=64x64&steps=2"

#: JavaScript that makes the browser send a request to ``url``; evaluates to a promise that resolves
#: afterwards.
ATTACKS = {
    "image": "load('img', 'src', url + query)",
    "script": "load('script', 'src', url + query)",
    "style": "load('link', 'href', url + query, {rel: 'stylesheet'})",
    "frame": "load('iframe', 'src', url + query)",
    "video": "load('video', 'src', url + query)",
    "form": "submit({action: url, method: 'get'}, {prompt: 'a', size: '64x64', steps: '2'})",
    "fetch": "fetch(url + query, {mode: 'no-cors', headers: {Accept: 'text/event-stream'}})",
    "stream": "ended(new EventSource(url + query))",
    "socket": "ended(new WebSocket(url.replace('http', 'ws') + query))",
    "post": "fetch(url, {method: 'POST', mode: 'no-cors', body: '{\"prompt\": \"a\"}'})",
    "text form": "submit({action: url, method: 'post', enctype: 'text/plain'},"
    ' {\'{"prompt": "a", "x\': \'": 1}\'})',
    "beacon": 'Promise.resolve(navigator.sendBeacon(url, \'{"prompt": "a"}\'))',
}
_HELPERS = """
const query = "%s";
const load = (tag, name, url, more = {}) => new Promise(done => {
    const element = Object.assign(document.createElement(tag), more);
    for (const event of ["load", "error", "loadeddata"]) element.addEventListener(event, done);
    element[name] = url;
    document.body.append(element);
});
const submit = (more, fields) => new Promise(done => {
    const frame = Object.assign(document.createElement("iframe"), {name: "target"});
    const form = Object.assign(document.createElement("form"), {target: "target", ...more});
    for (const [name, value] of Object.entries(fields))
        form.append(Object.assign(document.createElement("input"), {name, value}));
    document.body.append(frame, form);
    frame.addEventListener("load", done);
    form.submit();
});
const ended = source => new Promise(done => source.addEventListener("error", done));
"""


class _EmptyPage(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        """Send a page; with "silent" in the path, the page sends no Referer."""
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        if "silent" in self.path:
            self.send_header("Referrer-Policy", "no-referrer")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>A page</title><body></body>")

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def foreign_site() -> Iterator[str]:
    """Serve another site; yield its address."""
    site = ThreadingHTTPServer(("127.0.0.1", 0), _EmptyPage)
    thread = threading.Thread(target=site.serve_forever)
    thread.start()
    try:
        yield f"http://evil.test:{site.server_port}"
    finally:
        site.shutdown()
        thread.join()
        site.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for the module, which resolves names under .test."""
    with chromium(_NAMES) as browser:
        yield browser


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServerProcess, str]]:
    """A server without keys, and the address at which browsers reach it."""
    port, folder = free_port(), tmp_path_factory.mktemp("named")
    address = f"http://server.test:{port}"
    with running_server(folder, engine="fake", public_url=address, port=port) as server:
        yield server, address


def made(server: ServerProcess) -> int:
    """Return the number of jobs on the server, in any state."""
    return len(httpx2.get(f"{server.url}/v1/jobs", params={"limit": 100}).json()["data"])


def run(page: Page, script: str, url: str) -> Any:
    """Run JavaScript that uses ``url``; wait at most ten seconds for its promise."""
    late = "new Promise(done => setTimeout(done, 10000, 'late'))"
    helpers = _HELPERS % _QUERY
    return page.evaluate(f"url => {{{helpers}; return Promise.race([{script}, {late}])"
                         ".then(String, String)}", url)  # fmt: skip


@pytest.mark.parametrize("path", ["/", "/silent"])
def test_foreign_pages_make_no_job(
    browser: Browser, named: tuple[ServerProcess, str], path: str
) -> None:
    """A page of another site cannot start a job, whatever the request and with or without a
    Referer."""
    server, address = named
    before = made(server)
    with foreign_site() as site:
        for name, script in ATTACKS.items():
            page = browser.new_page()
            page.goto(site + path)
            assert run(page, script, address + GENERATIONS) != "late", name
            page.close()
            assert (name, made(server)) == (name, before)
    assert len(server.log_lines(GENERATIONS)) >= len(ATTACKS) - 1, "requests did not arrive"


def test_the_servers_own_page_may(browser: Browser, named: tuple[ServerProcess, str]) -> None:
    """The server's own page can start jobs: its EventSource sends a Referer, although no Origin."""
    server, address = named
    before = made(server)
    page = browser.new_page()
    page.goto(address)
    path = eventsource_path(prompt="a", size="64x64", steps=2)
    finished = page.evaluate(
        "url => new Promise(done => new EventSource(url).addEventListener('completed',"
        " event => done(JSON.parse(event.data).status)))",
        address + path,
    )
    assert finished == "completed"
    assert made(server) == before + 1
    page.get_by_label("Prompt", exact=True).fill("a red circle")
    page.get_by_role("button", name="Generate").click()
    page.locator("#tiles img").first.wait_for(timeout=PATIENCE)
    page.close()


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        ("text/event-stream", 200),
        ("*/*", 200),
        ("application/json, text/plain, */*", 200),
        ("text/html,application/xhtml+xml,*/*;q=0.8", 406),
        ("image/avif,image/webp,image/*,*/*;q=0.8", 406),
        ("text/css,*/*;q=0.1", 406),
        ("text/event-stream;q=0.5, image/png", 406),
    ],
)
def test_what_a_client_accepts(named: tuple[ServerProcess, str], accept: str, status: int) -> None:
    """A GET that starts a job is answered with events; a client that wants a page or an image gets
    406."""
    server, _ = named
    before = made(server)
    answer = httpx2.get(server.url + GENERATIONS + _QUERY, headers={"Accept": accept})
    assert answer.status_code == status
    assert made(server) - before == (status == 200)
    if status == 406:
        assert "text/event-stream" in answer.json()["error"]["message"]


def test_a_browser_that_shows_no_page(named: tuple[ServerProcess, str]) -> None:
    """A browser's GET without a Referer of this server is rejected, and the message suggests
    POST."""
    server, address = named
    before = made(server)
    browser = {"User-Agent": "Mozilla/5.0", "Accept": "text/event-stream"}
    url = server.url + GENERATIONS + _QUERY
    for more in ({}, {"Referer": "http://evil.test/"}, {"Referer": "http://["}):
        answer = httpx2.get(url, headers={**browser, **more})
        assert (answer.status_code, answer.json()["error"]["reason"]) == (403, "cross_origin")
        assert "POST" in answer.json()["error"]["message"]
    assert made(server) == before
    for referer in (f"{server.url}/", f"{address}/page"):
        assert httpx2.get(url, headers={**browser, "Referer": referer}).status_code == 200
