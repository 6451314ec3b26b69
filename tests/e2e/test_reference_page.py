"""The API reference at /docs: the OpenAPI document, and examples that run."""

from __future__ import annotations

from playwright.sync_api import Page, expect

from tests.e2e.conftest import KEY
from tests.support.page import Visit
from tests.support.servers import ServerProcess


def run_example(page: Page) -> None:
    """Send the example of the first route and wait for the response."""
    page.locator("#operations-images-post_v1_images_generations button").first.click()
    page.get_by_role("button", name="Try it out").click()
    page.get_by_role("button", name="Execute").click()
    live = page.locator(".live-responses-table .response .response-col_status").first
    expect(live).to_contain_text("200")


def test_an_example_runs(visit: Visit, fake_server: ServerProcess) -> None:
    """The page needs no other host, its policy blocks nothing that it needs, and an example
    runs."""
    page = visit(fake_server).open()
    page.goto(f"{fake_server.url}/docs")
    expect(page.get_by_role("heading", name="sdstream")).to_be_visible()
    run_example(page)


def test_a_key_of_the_page_is_sent(visit: Visit, keyed_server: ServerProcess) -> None:
    """The key of the web page is sent for the document and the example."""
    visitor = visit(keyed_server)
    visitor.excuse("401")  # before the page has the key
    page = visitor.open()
    page.evaluate("key => sessionStorage.setItem('sdstream.key', key)", KEY)
    page.goto(f"{keyed_server.url}/docs")
    run_example(page)
