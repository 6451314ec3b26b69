"""The built-in model generates what the prompt describes, as far as its model card promises."""

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

#: One test generates dozens of images, possibly on a busy machine.
pytestmark = pytest.mark.timeout(1200)

Pixels = np.ndarray[Any, np.dtype[np.int16]]

#: Approximate colours in the training images.
COLOURS = {
    "red": (218, 38, 40),
    "yellow": (250, 216, 48),
    "green": (46, 160, 67),
    "blue": (42, 92, 214),
    "black": (18, 18, 20),
    "white": (250, 250, 250),
}


def pixels(data: bytes) -> Pixels:
    """Return the pixels of an image file, as [height, width, 3]."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB")).astype(np.int16)


def drawn(server: ServerProcess, prompt: str, **options: Any) -> Pixels:
    """Generate an image with the model's defaults."""
    answer = server.post({"prompt": prompt, "seed": 1, **options})
    assert answer.status_code == 200, answer.text
    return pixels(base64.b64decode(answer.json()["data"][0]["b64_json"]))


def edited(server: ServerProcess, prompt: str, files: dict[str, Image.Image], **f: str) -> Pixels:
    """Edit an image with the model's defaults."""
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
    """Return the name of the nearest colour."""
    return min(COLOURS, key=lambda name: float(((colour - np.array(COLOURS[name])) ** 2).sum()))


def border(picture: Pixels) -> str:
    """Return the colour along the edges, which is that of the background."""
    edges = (picture[:4], picture[-4:], picture[:, :4], picture[:, -4:])
    return named(np.median(np.concatenate([e.reshape(-1, 3) for e in edges]), axis=0))


def share(picture: Pixels, colour: str) -> float:
    """Return the share of the pixels that are nearest to a colour, from 0 to 1."""
    table = np.array([COLOURS[name] for name in COLOURS])
    distances = ((picture.reshape(-1, 1, 3) - table) ** 2).sum(axis=2)
    return float((distances.argmin(axis=1) == [*COLOURS].index(colour)).mean())


@pytest.mark.parametrize("thing", ["red circle", "yellow star", "green square", "white cat"])
@pytest.mark.parametrize("background", ["blue", "black"])
def test_colours(native_server: ServerProcess, thing: str, background: str) -> None:
    """The object and the background have the requested colours."""
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
    """Most of the object is in the requested half."""
    picture = drawn(native_server, f"a red circle {place} on a white background")
    height, width, _ = picture.shape
    halves = [picture[:, : width // 2], picture[:, width // 2 :]]
    if row is not None:
        halves = [picture[: height // 2], picture[height // 2 :]]
    wanted = column if column is not None else row
    assert wanted is not None
    assert share(halves[wanted], "red") > 3 * share(halves[1 - wanted], "red")


def test_relations(native_server: ServerProcess) -> None:
    """The object that the prompt places above another is above it in the image."""
    picture = drawn(native_server, "a blue circle above a red square on a white background")
    upper, lower = picture[:64], picture[64:]
    assert share(upper, "blue") > share(lower, "blue")
    assert share(lower, "red") > share(upper, "red")


def test_more_things_are_more(native_server: ServerProcess) -> None:
    """The centre of the image contains more red for one circle than for four."""
    one = drawn(native_server, "a red circle on a white background")
    four = drawn(native_server, "four red circles on a white background")
    assert share(one[56:72, 56:72], "red") > share(four[56:72, 56:72], "red")


def test_the_seed_changes_the_picture_and_not_its_meaning(native_server: ServerProcess) -> None:
    """Another seed changes pixels but not the background's colour."""
    first, second = (
        drawn(native_server, "a yellow star on a blue background", seed=seed) for seed in (1, 2)
    )
    assert (first != second).any()
    assert border(first) == border(second) == "blue"


def test_a_night_is_darker_than_a_day(native_server: ServerProcess) -> None:
    """A landscape at night is darker than one by day."""
    night = drawn(native_server, "a night sky over the sea")
    day = drawn(native_server, "a sunny day at the sea")
    assert night.mean() < day.mean() - 30


def scene() -> Image.Image:
    """Return an image of a red disc on the left of a white background."""
    image = Image.new("RGB", (128, 128), COLOURS["white"])
    ImageDraw.Draw(image).ellipse((16, 44, 56, 84), fill=COLOURS["red"])
    return image


def test_the_mask_takes_the_prompts_colour(native_server: ServerProcess) -> None:
    """Pixels inside the mask follow the prompt; pixels outside of it are unchanged."""
    mask = Image.new("L", (128, 128), 0)
    mask.paste(255, (64, 0, 128, 128))
    picture = edited(
        native_server, "a blue circle on a green background", {"image": scene(), "mask": mask}
    )
    original = np.asarray(scene()).astype(np.int16)
    assert (picture[:, :64] == original[:, :64]).all()
    assert share(picture[:, 64:], "green") > 0.3


def test_an_edit_keeps_the_place(native_server: ServerProcess) -> None:
    """An edit at strength 0.7 keeps the disc on the left and changes its colour to blue."""
    picture = edited(
        native_server, "a blue circle on the left on a white background",
        {"image": scene()}, strength="0.7",
    )  # fmt: skip
    left, right = picture[:, :64], picture[:, 64:]
    assert share(left, "blue") > share(right, "blue")
    assert share(right, "white") > 0.8


def judged(server: ServerProcess, size: str, count: int) -> dict[str, float]:
    """Return the share of correct images by aspect, for prompts with wordings not used in
    training."""
    table = Table()
    for number, case in enumerate(cases(count, seed=7)):
        picture = drawn(server, case.prompt, size=size, seed=number)
        table.scores.append(score(picture.astype(np.uint8), case.plan))
    return table.shares()


@pytest.mark.parametrize(("size", "count"), [("128x128", 24), ("192x128", 8)])
def test_shapes_counts_and_places(native_server: ServerProcess, size: str, count: int) -> None:
    """The model passes the thresholds for shapes, counts, places and relations."""
    shares = judged(native_server, size, count)
    assert shares["background"] >= 0.98
    assert shares["colour"] >= 0.95
    for aspect, least in (("shape", 0.85), ("count", 0.7), ("place", 0.8), ("relation", 0.7)):
        assert shares[aspect] >= least, shares
