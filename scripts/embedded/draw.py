"""Captioned images that a program draws: the embedded model's training data.

draw(seed, width, height) is a pure function: the same arguments give the same pixels and the same
caption on every machine with the same Pillow. `python -m scripts.embedded.draw sheet.png` writes
a sheet of examples.

Objects stand on a coarse grid (quarters of the sides) and come in few sizes, so that a small
network learns shapes instead of varying places. A small share of single objects is placed freely.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from scripts.embedded import scenes, wording
from scripts.embedded.shapes import ICONS, NATURAL, PALETTE, ROOMY, SHAPES, Colour, Pen, mix

SMOOTHING = 2
"""Images are painted this many times larger and then reduced, for smooth edges."""

COLOURS: tuple[str, ...] = tuple(PALETTE)

PLACES: dict[str, tuple[float, float]] = {
    "center": (0.5, 0.5),
    "left": (0.25, 0.5),
    "right": (0.75, 0.5),
    "top": (0.5, 0.25),
    "bottom": (0.5, 0.75),
    "top left": (0.25, 0.25),
    "top right": (0.75, 0.25),
    "bottom left": (0.25, 0.75),
    "bottom right": (0.75, 0.75),
}
"""Centres of named places, as shares of the width and the height."""

RADIUS: dict[str, float] = {"": 0.28, "small": 0.13, "big": 0.41}
"""Half size of a single object for each size word, as a share of the shorter side."""

CELL_RADIUS = 0.175
"""Half size of an object that has a named place or other objects beside it."""

LAYOUTS: dict[int, tuple[tuple[str, ...], ...]] = {
    2: (("left", "right"),),
    3: (("top", "bottom left", "bottom right"),),
    4: (("top left", "top right", "bottom left", "bottom right"),),
}
"""Number of objects of one kind -> layouts of their places."""

RELATED: dict[str, tuple[str, str]] = {
    "left": ("left", "right"),
    "right": ("right", "left"),
    "above": ("top", "bottom"),
    "below": ("bottom", "top"),
    "beside": ("left", "right"),
}
"""Relation -> places of its first and its second object."""

ROWS: dict[int, tuple[float, ...]] = {1: (0.5,), 2: (0.25, 0.75), 3: (1 / 6, 0.5, 5 / 6)}
"""Number of objects in a row -> their centres along the row."""

ROW_RADIUS = 0.14
"""Half size of an object if one of the rows of a relation has three."""

KINDS: dict[str, float] = {
    "one": 0.3,
    "place": 0.15,
    "count": 0.2,
    "relation": 0.12,
    "group": 0.2,
    "inside": 0.04,
    "portrait": 0.03,
    "plain": 0.01,
    "scene": 0.2,
}
"""Relative frequency of each kind of image."""

FREQUENCIES: dict[str, int] = {
    "square": 5,
    "cross": 3,
    **dict.fromkeys(("star", "sun", "dog", "tree", "flower"), 2),
}
"""How often a shape is drawn, compared with the other shapes: the network learns these last."""

_DRAWN = tuple(shape for shape in SHAPES for _ in range(FREQUENCIES.get(shape, 1)))

GOLDEN: Colour = (226, 168, 84)
"""Colour of a golden retriever's coat."""

LEAVES: tuple[Colour, ...] = ((222, 110, 36), (196, 62, 36), (236, 160, 44), (150, 84, 40))


@dataclass(frozen=True)
class Thing:
    """One object in an image."""

    shape: str
    colour: str
    x: float
    """Centre, as a share of the width."""
    y: float
    """Centre, as a share of the height."""
    radius: float
    """Half size, as a share of the shorter side."""


@dataclass(frozen=True)
class Plan:
    """The content of an image, which is planned before a pixel is painted."""

    kind: str
    background: str = "white"
    """A palette colour; not used for scenes and portraits."""
    things: tuple[Thing, ...] = ()
    place: str | None = None
    relation: str | None = None
    view: scenes.View | None = None


@dataclass(frozen=True)
class Picture:
    """A drawn image: uint8 pixels [height, width, 3], its caption, and its plan."""

    pixels: NDArray[np.uint8] = field(repr=False)
    caption: str
    plan: Plan


def draw(seed: int, width: int = 128, height: int = 128) -> Picture:
    """Draw the image of a seed, with sides in pixels."""
    rng = Random(seed)
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    canvas = Canvas.blank(rng, width, height)
    caption, plan = _PAINTERS[kind](rng, canvas)
    caption = wording.dress(rng, caption)
    if rng.random() < 0.08:
        caption = ""  # the empty prompt is what guidance steers away from
    return Picture(canvas.finish(), caption, plan)


