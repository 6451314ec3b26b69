"""The web page in a real browser: options of the model, further images, and upscaling."""

from __future__ import annotations

import subprocess
from pathlib import Path

from playwright.sync_api import Route, expect

from tests.e2e.test_page_settings import with_parameters
from tests.support.browser import SCREENSHOTS
from tests.support.page import (
    Visit,
    accessible,
    draw,
    field,
    finished,
    hand_over,
    newest,
    redrawn,
    scene,
)
from tests.support.servers import ServerProcess, running_server

MODELS = """
default: edits
models:
  - id: edits
    family: flux_kontext
    files: {model: "builtin:drawings"}
  - id: controlled
    family: sd1
    files: {model: "builtin:drawings", control_net: "builtin:drawings"}
    size: {min: 64, max: 512}
    defaults: {size: 128x128, steps: 4}
  - id: plain
    family: ovis_image
    files: {model: "builtin:drawings"}
    size: {min: 64, max: 512}
    defaults: {size: 128x128, steps: 4}
"""


def test_options_of_the_model(own_server: ServerProcess, visit: Visit) -> None:
    """Fields of every kind set options of the model, and each option can be removed."""
    page = visit(own_server).open()
    field(page, "Prompt").fill("with options")
    page.locator("#extras summary").click()
    field(page, "LoRA").select_option("shapes")
    scale = field(page, "Scale of shapes")
    scale.fill("0.5")
    scale.press("Enter")
    field(page, "Hires scale").fill("2")
    field(page, "Hires upscaler").select_option("lanczos")
    field(page, "SLG scale").fill("2.5")
    field(page, "SLG layers").fill("1, 2")
    field(page, "Cache mode").select_option("easycache")
    field(page, "Cache options").fill("threshold=0.3")
    field(page, "VAE tiling").check()
    field(page, "Output format").select_option("webp")
    page.screenshot(path=SCREENSHOTS / "options.png")
    accessible(page)()
    drawn = redrawn(own_server, page)
    wanted = {
        "lora": [{"id": "shapes", "scale": 0.5}], "hires_scale": 2, "hires_upscaler": "lanczos",
        "slg_scale": 2.5, "slg_layers": [1, 2], "cache_mode": "easycache", "vae_tiling": True,
        "cache_options": {"threshold": 0.3},
    }  # fmt: skip
    assert {name: drawn.get(name) for name in wanted} == wanted
    assert newest(own_server)["output_format"] == "webp"
    page.get_by_role("button", name="Remove hires_upscaler").click()
    page.get_by_role("button", name="Remove hires_scale").click()
    expect(field(page, "Hires scale")).to_have_value("")
    page.get_by_role("button", name="Remove shapes").click()
    drawn = redrawn(own_server, page)
    assert "hires_scale" not in drawn
    assert "lora" not in drawn
    assert drawn["slg_scale"] == 2.5
    page.get_by_role("button", name="Remove all further options").click()
    expect(field(page, "Cache mode")).to_have_value("")


def test_lora_tags(own_server: ServerProcess, visit: Visit) -> None:
    """A LoRA tag in the prompt becomes an option by one click; an unknown LoRA is named."""
    page = visit(own_server).open()
    prompt, hint = field(page, "Prompt"), page.locator("#prompt-hint")
    prompt.fill("a cat <lora:nobody:1>")
    expect(hint).to_contain_text("no LoRA nobody")
    prompt.fill("a <lora:shapes:0.5> cat")
    page.get_by_role("button", name="Use it as an option").click()
    expect(prompt).to_have_value("a cat")
    expect(hint).to_be_hidden()
    expect(page.locator("#further")).to_contain_text("lora shapes 0.5")


def test_sizes_become_the_nearest(own_server: ServerProcess, visit: Visit) -> None:
    """An invalid size, read from a file or typed, is replaced by the nearest valid one."""
    page = visit(own_server).open()
    text = "a cat\nSteps: 4, Sampler: DPM++ 2M Karras, CFG scale: 3, Seed: 1, Size: 2000x900"
    hand_over(page, "drop", "#drop-read", with_parameters(text), "theirs.png")
    expect(page.locator("#notice")).to_contain_text(
        "This model cannot generate 2000 × 900; the size is now 1536 × 900."
    )
    expect(page.locator("#sampler")).to_have_value("dpm++2m")
    expect(page.locator("#schedule")).to_have_value("karras")
    field(page, "Free").check()
    field(page, "Width").fill("9")
    field(page, "Width").blur()
    expect(field(page, "Width")).to_have_value("16")


