"""What the tests of the web page share: what a person does with it, and looks at."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
from axe_playwright_python.sync_playwright import Axe
from PIL import Image, ImageDraw
from playwright.sync_api import Error, Locator, Page, Response, expect

from tests.support.browser import PATIENCE, Visitor
from tests.support.jobs import wait_for
from tests.support.servers import ServerProcess

Visit = Callable[..., Visitor]

expect.set_options(timeout=PATIENCE)

SIDE = 128
SLOW = "slowly step=0.3"


def field(page: Page, label: str) -> Locator:
    """A control of the form."""
    return page.get_by_label(label, exact=True)


def enter_key(page: Page, key: str) -> None:
    """Enter a key that the server accepts. The dialog keeps the focus until it closes."""
    field(page, "API key").fill(key)
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_hidden()


def draw(page: Page, prompt: str) -> None:
    """Ask for a picture."""
    field(page, "Prompt").fill(prompt)
    page.get_by_role("button", name="Generate").click()


def finished(page: Page) -> Locator:
    """The stage's picture, once it is finished."""
    expect(page.get_by_role("button", name="Edit this image").first).to_be_visible()
    picture = page.locator("#image")
    expect(picture).to_have_attribute("src", re.compile("/v1/images/"))
    expect(picture).to_have_js_property("complete", True)
    return picture


def bytes_of(page: Page, picture: Locator) -> bytes:
    """The file that an image shows."""
    answer = page.request.get(str(picture.get_attribute("src")))
    assert answer.ok
    return answer.body()


def scene(folder: Path) -> Path:
    """A picture to edit: a circle on a gradient, at the model's own size."""
    image = Image.linear_gradient("L").resize((SIDE, SIDE)).convert("RGB")
    ImageDraw.Draw(image).ellipse((30, 30, 98, 98), fill=(220, 30, 30))
    path = folder / "scene.png"
    image.save(path)
    return path


def stroke(page: Page, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Paint on the mask; places are shares of the image."""
    expect(page.locator("#mask")).to_be_visible()
    box = page.locator("#mask").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + start[0] * box["width"], box["y"] + start[1] * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + end[0] * box["width"], box["y"] + end[1] * box["height"], steps=10)
    page.mouse.up()


FURTHER: dict[str, Any] = {
    "prompt": "FURTHER", "size": "128x128", "seed": 2**60 + 1, "sampler": "euler_a", "eta": 0.5,
    "flow_shift": 2.5, "vae_tiling": True, "cache_mode": "easycache", "hires_scale": 2,
    "cache_options": {"threshold": 0.3}, "slg_scale": 2.5, "slg_layers": [1, 2],
    "lora": [{"id": "shapes", "scale": 0.8}], "upscaler": "twice", "hires_upscaler": "lanczos",
}  # fmt: skip


def newest(server: ServerProcess) -> dict[str, Any]:
    """The job that was asked for last."""
    job: dict[str, Any] = httpx2.get(f"{server.url}/v1/jobs?limit=1").json()["data"][0]
    return job


def redrawn(server: ServerProcess, page: Page) -> dict[str, Any]:
    """The parameters of the picture that the form asks for now.

    The request is waited for, and then its job: a press that sends nothing fails as one, with what
    the form says, and an answer that is no job with its status.
    """

    def asks(answer: Response) -> bool:
        return answer.url.endswith(("/v1/images/generations", "/v1/images/edits"))

    try:
        with page.expect_response(asks) as answer:
            page.get_by_role("button", name=re.compile("Generate|Edit image")).click()
    except Error as error:
        said = " ".join(page.locator('[role="alert"]').all_text_contents()).strip()
        raise AssertionError(f"no request was sent; the form says: {said!r}") from error
    assert answer.value.status == 202, answer.value.text()
    # The kernels are among the parameters once a worker generates it.
    job = wait_for(server, answer.value.json()["id"], "completed")
    parameters: dict[str, Any] = job["parameters"]
    return parameters


def hand_over(page: Page, how: str, target: str, data: bytes, name: str) -> None:
    """Remove or paste a file, as the browser would tell the page of it."""
    page.evaluate(
        """([how, target, data, name]) => {
            const transfer = new DataTransfer();
            const bytes = Uint8Array.from(data);
            transfer.items.add(new File([bytes], name, {type: "image/" + name.split(".").pop()}));
            const fire = (type, at) => document.querySelector(at).dispatchEvent(
                type === "paste"
                    ? new ClipboardEvent(type, {bubbles: true, clipboardData: transfer})
                    : new DragEvent(type, {bubbles: true, dataTransfer: transfer}));
            if (how === "drop") { fire("dragenter", "body"); fire("dragover", target); }
            fire(how, target);
        }""",
        [how, target, list(data), name],
    )


PHONE: dict[str, Any] = {
    "viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True
}  # fmt: skip

OF_ALL_PICTURES = ("vae_tiling", "cache_mode", "cache_options", "slg_scale", "slg_layers", "lora")


def accessible(page: Page) -> Callable[[], None]:
    """A check of the whole page as it is now."""
    axe = Axe()

    def check() -> None:
        found = axe.run(page)
        assert found.violations_count == 0, found.generate_report()

    return check
