"""Flat landscapes: a sky at some time of day, a ground, and sometimes an object."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from PIL import ImageDraw

from scripts.embedded.shapes import ICONS, PALETTE, Colour, Pen, mix

TIMES: tuple[str, ...] = ("day", "sunset", "night")
GROUNDS: tuple[str, ...] = ("mountains", "snow", "sea", "hills", "desert", "city", "forest")
EXTRAS: dict[str, tuple[str, ...]] = {
    "sea": ("boat",),
    "hills": ("house", "tree"),
    "snow": ("house",),
    "desert": ("cactus",),
}
"""Ground -> objects that may stand on it."""

SKY: dict[str, tuple[Colour, Colour]] = {
    "day": ((92, 170, 240), (190, 226, 250)),
    "sunset": ((104, 50, 130), (252, 150, 60)),
    "night": ((8, 12, 40), (30, 42, 92)),
}
"""Top and horizon colour of the sky at each time."""

DUSK: dict[str, tuple[Colour, float]] = {
    "day": ((0, 0, 0), 0.0),
    "sunset": ((80, 20, 60), 0.28),
    "night": ((6, 10, 36), 0.62),
}
"""The colour that covers the ground at each time, and its opacity."""

LIGHT_X: dict[str, float] = {"day": 0.74, "sunset": 0.55, "night": 0.7}
EXTRA_X = 0.34
"""Places of the sun or moon (LIGHT_X) and of an object, as shares of the width. They hardly vary,
since a small network that must choose among several places generates two objects."""

CLOUD: Colour = (252, 252, 254)
DAY_SUN: Colour = (255, 222, 70)
LOW_SUN: Colour = (255, 214, 96)
FULL_MOON: Colour = (246, 242, 214)
STARLIGHT: Colour = (240, 240, 215)
SNOW: Colour = (244, 247, 252)
WALLS: tuple[Colour, ...] = ((214, 60, 50), (240, 232, 214), (90, 130, 210))
TOWERS: tuple[Colour, ...] = ((96, 104, 124), (120, 126, 142), (76, 84, 108))


@dataclass(frozen=True)
class View:
    """The content of a landscape, in the words of TIMES, GROUNDS and EXTRAS."""

    time: str
    ground: str
    extra: str | None
    """A boat, house, tree or cactus."""
    light: bool
    """A sun by day and at sunset, a moon at night."""
    clouds: bool
    """Only by day."""


def choose(rng: Random) -> View:
    """Choose the content of a landscape."""
    time, ground = rng.choice(TIMES), rng.choice(GROUNDS)
    extras = EXTRAS.get(ground, ())
    return View(
        time=time,
        ground=ground,
        extra=rng.choice(extras) if extras and rng.random() < 0.65 else None,
        light=rng.random() < {"day": 0.6, "sunset": 0.9, "night": 0.75}[time],
        clouds=time == "day" and rng.random() < 0.5,
    )


@dataclass(frozen=True)
class Landscape:
    """A landscape that is being painted; lengths are in canvas pixels."""

    rng: Random
    canvas: ImageDraw.ImageDraw
    width: int
    height: int
    view: View
    light_x: float
    """Place of the sun or moon, as a share of the width."""

    @property
    def unit(self) -> float:
        """The unit of the sizes of objects, which is the canvas's shorter side."""
        return min(self.width, self.height)

    def tint(self, colour: Colour) -> Colour:
        """Return a ground colour as it looks at this time of day."""
        cover, share = DUSK[self.view.time]
        return mix(colour, cover, share)

    def rectangle(self, left: float, top: float, right: float, bottom: float, fill: Colour) -> None:
        """Fill a rectangle given as shares of the width and the height."""
        w, h = self.width, self.height
        self.canvas.rectangle((left * w, top * h, right * w, bottom * h), fill=fill)

    def disc(self, x: float, y: float, across: float, down: float, fill: Colour) -> None:
        """Fill an ellipse with its centre in shares of the sides and its half axes in units."""
        cx, cy, a, b = x * self.width, y * self.height, across * self.unit, down * self.unit
        self.canvas.ellipse((cx - a, cy - b, cx + a, cy + b), fill=fill)

    def icon(self, name: str, x: float, y: float, radius: float, body: Colour) -> None:
        """Paint one of the object icons into the landscape."""
        pen = Pen(self.canvas, x * self.width, y * self.height, radius * self.unit)
        ICONS[name](pen, body)

    def gradient(self, top: float, bottom: float, first: Colour, last: Colour) -> None:
        """Fill the band between two shares of the height with 24 steps of a gradient."""
        for k in range(24):
            start = top + (bottom - top) * k / 24
            end = top + (bottom - top) * (k + 1) / 24
            self.rectangle(0, start, 1, end + 0.005, mix(first, last, k / 23))


