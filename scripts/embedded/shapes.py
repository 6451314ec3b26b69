"""Flat icons of the objects that the embedded model learns.

An icon has its own coordinates, x to the right and y downward, both about -1..1. A Pen paints it at
its place on the canvas. Icons are deliberately plain. Each has one body colour, a silhouette that
differs from the others even at sixteen pixels, and details only where they help to recognise it
(eyes, a door, a stem).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from PIL import ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]

PALETTE: dict[str, Colour] = {
    "red": (218, 38, 40),
    "orange": (246, 140, 28),
    "yellow": (250, 216, 48),
    "green": (46, 160, 67),
    "blue": (42, 92, 214),
    "purple": (128, 58, 176),
    "pink": (246, 132, 182),
    "brown": (124, 78, 44),
    "black": (18, 18, 20),
    "white": (250, 250, 250),
    "gray": (140, 142, 146),
    "cyan": (38, 194, 198),
}

BARK: Colour = (112, 72, 42)
STEM: Colour = (50, 140, 60)
NIGHT_INK: Colour = (20, 20, 22)
PALE: Colour = (250, 235, 170)


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """Return the colour that lies `share` (0..1) of the way from `first` to `second`."""
    red, green, blue = (int(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def is_dark(colour: Colour) -> bool:
    """Return whether light details are easier to see on this colour than dark ones."""
    return sum(colour) < 220


@dataclass(frozen=True)
class Pen:
    """Paints an icon whose centre is (x, y) and whose half size is `radius`, in pixels."""

    canvas: ImageDraw.ImageDraw
    x: float
    y: float
    radius: float

    def polygon(self, points: Iterable[Point], fill: Colour) -> None:
        """Fill the polygon through `points`."""
        r = self.radius
        self.canvas.polygon([(self.x + r * px, self.y + r * py) for px, py in points], fill=fill)

    def disc(self, x: float, y: float, across: float, down: float, fill: Colour) -> None:
        """Fill the ellipse about (x, y) with the given half axes."""
        self.canvas.ellipse(self._box(x, y, across, down), fill=fill)

    def ring(self, across: float, thickness: float, fill: Colour) -> None:
        """Draw a ring of the given outer half axis and thickness."""
        width = max(1, round(thickness * self.radius))
        self.canvas.ellipse(self._box(0, 0, across, across), outline=fill, width=width)

    def _box(self, x: float, y: float, across: float, down: float) -> tuple[float, ...]:
        r, cx, cy = self.radius, self.x, self.y
        return (
            cx + r * (x - across),
            cy + r * (y - down),
            cx + r * (x + across),
            cy + r * (y + down),
        )


def _box(left: float, top: float, right: float, bottom: float) -> list[Point]:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _heart_outline() -> list[Point]:
    points = []
    for k in range(40):
        t = 2 * math.pi * k / 40
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((math.sin(t) ** 3, -y / 16 - 0.12))
    return points


def _star_outline() -> list[Point]:
    points = []
    for k in range(10):
        reach = 1.08 if k % 2 == 0 else 0.45
        points.append((reach * math.sin(k * math.pi / 5), 0.06 - reach * math.cos(k * math.pi / 5)))
    return points


def _crescent_outline() -> list[Point]:
    """Points of a crescent open to the right: a unit disc minus a smaller disc beside it."""
    outer = [math.radians(52.4 + (307.6 - 52.4) * k / 24) for k in range(25)]
    inner = [math.radians(277.9 + (82.1 - 277.9) * k / 24) for k in range(25)]
    rim = [(0.2 + math.cos(a), math.sin(a)) for a in outer]
    hollow = [(0.2 + 0.5 + 0.8 * math.cos(a), 0.8 * math.sin(a)) for a in inner]
    return rim + hollow


HEART = _heart_outline()
STAR = _star_outline()
CRESCENT = _crescent_outline()
TRIANGLE: list[Point] = [(0, -0.95), (1.05, 0.8), (-1.05, 0.8)]
DIAMOND: list[Point] = [(0, -1.1), (0.78, 0), (0, 1.1), (-0.78, 0)]
BAR = 0.31


def _circle(pen: Pen, body: Colour) -> None:
    pen.disc(0, 0, 1, 1, body)


def _square(pen: Pen, body: Colour) -> None:
    pen.polygon(_box(-0.88, -0.88, 0.88, 0.88), body)


def _ring(pen: Pen, body: Colour) -> None:
    pen.ring(1, 0.42, body)


def _cross(pen: Pen, body: Colour) -> None:
    pen.polygon(_box(-BAR, -0.95, BAR, 0.95), body)
    pen.polygon(_box(-0.95, -BAR, 0.95, BAR), body)


def _house(pen: Pen, body: Colour) -> None:
    # Only a little darker, so that a roof does not get a colour that the background may have.
    roof = (70, 70, 75) if is_dark(body) else mix(body, (0, 0, 0), 0.22)
    pen.polygon(_box(-0.75, -0.15, 0.75, 1), body)
    pen.polygon([(-1, -0.1), (0, -1), (1, -0.1)], roof)
    pen.polygon(_box(-0.2, 0.4, 0.2, 1), PALE if sum(body) < 620 else BARK)


def _tree(pen: Pen, body: Colour) -> None:
    pen.polygon(_box(-0.16, 0.3, 0.16, 1.05), BARK)
    pen.disc(0, -0.3, 0.78, 0.74, body)


def _flower(pen: Pen, body: Colour) -> None:
    pen.polygon(_box(-0.08, 0.2, 0.08, 1.1), STEM)
    for k in range(6):
        angle = k * math.pi / 3
        pen.disc(0.48 * math.cos(angle), -0.25 + 0.48 * math.sin(angle), 0.31, 0.31, body)
    yellowish = body[0] >= 200 and body[2] <= 90
    pen.disc(0, -0.25, 0.26, 0.26, (110, 60, 30) if yellowish else (250, 200, 40))


def _fish(pen: Pen, body: Colour) -> None:
    pen.polygon([(0.4, 0), (1.1, -0.55), (1.1, 0.55)], body)
    pen.disc(-0.15, 0, 0.85, 0.5, body)
    pen.disc(-0.6, -0.1, 0.11, 0.11, (255, 255, 255) if sum(body) < 600 else NIGHT_INK)


def _cat(pen: Pen, body: Colour) -> None:
    ink = (240, 220, 90) if is_dark(body) else NIGHT_INK
    for side in (-1, 1):
        pen.polygon([(0.88 * side, -1.1), (0.12 * side, -0.55), (0.8 * side, 0.1)], body)
    pen.disc(0, 0.12, 0.88, 0.78, body)
    for side in (-1, 1):
        pen.disc(0.34 * side, 0, 0.12, 0.17, ink)
    reddish = body[0] >= 235 and body[1] <= 180
    pen.polygon(
        [(-0.13, 0.3), (0.13, 0.3), (0, 0.46)], (120, 50, 60) if reddish else (240, 130, 150)
    )


def _dog(pen: Pen, body: Colour) -> None:
    ear = (58, 58, 62) if is_dark(body) else mix(body, (0, 0, 0), 0.22)
    ink = (240, 235, 220) if is_dark(body) else NIGHT_INK
    pen.disc(0, -0.1, 0.66, 0.8, body)
    pen.disc(0, 0.42, 0.38, 0.46, mix(body, (255, 255, 255), 0.3))
    for side in (-1, 1):
        pen.polygon(
            [(0.42 * side, -0.85), (0.72 * side, -0.8), (1.05 * side, 0.35), (0.72 * side, 0.5)],
            ear,
        )
        pen.disc(0.27 * side, -0.2, 0.11, 0.14, ink)
    pen.disc(0, 0.22, 0.18, 0.13, NIGHT_INK)


def _apple(pen: Pen, body: Colour) -> None:
    pen.polygon([(-0.06, -0.5), (0.02, -1.05), (0.16, -1.0), (0.08, -0.5)], BARK)
    leaf = mix(STEM, (255, 255, 255), 0.2)
    pen.polygon([(0.1, -0.7), (0.4, -1.05), (0.8, -1.0), (0.5, -0.68)], leaf)
    for side in (-1, 1):
        pen.disc(0.36 * side, 0.02, 0.58, 0.62, body)
        pen.disc(0.24 * side, 0.42, 0.5, 0.58, body)


def _boat(pen: Pen, body: Colour) -> None:
    mast = (70, 70, 75) if is_dark(body) else mix(body, (0, 0, 0), 0.22)
    pen.polygon([(-1.05, 0.35), (1.05, 0.35), (0.65, 0.95), (-0.65, 0.95)], body)
    pen.polygon(_box(-0.12, -1.05, 0, 0.36), mast)
    pen.polygon([(0.06, -1.0), (0.06, 0.2), (0.9, 0.2)], body)


def _sun(pen: Pen, body: Colour) -> None:
    for k in range(8):
        middle, half = k * math.pi / 4, 0.24
        pen.polygon(
            [
                (1.1 * math.cos(middle), 1.1 * math.sin(middle)),
                (0.62 * math.cos(middle - half), 0.62 * math.sin(middle - half)),
                (0.62 * math.cos(middle + half), 0.62 * math.sin(middle + half)),
            ],
            body,
        )
    pen.disc(0, 0, 0.58, 0.58, body)


def _outline(points: list[Point]) -> Callable[[Pen, Colour], None]:
    def paint(pen: Pen, body: Colour) -> None:
        pen.polygon(points, body)

    return paint


ICONS: dict[str, Callable[[Pen, Colour], None]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _outline(TRIANGLE),
    "star": _outline(STAR),
    "heart": _outline(HEART),
    "diamond": _outline(DIAMOND),
    "ring": _ring,
    "cross": _cross,
    "house": _house,
    "tree": _tree,
    "flower": _flower,
    "fish": _fish,
    "cat": _cat,
    "dog": _dog,
    "apple": _apple,
    "boat": _boat,
    "sun": _sun,
    "moon": _outline(CRESCENT),
}

SHAPES: tuple[str, ...] = tuple(ICONS)
"""Every object, in a fixed order."""

ROOMY: tuple[str, ...] = ("circle", "square", "diamond", "heart")
"""Objects with a plain body wide enough to hold another one."""

NATURAL: dict[str, tuple[str, ...]] = {
    "star": ("yellow",),
    "heart": ("red", "red", "pink"),
    "house": ("red", "white", "brown", "blue"),
    "tree": ("green",),
    "flower": ("red", "pink", "purple", "yellow"),
    "fish": ("orange", "blue"),
    "cat": ("orange", "gray", "black", "brown"),
    "dog": ("brown", "orange", "gray"),
    "apple": ("red", "red", "green"),
    "boat": ("red", "brown", "white"),
    "sun": ("yellow", "orange"),
    "moon": ("yellow", "white"),
}
"""Object -> its colours if the caption names none; the other objects may have any colour."""