def caption_words(count: int = 15_000) -> list[str]:
    """Return the words and whole numbers in the captions of this many images, in lower case.

    A model that was trained on these images has seen no other words.
    """
    captions = " ".join(draw(seed, 16, 16).caption for seed in range(count)).lower()
    return sorted(set(re.findall(r"[^\W\d_]+|\b\d+\b", captions)))


def render(plan: Plan, seed: int = 0, width: int = 128, height: int = 128) -> NDArray[np.uint8]:
    """Draw a plan of plain objects, for the reference shapes and correct drawings of the judge."""
    canvas = Canvas.blank(Random(seed), width, height)
    canvas.fill(plan.background)
    for thing in plan.things:
        canvas.put(thing)
    return canvas.finish()


@dataclass
class Canvas:
    """An image that is being painted."""

    rng: Random
    image: Image.Image
    pen: ImageDraw.ImageDraw

    @classmethod
    def blank(cls, rng: Random, width: int, height: int) -> Canvas:
        """Start an image of the given size in pixels."""
        image = Image.new("RGB", (width * SMOOTHING, height * SMOOTHING))
        return cls(rng, image, ImageDraw.Draw(image))

    def shade(self, name: str, spread: float = 6) -> Colour:
        """Return a palette colour with a small random change, since colours vary among drawings."""
        red, green, blue = (
            int(min(255, max(0, v + self.rng.uniform(-spread, spread)))) for v in PALETTE[name]
        )
        return red, green, blue

    def fill(self, name: str) -> None:
        """Fill the whole image with a palette colour."""
        self.pen.rectangle((0, 0, *self.image.size), fill=self.shade(name, 4))

    def put(self, thing: Thing, body: Colour | None = None) -> None:
        """Paint one object."""
        width, height = self.image.size
        pen = Pen(self.pen, thing.x * width, thing.y * height, thing.radius * min(width, height))
        ICONS[thing.shape](pen, body or self.shade(thing.colour))

    def finish(self) -> NDArray[np.uint8]:
        """Return the pixels at the final size of the image."""
        return np.asarray(self.image.reduce(SMOOTHING))


def _place_thing(rng: Random, shape: str, colour: str, place: str, radius: float) -> Thing:
    x, y = PLACES[place]
    return Thing(
        shape,
        colour,
        x + rng.uniform(-0.01, 0.01),
        y + rng.uniform(-0.01, 0.01),
        radius * rng.uniform(0.96, 1.04),
    )


def _choose_colour(rng: Random, shape: str, said: bool, taken: tuple[str, ...] = ()) -> str:
    choices = COLOURS if said else NATURAL.get(shape, COLOURS)
    return rng.choice([c for c in choices if c not in taken] or list(COLOURS))


def _choose_background(rng: Random, said: bool, taken: tuple[str, ...]) -> str:
    free = [c for c in COLOURS if c not in taken]
    if not said and "white" in free and rng.random() < 0.5:
        return "white"
    return rng.choice(free)


def _paint_things(canvas: Canvas, text: str, said_background: bool, plan: Plan) -> tuple[str, Plan]:
    rng = canvas.rng
    canvas.fill(plan.background)
    for thing in plan.things:
        canvas.put(thing)
    if said_background:
        text = wording.add_background(rng, text, plan.background)
    return text, plan


def _one(rng: Random, canvas: Canvas) -> tuple[str, Plan]:
    shape = rng.choice(_DRAWN)
    said, said_background = rng.random() < 0.78, rng.random() < 0.72
    colour = _choose_colour(rng, shape, said)
    background = _choose_background(rng, said_background, (colour,))
    size = rng.choice(("", "", "", "small", "big"))
    thing = _place_thing(rng, shape, colour, "center", RADIUS[size])
    if not size and rng.random() < 0.15:
        # Some objects stand anywhere, so that an edit can leave the object of its image in place.
        x, y, radius = rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7), rng.uniform(0.16, 0.34)
        thing = Thing(shape, colour, x, y, radius)
    text = wording.describe_things(rng, shape, colour if said else None, size, 1)
    return _paint_things(canvas, text, said_background, Plan("one", background, (thing,)))


def _place(rng: Random, canvas: Canvas) -> tuple[str, Plan]:
    shape, place = rng.choice(_DRAWN), rng.choice(list(PLACES))
    said, said_background = rng.random() < 0.8, rng.random() < 0.7
    colour = _choose_colour(rng, shape, said)
    background = _choose_background(rng, said_background, (colour,))
    size = "small" if rng.random() < 0.15 else ""
    radius = RADIUS["small"] if size else CELL_RADIUS
    thing = _place_thing(rng, shape, colour, place, radius)
    text = wording.describe_things(rng, shape, colour if said else None, size, 1)
    text = wording.say_place(rng, text, place)
    plan = Plan("place", background, (thing,), place=place)
    return _paint_things(canvas, text, said_background, plan)


