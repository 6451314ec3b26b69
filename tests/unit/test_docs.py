"""The documents match the code: generated tables, links, and names of tests and files."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from starlette.routing import Route

from sdstream.core.catalog import Catalog
from tests.support.documents import ROOT, Page, pages
from tests.support.routes import document, routes

PAGES = pages()
_LINK = re.compile(r"\]\(([^)\s]+)\)|^\[[\w-]+\]: (\S+)|src=\"([^\"]+)\"", re.MULTILINE)


def test_generated_tables_are_fresh() -> None:
    """The text that cog generates in the documents is up to date."""
    documents = [str(page.path) for page in PAGES]
    command = [sys.executable, "-m", "cogapp", "--check", "-I", str(ROOT), *documents]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_routes_are_described() -> None:
    """Every API route is in the OpenAPI document, from which the table is generated."""
    paths = {re.sub(r":\w+}", "}", route.path) for route in routes() if isinstance(route, Route)}
    paths -= {"/", "/docs"}  # pages for people
    assert paths == set(document()["paths"])


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and the documentation site form them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {text.replace(" ", "-") for text in plain}


def broken(page: Page) -> list[str]:
    """Return the page's links to files or headings that do not exist."""
    found = []
    text = re.sub(r"^```.*?^```", "", page.text, flags=re.MULTILINE | re.DOTALL)
    for parts in _LINK.findall(text):
        link = "".join(parts)
        if re.match(r"https?://|mailto:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.path.parent / name).resolve() if name else page.path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            found.append(f"{page.name}: {link}")
    return found


def test_links_lead_somewhere() -> None:
    """Every link within the repository leads to an existing file and heading."""
    assert [link for page in PAGES for link in broken(page)] == []


def test_every_page_is_linked() -> None:
    """Each page is linked from another one."""
    linked = {
        (page.path.parent / link.partition("#")[0]).resolve()
        for page in PAGES
        for parts in _LINK.findall(page.text)
        if not (link := "".join(parts)).startswith(("http", "#"))
    }
    entry = {ROOT / "README.md", ROOT / "docs/index.md"}
    assert [page.name for page in PAGES if page.path not in linked | entry] == []


def test_named_tests_exist() -> None:
    """Every test file that a page names exists."""
    tests = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    named = {(page.name, name) for page in PAGES for name in re.findall(r"test_\w+\.py", page.text)}
    assert [(page, name) for page, name in sorted(named) if name not in tests] == []
    assert len(named) > 20


def test_families_of_the_example_catalogue_parse() -> None:
    """The examples of models.yaml parse as catalogues."""
    page = Page(ROOT / "docs/models/catalog.md")
    examples = [text for language, text in page.fences() if language == "yaml"]
    assert [Catalog.parse(text).default for text in examples] == ["my-flux", "my-sd15"]


def test_the_readme_is_short() -> None:
    """The README has at most 150 lines; details belong in the documents."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