def _sky(land: Landscape) -> None:
    top, low = SKY[land.view.time]
    land.gradient(0, 0.72, top, low)
    if land.view.time == "night":
        for _ in range(land.rng.randint(16, 24)):
            size = land.rng.uniform(0.003, 0.007)
            x, y = land.rng.uniform(0, 1), land.rng.uniform(0, 0.5)
            land.disc(x, y, size, size, STARLIGHT)
    if land.view.light:
        height = {"day": 0.2, "sunset": 0.47, "night": 0.22}[land.view.time]
        fill = {"day": DAY_SUN, "sunset": LOW_SUN, "night": FULL_MOON}[land.view.time]
        y = height + land.rng.uniform(-0.03, 0.03)
        land.disc(land.light_x, y, 0.1, 0.1, fill)
    if land.view.clouds:
        _clouds(land)


def _clouds(land: Landscape) -> None:
    for _ in range(land.rng.randint(1, 3)):
        x, y = land.rng.uniform(0.1, 0.9), land.rng.uniform(0.12, 0.36)
        size = land.rng.uniform(0.045, 0.065)
        for step, grow in ((-1.2, 0.8), (0.0, 1.15), (1.2, 0.85)):
            shift = step * size * land.unit / land.width
            land.disc(x + shift, y, size * grow, size * grow * 0.85, CLOUD)


def _mountains(land: Landscape) -> None:
    snowy = land.view.ground == "snow"
    for row, rock in enumerate(((112, 124, 150), (78, 92, 118))):
        for k in range(3):
            peak = ((k + 0.5 * row + land.rng.uniform(0.1, 0.5)) / 3) * land.width
            top = (0.76 - 0.08 - land.rng.uniform(0.2, 0.34) * (1 - 0.25 * row)) * land.height
            half, foot = land.rng.uniform(0.24, 0.34) * land.width, 0.76 * land.height
            land.canvas.polygon(
                [(peak - half, foot), (peak, top), (peak + half, foot)], fill=land.tint(rock)
            )
            if snowy:
                _snow_cap(land, peak, top, half, foot)
    land.rectangle(0, 0.74, 1, 1, land.tint((226, 234, 244) if snowy else (84, 150, 84)))


def _snow_cap(land: Landscape, peak: float, top: float, half: float, foot: float) -> None:
    edge, drop = 0.38 * half, (foot - top) * 0.38
    cap = [
        (peak - edge, top + drop),
        (peak, top),
        (peak + edge, top + drop),
        (peak + 0.3 * edge, top + 0.8 * drop),
        (peak - 0.3 * edge, top + 1.1 * drop),
    ]
    land.canvas.polygon(cap, fill=mix(SNOW, DUSK["night"][0], DUSK[land.view.time][1] * 0.6))


def _sea(land: Landscape) -> None:
    horizon = 0.6
    land.gradient(horizon, 1, land.tint((60, 130, 200)), land.tint((22, 70, 140)))
    if land.view.light and land.view.time != "day":
        glitter = (255, 190, 110) if land.view.time == "sunset" else (190, 196, 206)
        for k in range(5):
            half = 0.02 * (5 - k) * land.rng.uniform(0.8, 1.2) * land.unit / land.width
            y = horizon + 0.03 + 0.06 * k
            land.rectangle(land.light_x - half, y, land.light_x + half, y + 0.014, glitter)


def _hills(land: Landscape) -> None:
    for row, grass in enumerate(((120, 190, 90), (84, 160, 72))):
        x, half = land.rng.uniform(0, 1) * land.width, land.rng.uniform(0.7, 1.0) * land.width
        y = (0.6 + row * 0.09) * land.height
        land.canvas.ellipse((x - half, y, x + half, y + land.height), fill=land.tint(grass))
        land.rectangle(0, 0.76 + row * 0.09, 1, 1, land.tint(grass))