def _count(rng: Random, canvas: Canvas) -> tuple[str, Plan]:
    shape, count = rng.choice(_DRAWN), rng.choice((2, 3, 4))
    said, said_background = rng.random() < 0.75, rng.random() < 0.65
    colour = _choose_colour(rng, shape, said)
    background = _choose_background(rng, said_background, (colour,))
    things = tuple(
        _place_thing(rng, shape, colour, place, CELL_RADIUS) for place in rng.choice(LAYOUTS[count])
    )
    text = wording.describe_things(rng, shape, colour if said else None, "", count)
    return _paint_things(canvas, text, said_background, Plan("count", background, things))


def _relation(rng: Random, canvas: Canvas) -> tuple[str, Plan]:
    relation = rng.choice(list(RELATED))
    shapes = rng.choice(_DRAWN), rng.choice(_DRAWN)
    said, said_background = rng.random() < 0.85, rng.random() < 0.6
    first = _choose_colour(rng, shapes[0], said)
    second = _choose_colour(rng, shapes[1], said, (first,))
    background = _choose_background(rng, said_background, (first, second))
    things = tuple(
        _place_thing(rng, shape, colour, place, CELL_RADIUS)
        for shape, colour, place in zip(shapes, (first, second), RELATED[relation], strict=True)
    )
    phrases = [
        wording.describe_things(rng, t.shape, t.colour if said else None, "", 1) for t in things
    ]
    text = f" {rng.choice(wording.RELATIONS[relation])} ".join(phrases)
    plan = Plan("relation", background, things, relation=relation)
    return _paint_things(canvas, text, said_background, plan)


def rows_of(
    relation: str, shapes: tuple[str, str], colours: tuple[str, str], numbers: tuple[int, int]
) -> tuple[Thing, ...]:
    """Return two rows of objects in a relation, such as two stars above a house."""
    radius = ROW_RADIUS if max(numbers) > 2 else CELL_RADIUS
    things = []
    for shape, colour, number, place in zip(
        shapes, colours, numbers, RELATED[relation], strict=True
    ):
        x, y = PLACES[place]
        upright = relation not in ("above", "below")
        for along in ROWS[number]:
            centre = (x, along) if upright else (along, y)
            things.append(Thing(shape, colour, *centre, radius))
    return tuple(things)


def _group(rng: Random, canvas: Canvas) -> tuple[str, Plan]:
    relation = rng.choice(list(RELATED))
    shapes = rng.choice(_DRAWN), rng.choice(_DRAWN)
    numbers = rng.choice(((2, 1), (2, 1), (1, 2), (1, 2), (2, 2), (3, 1), (1, 3)))
    said, said_background = rng.random() < 0.85, rng.random() < 0.6
    first = _choose_colour(rng, shapes[0], said)
    second = _choose_colour(rng, shapes[1], said, (first,))
    background = _choose_background(rng, said_background, (first, second))
    colours = first, second
    things = rows_of(relation, shapes, colours, numbers)
    phrases = [
        wording.describe_things(rng, shape, colour if said else None, "", number)
        for shape, colour, number in zip(shapes, colours, numbers, strict=True)
    ]
    text = f" {rng.choice(wording.RELATIONS[relation])} ".join(phrases)
    moved = tuple(
        Thing(
            t.shape,
            t.colour,
            t.x + rng.uniform(-0.01, 0.01),
            t.y + rng.uniform(-0.01, 0.01),
            t.radius * rng.uniform(0.96, 1.04),
        )
        for t in things
    )
    plan = Plan("group", background, moved, relation=relation)
    return _paint_things(canvas, text, said_background, plan)


def _inside(rng: Random, canvas: Canvas) -> tuple[str, Plan]:
    inner, outer = rng.choice(_DRAWN), rng.choice(ROOMY)
    said_background = rng.random() < 0.6
    first = _choose_colour(rng, inner, True)
    second = _choose_colour(rng, outer, True, (first,))
    background = _choose_background(rng, said_background, (first, second))
    things = (
        _place_thing(rng, outer, second, "center", RADIUS["big"]),
        _place_thing(rng, inner, first, "center", 0.16),
    )
    phrases = [wording.describe_things(rng, t.shape, t.colour, "", 1) for t in reversed(things)]
    text = f" {rng.choice(wording.RELATIONS['inside'])} ".join(phrases)
    plan = Plan("inside", background, things, relation="inside")
    return _paint_things(canvas, text, said_background, plan)


def _plain(rng: Random, canvas: Canvas) -> tuple[str, Plan]:
    background = rng.choice(COLOURS)
    canvas.fill(background)
    return wording.describe_plain(rng, background), Plan("plain", background)


def _scene(rng: Random, canvas: Canvas) -> tuple[str, Plan]:
    view = scenes.choose(rng)
    width, height = canvas.image.size
    scenes.paint(rng, canvas.pen, width, height, view)
    return wording.describe_scene(rng, view), Plan("scene", view=view)


