"""The web page in a real browser: presets, which are named settings."""

from __future__ import annotations

from json import dumps
from pathlib import Path

import httpx2
from playwright.sync_api import Route, expect

from tests.support.browser import SCREENSHOTS
from tests.support.page import Visit, accessible, field, redrawn, scene, stroke
from tests.support.servers import ServerProcess


def test_presets(own_server: ServerProcess, visit: Visit) -> None:
    """A preset is saved, survives a reload, is restored, overwritten and deleted; it leaves the
    prompt and the seed unchanged."""
    page = visit(own_server).open()
    page.locator("#more summary").click()
    preset, name = field(page, "Preset"), field(page, "Name of the preset")
    field(page, "Negative prompt").fill("blurry")
    field(page, "Steps").fill("9")
    field(page, "Sampler").select_option("heun")
    field(page, "Wide").check()
    page.locator("#extras summary").click()
    field(page, "LoRA").select_option("shapes")
    page.get_by_role("button", name="Save…").click()
    name.fill(" soft heun ")
    page.screenshot(path=SCREENSHOTS / "preset.png")
    accessible(page)()
    name.press("Control+Enter")
    expect(preset).to_have_value("soft heun")
    expect(page.locator("#prompt-error")).to_be_empty()  # Enter generated nothing
    page.get_by_role("button", name="Defaults of the model").click()
    field(page, "Negative prompt").fill("")
    field(page, "Priority in the queue").select_option("low")
    expect(page.locator("#preset-changed")).to_be_visible()
    page.reload()
    expect(preset).to_have_value("soft heun")
    field(page, "Prompt").fill("stays")
    field(page, "Seed").fill("5")
    page.get_by_role("button", name="Restore").click()
    expect(page.locator("#preset-changed")).to_be_hidden()
    expect(page.locator("#notice")).to_have_text("The preset soft heun is in the form.")
    used = redrawn(own_server, page)
    wanted = {
        "prompt": "stays", "negative_prompt": "blurry", "seed": 5, "sample_steps": 9,
        "sampler": "heun", "lora": [{"id": "shapes", "scale": 1}],
    }  # fmt: skip
    assert {option: used[option] for option in wanted} == wanted
    assert "priority" not in str(page.locator("#snippet-text").text_content())
    field(page, "Steps").fill("3")
    page.get_by_role("button", name="Save…").click()
    expect(name).to_have_value("soft heun")
    page.get_by_role("button", name="Overwrite").click()
    expect(page.locator("#preset-changed")).to_be_hidden()
    page.get_by_role("button", name="Delete the preset").click()
    page.get_by_role("button", name="Keep").click()
    expect(preset).to_have_value("soft heun")
    page.get_by_role("button", name="Delete the preset").click()
    page.locator("#preset-sure").get_by_role("button", name="Delete").click()
    expect(preset).to_be_focused()
    page.reload()
    expect(page.locator("#preset option")).to_have_text("None saved")


def test_a_preset_of_another_model(own_server: ServerProcess, visit: Visit) -> None:
    """The notice names the unknown model and the option that the current model does not support."""
    page = visit(own_server).open()
    presets = {"elsewhere": {"model": "sdxl", "clip_skip": 2, "sampler": "euler", "flow_shift": 2}}
    page.evaluate("text => localStorage.setItem('sdstream.presets', text)", dumps(presets))
    # No preset can be chosen before the models are loaded.
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/v1/models", hold, times=1)
    page.reload()
    page.locator("#more summary").click()
    expect(field(page, "Preset")).to_be_disabled()
    held.pop().continue_()
    field(page, "Preset").select_option("elsewhere")
    expect(page.locator("#notice")).to_have_text(
        "The preset elsewhere is in the form, except for the model sdxl and CLIP skip."
    )
    expect(page.locator("#further li > span")).to_have_text("flow_shift 2")
    field(page, "Prompt").fill("with what is left")
    assert redrawn(own_server, page)["flow_shift"] == 2


def test_a_preset_and_an_image(own_server: ServerProcess, visit: Visit, tmp_path: Path) -> None:
    """A preset can be saved with an image and chosen without one, and the reverse; it resets the
    options of a mask and keeps the border."""
    page = visit(own_server).open()
    page.locator("#more summary").click()
    preset, changed = field(page, "Preset"), page.locator("#preset-changed")

    def save(name: str) -> None:
        page.get_by_role("button", name="Save…").click()
        field(page, "Name of the preset").fill(name)
        field(page, "Name of the preset").press("Enter")
        expect(preset).to_have_value(name)

    save("without")
    page.locator("#image-file").set_input_files(scene(tmp_path))
    field(page, "Strength").fill("0.4")
    preset.select_option("")
    preset.select_option("without")
    expect(field(page, "Strength")).to_have_value("0.75")
    expect(changed).to_be_hidden()
    field(page, "Strength").fill("0.5")
    expect(changed).to_be_visible()
    save("with")
    page.get_by_role("button", name="Remove this image").click()
    expect(changed).to_be_hidden()
    page.locator("#image-file").set_input_files(scene(tmp_path))
    page.get_by_role("slider", name="Right border").press("PageUp")
    stroke(page, (0.3, 0.5), (0.5, 0.5))
    field(page, "Only masked").check()
    field(page, "Padding").fill("8")
    preset.select_option("without")
    expect(field(page, "Only masked")).not_to_be_checked()
    expect(field(page, "Padding")).to_have_value("32")
    expect(changed).to_be_hidden()
    field(page, "Prompt").fill("wider")
    used = redrawn(own_server, page)
    assert used["expand"] == [0, 0, 64, 0]
    assert "only_masked" not in used


def test_a_preset_chosen_before_the_answer(own_server: ServerProcess, visit: Visit) -> None:
    """Options that the first preset's model does not support are not removed from the second
    preset."""
    page = visit(own_server).open()
    models = httpx2.get(f"{own_server.url}/v1/models").json()
    model = models["data"][0]
    models["data"].append({**model, "id": "other", "default": False})
    presets = {
        "first": {"model": "other", "eta": 0.5},
        "second": {"model": model["id"], "eta": 0.7},
    }
    page.evaluate("text => localStorage.setItem('sdstream.presets', text)", dumps(presets))
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/v1/models", lambda route: route.fulfill(json=models))
    page.route("**/v1/models/other", hold)
    page.reload()
    page.locator("#more summary").click()
    with page.expect_request("**/v1/models/other"):
        field(page, "Preset").select_option("first")
    field(page, "Preset").select_option("second")
    notice = page.locator("#notice")
    expect(notice).to_have_text("The preset second is in the form.")
    with page.expect_response("**/v1/models/other"):
        held.pop().fulfill(json={**model, "options": {}})
    page.wait_for_timeout(200)
    expect(notice).to_have_text("The preset second is in the form.")
    expect(page.locator("#further li > span")).to_have_text("eta 0.7")


def test_presets_of_a_wrong_type(own_server: ServerProcess, visit: Visit) -> None:
    """Stored values of a wrong type are ignored."""
    page = visit(own_server).open()
    odd = {"prompt": 5, "model": 6, "size": 7, "lora": 1, "sample_steps": "many", "eta": 0.5}
    text = dumps({"odd": odd, "none": None})
    page.evaluate("text => localStorage.setItem('sdstream.presets', text)", text)
    page.reload()
    page.locator("#more summary").click()
    expect(page.locator("#preset option")).to_have_text(["Choose…", "odd"])
    field(page, "Preset").select_option("odd")
    expect(page.locator("#notice")).to_have_text("The preset odd is in the form.")
    expect(page.locator("#further li > span")).to_have_text("eta 0.5")
