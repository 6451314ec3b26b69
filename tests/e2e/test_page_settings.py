"""The web page in a real browser: the form reuses the settings of finished images and of files."""

from __future__ import annotations

import io
from pathlib import Path

import httpx2
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from playwright.sync_api import expect

from tests.support.jobs import begin, wait_for
from tests.support.page import (
    FURTHER,
    Visit,
    field,
    hand_over,
    redrawn,
    scene,
)
from tests.support.servers import ServerProcess


def test_options_without_a_field(own_server: ServerProcess, visit: Visit) -> None:
    """Reused options without a field are shown, kept after a reload, sent with the request, and can
    be removed; the reused size is that before enlarging."""
    drawn = wait_for(own_server, begin(own_server, FURTHER)["id"], "completed")["parameters"]
    page = visit(own_server).open()
    page.locator("#tiles button").first.click()
    facts = page.locator("#viewer-facts")
    expect(facts).to_contain_text("Size512 × 512Before enlarging128 × 128")
    expect(facts).to_contain_text("LoRAshapes 0.8")
    expect(facts).to_contain_text("SLG layers1, 2")
    expect(facts).to_contain_text("Cache optionsthreshold 0.3")
    expect(facts).to_contain_text("Hires scale2")
    page.get_by_role("dialog").get_by_role("button", name="Use these settings").click()
    expect(page.locator("#notice")).to_have_text("The settings of this image are in the form.")
    line = page.locator("#further")
    expect(line).to_contain_text("flow_shift 2.5")
    expect(line).to_contain_text("lora shapes 0.8")
    expect(line).not_to_contain_text("kernels")
    assert redrawn(own_server, page) == drawn
    page.reload()
    expect(line).to_contain_text("hires_scale 2")
    expect(page.locator("#snippet-text")).to_contain_text('"hires_scale": 2')
    page.get_by_role("button", name="Remove all further options").click()
    expect(page.locator("#more summary")).to_be_focused()
    expect(line).to_be_hidden()
    assert "hires_scale" not in redrawn(own_server, page)


def test_settings_on_a_phone(own_server: ServerProcess, visit: Visit) -> None:
    """The button "Use settings" in the gallery scrolls to the form."""
    wait_for(own_server, begin(own_server, {"prompt": "POCKET"})["id"], "completed")
    small = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}
    page = visit(own_server, **small).open()
    page.locator("#tiles button").first.click()
    page.get_by_role("dialog").get_by_role("button", name="Use settings").click()
    expect(page.locator("#notice")).to_be_in_viewport()
    expect(field(page, "Prompt")).to_be_in_viewport()


def test_a_seed_fits_its_field(own_server: ServerProcess, visit: Visit) -> None:
    """All digits of a random seed are visible in a narrow form."""
    page = visit(own_server, viewport={"width": 1024, "height": 768}).open()
    field(page, "Seed").fill(str(2**53 - 1))
    assert field(page, "Seed").evaluate("seed => seed.scrollWidth <= seed.clientWidth")


def test_noise_levels_without_a_field(own_server: ServerProcess, visit: Visit) -> None:
    """Reused sigmas replace steps and schedule until the user sets steps."""
    body = {"prompt": "LEVELS", "sigmas": [1.0, 0.6, 0.2, 0.0]}
    drawn = wait_for(own_server, begin(own_server, body)["id"], "completed")["parameters"]
    page = visit(own_server).open()
    page.locator("#tiles button").first.click()
    page.get_by_role("dialog").get_by_role("button", name="Use these settings").click()
    expect(page.locator("#further li > span")).to_have_text("sigmas 1, 0.6, 0.2, 0")
    assert redrawn(own_server, page) == drawn
    page.locator("#more summary").click()
    field(page, "Steps").fill("5")
    expect(page.locator("#further")).to_be_hidden()
    assert redrawn(own_server, page)["sample_steps"] == 5