def test_upscaling_an_image(own_server: ServerProcess, visit: Visit) -> None:
    """One click upscales the image on the stage."""
    page = visit(own_server).open()
    draw(page, "small")
    finished(page)
    page.locator("#actions").get_by_role("button", name="Upscale").click()
    expect(page.locator("#details")).to_contain_text("256 × 256")
    assert newest(own_server)["parameters"]["upscaler"] == "twice"


def test_reference_and_control_images(tmp_path: Path, visit: Visit) -> None:
    """A model that supports references accepts several images, and a model with a ControlNet
    accepts a control image, also in the code; other models show neither field."""
    (tmp_path / "models.yaml").write_text(MODELS)
    models = tmp_path / "models.yaml"
    with running_server(tmp_path, engine="fake", models=models) as server:
        page = visit(server).open()
        page.locator("#extras summary").click()
        image = scene(tmp_path)
        page.locator("#reference-file").set_input_files([image] * 2)
        expect(page.locator("#references li")).to_have_count(2)
        accessible(page)()
        field(page, "Prompt").fill("like these")
        redrawn(server, page)
        assert [one["name"] for one in newest(server)["inputs"]] == ["image", "image-2"]
        page.locator("#references button").first.click()
        expect(page.locator("#references li")).to_have_count(1)
        field(page, "Model").select_option("controlled")
        expect(page.locator("#references-field")).to_be_hidden()
        page.locator("#control-file").set_input_files(image)
        expect(page.locator("#control-list li")).to_contain_text("scene.png")
        field(page, "Control strength").fill("0.5")
        field(page, "Prompt").fill("as controlled")
        assert redrawn(server, page)["control_strength"] == 0.5
        assert [one["name"] for one in newest(server)["inputs"]] == ["control"]
        code = str(page.locator("#snippet-text").text_content())
        assert "v1/images/generations" in code
        done = subprocess.run(["sh", "-c", code], cwd=tmp_path, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        assert [one["name"] for one in newest(server)["inputs"]] == ["control"]
        assert newest(server)["parameters"]["control_strength"] == 0.5
        page.reload()
        page.locator("#tiles button").first.click()
        page.get_by_role("dialog").get_by_role("button", name="Use these settings").click()
        page.locator("#extras summary").click()
        expect(page.locator("#control-list li")).to_contain_text("control.png")
        page.get_by_role("button", name="Remove control.png").click()
        expect(page.get_by_role("button", name="Choose an image…")).to_be_focused()
        expect(page.locator("#control-list li")).to_have_count(0)
        field(page, "Model").select_option("plain")
        expect(page.locator("#references-field")).to_be_hidden()
        expect(page.locator("#control-field")).to_be_hidden()
        field(page, "Prompt").fill("without")
        redrawn(server, page)
        assert newest(server)["inputs"] == []


def test_limits_of_the_server(own_server: ServerProcess, visit: Visit) -> None:
    """The server's limits apply to images and steps. The slider ends at 50 steps or fewer, and the
    field keeps a larger number."""
    most_steps = 200
    page = visit(own_server).open()

    def limit(route: Route) -> None:
        answer = route.fetch()
        model = answer.json()
        model["options"]["n"]["maximum"] = 3
        model["options"]["sample_steps"]["maximum"] = most_steps
        route.fulfill(response=answer, json=model)

    page.route("**/v1/models/*", limit)
    page.reload()
    expect(page.locator("#sample_steps")).to_have_attribute("max", "200")
    field(page, "Prompt").fill("a cat")
    field(page, "Images").fill("4")
    page.locator("#generate").click()
    expect(page.locator("#n-error")).to_have_text("Enter a number from 1 to 3.")
    field(page, "Seed").fill("9" * 20)
    field(page, "Images").fill("1")
    page.locator("#generate").click()
    expect(page.locator("#seed-error")).to_contain_text("a whole number of up to 19 digits")
    field(page, "Seed").fill("")
    slider = page.locator("#steps-slider")
    page.locator("#more summary").click()
    field(page, "Steps").fill("80")
    expect(slider).to_have_value("50")
    most_steps = 20
    page.reload()
    expect(page.locator("#sample_steps")).to_have_attribute("max", "20")
    expect(slider).to_have_attribute("max", "20")
    expect(field(page, "Steps")).to_have_value("80")
    page.locator("#generate").click()
    expect(page.locator("#sample_steps-error")).to_have_text("Enter a number from 1 to 20.")
