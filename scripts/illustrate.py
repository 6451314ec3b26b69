"""Generate the images of the documentation: an animation of a stream, and a screenshot of the page.

``python -m scripts.illustrate`` runs the built-in model, collects the preview of each step, and
writes ``docs/images/stream.png``, an animated PNG. It also starts a server, generates images on the
page in a browser, and writes ``docs/images/page.webp``. It needs the dependency group ``test``.
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw

from sdstream import Progress, Runner
from tests.support.browser import chromium
from tests.support.page import draw, finished
from tests.support.servers import running_server

IMAGES: Final = Path(__file__).parents[1] / "docs" / "images"
PROMPT: Final = "a red boat on the sea under a yellow sun"
SEED: Final = 3
SIZE: Final = 224
_BAR: Final = 6
_STEP_MS: Final = 220
_END_MS: Final = 2200


def stream_frames() -> list[Image.Image]:
    """Return the previews of an image and the finished image, each with a progress bar below."""
    previews: list[tuple[float, bytes]] = []

    def note(progress: Progress) -> None:
        if progress.preview:
            previews.append((progress.step / progress.steps, progress.preview))

    with Runner() as runner:
        response = runner.generate(
            PROMPT, size="128x128", steps=16, seed=SEED, previews=True, on_progress=note
        )
    return [_frame(data, share) for share, data in [*previews, (1.0, response.data[0].content)]]


def _frame(data: bytes, share: float) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        scaled = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    frame = Image.new("RGB", (SIZE, SIZE + _BAR), "#e4e4e7")
    frame.paste(scaled, (0, 0))
    ImageDraw.Draw(frame).rectangle((0, SIZE, round(SIZE * share), SIZE + _BAR), fill="#2563eb")
    return frame


def write_stream(path: Path) -> None:
    """Write the animation."""
    first, *others = stream_frames()
    durations = [_STEP_MS] * len(others) + [_END_MS]
    first.save(path, save_all=True, append_images=others, duration=durations, loop=0, optimize=True)


def write_page(path: Path) -> None:
    """Write a screenshot of the page with a finished image."""
    with (
        tempfile.TemporaryDirectory() as name,
        running_server(Path(name)) as server,
        chromium() as browser,
    ):
        page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme="light")
        page.goto(server.url)
        for prompt in ("a green tree beside a blue house", "three orange fish"):
            draw(page, prompt)
            finished(page)
            page.get_by_role("button", name="Cancel", exact=True).wait_for(state="hidden")
        draw(page, PROMPT)
        page.get_by_text("Step 3 of").wait_for()
        data = page.screenshot()
    with Image.open(io.BytesIO(data)) as image:
        image.save(path, quality=85, method=6)


def main() -> None:
    """Write both images."""
    IMAGES.mkdir(exist_ok=True)
    write_stream(IMAGES / "stream.png")
    write_page(IMAGES / "page.webp")
    for path in sorted(IMAGES.iterdir()):
        print(f"{path.name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