def _desert(land: Landscape) -> None:
    land.rectangle(0, 0.6, 1, 1, land.tint((232, 190, 112)))
    for dune in ((240, 202, 128), (222, 176, 98)):
        x, half = land.rng.uniform(0, 1) * land.width, land.rng.uniform(0.35, 0.6) * land.width
        top, bottom = 0.55 * land.height, land.height
        land.canvas.ellipse((x - half, top, x + half, bottom), fill=land.tint(dune))


def _city(land: Landscape) -> None:
    lamp: Colour = (206, 226, 244) if land.view.time == "day" else (255, 224, 120)
    left = 0.0
    while left < land.width:
        wide = land.rng.uniform(0.09, 0.16) * land.unit
        top = (0.86 - land.rng.uniform(0.2, 0.48)) * land.height
        land.canvas.rectangle(
            (left, top, left + wide, land.height), fill=land.tint(land.rng.choice(TOWERS))
        )
        _windows(land, left, top, wide, lamp)
        left += wide
    land.rectangle(0, 0.86, 1, 1, land.tint((70, 74, 84)))


def _windows(land: Landscape, left: float, top: float, wide: float, lamp: Colour) -> None:
    y = top + 0.04 * land.unit
    while y < 0.83 * land.height:
        for column in (0.2, 0.58):
            if land.view.time == "day" or land.rng.random() < 0.75:
                x = left + wide * column
                land.canvas.rectangle((x, y, x + wide * 0.22, y + 0.03 * land.unit), fill=lamp)
        y += 0.065 * land.unit


def _forest(land: Landscape) -> None:
    land.rectangle(0, 0.72, 1, 1, land.tint((70, 130, 64)))
    count = max(5, round(7 * land.width / land.unit))
    for k in range(count):
        x = (k + land.rng.uniform(0.2, 0.8)) / count * land.width
        foot = land.rng.uniform(0.76, 0.84) * land.height
        _fir(land, x, foot, land.rng.uniform(0.1, 0.14) * land.unit)


def _fir(land: Landscape, x: float, foot: float, size: float) -> None:
    trunk = (x - size * 0.14, foot - size * 0.3, x + size * 0.14, foot + size * 0.4)
    land.canvas.rectangle(trunk, fill=land.tint((100, 66, 40)))
    for tier in range(3):
        half, low = size * (1 - 0.22 * tier), foot - size * 0.75 * tier
        tip = foot - size * (1.3 + 0.75 * tier)
        land.canvas.polygon(
            [(x - half, low), (x, tip), (x + half, low)], fill=land.tint((34, 104, 54))
        )


GROUND_PAINTERS: dict[str, Callable[[Landscape], None]] = {
    "mountains": _mountains,
    "snow": _mountains,
    "sea": _sea,
    "hills": _hills,
    "desert": _desert,
    "city": _city,
    "forest": _forest,
}


def _extra(land: Landscape) -> None:
    x = EXTRA_X + land.rng.uniform(-0.02, 0.02)
    if land.view.extra == "boat":
        land.icon("boat", x, 0.62, 0.15, land.tint((200, 60, 50)))
    elif land.view.extra == "house":
        land.icon("house", x, 0.72, 0.15, land.tint(land.rng.choice(WALLS)))
    elif land.view.extra == "tree":
        land.icon("tree", x, 0.66, 0.18, land.tint(PALETTE["green"]))
    elif land.view.extra == "cactus":
        _cactus(land, x * land.width, 0.76 * land.height, 0.04 * land.unit)


def _cactus(land: Landscape, x: float, foot: float, q: float) -> None:
    green = land.tint((60, 140, 70))
    for left, top, right, bottom in (
        (-1, -6, 1, 0),
        (-3, -4.6, -2, -2.6),
        (-3, -3, 0, -2),
        (0, -3.8, 3, -2.9),
        (2, -5.4, 3, -2.9),
    ):
        box = (x + left * q, foot + top * q, x + right * q, foot + bottom * q)
        land.canvas.rectangle(box, fill=green)


def paint(rng: Random, canvas: ImageDraw.ImageDraw, width: int, height: int, view: View) -> None:
    """Paint the whole landscape; width and height are those of the canvas in pixels."""
    light_x = LIGHT_X[view.time] + rng.uniform(-0.02, 0.02)
    land = Landscape(rng, canvas, width, height, view, light_x)
    _sky(land)
    GROUND_PAINTERS[view.ground](land)
    _extra(land)
