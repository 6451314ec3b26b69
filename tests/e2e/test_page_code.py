"""The web page in a real browser: the settings of the form as programs, which the tests run."""

from __future__ import annotations

import os
import subprocess
import sys
from json import dumps
from pathlib import Path
from typing import Any

import httpx2
import pytest
from playwright.sync_api import expect

from tests.e2e.conftest import KEY
from tests.support.page import (
    FURTHER,
    OF_ALL_PICTURES,
    Visit,
    enter_key,
    field,
    newest,
    scene,
    stroke,
)
from tests.support.pictures import opened
from tests.support.servers import ServerProcess


def run_snippet(command: list[str], folder: Path, key: str = "") -> None:
    environment = {**os.environ, "SDSTREAM_CLIENT_KEY": key}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("edits", [False, True], ids=["generation", "edit"])
def test_the_code_runs(
    own_server: ServerProcess, visit: Visit, tmp_path: Path, edits: bool
) -> None:
    """The curl command and the programs for Python and Node generate what the form describes.

    The form contains quotes, options without a field, an empty number of images, and a seed that a
    JavaScript number cannot represent.
    """
    page = visit(own_server).open()
    options: dict[str, Any] = {name: FURTHER[name] for name in OF_ALL_PICTURES}
    page.evaluate("options => localStorage.setItem('sdstream.settings', options)", dumps(options))
    page.reload()
    expect(page.locator("#further")).to_contain_text("lora shapes 0.8")
    field(page, "Images").fill("")
    field(page, "Seed").fill("09007199254740993")
    field(page, "Prompt").fill('it\'s "quoted" @here\n$HOME `x` 猫')
    page.locator("#code summary").click()
    if edits:
        image = scene(tmp_path).rename(tmp_path / 'it\'s a "scene", mine.png')
        page.locator("#image-file").set_input_files(image)
        stroke(page, (0.3, 0.5), (0.7, 0.5))
        with page.expect_download() as download:
            page.get_by_role("button", name="Save mask.png").click()
        download.value.save_as(tmp_path / "mask.png")
    run_snippet(["sh", "-c", str(page.locator("#snippet-text").text_content())], tmp_path)
    page.get_by_role("tab", name="curl").press("ArrowRight")
    run_snippet([sys.executable, "-c", str(page.locator("#snippet-text").text_content())], tmp_path)
    first, second = ((tmp_path / name).read_bytes() for name in ("image.png", "image-0.png"))
    assert opened(first).tobytes() == opened(second).tobytes()
    (tmp_path / "image-0.png").unlink()
    page.get_by_role("tab", name="Node").click()
    (tmp_path / "generate.mjs").write_text(str(page.locator("#snippet-text").text_content()))
    run_snippet(["node", "generate.mjs"], tmp_path)
    third = (tmp_path / "image-0.png").read_bytes()
    assert opened(first).tobytes() == opened(third).tobytes()
    listed = httpx2.get(f"{own_server.url}/v1/jobs?limit=3").json()["data"]
    for job in listed:
        assert job["parameters"]["prompt"] == 'it\'s "quoted" @here\n$HOME `x` 猫'
        assert job["parameters"]["seed"] == 9007199254740993
        assert job["parameters"]["n"] == 1
        assert {name: job["parameters"][name] for name in options} == options


def test_code_that_fails_says_so(own_server: ServerProcess, visit: Visit, tmp_path: Path) -> None:
    """curl exits with an error and saves the server's message; a file has the format's
    extension."""
    page = visit(own_server).open()
    field(page, "Prompt").fill("a cat")
    page.locator("#extras summary").click()
    field(page, "Output format").select_option("webp")
    page.locator("#code summary").click()
    code = str(page.locator("#snippet-text").text_content())
    run_snippet(["sh", "-c", code], tmp_path)
    assert opened((tmp_path / "image.webp").read_bytes()).format == "WEBP"
    wrong = code.replace('"cfg_scale": ', '"cfg_scale": -')
    done = subprocess.run(["sh", "-c", wrong], cwd=tmp_path, check=False)
    assert done.returncode == 22
    assert b"cfg_scale" in (tmp_path / "image.webp").read_bytes()


