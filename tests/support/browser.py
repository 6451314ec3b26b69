"""A real browser for tests: the system's Chromium, driven by Playwright.

Debian's Chromium replaces Playwright's own browsers, which are downloads of several hundred
megabytes. Without a browser, a test is skipped, unless the variable CI is set; then it fails.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from playwright.sync_api import Browser, ConsoleMessage, Page, Request, Route, sync_playwright

from tests.support.programs import missing

SCREENSHOTS: Final = Path(__file__).parents[1] / "screenshots"

_NAMES: Final = ("chromium", "chromium-browser", "google-chrome", "chrome")

#: Timeout in milliseconds; the machine may be busy.
PATIENCE: Final = 30_000

#: Records every value of the progress bar, the image and the announcer, for tests to read later.
_RECORDER: Final = """
window.seen = {bar: [], image: [], status: [], told: []};
addEventListener("DOMContentLoaded", () => {
    const watch = (id, options, note) => {
        const element = document.getElementById(id);  // not on every page
        if (element) new MutationObserver(note).observe(element, options);
    };
    watch("bar", {attributeFilter: ["value"]}, ([{target}]) => {
        if (target.position >= 0) seen.bar.push(target.value);
    });
    watch("image", {attributeFilter: ["src"]}, ([{target}]) => seen.image.push(target.src));
    watch("status", {childList: true}, ([{target}]) => seen.status.push(target.textContent));
    watch("announcer", {childList: true}, ([{target}]) => {
        if (target.textContent) seen.told.push(target.textContent);
    });
});
"""


@contextmanager
def chromium(*arguments: str) -> Iterator[Browser]:
    """A browser without a window.

    Playwright keeps an event loop in the thread as long as it runs, so other tests cannot start
    their own loop meanwhile. A test module must therefore close its browser at its end.

    Args:
        arguments: Arguments of the browser's command line.
    """
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        missing("Chromium is not installed", "chromium")
    # Chromium has no sandbox as root, as in containers; the tests open only the project's pages.
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, chromium_sandbox=False, args=arguments
        )
        yield browser
        browser.close()


@dataclass
class Visitor:
    """A user with a separate browser context, which shares nothing with other visitors.

    Attributes:
        url: Address of the server whose page is visited.
        problems: Errors and warnings that the browser reported, and requests to other servers.
        requests: All requests of the browser.
        excused: Patterns of problems that the test causes on purpose.
    """

    browser: Browser
    url: str
    options: dict[str, Any]
    problems: list[str] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    excused: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._context = self.browser.new_context(**self.options)
        self._context.set_default_timeout(PATIENCE)
        self._context.add_init_script(_RECORDER)
        self._context.route(lambda url: not url.startswith(self.url), self._refuse)
        self._context.on("request", self._asked)
        self._context.on("console", self._heard)
        self._context.on("weberror", lambda error: self.problems.append(str(error.error)))

    def tab(self) -> Page:
        """Open a new tab."""
        return self._context.new_page()

    def open(self) -> Page:
        """Open the page in a new tab, and wait until it has the models or asks for the key."""
        page = self.tab()
        page.goto(f"{self.url}/")
        page.locator("#model option, dialog[open]").first.wait_for(state="attached")
        return page

    def excuse(self, *patterns: str) -> None:
        """Expect problems that match these regular expressions."""
        self.excused += patterns

    def leave(self) -> None:
        """Close all tabs; fail if the browser had unexpected problems."""
        self._context.close()
        unexpected = [
            problem
            for problem in self.problems
            if not any(re.search(pattern, problem) for pattern in self.excused)
        ]
        assert unexpected == [], unexpected

    def _refuse(self, route: Route) -> None:
        self.problems.append(f"a request to elsewhere: {route.request.url}")
        route.abort()

    def _asked(self, request: Request) -> None:
        self.requests.append(request)

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(message.text)


def seen(page: Page) -> dict[str, list[Any]]:
    """Every recorded value: of the bar in percent, of the image's address, of both texts."""
    found: dict[str, list[Any]] = page.evaluate("seen")
    return found
