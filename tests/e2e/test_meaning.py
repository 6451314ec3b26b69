"""The built-in model draws what the prompt says, as far as its card vouches for it."""

from __future__ import annotations

import base64
import io
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image, ImageDraw

from scripts.embedded.score import Table, cases, score
from tests.support.servers import ServerProcess

#: Dozens of images in one test, on a machine that may have other things to do.
pytestmark = pytest.mark.timeout(1200)

Pixels = np.ndarray[Any, np.dtype[np.int16]]

#: What the training pictures call by these names, more or less.
COLOURS = {
    "red": (218, 38, 40),
    "yellow": (250, 216, 48),
    "green": (46, 160, 67),
    "blue": (42, 92, 214),
    "black": (18, 18, 20),
    "white": (250, 250, 250),
}


def pixels(data: bytes) -> Pixels:
    """An image file as [height, width, 3]."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB")).astype(np.int16)


def drawn(server: ServerProcess, prompt: str, **options: Any) -> Pixels:
    """The picture of a prompt at the model's defaults."""
    answer = server.post({"prompt": prompt, "seed": 1, **options})
    assert answer.status_code == 200, answer.text
    return pixels(base64.b64decode(answer.json()["data"][0]["b64_json"]))


def edited(server: ServerProcess, prompt: str, files: dict[str, Image.Image], **f: str) -> Pixels:
    """The picture of an edit at the model's defaults."""
    uploads = {}
    for name, image in files.items():
        file = io.BytesIO()
        image.save(file, "PNG")
        uploads[name] = file.getvalue()
    fields = {"prompt": prompt, "seed": "1", **f}
    url = f"{server.url}/v1/images/edits"
    answer = httpx2.post(url, files=uploads, data=fields, timeout=60)
    assert answer.status_code == 200, answer.text
    return pixels(base64.b64decode(answer.json()["data"][0]["b64_json"]))


def named(colour: Pixels) -> str:
    """The name of the nearest of the colours."""
    return min(COLOURS, key=lambda name: float(((colour - np.array(COLOURS[name])) ** 2).sum()))


def border(picture: Pixels) -> str:
    """The colour along the edges: that of the background."""
    edges = (picture[:4], picture[-4:], picture[:, :4], picture[:, -4:])
    return named(np.median(np.concatenate([e.reshape(-1, 3) for e in edges]), axis=0))


def share(picture: Pixels, colour: str) -> float:
    """How much of a picture is nearest to a colour, 0 to 1."""
    table = np.array([COLOURS[name] for name in COLOURS])
    distances = ((picture.reshape(-1, 1, 3) - table) ** 2).sum(axis=2)
    return float((distances.argmin(axis=1) == [*COLOURS].index(colour)).mean())


@pytest.mark.parametrize("thing", ["red circle", "yellow star", "green square", "white cat"])
@pytest.mark.parametrize("background", ["blue", "black"])
def test_colours(native_server: ServerProcess, thing: str, background: str) -> None:
    """The thing has its colour and the background has its own."""
    picture = drawn(native_server, f"a {thing} on a {background} background")
    assert border(picture) == background
    assert 0.02 < share(picture, thing.split()[0]) < 0.6


@pytest.mark.parametrize(
    ("place", "column", "row"),
    [
        ("on the left", 0, None),
        ("on the right", 1, None),
        ("at the top", None, 0),
        ("at the bottom", None, 1),
    ],
)
def test_places(
    native_server: ServerProcess, place: str, column: int | None, row: int | None
) -> None:
    """Left is left: most of the thing is in its half."""
    picture = drawn(native_server, f"a red circle {place} on a white background")
    height, width, _ = picture.shape
    halves = [picture[:, : width // 2], picture[:, width // 2 :]]
    if row is not None:
        halves = [picture[: height // 2], picture[height // 2 :]]
    wanted = column if column is not None else row
    assert wanted is not None
    assert share(halves[wanted], "red") > 3 * share(halves[1 - wanted], "red")


def test_relations(native_server: ServerProcess) -> None:
    """What is above is above."""
    picture = drawn(native_server, "a blue circle above a red square on a white background")
    upper, lower = picture[:64], picture[64:]
    assert share(upper, "blue") > share(lower, "blue")
    assert share(lower, "red") > share(upper, "red")


def test_more_things_are_more(native_server: ServerProcess) -> None:
    """A circle leaves more of the middle column empty than four of them."""
    one = drawn(native_server, "a red circle on a white background")
    four = drawn(native_server, "four red circles on a white background")
    assert share(one[56:72, 56:72], "red") > share(four[56:72, 56:72], "red")


def test_the_seed_changes_the_picture_and_not_its_meaning(native_server: ServerProcess) -> None:
    """Other pixels, the same background."""
    first, second = (
        drawn(native_server, "a yellow star on a blue background", seed=seed) for seed in (1, 2)
    )
    assert (first != second).any()
    assert border(first) == border(second) == "blue"


def test_a_night_is_darker_than_a_day(native_server: ServerProcess) -> None:
    """Landscapes follow the hour."""
    night = drawn(native_server, "a night sky over the sea")
    day = drawn(native_server, "a sunny day at the sea")
    assert night.mean() < day.mean() - 30


def scene() -> Image.Image:
    """A red disc on the left of a white picture."""
    image = Image.new("RGB", (128, 128), COLOURS["white"])
    ImageDraw.Draw(image).ellipse((16, 44, 56, 84), fill=COLOURS["red"])
    return image


def test_the_mask_takes_the_prompts_colour(native_server: ServerProcess) -> None:
    """Inside it is as the prompt says, outside it is exactly as it was."""
    mask = Image.new("L", (128, 128), 0)
    mask.paste(255, (64, 0, 128, 128))
    picture = edited(
        native_server, "a blue circle on a green background", {"image": scene(), "mask": mask}
    )
    original = np.asarray(scene()).astype(np.int16)
    assert (picture[:, :64] == original[:, :64]).all()
    assert share(picture[:, 64:], "green") > 0.3


def test_an_edit_keeps_the_place(native_server: ServerProcess) -> None:
    """Half-way from the image, the disc is still on the left and is turning blue."""
    picture = edited(
        native_server, "a blue circle on the left on a white background",
        {"image": scene()}, strength="0.7",
    )  # fmt: skip
    left, right = picture[:, :64], picture[:, 64:]
    assert share(left, "blue") > share(right, "blue")
    assert share(right, "white") > 0.8


def judged(server: ServerProcess, size: str, count: int) -> dict[str, float]:
    """Shares of what is right in pictures of prompts that the training never worded."""
    table = Table()
    for number, case in enumerate(cases(count, seed=7)):
        picture = drawn(server, case.prompt, size=size, seed=number)
        table.scores.append(score(picture.astype(np.uint8), case.plan))
    return table.shares()


@pytest.mark.parametrize(("size", "count"), [("128x128", 36), ("192x128", 12)])
def test_shapes_counts_and_places(native_server: ServerProcess, size: str, count: int) -> None:
    """Eighteen shapes, one to four, placed and related, as scripts/embedded/score.py sees them."""
    shares = judged(native_server, size, count)
    assert shares["background"] >= 0.98
    assert shares["colour"] >= 0.95
    for aspect, least in (("shape", 0.85), ("count", 0.7), ("place", 0.8), ("relation", 0.7)):
        assert shares[aspect] >= least, shares