def _portrait(rng: Random, canvas: Canvas) -> tuple[str, Plan]:
    shape, setting = rng.choice(("cat", "dog", "dog")), rng.choice(list(wording.SETTING_WORDS))
    colour = rng.choice(NATURAL[shape])
    body, animal = canvas.shade(colour), wording.describe_things(rng, shape, None, "", 1)
    if shape == "dog" and rng.random() < 0.5:
        body, animal = GOLDEN, rng.choice(("a golden retriever", "a retriever", "golden retriever"))
    elif rng.random() < 0.4:
        animal = wording.describe_things(rng, shape, colour, "", 1)
    _SETTINGS[setting](canvas)
    thing = _place_thing(rng, shape, colour, "center", 0.3)
    canvas.put(thing, body)
    scarf = None
    if rng.random() < 0.6:
        worn = rng.choice(("red", "blue", "green", "purple", "yellow"))
        _scarf(canvas, thing, canvas.shade(worn))
        scarf = worn if rng.random() < 0.5 else ""
    plan = Plan("portrait", things=(thing,))
    return wording.describe_portrait(rng, animal, scarf, setting), plan


def _scarf(canvas: Canvas, thing: Thing, colour: Colour) -> None:
    width, height = canvas.image.size
    pen = Pen(canvas.pen, thing.x * width, thing.y * height, thing.radius * min(width, height))
    pen.polygon([(-0.75, 0.82), (0.75, 0.82), (0.68, 1.14), (-0.68, 1.14)], colour)
    pen.polygon([(0.2, 1.0), (0.56, 1.0), (0.62, 1.6), (0.26, 1.6)], mix(colour, (0, 0, 0), 0.15))


def _autumn(canvas: Canvas) -> None:
    rng, (width, height) = canvas.rng, canvas.image.size
    canvas.pen.rectangle((0, 0, width, height), fill=(240, 204, 140))
    size = 0.055 * min(width, height)
    columns, rows = max(5, round(5 * width / height)), max(5, round(5 * height / width))
    for k in range(columns * rows):
        x = (k % columns + rng.uniform(0.2, 0.8)) / columns * width
        y = (k // columns + rng.uniform(0.2, 0.8)) / rows * height
        leaf = [(x, y - size * 1.4), (x + size, y), (x, y + size * 1.4), (x - size, y)]
        canvas.pen.polygon(leaf, fill=rng.choice(LEAVES))


def _winter(canvas: Canvas) -> None:
    rng, (width, height) = canvas.rng, canvas.image.size
    canvas.pen.rectangle((0, 0, width, height), fill=(176, 204, 232))
    canvas.pen.rectangle((0, 0.66 * height, width, height), fill=scenes.SNOW)
    for _ in range(18):
        x, y, q = rng.uniform(0, width), rng.uniform(0, 0.6 * height), 0.014 * min(width, height)
        canvas.pen.ellipse((x - q, y - q, x + q, y + q), fill=scenes.SNOW)


def _meadow(canvas: Canvas) -> None:
    width, height = canvas.image.size
    canvas.pen.rectangle((0, 0, width, height), fill=(160, 212, 248))
    canvas.pen.rectangle((0, 0.6 * height, width, height), fill=(104, 176, 82))


_SETTINGS = {"autumn": _autumn, "winter": _winter, "meadow": _meadow}

_PAINTERS = {
    "one": _one,
    "place": _place,
    "count": _count,
    "relation": _relation,
    "group": _group,
    "inside": _inside,
    "portrait": _portrait,
    "plain": _plain,
    "scene": _scene,
}


def contact_sheet(first: int, columns: int, rows: int, width: int, height: int) -> Image.Image:
    """Return the images of consecutive seeds side by side, with their captions below."""
    label = 36
    sheet = Image.new("RGB", (columns * (width + 8), rows * (height + label)), "white")
    pen = ImageDraw.Draw(sheet)
    for k in range(columns * rows):
        picture = draw(first + k, width, height)
        x, y = k % columns * (width + 8), k // columns * (height + label)
        sheet.paste(Image.fromarray(picture.pixels), (x, y))
        letters = max(1, width // 6)
        lines = [picture.caption[i : i + letters] for i in range(0, 3 * letters, letters)]
        pen.text((x, y + height), "\n".join(lines), fill="black", font_size=10, spacing=1)
    return sheet


def main() -> None:
    """Write a contact sheet of training images."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="the first picture's seed")
    parser.add_argument("--size", default="128x128", help="WIDTHxHEIGHT in pixels")
    options = parser.parse_args()
    width, height = (int(side) for side in options.size.split("x"))
    contact_sheet(options.seed, 12, 8, width, height).save(options.file)


if __name__ == "__main__":
    main()