@pytest.mark.parametrize("edits", [False, True], ids=["generation", "edit"])
def test_the_javascript_runs(
    own_server: ServerProcess, visit: Visit, tmp_path: Path, edits: bool
) -> None:
    """The EventSource program runs in a browser."""
    page = visit(own_server).open()
    options: dict[str, Any] = {name: FURTHER[name] for name in OF_ALL_PICTURES}
    page.evaluate("options => localStorage.setItem('sdstream.settings', options)", dumps(options))
    page.reload()
    field(page, "Prompt").fill("in JavaScript")
    field(page, "Seed").fill("9007199254740993")
    if edits:
        page.locator("#image-file").set_input_files(scene(tmp_path))
        expect(page.locator("#mask")).to_be_visible()
    page.locator("#code summary").click()
    page.get_by_role("tab", name="JavaScript").click()
    program = str(page.locator("#snippet-text").text_content())
    page.evaluate(f"void (async () => {{ {program} }})()")
    if edits:
        page.locator("body > label input").set_input_files(scene(tmp_path))
    picture = page.locator("body > img")
    expect(picture).to_be_attached()
    expect(picture).not_to_have_js_property("naturalWidth", 0)
    drawn = newest(own_server)["parameters"]
    assert drawn["seed"] == 9007199254740993
    assert {name: drawn[name] for name in options} == options


def test_code_with_a_key(keyed_server: ServerProcess, visit: Visit, tmp_path: Path) -> None:
    """No program contains the key: curl, Python and Node read it from the environment, and the
    JavaScript program asks for it."""
    person = visit(keyed_server)
    person.excuse("status of 401")
    page = person.open()
    enter_key(page, KEY)
    field(page, "Prompt").fill("with a key")
    field(page, "Seed").fill("7")
    page.locator("#code summary").click()
    text = page.locator("#snippet-text")
    expect(text).to_contain_text("Authorization: Bearer $SDSTREAM_CLIENT_KEY")
    run_snippet(["sh", "-c", str(text.text_content())], tmp_path, KEY)
    images = [opened((tmp_path / "image.png").read_bytes()).tobytes()]
    for tab, command in (("Python", [sys.executable, "-c"]), ("Node", ["node", "-e"])):
        page.get_by_role("tab", name=tab).click()
        program = str(text.text_content())
        assert KEY not in program
        flags = ["--input-type=module"] if tab == "Node" else []
        run_snippet([command[0], *flags, command[1], program], tmp_path, KEY)
        images.append(opened((tmp_path / "image-0.png").read_bytes()).tobytes())
        (tmp_path / "image-0.png").unlink()
    assert len(set(images)) == 1
    page.get_by_role("tab", name="JavaScript").click()
    program = str(text.text_content())
    assert KEY not in program
    page.on("dialog", lambda dialog: dialog.accept(KEY))
    page.evaluate(f"void (async () => {{ {program} }})()")
    picture = page.locator("body > img")
    expect(picture).to_be_attached()
    expect(picture).not_to_have_js_property("naturalWidth", 0)


def test_one_line_in_the_console(own_server: ServerProcess, visit: Visit) -> None:
    """An EventSource reports progress to the end, starts one job, and then closes."""
    page = visit(own_server).open()
    before = own_server.metric("sdstream_accepted_jobs_total")
    heard = page.evaluate(
        """() => new Promise((resolve) => {
            const path = '/v1/images/generations?prompt=step%3D0.05+a+red+circle';
            const events = new EventSource(path);
            const heard = [];
            for (const name of ['queued', 'progress', 'image', 'completed', 'failed'])
                events.addEventListener(name, (e) => heard.push([name, JSON.parse(e.data)]));
            events.onerror = () => { if (events.readyState === 2) resolve(heard); };
        })"""
    )
    names = [name for name, _ in heard]
    assert names[-2:] == ["image", "completed"]
    assert names.count("progress") > 3
    shares = [data["progress"] for name, data in heard if "progress" in data]
    assert shares == sorted(shares)
    assert shares[-1] == 100
    assert own_server.metric("sdstream_accepted_jobs_total") == before + 1


def test_a_language_that_does_not_exist(own_server: ServerProcess, visit: Visit) -> None:
    """The page shows the first language if the browser has stored an unknown one."""
    page = visit(own_server).open()
    page.evaluate("localStorage.setItem('sdstream.language', 'cobol')")
    page.reload()
    field(page, "Prompt").fill("in some language")
    expect(page.locator("#snippet-text")).to_contain_text("in some language")
    expect(page.get_by_role("tab", selected=True, include_hidden=True)).to_have_text("curl")