def test_what_settings_do_not_hold(own_server: ServerProcess, visit: Visit, tmp_path: Path) -> None:
    """Reused settings include the input image. The notice lists settings of a file that the form
    cannot use, and an error names an option that the server rejects."""
    person = visit(own_server)
    person.excuse("status of 400", "status of 404")
    page = person.open()
    image = {"image": ("scene.png", scene(tmp_path).read_bytes())}
    lora = '[{"id": "shapes", "scale": 0.5}]'
    fields = {"prompt": "MADE", "strength": "0.5", "fit": "pad", "lora": lora}
    edits = f"{own_server.url}/v1/images/edits"
    drawn = httpx2.post(edits, files=image, data=fields).json()["parameters"]
    page.reload()
    page.locator("#tiles button").first.click()
    reuse = page.get_by_role("dialog").get_by_role("button", name="Use these settings")
    reuse.click()
    expect(page.locator("#notice")).to_have_text("The settings of this image are in the form.")
    expect(page.locator("#source")).to_be_visible()
    expect(page.locator("#further li > span").nth(0)).to_have_text("fit pad")
    expect(page.locator("#further li > span").nth(1)).to_have_text("lora shapes 0.5")
    assert redrawn(own_server, page) == drawn
    page.get_by_role("button", name="Remove this image").click()
    text = (
        "MADE\nSteps: 4, Clip skip: 2, Denoising strength: 0.5, ControlNet weight: 1, Eta: much, "
        "Mask blur: 4, Distilled CFG Scale: 3, ENSD: 1, Model hash: ab, Version: 1"
    )
    hand_over(page, "drop", "#drop-read", with_parameters(text), "theirs.png")
    expect(page.locator("#notice")).to_have_text(
        "The settings of this file are in the form, except for the distilled guidance, the image "
        "to edit, the control image, the mask, Eta, ENSD, CLIP skip and Control strength."
    )
    # The server rejects an option that an earlier visit stored.
    options = '{"prompt": "MADE", "clip_skip": 2}'
    page.evaluate("text => localStorage.setItem('sdstream.settings', text)", options)
    page.reload()
    expect(page.locator("#further li > span")).to_have_text("clip_skip 2")
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#further-error")).to_contain_text("'clip_skip' would have no effect")
    page.get_by_role("button", name="Remove all further options").click()
    expect(page.locator("#further-error")).to_be_empty()


def with_parameters(text: str) -> bytes:
    """Return a PNG with a parameters text, as AUTOMATIC1111 writes it."""
    chunk = PngInfo()
    chunk.add_text("parameters", text)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=chunk)
    return file.getvalue()


def test_further_options_out_of_a_file(own_server: ServerProcess, visit: Visit) -> None:
    """The options of an image are read from its file and generate it again."""
    job = wait_for(own_server, begin(own_server, FURTHER)["id"], "completed")
    data = httpx2.get(job["images"][0]["url"]).content
    page = visit(own_server).open()
    hand_over(page, "drop", "#drop-read", data, "ours.png")
    expect(page.locator("#notice")).to_contain_text("are in the form")
    drawn = job["parameters"]
    assert drawn.pop("vae_tiling")  # not in the file: it does not visibly change an image
    again = redrawn(own_server, page)
    assert again == drawn
    levels = {"prompt": "LEVELS", "sigmas": [1.0, 0.5, 0.0]}
    job = wait_for(own_server, begin(own_server, levels)["id"], "completed")
    data = httpx2.get(job["images"][0]["url"]).content
    hand_over(page, "drop", "#drop-read", data, "ours.png")
    expect(field(page, "Prompt")).to_have_value("LEVELS")
    assert redrawn(own_server, page) == job["parameters"]


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("prompt", ["plain", "Größe, a 猫\nof: two lines"])
def test_settings_out_of_a_file(
    own_server: ServerProcess, visit: Visit, kind: str, prompt: str
) -> None:
    """A file dropped onto the page fills the form with its settings."""
    body = {
        "prompt": prompt, "negative_prompt": "dull, grey", "steps": 7, "cfg_scale": 4.5,
        "sampler": "dpm++2m", "schedule": "karras", "seed": 2**62 + 1, "size": "80x64",
        "output_format": kind,
    }  # fmt: skip
    job = wait_for(own_server, begin(own_server, body)["id"], "completed")
    data = httpx2.get(job["images"][0]["url"]).content
    page = visit(own_server).open()
    each_line = field(page, "One prompt per line")
    each_line.check()
    hand_over(page, "drop", "#drop-read", data, f"ours.{kind}")
    expect(page.locator("#notice")).to_contain_text("are in the form")
    # A prompt of several lines is one prompt.
    expect(each_line).to_be_checked(checked="\n" not in prompt)
    page.locator("#more summary").click()
    for label, value in {
        "Prompt": prompt, "Negative prompt": "dull, grey", "Steps": "7", "CFG scale": "4.5",
        "Sampler": "dpm++2m", "Schedule": "karras", "Seed": str(2**62 + 1), "Width": "80",
        "Height": "64",
    }.items():  # fmt: skip
        expect(field(page, label)).to_have_value(value)


def test_a_file_without_settings(own_server: ServerProcess, visit: Visit, tmp_path: Path) -> None:
    """A file without settings, or a damaged one, shows a notice."""
    person = visit(own_server)
    person.excuse("status of 400")
    page = person.open()
    for data in (
        scene(tmp_path).read_bytes(),
        b"\x89PNG\r\n\x1a\nbroken",
        b"",
        b"\xff\xd8\xff\xe1",
    ):
        hand_over(page, "drop", "#drop-read", data, "theirs.png")
        expect(page.locator("#notice")).to_have_text("This file contains no settings.")
    hand_over(page, "drop", "#drop-edit", b"no image", "broken.png")
    expect(page.locator("#image-error")).to_contain_text("not an image")
