"""Helpers for tests of the web page: actions of a user, and parts of the page to look at."""

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
    """The control of the form with this label."""
    return page.get_by_label(label, exact=True)


def enter_key(page: Page, key: str) -> None:
    """Enter a key that the server accepts, and wait until the dialog closes."""
    field(page, "API key").fill(key)
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_hidden()


def draw(page: Page, prompt: str) -> None:
    """Enter a prompt and press Generate."""
    field(page, "Prompt").fill(prompt)
    page.get_by_role("button", name="Generate").click()


def finished(page: Page) -> Locator:
    """The stage's image, once it is finished."""
    expect(page.get_by_role("button", name="Edit this image").first).to_be_visible()
    picture = page.locator("#image")
    expect(picture).to_have_attribute("src", re.compile("/v1/images/"))
    expect(picture).to_have_js_property("complete", True)
    return picture


def bytes_of(page: Page, picture: Locator) -> bytes:
    """The file that an image element shows."""
    answer = page.request.get(str(picture.get_attribute("src")))
    assert answer.ok
    return answer.body()


def scene(folder: Path) -> Path:
    """Write an image to edit: a circle on a gradient, at the model's default size."""
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
    """The job that was submitted last."""
    job: dict[str, Any] = httpx2.get(f"{server.url}/v1/jobs?limit=1").json()["data"][0]
    return job


def redrawn(server: ServerProcess, page: Page) -> dict[str, Any]:
    """Generate an image with the form's current settings; return the parameters of its job.

    The test waits for the request and then for its job. It fails with the form's error if no
    request is sent, and with the response if that is not a job.
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
    # The parameters contain the kernels once a worker generates the image.
    job = wait_for(server, answer.value.json()["id"], "completed")
    parameters: dict[str, Any] = job["parameters"]
    return parameters


def hand_over(page: Page, how: str, target: str, data: bytes, name: str) -> None:
    """Drop or paste a file, with the events that the browser would fire."""
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
    """Return a function that checks the accessibility of the whole page in its current state."""
    axe = Axe()

    def check() -> None:
        found = axe.run(page)
        assert found.violations_count == 0, found.generate_report()

    return check
